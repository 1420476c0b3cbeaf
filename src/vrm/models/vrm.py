"""The variational reward model as a Hugging Face model: any causal LM below, one small head above.

* One forward pass gives both encoders: q(w|x) reads the hidden state of the last prompt token, the end of the header
  that the template writes before a response (see `turns`), which in a causal LM cannot see the response; q(z|x,y)
  reads the last real token of the sequence (VRM, Eq. 3-5).
* Both positions come from the attention mask, never from comparing with a pad id, so pad == eos and either padding
  side are safe.
* The head runs in float32 whatever the backbone's dtype: digamma differences have no digits left in bfloat16.
* `logits` (B, 1) is the reward at the posterior means, so everything that takes a sequence classifier takes a VRM.
* Importing this module registers it: `AutoModelForSequenceClassification.from_pretrained(directory)` then works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput, can_return_tuple

from .checks import checked_weights
from .latents import dirichlet_mean
from .shared_noise import sample_pairs as draw_latents
from .turns import prompt_end

LOG_VARIANCE_RANGE = (-10.0, 4.0)
"""Keeps exp() and the KL finite at the start of training; posteriors end well inside."""
INITIAL_LOG_VARIANCE = -2.0
"""z starts with a standard deviation of 0.37: with 1.0 the first gradients of the preference loss drown in noise."""
MINIMUM_CONCENTRATION = 1e-2
"""Below this Dirichlet samples underflow to exact zeros in float32."""


@strict
class VrmConfig(PreTrainedConfig):
    """Configuration: the backbone's own configuration as `text_config`, and the head's.

    Args:
        aspects: names of the K objectives.
        latent_dim: d, dimensions of z.
        reward_decoder: `mixture` (r = w . g(z)) or `mlp` (an MLP on [w; z]); transformers reserves the name `decoder`.
        prior_concentration: alpha_0 of the Dirichlet prior, per objective.
        generation_prompt_ids: tokens that begin every response, and
        user_turn_ids: those that begin every user turn; they locate the prompt where no length is given, see `turns`.
    """

    model_type = "vrm"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3")}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    aspects: list[str] | None = None
    latent_dim: int = 16
    reward_decoder: Literal["mixture", "mlp"] = "mixture"
    prior_concentration: float = 1.0
    generation_prompt_ids: list[int] | None = None
    user_turn_ids: list[int] | None = None
    # the language-model head is gone, so there is nothing to tie, whatever the backbone did
    tie_word_embeddings: bool = False

    @property
    def num_objectives(self) -> int:
        """K."""
        return len(self.aspects or [])


@dataclass
class VrmOutput(ModelOutput):
    """What a forward pass over B texts gives; K objectives, d latent dimensions.

    Args:
        logits: reward, shape (B, 1).
        alpha: concentrations of q(w|x), shape (B, K).
        mu: means of q(z|x,y), shape (B, d).
        log_variance: log-variances of q(z|x,y), shape (B, d).
        per_objective: g(z), shape (B, K); None with the MLP decoder.
    """

    logits: Tensor | None = None
    alpha: Tensor | None = None
    mu: Tensor | None = None
    log_variance: Tensor | None = None
    per_objective: Tensor | None = None


class VrmHead(nn.Module):
    """Both encoders and the reward decoder on pooled hidden states.

    Args:
        hidden_size: H, of the backbone.
        num_objectives: K.
        latent_dim: d.
        decoder: `mixture` or `mlp`, see `VrmConfig.reward_decoder`.

    Raises:
        ValueError: there is no objective.
    """

    def __init__(self, hidden_size: int, num_objectives: int, latent_dim: int, decoder: str) -> None:
        super().__init__()
        if num_objectives < 1:
            raise ValueError("a VRM needs at least one objective: set `aspects`")
        self.kind = decoder
        # hidden states of pretrained models differ in scale by orders of magnitude; the head should not care
        self.norm = nn.LayerNorm(hidden_size)
        self.weight_encoder = _mlp(hidden_size, hidden_size, num_objectives)
        self.latent_encoder = nn.Linear(hidden_size, 2 * latent_dim)
        if decoder == "mixture":
            self.decoder = _mlp(latent_dim, 4 * latent_dim, num_objectives)
        else:
            self.decoder = _mlp(num_objectives + latent_dim, 4 * latent_dim, 1)

    def encode_weights(self, prompt_state: Tensor) -> Tensor:
        """Concentrations of q(w|x): (B, H) -> (B, K). Source: VRM, Eq. 4."""
        return F.softplus(self.weight_encoder(self.norm(prompt_state))) + MINIMUM_CONCENTRATION

    def encode_latents(self, final_state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x,y): (B, H) -> two of (B, d). Source: VRM, Eq. 5."""
        mu, log_variance = self.latent_encoder(self.norm(final_state)).chunk(2, dim=-1)
        return mu, (log_variance + INITIAL_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)

    def decode(self, weights: Tensor, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reward r(w, z), shape (...,), and g(z), shape (..., K), from (..., K) and (..., d)."""
        if self.kind == "mixture":
            scores = self.decoder(latents)
            return (weights * scores).sum(-1), scores
        return self.decoder(torch.cat([weights, latents], dim=-1)).squeeze(-1), None


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class VrmForSequenceClassification(PreTrainedModel):
    """A causal LM with a variational reward head."""

    config_class = VrmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: VrmConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        self.model = AutoModel.from_config(config.text_config)
        self.head = self._new_head(config)
        self.post_init()

    @staticmethod
    def _new_head(config: VrmConfig) -> VrmHead:
        return VrmHead(
            config.text_config.hidden_size, config.num_objectives, config.latent_dim, config.reward_decoder
        ).float()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's fan-in initialisation for the head: the backbone's 0.02 is too small for narrow layers.

        transformers calls this for what a checkpoint lacks, e.g. the head when `from_pretrained` reads a causal LM.
        """
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()

    @classmethod
    def from_backbone(
        cls, path: str, dtype: torch.dtype | None = None, revision: str | None = None, **head: object
    ) -> VrmForSequenceClassification:
        """A fresh head on the weights of any causal LM.

        Args:
            path: local directory or hub id of a causal LM.
            dtype: dtype of the backbone; None keeps the checkpoint's.
            revision: commit of the hub model.
            head: the head's fields of `VrmConfig`.
        """
        backbone = checked_weights(AutoModel, path, dtype=dtype or "auto", revision=revision)
        config = VrmConfig(text_config=backbone.config, dtype=backbone.dtype, num_labels=1, **head)
        config.pad_token_id = backbone.config.pad_token_id
        with torch.device("meta"):  # no second copy of the backbone is allocated
            model = cls(config)
        model.model = backbone
        model.head = cls._new_head(config)
        return model

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embedding."""
        self.model.set_input_embeddings(value)

    def prior(self) -> Tensor:
        """Dirichlet prior concentrations, shape (K,)."""
        alpha = self.config.prior_concentration
        return torch.full((self.config.num_objectives,), alpha, dtype=torch.float32, device=self.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        sample_pairs: bool = False,
        **others: object,
    ) -> VrmOutput:
        """Rewards and posteriors of B texts.

        Args:
            input_ids: token ids, shape (B, T), padded on either side.
            attention_mask: 1 on real tokens, shape (B, T); None where nothing is padded.
            prompt_lengths: tokens of the prompt, shape (B,); None locates it by the configuration's
                `generation_prompt_ids` and `user_turn_ids`, see `vrm.models.turns`.
            sample_pairs: draw one sample of the latents instead of taking means. Rows are then B/2 chosen followed
                by B/2 rejected texts of the same prompts, and w is drawn once a pair (Eq. 10).
            others: what trainers and adapters pass to every classifier, None or False: `labels`, `use_cache`, ...

        Raises:
            TypeError: one of the others asks for something.
            ValueError: a prompt can't be located.
        """
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked:
            raise TypeError(f"a VRM does not take {', '.join(asked)}; its loss is `vrm.models.latents.objective`")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            use_cache=False,
        ).last_hidden_state  # (B, T, H)
        rows = torch.arange(len(input_ids), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            prompt_state = hidden[rows, self._last_prompt_token(input_ids, attention_mask, prompt_lengths)].float()
            final_state = hidden[rows, last_token(attention_mask)].float()
            alpha = self.head.encode_weights(prompt_state)
            mu, log_variance = self.head.encode_latents(final_state)
            if sample_pairs:
                # both rows of a pair have the same prompt, so the chosen half's alpha stands for the pair
                weights, latents = draw_latents(alpha[: len(alpha) // 2], mu, log_variance)
            else:
                weights, latents = dirichlet_mean(alpha), mu
            reward, per_objective = self.head.decode(weights, latents)
        return VrmOutput(
            logits=reward.unsqueeze(-1), alpha=alpha, mu=mu, log_variance=log_variance, per_objective=per_objective
        )

    def _last_prompt_token(self, input_ids: Tensor, mask: Tensor, prompt_lengths: Tensor | None) -> Tensor:
        if prompt_lengths is not None:
            return mask.argmax(-1) + prompt_lengths - 1  # argmax of a 0/1 mask is the first real token
        if not self.config.generation_prompt_ids:
            raise ValueError("pass prompt_lengths, or set config.generation_prompt_ids")
        lengths = [self._prompt_length(ids[real]) for ids, real in zip(input_ids, mask.bool(), strict=True)]
        return mask.argmax(-1) + torch.tensor(lengths, device=mask.device) - 1

    def _prompt_length(self, ids: Tensor) -> int:
        length = prompt_end(ids.tolist(), self.config.generation_prompt_ids, self.config.user_turn_ids)
        if not length:
            raise ValueError(
                f"a text does not hold the tokens {self.config.generation_prompt_ids} that begin a response: "
                "pass prompt_lengths"
            )
        return length


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each real token counted from its text's first, shape (B, T); 0 on padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def last_token(attention_mask: Tensor) -> Tensor:
    """Index of the last real token of each row, shape (B,), for either padding side."""
    steps = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return (steps * attention_mask).argmax(-1)


AutoConfig.register("vrm", VrmConfig, exist_ok=True)
AutoModelForSequenceClassification.register(VrmConfig, VrmForSequenceClassification, exist_ok=True)
