"""The variational maths of VRM on plain tensors: no model, no tokenizer, no trainer.

* B is the number of pairs (or texts), K of objectives, d of latent dimensions.
* Everything runs in the dtype it is given. Training hands over float32, because digamma and lgamma differences lose
  all their digits in bfloat16; evaluation float64, because in float32 they err by 0.04 nats at concentrations of 1e4.
* KLs are summed over dimensions and averaged over pairs, in that order. Averaging mu and log-variance over the
  dimensions first under-counts the KL (Jensen); a published model does that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


def dirichlet_kl(alpha: Tensor, prior: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(prior)) in nats.

    Args:
        alpha: posterior concentrations, shape (B, K), > 0.
        prior: prior concentrations, shape (K,), > 0.

    Returns:
        Shape (B,).

    Source: VRM, Eq. 8.
    """
    total = alpha.sum(-1)
    expected_log = torch.digamma(alpha) - torch.digamma(total).unsqueeze(-1)
    log_normaliser = torch.lgamma(total) - torch.lgamma(alpha).sum(-1)
    prior_log_normaliser = torch.lgamma(prior.sum()) - torch.lgamma(prior).sum()
    return log_normaliser - prior_log_normaliser + ((alpha - prior) * expected_log).sum(-1)


def gaussian_kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, diag(exp(log_variance))) || N(0, I)) of each dimension, in nats.

    Args:
        mu: posterior means, shape (B, d).
        log_variance: posterior log-variances, shape (B, d).

    Returns:
        Shape (B, d); sum over the last axis for the KL of a text.

    Source: VRM, Eq. 9.
    """
    return 0.5 * (mu.square() + log_variance.exp() - 1.0 - log_variance)


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """Sum over dimensions of each dimension's mean KL, where the first `floor` nats of each cost nothing.

    Args:
        kl: KL of each dimension, shape (B, d), in nats.
        floor: free nats a dimension; 0 gives the plain KL.

    Returns:
        Scalar.

    Source: Kingma et al. 2016 (inverse autoregressive flow), Eq. 15.
    """
    return kl.mean(0).clamp(min=floor).sum()


def sample_dirichlet(alpha: Tensor) -> Tensor:
    """One reparameterised sample a row, shape (B, K), gradients through alpha (Figurnov et al. 2018)."""
    return torch.distributions.Dirichlet(alpha, validate_args=False).rsample()


def sample_gaussian(mu: Tensor, log_variance: Tensor) -> Tensor:
    """One reparameterised sample a row, shape (B, d)."""
    return mu + (0.5 * log_variance).exp() * torch.randn_like(mu)


def dirichlet_mean(alpha: Tensor) -> Tensor:
    """E[w] under Dir(alpha), shape (B, K)."""
    return alpha / alpha.sum(-1, keepdim=True)


def preference_loss(reward_chosen: Tensor, reward_rejected: Tensor) -> Tensor:
    """Mean of -log sigmoid(r_w - r_l), a scalar. Source: VRM, Eq. 12 (Bradley-Terry)."""
    return -F.logsigmoid(reward_chosen - reward_rejected).mean()


def supervision_kl(weights: Tensor, target: Tensor) -> Tensor:
    """KL(target || weights) of each row, shape (B,), in nats; both arguments (B, K) on the simplex."""
    return torch.special.xlogy(target, target).sum(-1) - torch.special.xlogy(target, weights).sum(-1)


def supervision_mse(weights: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over the objectives, shape (B,)."""
    return (weights - target).square().mean(-1)


