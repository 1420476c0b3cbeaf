"""The causal language model under every reward model, and under every policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vrm.config.base import Fraction, PositiveInt, RunPath, Section


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
    seed: int = Field(0, description="Seed of tokenizer, weights and pretraining order.")


class Features(Section):
    """What is kept of a frozen backbone's states; see `vrm.models.features`."""

    layer: PositiveInt | None = Field(
        None, description="Intermediate layer whose mean is kept too, from 1; null: two thirds of the way up."
    )
    dropout: Fraction = Field(0.3, description="Share of the features that are set to 0 in each training step.")


class BackboneConfig(Section):
    """The causal language model under every reward model. Exactly one of `path` and `create`."""

    path: RunPath | None = Field(None, description="Hub id or local directory of any causal LM.")
    revision: str | None = Field(None, description="Commit of the hub model.")
    create: CreatedBackbone | None = Field(None, description="Make a small one instead.")
    chat_template: str | None = Field(
        None,
        description="Instead of the tokenizer's own chat template: its text, or a file that holds it. It is saved with "
        "the models that are trained.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> BackboneConfig:
        if (self.path is None) == (self.create is None):
            raise ValueError("give exactly one of `path` and `create` (set the other to null)")
        return self


class RewardBackbone(BackboneConfig):
    """The backbone under the reward models, which may be frozen, or come from a GGUF file."""

    path: RunPath | None = Field(None, description="Hub id, local directory or GGUF file of any causal LM.")
    freeze: bool = Field(
        False, description="Train reward heads alone, on features of the backbone that are computed once."
    )
    features: Features = Field(default_factory=Features, description="The features, where the backbone is frozen.")

    @property
    def is_gguf(self) -> bool:
        """Whether the path names a GGUF file, which has to be made into an ordinary directory first."""
        return self.path is not None and self.path.lower().endswith(".gguf")
