"""What each published reward model minimises: the losses of `vrm.models.baseline_losses`, weighed by its settings.

Every objective takes what the head says of B chosen and of their B rejected responses (`BaselineHead.forward`, with
`reward` among the parts), the pairs' ratings where they have any, the kind's settings and the progress of the training
(0 to 1), and gives the loss and its terms, detached, by name. Terms that a setting turns off are reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed

from vrm.config.baselines import (
    BottleneckSettings,
    GatedSettings,
    GaussianSettings,
    LengthHeadsSettings,
    MultitaskSettings,
    NonnegativeSettings,
)
from vrm.models.baseline_losses import (
    anchor_loss,
    aspect_preference_loss,
    averaged_kl,
    expected_loss,
    length_correlation_loss,
    marginal_loss,
    rating_loss,
    thurstone_loss,
)
from vrm.models.latents import PairAnnotation, gaussian_kl, preference_loss

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
