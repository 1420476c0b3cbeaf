"""Published reward models that the VRM is compared with, as Hugging Face models: any causal LM below, one head above.

* Six kinds of head, each a small module from pooled states to a reward and what its loss reads; the losses are in
  `baseline_losses.py`, and what a training makes of them in `vrm.training.reward_kinds`.
* h is the state of the last real token, p that of the last prompt token, which cannot see the response. Both come from
  the attention mask, so pad == eos and either padding side are safe. Heads run in float32 on LayerNorm(h).
* `logits` (B, 1) is the reward at evaluation: means of what is sampled, the quality head alone, and so on. With a
  `noise`, as in training, it is the reward under one sample.
* What a head takes from the training split (length statistics, thresholds, corrections) is in buffers, saved with it.
* Importing this module registers it: `AutoModelForSequenceClassification.from_pretrained(directory)` then works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput, can_return_tuple

from vrm.models.baseline_losses import weibull_kl, weibull_sample, weibull_scale, weibull_second_moment
from vrm.models.shared_prefix import Layout, packed_states, pooled_prompts
from vrm.models.vrm import (
    INITIAL_LOG_VARIANCE,
    LOG_VARIANCE_RANGE,
    attention_pool,
    last_prompt_token,
    last_token,
    positions,
    prompt_mask,
)

MINIMUM_VARIANCE = 1e-6
"""Of a Gaussian reward; keeps the division by its root finite."""
MINIMUM_MEAN = 1e-6
"""Of a Weibull unit; keeps ln(lambda) finite where the unit is dead."""
INITIAL_SHAPE = 2.0
"""Raw shape of Weibull units, so k starts near 3.1: nearer to 1 the first gradients drown in noise."""


@dataclass(frozen=True)
class Noise:
    """The noise of a batch of pairs, the same however many processes share the batch.

    Trainers seed all processes alike, so each draws for all of them and keeps its own rows; `shared_noise` says why.

    Args:
        rank: this process's number.
        processes: how many there are.
    """

    rank: int = 0
    processes: int = 1

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise for 2B rows, B chosen and then B rejected, shape (2B, d)."""
        return self._own(torch.randn(self._shape(like), dtype=like.dtype, device=like.device), like)

    def uniform(self, like: Tensor) -> Tensor:
        """Noise in [0, 1), likewise."""
        return self._own(torch.rand(self._shape(like), dtype=like.dtype, device=like.device), like)

    @staticmethod
    def common(like: Tensor) -> Tensor:
        """Noise in [0, 1) that all rows and processes share, of the shape of `like`."""
        return torch.rand_like(like)

    def _shape(self, like: Tensor) -> tuple[int, ...]:
        return 2, self.processes, len(like) // 2, like.shape[-1]

    def _own(self, drawn: Tensor, like: Tensor) -> Tensor:
        return drawn[:, self.rank].reshape(like.shape)


@dataclass(frozen=True)
class States:
    """What a head reads of B texts, float32.

    Args:
        final: h, shape (B, H).
        prompt: p, or another state of the prompt, see `BaselineHead.pool_prompt`, shape (B, H).
        response_lengths: tokens of the response, end token included, shape (B,).
    """

    final: Tensor
    prompt: Tensor
    response_lengths: Tensor


class BaselineHead(nn.Module):
    """A head: `forward` gives `reward`, (B,), and what its loss or a reader needs, by name; each has a row a text.

    Names that scoring knows: `variance` of the reward (B,), `weights` (B, K) and `per_objective` (B, K), whose product
    summed over K is the reward where there are both.

    Args:
        hidden_size: H, of the backbone.
        aspects: K, of rated aspects.
    """

    rated = False
    """Whether the head has one output an aspect."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        # hidden states of pretrained models differ in scale by orders of magnitude; the head should not care
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Rewards of B texts; samples where there is a noise, and means otherwise."""
        raise NotImplementedError

    def pool_prompt(self, hidden: Tensor, attention_mask: Tensor, last_prompt_token: Tensor) -> Tensor:
        """The prompt's state, shape (B, H), float32, from all states (B, T, H) and each prompt's last index (B,)."""
        return hidden[torch.arange(len(hidden), device=hidden.device), last_prompt_token].float()

    def reset_parameters(self) -> None:
        """Start values of parameters and buffers that belong to no layer."""


