"""Reward models: the backbone below them, the grid of variants, and how they are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Fraction, Name, NonNegativeFloat, Optimisation, PositiveFloat, PositiveInt, Section, require_known


class CreatedBackbone(Section):
    """A small model made from scratch, pretrained as a language model on the training text."""

    architecture: Literal["qwen3", "qwen2"] = Field("qwen3", description="Qwen3's, or Qwen2.5's (qwen2).")
    template: Literal["chatml", "qwen3", "qwen2.5"] = Field(
        "chatml", description="Chat template: plain ChatML, with an empty thought (qwen3), with a default system turn."
    )

    vocabulary_size: PositiveInt = Field(2048, description="Byte-level BPE tokens, trained on the training text.")
    hidden_size: PositiveInt = Field(64, description="Width of the residual stream.")
    layers: PositiveInt = Field(2, description="Transformer blocks.")
    heads: PositiveInt = Field(2, description="Attention heads.")
    key_value_heads: PositiveInt = Field(1, description="Key-value heads (grouped-query attention).")
    intermediate_size: PositiveInt = Field(128, description="Width of the feed-forward blocks.")
    pretraining_steps: int = Field(400, ge=0, description="Optimiser steps of language modelling.")
    pretraining_batch_size: PositiveInt = Field(32, description="Texts per pretraining step.")
    pretraining_learning_rate: PositiveFloat = Field(3e-3, description="Peak learning rate of pretraining (AdamW).")
    seed: int = Field(0, description="Seed of tokenizer, weights and pretraining order.")


class BackboneConfig(Section):
    """The causal language model under every reward model. Exactly one of `path` and `create`."""

    path: str | None = Field(None, description="Hub id or local directory of any causal LM.")
    revision: str | None = Field(None, description="Commit of the hub model.")
    create: CreatedBackbone | None = Field(None, description="Make a small one instead.")
    chat_template: str | None = Field(
        None, description="Instead of the tokenizer's own chat template: the path of a Jinja file, or its text."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> BackboneConfig:
        if (self.path is None) == (self.create is None):
            raise ValueError("give exactly one of `path` and `create` (set the other to null)")
        if self.create is not None and self.chat_template is not None:
            raise ValueError("`chat_template` is for a model of others; a created one has `create.template`")
        return self


class Variant(Section):
    """One reward model of the grid. Only what differs from these defaults needs to be written."""

    label: str = Field(description="Row name in tables, legend in figures.")
    kind: Literal["scalar", "variational"] = Field("variational", description="Plain Bradley-Terry RM, or VRM.")
    ours: bool = Field(False, description="Not in the paper: labelled as ours wherever it appears.")
    latent_dim: PositiveInt = Field(16, description="d, dimensions of z.")
    decoder: Literal["mixture", "mlp"] = Field("mixture", description="r = w . g(z), or an MLP on [w; z].")
    prior_concentration: PositiveFloat = Field(1.0, description="alpha_0 of the Dirichlet prior, per objective.")
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
    def needs_scores(self) -> bool:
        """Whether training this variant takes pairs with annotated scores."""
        return self.kind == "variational" and (self.supervision_weight > 0 or self.score_anchor_weight > 0)

    @model_validator(mode="after")
    def _anchor_needs_mixture(self) -> Variant:
        if self.score_anchor_weight > 0 and self.decoder != "mixture":
            raise ValueError("score_anchor_weight needs decoder: mixture, the only one with per-objective scores")
        return self


class RewardTraining(Optimisation):
    """Optimisation of a reward model, the same for every variant so that rows compare."""

    epochs: PositiveFloat = Field(2.0, description="Passes over the training pairs.")
    learning_rate: PositiveFloat = Field(2e-3, description="Peak learning rate (AdamW, cosine to zero).")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW weight decay.")
    evaluations: PositiveInt = Field(10, description="How often, evenly spaced, accuracy is measured while training.")
    evaluation_pairs: PositiveInt = Field(400, description="Pairs of each split used for those measurements.")
    checkpoints: int = Field(2, ge=0, description="How many resumable checkpoints a training writes.")


class RewardConfig(Section):
    """The grid of reward models."""

    seeds: list[int] = Field([1, 2, 3], min_length=1, description="Every table cell is a mean over these.")
    run: list[Name] = Field(description="Which variants are trained, in the order of the table's rows.")
    variants: dict[Name, Variant] = Field(description="All known variants, by name.")
    training: RewardTraining = Field(default_factory=RewardTraining, description="Optimisation.")
    scoring_batch_size: PositiveInt = Field(64, description="Texts per forward pass when scoring.")
    posterior_samples: int = Field(
        0, ge=0, description="Samples for a reward's standard deviation; 0 gives means only."
    )

    @model_validator(mode="after")
    def _run_is_known(self) -> RewardConfig:
        require_known("reward.run", self.run, self.variants)
        return self
