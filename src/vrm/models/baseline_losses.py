"""What the published reward models minimise that the VRM is compared with, on plain tensors: no model, no trainer.

* B is the number of pairs (or texts), K of rated aspects, d of latent dimensions, n of Weibull units.
* Everything runs in the dtype it is given; callers hand over float32.
* Formulas come from the papers. Where the released code of a paper has a known fault, the function says so and has the
  formula; a test of each is in `tests/models/test_baseline_losses.py`.
* A batch that says nothing (no rating, no variance) costs nothing: the loss is 0 with zero gradients, never NaN.
* Every objective takes what the head says of B chosen and of their B rejected responses (`BaselineHead.forward`, with
  `reward` among the parts), the ratings of pairs that have some, the settings of the kind and the progress of training
  (0 to 1), and gives the loss and its terms, detached, by name. Terms that a setting turns off are reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from vrm.config.reward import (
    BottleneckSettings,
    GatedSettings,
    GaussianSettings,
    LengthHeadsSettings,
    MultitaskSettings,
    NonnegativeSettings,
)
from vrm.models.latents import PairAnnotation, gaussian_kl, preference_loss

EULER = 0.5772156649015329
"""Euler's constant, minus the mean of ln(x) under an exponential distribution of rate 1."""
QUADRATURE_NODES = 20
"""Gauss-Hermite nodes of an expectation over a difference of Gaussian rewards."""
CORRECTION_GRID = tuple(round(0.05 * step, 2) for step in range(20))
"""Length corrections that are tried, 0 to 0.95."""


# Ratings: multitask, gated


def rating_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error over what is rated, a scalar; 0 where nothing is.

    Args:
        scores: predicted ratings, shape (B, K).
        ratings: normalised ratings, shape (B, K); NaN where an aspect is not rated.

    Source: SMORM (arXiv 2507.07375); ArmoRM (Wang et al. 2024, arXiv 2406.12845).
    """
    rated = ~ratings.isnan()
    # masked before it is squared: a NaN times zero is a NaN, in the gradient too
    error = torch.where(rated, scores - ratings.nan_to_num(), 0.0)
    return error.square().sum() / rated.sum().clamp(min=1)


def aspect_preference_loss(
    scores_chosen: Tensor, scores_rejected: Tensor, ratings_chosen: Tensor, ratings_rejected: Tensor
) -> Tensor:
    """Binary cross-entropy of each aspect's preference, a mean over pairs and aspects; 0 where nothing is rated.

    The label is 1 where the chosen response is rated higher, 0 where lower, and 1/2 where both are rated alike.

    Args:
        scores_chosen, scores_rejected: aspect scores g, shape (B, K).
        ratings_chosen, ratings_rejected: ratings, shape (B, K); NaN where an aspect is not rated.

    Source: CB-RM (Laguna et al. 2025, arXiv 2507.04695).
    """
    gap = ratings_chosen - ratings_rejected
    rated = ~gap.isnan()
    label = 0.5 * (1 + gap.nan_to_num().sign())
    loss = F.binary_cross_entropy_with_logits(scores_chosen - scores_rejected, label, reduction="none")
    return torch.where(rated, loss, 0.0).sum() / rated.sum().clamp(min=1)


# Length: gated, length_heads


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two vectors (N,), a scalar; 0, without gradient, where one of them is constant."""
    # not a variance of 0: the mean of equal numbers need not be exactly theirs
    varies = (first.max() > first.min()) & (second.max() > second.min())
    # each divided by its own norm, whose gradient at 0 is 0 and not infinite
    first, second = (F.normalize(values - values.mean(), dim=0) for values in (first, second))
    return torch.where(varies, first @ second, 0.0)


