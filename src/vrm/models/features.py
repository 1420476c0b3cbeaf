"""Frozen features: a causal LM that is not trained, and the few vectors of it that reward heads read.

* A span of text - the prompt, or the response - is three vectors side by side: the state of its last token, the mean
  of its states, and the mean of its states at an intermediate layer; F = 3H numbers for a backbone H wide.
* The means run: at each token they are over the span so far. So a text has one vector of F numbers a token, like
  the states of any language model, the last prompt token's says all of the prompt, the last token's all of the
  response, and every reward head goes on top unchanged. The response's means leave the prompt out; its states don't.
* The text's very first token is left out of the means: attention is parked there, its state is huge and says nothing.
* Features are standardised by their mean and standard deviation over training prompts, and responses, apart.
* `FeatureModel` computes them from token ids. `FeatureTable` has them stored, and takes their place in training: its
  "token ids" are rows of the table, one of the prompt and one of the response. How many tokens each stands for is told
  by whoever looks texts up: published heads read the response's length.
* Importing this module registers both for `AutoModel` and `AutoModelForSequenceClassification`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast

from vrm.models.vrm import last_prompt_token, positions

SPANS = 2
"""Prompt and response."""
PARTS = 3
"""Last token's state, mean of the states, mean at the intermediate layer."""


@strict
class FeatureConfig(PreTrainedConfig):
    """Configuration: the causal LM's own as `backbone_config`, and the recipe of the features.

    Args:
        layer: the intermediate layer, counted from 1.
        dropout: share of features that are set to 0 in training.
        generation_prompt_ids, user_turn_ids: tokens that begin a response and a user turn; see `templates`.
        mixed_precision: compute the backbone's states in bfloat16.
        recipe: `recipe_id` of what the features were made by.
        hidden_size: F.
    """

    model_type = "vrm_features"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3")}  # noqa: RUF012

    backbone_config: dict | PreTrainedConfig | None = None
    layer: int = 1
    dropout: float = 0.0
    generation_prompt_ids: list[int] | None = None
    user_turn_ids: list[int] | None = None
    mixed_precision: bool = False
    recipe: str = ""
    hidden_size: int = 0
    tie_word_embeddings: bool = False


def feature_config(
    backbone: PreTrainedConfig,
    layer: int | None,
    dropout: float,
    turns: dict[str, list[int]],
    mixed_precision: bool,
    model_id: str,
) -> FeatureConfig:
    """A recipe for a backbone.

    Args:
        backbone: its configuration.
        layer: the intermediate layer; None takes the one two thirds of the way up.
        dropout, mixed_precision: see `FeatureConfig`.
        turns: its `generation_prompt_ids` and `user_turn_ids`.
        model_id: what tells the backbone's weights from others, for `FeatureConfig.recipe`.

    Raises:
        ValueError: the backbone has no such layer.
    """
    layers = backbone.num_hidden_layers
    layer = layer or max(1, round(2 * layers / 3))
    if layer > layers:
        raise ValueError(f"backbone.features.layer is {layer}, and the backbone has {layers} layers")
    ids = "|".join(",".join(map(str, turns[name])) for name in sorted(turns))
    settings = f"2|{model_id}|{layer}|{ids}|{mixed_precision}"  # the 2 is this file's way of computing them
    return FeatureConfig(
        backbone_config=backbone,
        layer=layer,
        dropout=dropout,
        **turns,
        mixed_precision=mixed_precision,
        recipe=hashlib.sha256(settings.encode()).hexdigest()[:16],
        hidden_size=PARTS * backbone.hidden_size,
        pad_token_id=backbone.pad_token_id,
        dtype=torch.float32,
    )


class _Pretrained(PreTrainedModel):
    """What transformers asks of every class of a kind of model."""

    config_class = FeatureConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is made up here: the backbone has its weights, the rest is measured."""


class _Standardised(_Pretrained):
    """What computed and stored features share: how they are standardised, and dropout."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config)
        self.register_buffer("centre", torch.zeros(SPANS, config.hidden_size))
        self.register_buffer("scale", torch.ones(SPANS, config.hidden_size))

    def finish(self, raw: Tensor, is_response: Tensor) -> Tensor:
        """Standardised features, with dropout in training.

        Args:
            raw: shape (..., F).
            is_response: 0 for the prompt's, 1 for the response's, shape (...).
        """
        spans = is_response.long()
        standardised = (raw - self.centre[spans]) / self.scale[spans]
        # a function, not nn.Dropout: TRL's trainer switches off every module of that kind
        return F.dropout(standardised, self.config.dropout, self.training)


