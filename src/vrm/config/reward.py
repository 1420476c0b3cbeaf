"""Reward models: the grid of variants and how they are trained, and those that others have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from vrm.config.base import (
    Fraction,
    Name,
    NonNegativeFloat,
    Optimisation,
    PositiveFloat,
    PositiveInt,
    RunPath,
    Section,
    require_known,
)

# Settings of the published reward models that the VRM is compared with, one section a kind.


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


# Reward models.

Kind = Literal["scalar", "variational", "bottleneck", "multitask", "gated", "length_heads", "gaussian", "nonnegative"]


class Variant(Section):
    """One reward model of the grid. Only what differs from these defaults needs to be written."""

    label: str = Field(description="Row name in tables, legend in figures.")
    kind: Kind = Field(
        "variational",
        description="Plain Bradley-Terry RM, VRM, or a published reward model to compare with: InfoRM (bottleneck), "
        "SMORM (multitask), ArmoRM or CB-RM (gated), ODIN (length_heads), DPL or PURM (gaussian), BNRM (nonnegative).",
    )
    ours: bool = Field(False, description="Not in the paper: labelled as ours wherever it appears.")
    bottleneck: BottleneckSettings | None = Field(None, description="Settings of kind: bottleneck; null: its defaults.")
    multitask: MultitaskSettings | None = Field(None, description="Settings of kind: multitask; null: its defaults.")
    gated: GatedSettings | None = Field(None, description="Settings of kind: gated; null: its defaults.")
    length_heads: LengthHeadsSettings | None = Field(
        None, description="Settings of kind: length_heads; null: its defaults."
    )
    gaussian: GaussianSettings | None = Field(None, description="Settings of kind: gaussian; null: its defaults.")
    nonnegative: NonnegativeSettings | None = Field(
        None, description="Settings of kind: nonnegative; null: its defaults."
    )
    latent_dim: PositiveInt = Field(16, description="d, dimensions of z.")
    decoder: Literal["mixture", "mlp"] = Field("mixture", description="r = w . g(z), or an MLP on [w; z].")
    prior_concentration: PositiveFloat = Field(1.0, description="alpha_0 of the Dirichlet prior, per objective.")
    prompt_pooling: Literal["last", "attention"] = Field(
        "last",
        description="What w is read from: the last prompt token's state, or attention (one learned query) over the "
        "states of all of the prompt's tokens.",
    )
    concentration: Literal["softplus", "scaled"] = Field(
        "softplus",
        description="alpha = softplus(f(h)) + 0.01, or c softmax(f(h)) + 0.01 with a learned number c (scaled).",
    )
    scale: bool | None = Field(
        None,
        description="r = e^tau w . g(z) with a learned number tau, so that scores keep the ratings' unit and rewards "
        "have their own; not in the paper. null: with `residual` and not otherwise.",
    )
    scale_start: PositiveFloat = Field(
        1.0,
        description="e^tau before training. Where preferences are sharper than ratings and steps are few, a start of "
        "about 4 lets w . g(z) speak loudly enough from the first step; at 1, b(z) takes over its part.",
    )
    residual: bool = Field(
        False,
        description="Concept-residual VRM, r = e^tau w . g(z) + b(z); not in the paper. b, linear in z, may take what "
        "chosen responses have beside the rated aspects, good or bad, and w . g(z), the rated-aspect reward, can be "
        "asked alone. It is no correction of the ratings: whatever moves them stays in g. Needs score_anchor_weight.",
    )
    residual_penalty: NonNegativeFloat = Field(
        0.01, description="Weight of the mean of (b(z_chosen) - b(z_rejected))^2; its gradient reaches b alone."
    )
    residual_gain: PositiveFloat = Field(
        5.0,
        description="b(z) = gain v . z, v learned from 0: how many times as fast as other layers b learns. At 1, "
        "w . g(z) has learned what is beside the rated aspects before b can take it.",
    )
    residual_detached: bool = Field(False, description="b reads z without sending it a gradient; an ablation.")
    beta_w: NonNegativeFloat = Field(0.01, description="Weight of KL(q(w|x) || p(w)); 1 is the strict ELBO.")
    beta_z: NonNegativeFloat = Field(0.001, description="Weight of both KL(q(z|x,y) || p(z)); 1 is the strict ELBO.")
    beta_warmup: Fraction = Field(0.2, description="Share of the steps over which both betas rise linearly from 0.")
    free_bits: NonNegativeFloat = Field(
        0.0,
        description="Nats of each latent dimension's KL that cost nothing. What is compared with them is the mean of "
        "one forward pass, so results depend on batch_size, gradient_accumulation and processes.",
    )
    supervision: Literal["kl", "mse", "mae", "rank"] = Field("kl", description="Loss between E[w] and its target.")
    supervision_weight: NonNegativeFloat = Field(0.5, description="lambda of Eq. 14; 0 turns the supervision off.")
    score_anchor_weight: NonNegativeFloat = Field(
        0.0, description="mu: weight of mse(g(z), normalised scores); needs the mixture decoder; not in the paper."
    )

    @property
    def baseline(self) -> Section | None:
        """Settings of the kind, its defaults where none are written; None for a scalar RM and a VRM."""
        return (getattr(self, self.kind) or BASELINES[self.kind]()) if self.kind in BASELINES else None

    @property
    def score_keys(self) -> list[str]:
        """The keys for which training this variant takes pairs with annotated scores."""
        if self.kind == "variational":
            return [key for key in ("supervision_weight", "score_anchor_weight") if getattr(self, key) > 0]
        return rated_keys(self.kind, self.baseline) if self.baseline else []

    @property
    def needs_scores(self) -> bool:
        """Whether training this variant takes pairs with annotated scores."""
        return bool(self.score_keys)

    @model_validator(mode="after")
    def _only_its_own_settings(self) -> Variant:
        foreign = [kind for kind in BASELINES if kind != self.kind and getattr(self, kind) is not None]
        if self.kind != "variational":
            common = {"label", "kind", "ours", *BASELINES}
            own = {name: field for name, field in type(self).model_fields.items() if name not in common}
            foreign += [name for name, field in own.items() if getattr(self, name) != field.default]
        if foreign:
            raise ValueError(f"kind: {self.kind} does not read {', '.join(foreign)}")
        return self

    @property
    def has_scale(self) -> bool:
        """Whether the reward has the learned scale e^tau."""
        return self.residual if self.scale is None else self.scale

    @model_validator(mode="after")
    def _anchor_needs_mixture(self) -> Variant:
        for key in ("score_anchor_weight", "scale", "residual"):
            if getattr(self, key) and self.decoder != "mixture":
                raise ValueError(f"{key} needs decoder: mixture, the only one with per-objective scores")
        return self

    @model_validator(mode="after")
    def _residual_is_beside_ratings(self) -> Variant:
        if self.residual and self.score_anchor_weight == 0:
            raise ValueError(
                "residual needs score_anchor_weight above 0: without ratings nothing tells w . g(z) from b(z)"
            )
        if self.residual_detached and not self.residual:
            raise ValueError("residual_detached needs residual: true")
        return self


_READ = {"prompt_pooling": "attention", "concentration": "scaled"}
"""How w is read from the prompt, in all of these."""

PRESETS: dict[str, Variant] = {
    "rm": Variant(label="RM", kind="scalar"),
    "vrm": Variant(label="VRM", **_READ),
    "anchored": Variant(label="VRM (anchored)", ours=True, supervision_weight=0.0, score_anchor_weight=1.0, **_READ),
    "residual": Variant(
        label="VRM (concept-residual)",
        ours=True,
        supervision_weight=0.2,
        score_anchor_weight=1.0,
        residual=True,
        **_READ,
    ),
    "multitask": Variant(label="RM (multi-task)", kind="multitask"),
    "gated": Variant(label="RM (gated)", kind="gated", gated=GatedSettings(prompt_pooling="attention")),
    "concept_bottleneck": Variant(
        label="RM (concept bottleneck)",
        kind="gated",
        gated=GatedSettings(joint=True, sampled=True, prompt_pooling="attention"),
    ),
    "bottleneck": Variant(label="RM (information bottleneck)", kind="bottleneck"),
    "length_heads": Variant(label="RM (length head)", kind="length_heads"),
    "gaussian": Variant(label="RM (Gaussian)", kind="gaussian"),
    "nonnegative": Variant(label="RM (non-negative)", kind="nonnegative"),
}
"""Reward models by the name that people type (`vrm train --kind`); config.yaml has the same settings."""


class RewardTraining(Optimisation):
    """Optimisation of a reward model, the same for every variant of a kind so that rows compare."""

    epochs: PositiveFloat = Field(2.0, description="Passes over the training pairs.")
    learning_rate: PositiveFloat = Field(2e-3, description="Peak learning rate (AdamW, cosine to zero).")
    learning_rate_factors: dict[str, PositiveFloat] = Field(
        {}, description="By variant or kind, what learning_rate is multiplied with; a variant's own factor goes first."
    )
    epochs_factors: dict[str, PositiveFloat] = Field({}, description="Likewise, what epochs is multiplied with.")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW weight decay.")
    evaluations: PositiveInt = Field(10, description="How often, evenly spaced, accuracy is measured while training.")
    evaluation_pairs: PositiveInt = Field(400, description="Pairs of each split used for those measurements.")
    checkpoints: int = Field(2, ge=0, description="How many resumable checkpoints a training writes.")
    compile: bool = Field(
        False,
        description="Compile the parts of each block (torch.compile: a minute or two once, then fewer passes over "
        "memory). Results are the same up to rounding. Needs a C++ compiler.",
    )

    def of(self, name: str, kind: Kind) -> RewardTraining:
        """The settings that a variant of a kind is trained with: its own learning rate and epochs, and no factors."""
        own: dict[str, Any] = {}
        for key in ("learning_rate", "epochs"):
            factors = getattr(self, f"{key}_factors")
            own |= {key: getattr(self, key) * factors.get(name, factors.get(kind, 1.0)), f"{key}_factors": {}}
        return self.model_copy(update=own)


class OutsideModel(Section):
    """A reward model that others have trained: scored as it is, and nothing here trains it."""

    label: str = Field(description="Row name in tables, where it is followed by `(outside model)`.")
    path: RunPath = Field(
        description="Hub id or local directory of a sequence classifier with one label, or of one with code of its own."
    )
    revision: str | None = Field(None, description="Commit of the hub model; required for a hub id.")
    chat_template: str | None = Field(
        None, description="Instead of the tokenizer's own chat template: its text, or a file that holds it."
    )
    trust_remote_code: bool = Field(False, description="Run the code that the model brings along, as ArmoRM does.")
    max_prompt_length: PositiveInt | None = Field(
        None,
        description="Tokens kept of a prompt; null: as its own configuration says, else half of max_length.",
    )
    max_length: PositiveInt | None = Field(
        None, description="Tokens kept of prompt + response; null: the same, else 2048, or as many as it has positions."
    )

    @property
    def is_local(self) -> bool:
        """Whether it is a directory and no name of the hub."""
        named = self.path.startswith((".", "/")) or self.path.count("/") > 1
        return named or Path(self.path).is_dir()

    @model_validator(mode="after")
    def _hub_models_are_pinned(self) -> OutsideModel:
        if not self.is_local and self.revision is None:
            raise ValueError(
                f"path {self.path!r} is no directory here; as a model of the hub it needs `revision`, its commit, or "
                "the row changes when the model does"
            )
        return self


class RewardConfig(Section):
    """The grid of reward models, and outside models beside it."""

    seeds: list[int] = Field([1, 2, 3], min_length=1, description="Every table cell is a mean over these.")
    run: list[Name] = Field(description="Which variants are trained, in the order of the table's rows.")
    variants: dict[Name, Variant] = Field(description="All known variants, by name.")
    outside: dict[Name, OutsideModel] = Field({}, description="All known outside models, by name.")
    run_outside: list[Name] = Field([], description="Which outside models are rows of Table 2, below ours.")
    training: RewardTraining = Field(default_factory=RewardTraining, description="Optimisation.")
    scoring_batch_size: PositiveInt = Field(64, description="Texts per forward pass when scoring.")
    posterior_samples: int = Field(
        128,
        ge=0,
        description="Draws of a VRM's posterior, w once for both responses, behind a pair's preference probability and "
        "a reward's standard deviation; 0 takes the posterior means.",
    )

    @model_validator(mode="after")
    def _run_is_known(self) -> RewardConfig:
        require_known("reward.run", self.run, self.variants)
        require_known("reward.run_outside", self.run_outside, self.outside)
        return self

    @model_validator(mode="after")
    def _names_are_one_models(self) -> RewardConfig:
        if both := sorted(set(self.variants) & set(self.outside)):
            raise ValueError(f"reward.variants and reward.outside share the name {', '.join(both)}: rename one")
        return self

    @model_validator(mode="after")
    def _factors_are_somebodys(self) -> RewardConfig:
        for key in ("learning_rate_factors", "epochs_factors"):
            require_known(f"reward.training.{key}", getattr(self.training, key), [*self.variants, *get_args(Kind)])
        return self

    def training_of(self, name: str) -> RewardTraining:
        """The settings that a variant is trained with."""
        return self.training.of(name, self.variants[name].kind)

    def model(self, name: str) -> Variant | OutsideModel:
        """What a policy's `reward` names: a variant, or an outside model."""
        return self.variants[name] if name in self.variants else self.outside[name]