def length_correlation_loss(quality: Tensor, length_reward: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """|rho(L, r_Q)| + 1 - rho(L, r_L), and both correlations as (2,).

    The release takes |rho(L, r_Q + r_L)| in addition, and counts the prompt's tokens.

    Args:
        quality: reward of the quality head, shape (N,).
        length_reward: reward of the length head, shape (N,).
        lengths: tokens of the response alone, shape (N,).

    Source: ODIN (Chen et al. 2024, arXiv 2402.07319).
    """
    rho = torch.stack([pearson(lengths, quality), pearson(lengths, length_reward)])
    return rho[0].abs() + 1 - rho[1], rho


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors (N,), ties sharing their mean rank; 0 where one is constant."""
    ranks = [_ranks(values) - (len(values) + 1) / 2 for values in (first, second)]
    scale = np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum())
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[place]


def length_corrections(scores: np.ndarray, verbosity: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """How much of verbosity each aspect's score has to lose: the smallest c of the grid with
    Spearman(g - c v, v) <= `limit`, and the largest where none is enough.

    ArmoRM's release fits these corrections and then never uses what they correct.

    Args:
        scores: aspect scores g, shape (N, K).
        verbosity: v, shape (N,).
        limit: highest rank correlation that may be left.

    Returns:
        c, shape (K,), and the correlation that is left, shape (K,).

    Source: ArmoRM (arXiv 2406.12845), where verbosity is a rating and not a length.
    """
    found, left = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for k, column in enumerate(scores.T):
        for found[k] in CORRECTION_GRID:
            left[k] = spearman(column - found[k] * verbosity, verbosity)
            if left[k] <= limit:
                break
    return found, left


# Bottleneck


def averaged_kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL to N(0, 1) of the mean of mu and the mean of the log-variance over the dimensions, shape (B,), in nats.

    What InfoRM's release computes instead of a sum over dimensions. It is convex in both, so by Jensen at most the sum
    over d; means that cancel cost nothing. Here for the row that copies the release, and for nothing else.

    Args:
        mu, log_variance: of the latent, shape (B, d).

    Source: InfoRM's released code (Miao et al. 2024, arXiv 2402.09345).
    """
    return gaussian_kl(mu.mean(-1), log_variance.mean(-1))


# Gaussian rewards


def thurstone_loss(difference: Tensor, variance: Tensor) -> Tensor:
    """Mean of -ln Phi(difference / sqrt(variance)), a scalar.

    DPL's release writes sigmoid(sqrt(2 pi) x), whose slope at 0 is pi/2 times that of Phi.

    Args:
        difference: mean reward of the chosen response less that of the rejected one, shape (B,).
        variance: sum of both rewards' variances, shape (B,), > 0.

    Source: Thurstone 1927; DPL (Siththaranjan et al. 2024, arXiv 2312.08358).
    """
    return -torch.special.log_ndtr(difference / variance.sqrt()).mean()


def marginal_loss(difference: Tensor, variance: Tensor) -> Tensor:
    """Mean of -ln E sigmoid(z), z ~ N(difference, variance), a scalar: Bradley-Terry with the noise integrated out.

    Args:
        difference, variance: as for `thurstone_loss`.
    """
    z, weight = _quadrature(difference, variance)
    return -torch.logsumexp(weight.log() + F.logsigmoid(z), dim=-1).mean()


def expected_loss(difference: Tensor, variance: Tensor) -> Tensor:
    """Mean of E[-ln sigmoid(z)], z ~ N(difference, variance), a scalar: what PURM minimises, by sampling.

    -ln sigmoid is convex, so by Jensen no variance lowers the loss: it alone drives every variance to 0. That is the
    published objective, and what this row is for.

    Args:
        difference, variance: as for `thurstone_loss`.

    Source: PURM (arXiv 2503.22480); quadrature in place of its Monte Carlo.
    """
    z, weight = _quadrature(difference, variance)
    return (weight * F.softplus(-z)).sum(-1).mean()


def _quadrature(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Points z (B, Q) of N(mean, variance), both (B,), and their weights (Q,), which sum to 1."""
    nodes, weights = (torch.as_tensor(values, dtype=mean.dtype, device=mean.device) for values in _hermite())
    return mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * nodes, weights


@cache
def _hermite() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    return nodes, weights / weights.sum()


def anchor_loss(mean: Tensor, variance: Tensor, score: Tensor, thresholds: Tensor) -> Tensor:
    """Ordinal loss of an external score in three grades, a mean over what is scored; 0 where nothing is.

    With p = P(reward > tau) = Phi((mean - tau) / std) at both thresholds, the grades have the probabilities 1 - p_1,
    p_1 - p_2 and p_2, and a text's loss is -ln of its own; a score that is a threshold is in the grade above.

    Args:
        mean, variance: of the reward, shape (B,).
        score: external score, shape (B,); NaN where there is none.
        thresholds: tau, ascending, shape (2,).

    Source: anchored variance-aware reward modelling (arXiv 2605.11865), Eq. 7; `anchor_2_loss` of
    fsmiu/Anchor-guided-Variance-aware-Reward-Modeling. That takes the logarithm of a difference of two probabilities,
    which underflows; here it is had from their logarithms.
    """
    scored = ~score.isnan()
    grade = (score.nan_to_num().unsqueeze(-1) >= thresholds).sum(-1)
    low, high = ((mean.unsqueeze(-1) - thresholds) / variance.sqrt().unsqueeze(-1)).unbind(-1)  # low is the larger
    log_ndtr = torch.special.log_ndtr
    # ln(Phi(low) - Phi(high)) on the side where both are small, so that neither rounds to 1
    flip = low + high > 0
    upper, lower = torch.where(flip, -high, low), torch.where(flip, -low, high)
    share = -torch.expm1(log_ndtr(lower) - log_ndtr(upper))
    between = log_ndtr(upper) + share.clamp(min=torch.finfo(mean.dtype).tiny).log()  # 0 where thresholds are equal
    likelihood = torch.stack([log_ndtr(-low), between, log_ndtr(high)], dim=-1)
    loss = -likelihood.gather(-1, grade.unsqueeze(-1)).squeeze(-1)
    return torch.where(scored, loss, 0.0).sum() / scored.sum().clamp(min=1)


def anchor_thresholds(scores: np.ndarray) -> tuple[float, float]:
    """First and third quartile of the training split's scores (N,).

    Raises:
        ValueError: they are equal, so that no text is in the middle grade.
    """
    low, high = np.quantile(scores, [0.25, 0.75])
    if not low < high:
        raise ValueError(
            f"both quartiles of the training responses' mean ratings are {low:g}: they make no three grades"
        )
    return float(low), float(high)


# Weibull units


def weibull_scale(shape: Tensor, mean: Tensor) -> Tensor:
    """lambda of Weibull(lambda, k) with that mean: mean / Gamma(1 + 1/k); all of one shape."""
    return mean * torch.exp(-torch.lgamma(1 + 1 / shape))


def weibull_sample(shape: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
    """lambda (-ln(1 - u))^(1/k), reparameterised, from u in [0, 1); all of one shape."""
    # at u = 0 the gradient in k would be 0 times infinity
    return scale * (-torch.log1p(-uniform)).clamp(min=1e-7).pow(1 / shape)


def weibull_kl(shape: Tensor, scale: Tensor) -> Tensor:
    """KL(Weibull(lambda, k) || Gamma(1, 1)) of each unit, in nats; any shape.

    Args:
        shape: k, > 0.
        scale: lambda, > 0.

    Source: Zhang et al. 2018 (Weibull hybrid autoencoding inference, arXiv 1803.01328) at Gamma(1, 1); BNRM (arXiv
    2602.10623).
    """
    mean = scale * torch.exp(torch.lgamma(1 + 1 / shape))
    return EULER / shape - scale.log() + shape.log() + mean - EULER - 1


def weibull_second_moment(shape: Tensor, scale: Tensor) -> Tensor:
    """E[x^2] = lambda^2 Gamma(1 + 2/k); any shape."""
    return scale.square() * torch.exp(torch.lgamma(1 + 2 / shape))


# The objectives: the losses, weighed by a kind's settings.

Parts = Mapping[str, Tensor]
Terms = dict[str, Tensor]
Objective = Callable[[Parts, Parts, PairAnnotation | None, object, float], tuple[Tensor, Terms]]

LIKELIHOODS = {"thurstone": thurstone_loss, "marginal": marginal_loss, "expected": expected_loss}
"""Losses of a difference of Gaussian rewards, by the name they have in the configuration."""


def bottleneck(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: BottleneckSettings, progress: float
) -> tuple[Tensor, Terms]:
    """Bradley-Terry + beta KL; kl_z is of both responses, a mean over pairs, as the VRM's."""
    preference = preference_loss(chosen["reward"], rejected["reward"])
    kl = averaged_kl if settings.kl == "averaged" else _summed_kl
    kl_z = sum(kl(side["mu"], side["log_variance"]) for side in (chosen, rejected)).mean()
    ramp = min(1.0, progress / settings.beta_warmup) if settings.beta_warmup > 0 else 1.0
    return preference + ramp * settings.beta * kl_z, _detached(preference_loss=preference, kl_z=kl_z)


def multitask(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: MultitaskSettings, progress: float
) -> tuple[Tensor, Terms]:
    """Bradley-Terry + eta times the mean over both responses of the ratings' squared error."""
    preference = preference_loss(chosen["reward"], rejected["reward"])
    if annotation is None:
        # the aspects' layer has to be in every loss, or several processes wait for its gradient
        return preference + 0.0 * chosen["per_objective"].sum(), _detached(preference_loss=preference)
    ratings = _rating_loss(chosen["per_objective"], rejected["per_objective"], annotation)
    return preference + settings.rating_weight * ratings, _detached(preference_loss=preference, rating_loss=ratings)


def gated(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: GatedSettings, progress: float
) -> tuple[Tensor, Terms]:
    """Ratings and then preferences, or, `joint`, both at once; sampled aspects have preferences of their own.

    Raises:
        ValueError: the pairs have no ratings.
    """
    if annotation is None:
        raise ValueError("kind: gated needs annotated scores, and the pairs have none")
    preference = preference_loss(chosen["reward"], rejected["reward"])
    if settings.sampled:
        aspects = aspect_preference_loss(chosen["ratings"], rejected["ratings"], annotation.chosen, annotation.rejected)
        kl = sum(_summed_kl(side["mu"], side["log_variance"]) for side in (chosen, rejected)).mean()
        loss = preference + settings.rating_weight * aspects + settings.kl_weight * kl
        return loss, _detached(preference_loss=preference, aspect_loss=aspects, kl_g=kl)
    ratings = _rating_loss(chosen["ratings"], rejected["ratings"], annotation)
    terms = _detached(preference_loss=preference, rating_loss=ratings)
    if settings.joint:
        return preference + settings.rating_weight * ratings, terms
    now, other = (ratings, preference) if progress < settings.first_phase else (preference, ratings)
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        now = now + 0.0 * other  # several processes wait for the gradient of every parameter
    return now, terms


def length_heads(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: LengthHeadsSettings, progress: float
) -> tuple[Tensor, Terms]:
    """Bradley-Terry on both heads' sum + lambda_L (|rho(L, r_Q)| + 1 - rho(L, r_L)) + lambda_O |W_Q . W_L|.

    Each pair's rewards are compared before anything is summed over the batch.
    """
    both = {name: torch.cat([chosen[name], rejected[name]]) for name in ("reward", "length_reward", "lengths")}
    preference = preference_loss(*(both["reward"] + both["length_reward"]).chunk(2))
    length, rho = length_correlation_loss(both["reward"], both["length_reward"], both["lengths"])
    overlap = chosen["overlap"].mean()
    loss = preference + settings.length_weight * length + settings.orthogonality_weight * overlap
    return loss, _detached(
        preference_loss=preference,
        length_loss=length,
        overlap=overlap,
        quality_length_correlation=rho[0],
        length_length_correlation=rho[1],
    )


def gaussian(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: GaussianSettings, progress: float
) -> tuple[Tensor, Terms]:
    """One of three likelihoods of the difference + anchors on the mean rating.

    Raises:
        ValueError: anchors are asked for, and the pairs have no ratings.
    """
    difference = chosen["reward"] - rejected["reward"]
    preference = LIKELIHOODS[settings.likelihood](difference, chosen["variance"] + rejected["variance"])
    terms = {"preference_loss": preference, "variance": 0.5 * (chosen["variance"] + rejected["variance"]).mean()}
    if settings.anchor_weight == 0:
        return preference, _detached(**terms)
    if annotation is None:
        raise ValueError("gaussian.anchor_weight needs annotated scores, and the pairs have none")
    sides = ((chosen, annotation.chosen), (rejected, annotation.rejected))
    anchors = [
        anchor_loss(side["reward"], side["variance"], ratings.mean(-1), side["thresholds"][0])
        for side, ratings in sides
    ]
    terms["anchor_loss"] = 0.5 * sum(anchors)
    return preference + settings.anchor_weight * terms["anchor_loss"], _detached(**terms)


def nonnegative(
    chosen: Parts, rejected: Parts, annotation: PairAnnotation | None, settings: NonnegativeSettings, progress: float
) -> tuple[Tensor, Terms]:
    """Bradley-Terry + beta (KL of both responses' units + KL of the weights)."""
    preference = preference_loss(chosen["reward"], rejected["reward"])
    kl = (chosen["kl"] + rejected["kl"]).mean() + chosen["kl_common"].mean()
    return preference + settings.beta * kl, _detached(preference_loss=preference, kl=kl)


OBJECTIVES: dict[str, Objective] = {
    "bottleneck": bottleneck,
    "multitask": multitask,
    "gated": gated,
    "length_heads": length_heads,
    "gaussian": gaussian,
    "nonnegative": nonnegative,
}
"""The objective of each `kind` of the configuration."""


def _summed_kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    return gaussian_kl(mu, log_variance).sum(-1)


def _rating_loss(chosen: Tensor, rejected: Tensor, annotation: PairAnnotation) -> Tensor:
    return 0.5 * (rating_loss(chosen, annotation.chosen) + rating_loss(rejected, annotation.rejected))


def _detached(**terms: Tensor) -> Terms:
    return {name: value.detach() for name, value in terms.items()}