def supervision_mae(weights: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the objectives, shape (B,)."""
    return (weights - target).abs().mean(-1)


def supervision_rank(weights: Tensor, target: Tensor) -> Tensor:
    """Pairwise ranking hinge with the target's own gaps as margins, shape (B,).

    For each pair of objectives with t_i > t_j, the shortfall of w_i - w_j against t_i - t_j; averaged over those
    pairs. Zero at the target. A hinge without margin would also be zero at uniform weights, which rank nothing.
    """
    target_gap = target.unsqueeze(-1) - target.unsqueeze(-2)
    weight_gap = weights.unsqueeze(-1) - weights.unsqueeze(-2)
    ordered = (target_gap > 0).to(weights.dtype)
    shortfall = F.relu(target_gap - weight_gap) * ordered
    return shortfall.sum((-2, -1)) / ordered.sum((-2, -1)).clamp(min=1.0)


SUPERVISION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": supervision_kl,
    "mse": supervision_mse,
    "mae": supervision_mae,
    "rank": supervision_rank,
}
"""Losses between E[w] (B, K) and its target (B, K), by the name they have in the configuration (VRM, Eq. 13)."""


@dataclass(frozen=True)
class Weights:
    """How much each term of the objective counts.

    Args:
        beta_w: weight of KL(q(w|x) || p(w)).
        beta_z: weight of KL(q(z|x,y) || p(z)), both responses.
        supervision: lambda of Eq. 14.
        score_anchor: mu, our addition.
        residual: weight of the squared difference of b(z) within pairs, our addition.
        free_bits: nats of each latent dimension's KL that cost nothing.
    """

    beta_w: float = 1.0
    beta_z: float = 1.0
    supervision: float = 0.0
    score_anchor: float = 0.0
    free_bits: float = 0.0
    residual: float = 0.0


@dataclass(frozen=True)
class Posterior:
    """What a VRM says of N texts: q(w|x), q(z|x,y), and the rewards that it makes of them.

    One record for all who ask: training, evaluation and the PAC-Bayes bound. `rated` + `residual` = `reward`.

    Args:
        alpha: Dirichlet concentrations of q(w|x), shape (N, K).
        mu: means of q(z|x,y), shape (N, d).
        log_variance: log-variances of q(z|x,y), shape (N, d).
        reward: reward at the means of the latents, or under a sample of them, shape (N,).
        rated: the part of it that the objectives explain, e^tau w . g(z), shape (N,); all of it without a residual.
        per_objective: g(z), in the ratings' unit, shape (N, K); None with the MLP decoder.
        residual: b(z), shape (N,); None without a residual. Its gradient reaches the weights of b and nothing else.
    """

    alpha: Tensor
    mu: Tensor
    log_variance: Tensor
    reward: Tensor
    rated: Tensor
    per_objective: Tensor | None = None
    residual: Tensor | None = None

    def filled(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    def select(self, rows: slice | Tensor) -> Posterior:
        """Some of the texts."""
        return Posterior(**{name: value[rows] for name, value in self.filled().items()})

    def halves(self) -> tuple[Posterior, Posterior]:
        """The posteriors of B chosen texts and of the B rejected ones that follow them."""
        pairs = len(self.alpha) // 2
        return self.select(slice(pairs)), self.select(slice(pairs, None))

    def cpu(self) -> Posterior:
        """The same in the main memory, in float32."""
        return Posterior(**{name: value.float().cpu() for name, value in self.filled().items()})

    @staticmethod
    def concatenate(parts: Sequence[Posterior]) -> Posterior:
        """The texts of several, in their order."""
        found = [part.filled() for part in parts]
        return Posterior(**{name: torch.cat([part[name] for part in found]) for name in found[0]})


@dataclass(frozen=True)
class PairAnnotation:
    """Annotated scores of B pairs, normalised by the training split; each of shape (B, K)."""

    target: Tensor
    chosen: Tensor
    rejected: Tensor


def objective(
    chosen: Posterior,
    rejected: Posterior,
    prior: Tensor,
    weights: Weights,
    supervision: str = "kl",
    annotation: PairAnnotation | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss of B pairs, and its terms.

    Args:
        chosen, rejected: posteriors of B texts each; rewards are those of one sample of the latents, w being the
            pair's. Of q(w|x), which both have in common, the chosen text's is taken.
        prior: Dirichlet prior concentrations, shape (K,).
        weights: see `Weights`; `Weights()` gives the strict negative ELBO.
        supervision: a key of `SUPERVISION`.
        annotation: normalised scores; None where nothing is annotated.

    Returns:
        The loss, a scalar, and detached scalars by name: preference_loss, kl_w, kl_z (sum over dimensions and over
        both responses, mean over pairs, nats), negative_elbo (unit weights), supervision_loss, anchor_loss,
        residual_loss (mean squared difference of b).

    Raises:
        ValueError: a weight above 0 asks for annotations, per-objective scores or a residual that are not there.

    Source: VRM, Eq. 11 and 14; the anchor and the residual are ours.
    """
    kl_w = dirichlet_kl(chosen.alpha, prior).mean()
    kl_z_chosen = gaussian_kl(chosen.mu, chosen.log_variance)
    kl_z_rejected = gaussian_kl(rejected.mu, rejected.log_variance)
    kl_z = (kl_z_chosen + kl_z_rejected).sum(-1).mean()
    preference = preference_loss(chosen.reward, rejected.reward)
    charged_z = free_bits(kl_z_chosen, weights.free_bits) + free_bits(kl_z_rejected, weights.free_bits)
    loss = preference + weights.beta_w * kl_w + weights.beta_z * charged_z
    terms = {"preference_loss": preference, "kl_w": kl_w, "kl_z": kl_z, "negative_elbo": preference + kl_w + kl_z}

    if annotation is None and (weights.supervision > 0 or weights.score_anchor > 0):
        raise ValueError("supervision_weight and score_anchor_weight need annotated scores, and the pairs have none")
    if annotation is not None:
        terms["supervision_loss"] = SUPERVISION[supervision](dirichlet_mean(chosen.alpha), annotation.target).mean()
        loss = loss + weights.supervision * terms["supervision_loss"]
        if chosen.per_objective is not None:
            terms["anchor_loss"] = F.mse_loss(chosen.per_objective, annotation.chosen) + F.mse_loss(
                rejected.per_objective, annotation.rejected
            )
            loss = loss + weights.score_anchor * terms["anchor_loss"]
        elif weights.score_anchor > 0:
            raise ValueError("score_anchor_weight needs per-objective scores: decoder must be `mixture`")
    if chosen.residual is not None:
        terms["residual_loss"] = (chosen.residual - rejected.residual).square().mean()
        loss = loss + weights.residual * terms["residual_loss"]
    elif weights.residual > 0:
        raise ValueError("residual_penalty needs a residual: set residual to true")
    return loss, {name: value.detach() for name, value in terms.items()}


def weights_sd(alpha: Tensor) -> float:
    """Standard deviation of E[w] over prompts, mean over the objectives; 0: w says the same of every prompt.

    Args:
        alpha: concentrations of q(w|x), shape (N, K).
    """
    return dirichlet_mean(alpha).std(0, unbiased=False).mean().item()


def active_units(mu: Tensor, threshold: float = 0.01) -> int:
    """How many latent dimensions the encoder uses: Var_x(mu_j) > threshold.

    Args:
        mu: posterior means over many texts, shape (N, d).
        threshold: variance above which a dimension counts.

    Source: Burda et al. 2016 (importance weighted autoencoders), section 5.
    """
    return int((mu.var(0, unbiased=False) > threshold).sum())


# Samples of a batch of pairs, the same however many processes share the batch.
#
# * B is the number of pairs of one process, K of objectives, d of latent dimensions.
# * A model takes a `Sampler` for one forward pass and draws nothing without one. It never talks to other processes on
#   its own: whoever trains in several of them passes `shared_sampler`, and so knows that all have to call it together.
# * Trainers seed all processes alike. Left alone, each would draw the same noise for its own pairs: pairs of different
#   processes would share their samples, and a batch would have fewer independent ones than pairs.
# * Shared, each process draws for all pairs, in the order in which one process would have them, and keeps its own rows.
#   So the noise is that of one process with the whole batch, and a test can compare loss curves.
# * Two exceptions for a VRM: an epoch's last batch, which several processes fill up with pairs from its beginning; and
#   `free_bits`, whose floor is on the mean over one forward pass, and so over the pairs of one process.

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