class BottleneckHead(BaselineHead):
    """z ~ N(mu, sigma^2)(h), r = v . z without a bias. Source: InfoRM (Miao et al. 2024, arXiv 2402.09345)."""

    def __init__(self, hidden_size: int, aspects: int, *, latent_dim: int, **_: object) -> None:
        super().__init__(hidden_size)
        self.latent_encoder = nn.Linear(hidden_size, 2 * latent_dim)
        self.decoder = nn.Linear(latent_dim, 1, bias=False)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also mu and log_variance, (B, d), and the exact variance of v . z, (B,)."""
        mu, log_variance = _gaussian(self.latent_encoder(self.norm(states.final)))
        latents = mu if noise is None else mu + (0.5 * log_variance).exp() * noise.normal(mu)
        return {
            "reward": self.decoder(latents).squeeze(-1),
            "mu": mu,
            "log_variance": log_variance,
            "variance": F.linear(log_variance.exp(), self.decoder.weight.square()).squeeze(-1),
        }


class MultitaskHead(BaselineHead):
    """Linear(h): one preference output, which is the reward, and K ratings. Source: SMORM (arXiv 2507.07375)."""

    rated = True

    def __init__(self, hidden_size: int, aspects: int, **_: object) -> None:
        super().__init__(hidden_size)
        self.reward = nn.Linear(hidden_size, 1, bias=False)  # a bias cancels in every pair
        self.aspects = nn.Linear(hidden_size, aspects)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also per_objective, (B, K), the ratings."""
        h = self.norm(states.final)
        return {"reward": self.reward(h).squeeze(-1), "per_objective": self.aspects(h)}