class FeatureModel(_Standardised):
    """A causal LM with features for states, computed from token ids."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embedding."""
        self.backbone.set_input_embeddings(value)

    def states(self, **inputs: Any) -> tuple[Tensor, Tensor, Any]:
        """Final and intermediate hidden states, each (B, T, H) in float32, and the key-value cache if asked for."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        hook = _layers(self.backbone)[self.config.layer - 1].register_forward_hook(keep)
        try:
            device = self.centre.device.type
            with torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.mixed_precision):
                output = self.backbone(**inputs)
        finally:
            hook.remove()
        return output.last_hidden_state.float(), kept[0].float(), output.get("cache")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_others: object,
    ) -> BaseModelOutputWithPast:
        """Features of B texts at each of their tokens, as `last_hidden_state` (B, T, F).

        Args:
            input_ids: token ids, shape (B, T), padded on either side.
            attention_mask: 1 on real tokens, shape (B, T); None where nothing is padded.
            position_ids: shape (B, T); None counts from each text's first token.

        Raises:
            ValueError: a text does not hold the tokens that end a prompt.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        where = positions(mask) if position_ids is None else position_ids
        final, middle, _ = self.states(input_ids=input_ids, attention_mask=mask, position_ids=where, use_cache=False)
        prompt_end = last_prompt_token(input_ids, mask, None, self.config)
        in_response = torch.arange(input_ids.shape[1], device=input_ids.device) > prompt_end.unsqueeze(1)
        counted = mask.bool() & (where > 0)
        prompt = _running_parts(final, middle, counted & ~in_response)
        response = _running_parts(final, middle, counted & in_response)
        raw = torch.where(in_response.unsqueeze(-1), response, prompt)
        return BaseModelOutputWithPast(last_hidden_state=self.finish(raw, in_response))


class FeatureTable(_Standardised):
    """Stored features in the place of a `FeatureModel`; what it is given for token ids are rows of the table."""

    def __init__(self, config: FeatureConfig, vectors: Tensor, lengths: Tensor) -> None:
        """Take the features.

        Args:
            config: their recipe.
            vectors: not standardised, shape (N, F).
            lengths: tokens of each text, the prompt included, shape (N,), on the CPU; NaN until it has been looked up.
        """
        super().__init__(config)
        self.register_buffer("vectors", vectors, persistent=False)
        self.lengths = lengths  # no buffer, which moves as a copy: a later look-up would not be seen

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors: there are no parameters to ask."""
        return self.vectors.dtype

    @property
    def device(self) -> torch.device:
        """Of the vectors."""
        return self.vectors.device

    def fit(self, prompts: Sequence[int], responses: Sequence[int]) -> None:
        """Standardise by these rows of prompts and of responses, each counted once; a constant feature becomes 0."""
        for span, rows in enumerate((prompts, responses)):
            vectors = self.vectors[torch.tensor(sorted(set(rows)))].double()
            std = vectors.std(0, unbiased=False)
            self.centre[span] = vectors.mean(0).to(self.centre)
            self.scale[span] = torch.where(std > 0, std, 1.0).to(self.scale)

    def response_lengths(self, input_ids: Tensor) -> Tensor:
        """Tokens of B responses, end token included, shape (B,), given their texts' rows (B, 2)."""
        prompts, texts = self.lengths[input_ids.cpu()].unbind(-1)
        return (texts - prompts).to(input_ids.device)

    def forward(self, input_ids: Tensor, **_others: object) -> BaseModelOutputWithPast:
        """Features as `last_hidden_state` (B, 2, F) of B texts, given their rows (B, 2): prompt, response."""
        spans = torch.arange(SPANS, device=input_ids.device).expand_as(input_ids)
        return BaseModelOutputWithPast(last_hidden_state=self.finish(self.vectors[input_ids], spans))


class FeatureForSequenceClassification(GenericForSequenceClassification, _Pretrained):
    """A linear reward on frozen features: the plain Bradley-Terry RM."""

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, as in the VRM's head."""
        if module is getattr(self, "score", None):
            module.reset_parameters()

    @classmethod
    def on(cls, features: FeatureModel | FeatureTable) -> FeatureForSequenceClassification:
        """A fresh reward on these features."""
        config = features.config
        config.num_labels = 1
        with torch.device("meta"):  # no second backbone is allocated
            model = cls(config)
        model.model = features
        model.score = nn.Linear(config.hidden_size, 1, bias=False)
        return model


def raw_features(final: Tensor, middle: Tensor, counted: Tensor, last: Tensor) -> Tensor:
    """Features of a whole span, not standardised.

    Args:
        final, middle: final and intermediate states, shape (B, T, H).
        counted: tokens that means are over, shape (B, T), bool.
        last: index of each span's last token, shape (B,).

    Returns:
        Shape (B, F).
    """
    rows = torch.arange(len(final), device=final.device)
    share = counted.float().unsqueeze(1) / counted.sum(-1).clamp(min=1)[:, None, None]  # (B, 1, T)
    return torch.cat([final[rows, last], (share @ final).squeeze(1), (share @ middle).squeeze(1)], dim=-1)


def _running_parts(final: Tensor, middle: Tensor, counted: Tensor) -> Tensor:
    """States and running means of B texts, shape (B, T, F)."""
    taken = counted.unsqueeze(-1).to(final.dtype)
    number = taken.cumsum(1).clamp(min=1)
    return torch.cat([final, (final * taken).cumsum(1) / number, (middle * taken).cumsum(1) / number], dim=-1)


def _layers(backbone: nn.Module) -> nn.ModuleList:
    """The backbone's decoder layers, whatever it calls them."""
    number = backbone.config.num_hidden_layers
    return next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == number)


AutoConfig.register("vrm_features", FeatureConfig, exist_ok=True)
AutoModel.register(FeatureConfig, FeatureModel, exist_ok=True)
AutoModelForSequenceClassification.register(FeatureConfig, FeatureForSequenceClassification, exist_ok=True)
