"""Settings of the published reward models that the VRM is compared with, one section a kind."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vrm.config.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class BottleneckSettings(Section):
    """InfoRM: a Gaussian latent and a linear decoder; a VRM without w."""

    latent_dim: PositiveInt = Field(16, description="d, dimensions of z.")
    beta: NonNegativeFloat = Field(0.001, description="Weight of both responses' KL(q(z|x,y) || N(0, I)).")
    beta_warmup: Fraction = Field(0.2, description="Share of the steps over which beta rises linearly from 0.")
    kl: Literal["summed", "averaged"] = Field(
        "summed",
        description="Over dimensions: the sum, or, as InfoRM's release has it (with d = 512 and beta = 1), the KL of "
        "the mean over them, which is less than the sum over d.",
    )


class MultitaskSettings(Section):
    """SMORM: one more output an aspect, regressed on its rating; the reward is the preference output."""

    rating_weight: NonNegativeFloat = Field(
        1.0, description="eta, weight of the mean squared error of both responses' ratings."
    )


class GatedSettings(Section):
    """ArmoRM: aspect scores weighed by a gate that reads the prompt; CB-RM with `joint` and `sampled`."""

    joint: bool = Field(
        False,
        description="Ratings and preferences at once. Otherwise in two phases, as ArmoRM: ratings train backbone and "
        "aspects, then length is taken out of the aspects, then preferences train the gate alone.",
    )
    sampled: bool = Field(
        False,
        description="CB-RM's aspects: Gaussian, sampled while training, trained on which response each aspect prefers "
        "and not on ratings. Needs `joint`. (The gate stays a softmax here; theirs has signs.)",
    )
    prompt_pooling: Literal["last", "attention"] = Field(
        "last",
        description="What the gate reads: the last prompt token's state, or attention over the prompt's. Where it is "
        "compared with a VRM, both should read the same.",
    )
    first_phase: Fraction = Field(0.5, description="Share of the steps that ratings get, without `joint`.")
    temperature: PositiveFloat = Field(10.0, description="The gate is softmax(MLP(prompt) / temperature).")
    length_limit: NonNegativeFloat = Field(
        0.03, description="Rank correlation with length that an aspect may keep, without `joint`."
    )
    rating_weight: NonNegativeFloat = Field(1.0, description="Weight of the aspects' loss, with `joint`.")
    kl_weight: NonNegativeFloat = Field(0.001, description="Weight of KL(q(g|x,y) || N(0, I)), with `sampled`.")

    @model_validator(mode="after")
    def _sampled_is_joint(self) -> GatedSettings:
        if self.sampled and not self.joint:
            raise ValueError("sampled aspects are trained together with the gate: set joint: true")
        return self


class LengthHeadsSettings(Section):
    """ODIN: a quality and a length head, of which the length head is dropped after training."""

    length_weight: NonNegativeFloat = Field(
        1.0,
        description="Weight of |rho(L, r_Q)| + 1 - rho(L, r_L). Correlations are over one forward pass, so results "
        "depend on batch_size and processes.",
    )
    orthogonality_weight: NonNegativeFloat = Field(1.0, description="Weight of |W_Q . W_L|, both of length 1.")


class GaussianSettings(Section):
    """DPL, PURM: the reward of a text is a Gaussian, N(mu, sigma^2)."""

    likelihood: Literal["thurstone", "marginal", "expected"] = Field(
        "thurstone",
        description="-ln Phi (DPL); -ln E sigmoid; E[-ln sigmoid] (PURM), whose optimum is sigma = 0.",
    )
    anchor_weight: NonNegativeFloat = Field(
        0.0, description="Weight of the mean rating in three grades (0.1 in arXiv 2605.11865), which fixes the scale."
    )


class NonnegativeSettings(Section):
    """BNRM: a sum of non-negative Weibull units with global Weibull weights."""

    units: PositiveInt = Field(64, description="n, Weibull units (1024 in the release).")
    beta: NonNegativeFloat = Field(1e-5, description="Weight of the units' KL to Gamma(1, 1).")


BaselineSettings = (
    BottleneckSettings
    | MultitaskSettings
    | GatedSettings
    | LengthHeadsSettings
    | GaussianSettings
    | NonnegativeSettings
)
BASELINES: dict[str, type[Section]] = {
    "bottleneck": BottleneckSettings,
    "multitask": MultitaskSettings,
    "gated": GatedSettings,
    "length_heads": LengthHeadsSettings,
    "gaussian": GaussianSettings,
    "nonnegative": NonnegativeSettings,
}
"""Settings of each `kind` of baseline; the section of a variant has the kind's name."""


def rated_keys(kind: str, settings: Section) -> list[str]:
    """Keys of a baseline's loss that need annotated scores; empty where it needs none."""
    if kind == "gated":
        return ["kind: gated"]
    if isinstance(settings, MultitaskSettings) and settings.rating_weight > 0:
        return ["multitask.rating_weight"]
    if isinstance(settings, GaussianSettings) and settings.anchor_weight > 0:
        return ["gaussian.anchor_weight"]
    return []