class GatedHead(BaselineHead):
    """r = e^tau sum_k w_k (g_k - c_k v): aspect scores g of h, weighed by a gate w = softmax(MLP(p) / T).

    v is the standardised logarithm of the response's length, c its part in each aspect. In two phases, gate and tau
    read g and p as they are and send them no gradient. The softmax is over aspects: ArmoRM's release takes it over the
    pair, where each weight is about 1/2 and no gate can be learned.

    Source: ArmoRM (Wang et al. 2024, arXiv 2406.12845); sampled: CB-RM (Laguna et al. 2025, arXiv 2507.04695), whose
    release has the variance where the standard deviation belongs, and a gate with signs.
    """

    rated = True

    def __init__(
        self,
        hidden_size: int,
        aspects: int,
        *,
        joint: bool,
        sampled: bool,
        temperature: float,
        prompt_pooling: str,
        **_: object,
    ) -> None:
        super().__init__(hidden_size)
        self.joint, self.sampled, self.temperature = joint, sampled, temperature
        self.aspects = nn.Linear(hidden_size, 2 * aspects if sampled else aspects)
        self.gate = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, aspects))
        self.tau = nn.Parameter(torch.empty(1))  # of one element and not a scalar, which FSDP2 does not shard
        self.query = nn.Parameter(torch.empty(hidden_size)) if prompt_pooling == "attention" else None
        for name, size in (("correction", aspects), ("length_mean", 1), ("length_std", 1), ("corrected", 1)):
            self.register_buffer(name, torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No scale, no preferred token, no correction, and no variance of lengths, which makes v 0."""
        if self.query is not None:
            nn.init.zeros_(self.query)
        for tensor in (self.tau, self.correction, self.length_mean, self.length_std, self.corrected):
            nn.init.zeros_(tensor)

    def pool_prompt(self, hidden: Tensor, attention_mask: Tensor, last_prompt_token: Tensor) -> Tensor:
        """The last prompt token's state, as ArmoRM, or attention over the prompt's, as a VRM can have it."""
        hidden = hidden if self.joint else hidden.detach()
        if self.query is None:
            return super().pool_prompt(hidden, attention_mask, last_prompt_token)
        return attention_pool(hidden.float(), prompt_mask(attention_mask, last_prompt_token), self.query)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also ratings g, weights w, per_objective e^tau (g - c v) and correction c, each (B, K); verbosity v, (B,).

        With sampled aspects, mu and log_variance (B, K) of g, and the reward's variance (B,).
        """
        found = self.aspects(self.norm(states.final))
        parts = {}
        if self.sampled:
            mu, log_variance = _gaussian(found)
            parts = {"mu": mu, "log_variance": log_variance}
            found = mu if noise is None else mu + (0.5 * log_variance).exp() * noise.normal(mu)
        if self.joint:
            prompt, scores = self.norm(states.prompt), found
        else:  # the norm belongs to the aspects
            scale, shift = self.norm.weight.detach(), self.norm.bias.detach()
            prompt = F.layer_norm(states.prompt, self.norm.normalized_shape, scale, shift, self.norm.eps)
            scores = found.detach()
        weights = (self.gate(prompt) / self.temperature).softmax(-1)
        verbosity = self.verbosity(states.response_lengths)
        per_objective = self.tau.exp() * (scores - self.correction * verbosity.unsqueeze(-1))
        parts |= {
            "reward": (weights * per_objective).sum(-1),
            "ratings": found,
            "weights": weights,
            "per_objective": per_objective,
            "verbosity": verbosity,
            "correction": self.correction.expand_as(weights),
        }
        if self.sampled:
            parts["variance"] = (self.tau.exp() * weights).square().mul(log_variance.exp()).sum(-1)
        return parts

    def verbosity(self, response_lengths: Tensor) -> Tensor:
        """v, the standardised logarithm of lengths (B,) in tokens; 0 where training lengths did not vary."""
        varies = self.length_std > 0
        centred = response_lengths.clamp(min=1).log() - self.length_mean
        return torch.where(varies, centred / torch.where(varies, self.length_std, 1.0), 0.0)

    def set_lengths(self, lengths: Tensor) -> None:
        """Take mean and standard deviation of the logarithm from lengths of training responses, (N,), in tokens."""
        logarithms = lengths.double().log()
        self.length_mean.fill_(logarithms.mean().item())
        # not the standard deviation of equal numbers, which need not be exactly 0
        self.length_std.fill_(logarithms.std(unbiased=False).item() if logarithms.min() < logarithms.max() else 0.0)

    def set_correction(self, correction: Tensor) -> None:
        """Set c, (K,), once."""
        self.correction.copy_(correction)
        self.corrected.fill_(1.0)

    @staticmethod
    def of_gate(name: str) -> bool:
        """Whether a parameter of a whole model belongs to the second phase."""
        parts = name.split(".")
        return "head" in parts and not {"gate", "tau", "query"}.isdisjoint(parts)


class LengthHeads(BaselineHead):
    """Two linear heads, quality and length, each row centred and of length 1; the reward is quality.

    Source: ODIN (Chen et al. 2024, arXiv 2402.07319), whose released re-implementation sums rewards over the batch
    before the sigmoid.
    """

    def __init__(self, hidden_size: int, aspects: int, **_: object) -> None:
        super().__init__(hidden_size)
        self.rows = nn.Linear(hidden_size, 2, bias=False)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also length_reward, lengths and overlap |W_Q . W_L|, the same for all texts, each (B,)."""
        rows = self.rows.weight - self.rows.weight.mean(-1, keepdim=True)
        rows = F.normalize(rows, dim=-1)
        quality, length = F.linear(self.norm(states.final), rows).unbind(-1)
        overlap = (rows[0] @ rows[1]).abs()
        return {
            "reward": quality,
            "length_reward": length,
            "lengths": states.response_lengths,
            "overlap": overlap.expand(len(quality)),
        }


class GaussianHead(BaselineHead):
    """r ~ N(mu, sigma^2)(h). Source: DPL (arXiv 2312.08358); PURM (arXiv 2503.22480)."""

    def __init__(self, hidden_size: int, aspects: int, **_: object) -> None:
        super().__init__(hidden_size)
        self.moments = nn.Linear(hidden_size, 2)
        self.register_buffer("thresholds", torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No thresholds: only anchors read them, and they come from the training split."""
        nn.init.constant_(self.thresholds, math.nan)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also variance, (B,), and the anchors' thresholds, the same for all texts, (B, 2)."""
        mean, raw = self.moments(self.norm(states.final)).unbind(-1)
        variance = F.softplus(raw) + MINIMUM_VARIANCE
        return {"reward": mean, "variance": variance, "thresholds": self.thresholds.expand(len(mean), 2)}


class NonnegativeHead(BaselineHead):
    """r = theta(h) . phi, both of non-negative Weibull units; means at evaluation, so r >= 0.

    Source: BNRM (arXiv 2602.10623), which sums over the response's tokens; here one state stands for the text.
    """

    def __init__(self, hidden_size: int, aspects: int, *, units: int, **_: object) -> None:
        super().__init__(hidden_size)
        self.local = nn.Linear(hidden_size, 2 * units)
        self.common = nn.Parameter(torch.empty(2, units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of equal size whose sum has a standard deviation of order 1."""
        nn.init.constant_(self.common[0], INITIAL_SHAPE)
        nn.init.constant_(self.common[1], self.common.shape[1] ** -0.5)

    def forward(self, states: States, noise: Noise | None = None) -> dict[str, Tensor]:
        """Also variance of the reward, kl of the text's units and kl_common of the weights, each (B,), in nats."""
        raw_shape, raw_mean = self.local(self.norm(states.final)).chunk(2, dim=-1)
        local = _weibull(raw_shape + INITIAL_SHAPE, raw_mean)
        common = _weibull(*self.common)
        if noise is None:
            theta, phi = local.mean, common.mean
        else:
            theta = weibull_sample(local.shape, local.scale, noise.uniform(local.mean))
            phi = weibull_sample(common.shape, common.scale, noise.common(common.mean))
        second = weibull_second_moment(local.shape, local.scale) * weibull_second_moment(common.shape, common.scale)
        return {
            "reward": theta @ phi,
            "variance": (second - (local.mean * common.mean).square()).sum(-1),
            "kl": weibull_kl(local.shape, local.scale).sum(-1),
            "kl_common": weibull_kl(common.shape, common.scale).sum().expand(len(theta)),
        }


@dataclass(frozen=True)
class _Weibull:
    shape: Tensor
    scale: Tensor
    mean: Tensor


def _weibull(raw_shape: Tensor, raw_mean: Tensor) -> _Weibull:
    shape, mean = 1 + F.softplus(raw_shape), F.relu(raw_mean) + MINIMUM_MEAN
    return _Weibull(shape, weibull_scale(shape, mean), mean)


def _gaussian(found: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, (B, d) each, of an encoder's output (B, 2d); start and range are the VRM's."""
    mu, log_variance = found.chunk(2, dim=-1)
    return mu, (log_variance + INITIAL_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)


HEADS: dict[str, type[BaselineHead]] = {
    "bottleneck": BottleneckHead,
    "multitask": MultitaskHead,
    "gated": GatedHead,
    "length_heads": LengthHeads,
    "gaussian": GaussianHead,
    "nonnegative": NonnegativeHead,
}
"""The head of each `kind` of the configuration."""


@strict
class BaselineConfig(PreTrainedConfig):
    """Configuration: the backbone's own configuration as `text_config`, and the head's.

    Args:
        kind: a key of `HEADS`.
        settings: the kind's section of the experiment's configuration; a head takes from it what concerns it.
        aspects: names of the K rated aspects; empty where the kind has no output for them.
        generation_prompt_ids: tokens that begin every response, and
        user_turn_ids: those that begin every user turn; they locate the prompt without a given length, see `templates`.
    """

    model_type = "vrm_baseline"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3")}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    kind: Literal["bottleneck", "multitask", "gated", "length_heads", "gaussian", "nonnegative"] = "multitask"
    settings: dict | None = None
    aspects: list[str] | None = None
    generation_prompt_ids: list[int] | None = None
    user_turn_ids: list[int] | None = None
    # the language-model head is gone, so there is nothing to tie, whatever the backbone did
    tie_word_embeddings: bool = False


@dataclass
class BaselineOutput(ModelOutput):
    """What a forward pass over B texts gives.

    Args:
        logits: reward, shape (B, 1).
        parts: what the head gives beside it, by name, each with B rows.
    """

    logits: Tensor | None = None
    parts: Mapping[str, Tensor] | None = None


class BaselineForSequenceClassification(PreTrainedModel):
    """A causal LM with the reward head of a published method."""

    config_class = BaselineConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        self.model = AutoModel.from_config(config.text_config)
        self.head = self._new_head(config)
        self.post_init()

    @staticmethod
    def _new_head(config: BaselineConfig) -> BaselineHead:
        kind = HEADS[config.kind]
        if kind.rated and not config.aspects:
            raise ValueError(f"{config.kind}: needs at least one aspect: set `aspects`")
        settings = config.settings or {}
        return kind(config.text_config.hidden_size, len(config.aspects or []), **settings).float()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's fan-in initialisation for the head's layers, and the heads' own start values."""
        if isinstance(module, nn.Linear | nn.LayerNorm | BaselineHead):
            module.reset_parameters()

    @classmethod
    def from_backbone(
        cls,
        path: str | PreTrainedModel,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        **head: Any,
    ) -> BaselineForSequenceClassification:
        """A fresh head on the weights of any causal LM.

        Args:
            path: local directory or hub id of a causal LM, or a model of hidden states as it is.
            dtype: dtype of the backbone; None keeps the checkpoint's.
            revision: commit of the hub model.
            head: the head's fields of `BaselineConfig`.
        """
        is_model = isinstance(path, PreTrainedModel)
        options = {"dtype": dtype or "auto", "revision": revision, "use_safetensors": True}
        backbone = path if is_model else AutoModel.from_pretrained(path, **options)
        config = BaselineConfig(text_config=backbone.config, dtype=backbone.dtype, num_labels=1, **head)
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

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        noise: Noise | None = None,
        position_ids: Tensor | None = None,
        layout: Layout | None = None,
        **others: object,
    ) -> BaselineOutput:
        """Rewards of B texts.

        Args:
            input_ids: token ids, shape (B, T), padded on either side.
            attention_mask: 1 on real tokens, shape (B, T); None where nothing is padded.
            prompt_lengths: tokens of the prompt, shape (B,); None locates it by `config.generation_prompt_ids`.
            noise: rows are B/2 chosen followed by B/2 rejected texts, and what a head samples is sampled; None takes
                means.
            position_ids, layout: of a packed batch, see `VrmForSequenceClassification.forward`.
            others: what trainers and adapters pass to every classifier, None or False: `labels`, `use_cache`, ...

        Raises:
            TypeError: one of the others asks for something.
            ValueError: a prompt can't be located.
        """
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked:
            raise TypeError(f"a reward head does not take {', '.join(asked)}; losses are in `vrm.training`")
        if layout is None:
            states = self._padded(input_ids, attention_mask, prompt_lengths)
        else:
            states = self._packed(input_ids, position_ids, layout)
        with torch.autocast(input_ids.device.type, enabled=False):
            parts = self.head(states, noise)
        return BaselineOutput(logits=parts.pop("reward").unsqueeze(-1), parts=parts)

    def _padded(self, input_ids: Tensor, mask: Tensor | None, prompt_lengths: Tensor | None) -> States:
        if mask is None:
            mask = torch.ones_like(input_ids)
        hidden = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state  # (B, T, H)
        rows = torch.arange(len(input_ids), device=hidden.device)
        end = last_prompt_token(input_ids, mask, prompt_lengths, self.config)
        stored = getattr(self.model, "response_lengths", None)  # of features, which have one row for all of a response
        lengths = last_token(mask) - end if stored is None else stored(input_ids)
        with torch.autocast(hidden.device.type, enabled=False):
            return States(
                final=hidden[rows, last_token(mask)].float(),
                prompt=self.head.pool_prompt(hidden, mask, end),
                response_lengths=lengths.float(),
            )

    def _packed(self, input_ids: Tensor, position_ids: Tensor | None, layout: Layout) -> States:
        hidden = packed_states(self.model, input_ids, position_ids, layout)  # (R, W, H)
        with torch.autocast(hidden.device.type, enabled=False):
            return States(
                final=layout.text_ends(hidden).float(),
                prompt=pooled_prompts(self.head, hidden, layout),
                response_lengths=layout.response_lengths.float().to(hidden.device),
            )


AutoConfig.register("vrm_baseline", BaselineConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BaselineConfig, BaselineForSequenceClassification, exist_ok=True)
