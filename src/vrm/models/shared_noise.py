"""One sample of the latents of a batch of pairs, the same however many processes share the batch.

* B is the number of pairs of one process, K of objectives, d of latent dimensions.
* Trainers seed all processes alike. Left alone, each would draw the same noise for its own pairs: pairs of different
  processes would share their samples, and a batch would have fewer independent ones than pairs.
* Here each process draws for all pairs, in the order in which one process would have them, and keeps its own rows. So
  the noise is that of one process with the whole batch, and a test can compare loss curves.
* Two exceptions: an epoch's last batch, which several processes fill up with pairs from its beginning; and `free_bits`,
  whose floor is on the mean over one forward pass, and so over the pairs of one process.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from vrm.models.latents import sample_dirichlet, sample_gaussian


def sample_pairs(alpha: Tensor, mu: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised samples, w once a pair and z once a text; all processes have to call it together.

    Args:
        alpha: concentrations of q(w|x) of the pairs, shape (B, K).
        mu: means of q(z|x,y), first of the chosen texts, then of the rejected ones, shape (2B, d).
        log_variance: log-variances of q(z|x,y), likewise.

    Returns:
        w of each text, shape (2B, K), and z, shape (2B, d).

    Source: VRM, Eq. 10; layout of the batch: `accelerate.data_loader.BatchSamplerShard`.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return sample_dirichlet(alpha).repeat(2, 1), sample_gaussian(mu, log_variance)
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    # how much noise a Dirichlet sample takes depends on alpha, so the other processes' alphas are needed as well
    alphas = [torch.empty_like(alpha) for _ in range(processes)]
    distributed.all_gather(alphas, alpha.detach().contiguous())
    alphas[rank] = alpha  # the one with a gradient
    weights = sample_dirichlet(torch.cat(alphas)).chunk(processes)[rank]
    pairs, dimensions = len(alpha), mu.shape[-1]
    noise = torch.randn(2, processes, pairs, dimensions, dtype=mu.dtype, device=mu.device)[:, rank]
    return weights.repeat(2, 1), mu + (0.5 * log_variance).exp() * noise.reshape(2 * pairs, dimensions)
