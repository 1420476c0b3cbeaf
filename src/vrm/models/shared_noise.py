"""One sample of the latents of a batch of pairs, the same however many processes share the batch.

* B is the number of pairs of one process, K of objectives, d of latent dimensions.
* A model takes a `Sampler` for one forward pass and draws nothing without one. It never talks to other processes on
  its own: whoever trains in several of them passes `shared_sampler`, and so knows that all have to call it together.
* Trainers seed all processes alike. Left alone, each would draw the same noise for its own pairs: pairs of different
  processes would share their samples, and a batch would have fewer independent ones than pairs.
* Shared, each process draws for all pairs, in the order in which one process would have them, and keeps its own rows.
  So the noise is that of one process with the whole batch, and a test can compare loss curves.
* Two exceptions: an epoch's last batch, which several processes fill up with pairs from its beginning; and `free_bits`,
  whose floor is on the mean over one forward pass, and so over the pairs of one process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .latents import sample_dirichlet, sample_gaussian

Sampler = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From alpha, mu and log-variance of 2B texts, B chosen and then their B rejected ones, to w (2B, K) and z (2B, d)."""


def sample_pairs(alpha: Tensor, mu: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised samples, w once a pair and z once a text.

    Args:
        alpha: concentrations of q(w|x), shape (2B, K); both rows of a pair have the same prompt, so the chosen text's
            stand for the pair.
        mu: means of q(z|x,y), shape (2B, d).
        log_variance: log-variances of q(z|x,y), likewise.

    Returns:
        w of each text, shape (2B, K), and z, shape (2B, d).

    Source: VRM, Eq. 10.
    """
    return sample_dirichlet(alpha[: len(alpha) // 2]).repeat(2, 1), sample_gaussian(mu, log_variance)


def shared_sampler(gather: Callable[[Tensor], Tensor], rank: int, processes: int) -> Sampler:
    """`sample_pairs` for a batch that several processes share; all of them have to call it together.

    Args:
        gather: the rows of all processes, in the order of their ranks, from this process's; `Accelerator.gather`.
        rank: this process's number.
        processes: how many there are; with one, nothing is gathered.

    Source: layout of the batch: `accelerate.data_loader.BatchSamplerShard`.
    """

    def sample(alpha: Tensor, mu: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        pairs, dimensions = len(alpha) // 2, mu.shape[-1]
        # how much noise a Dirichlet sample takes depends on alpha, so the other processes' alphas are needed as well
        alphas = list(gather(alpha[:pairs].detach().contiguous()).chunk(processes))
        alphas[rank] = alpha[:pairs]  # the one with a gradient
        weights = sample_dirichlet(torch.cat(alphas)).chunk(processes)[rank]
        noise = torch.randn(2, processes, pairs, dimensions, dtype=mu.dtype, device=mu.device)[:, rank]
        return weights.repeat(2, 1), mu + (0.5 * log_variance).exp() * noise.reshape(2 * pairs, dimensions)

    return sample_pairs if processes == 1 else sample
