"""The variational reward model as a Hugging Face model: any causal LM below, one small head above.

* One forward pass gives both encoders: q(w|x) reads hidden states of the prompt (its last token's, the end of the
  header that the template writes before a response, see `templates`, or attention over all of them), which in a causal
  LM cannot see the response; q(z|x,y) reads the last real token (VRM, Eq. 3-5).
* Both positions come from the attention mask, never from comparing with a pad id, so pad == eos and either padding
  side are safe.
* The head runs in float32 whatever the backbone's dtype: digamma differences have no digits left in bfloat16.
* `logits` (B, 1) is the reward at the posterior means, so everything that takes a sequence classifier takes a VRM.
* Importing this module registers it: `AutoModelForSequenceClassification.from_pretrained(directory)` then works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput, can_return_tuple

from vrm.models.latents import Posterior, Sampler, dirichlet_mean
from vrm.models.shared_prefix import Layout, packed_states, pooled_prompts
from vrm.models.templates import prompt_end
from vrm.models.weights import checked_weights

# Pooling: from the states of a prompt's tokens to one vector, for any engine that has the states. B texts of T
# positions, H channels. In a causal LM no state of a prompt's token has seen the response, so whatever is made of these
# alone depends on the prompt alone.


def prompt_mask(attention_mask: Tensor, last_prompt_token: Tensor) -> Tensor:
    """Which positions hold the prompt's tokens, for either padding side.

    Args:
        attention_mask: 1 on real tokens, shape (B, T).
        last_prompt_token: index of the prompt's last token, shape (B,).

    Returns:
        Bool, shape (B, T).
    """
    steps = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return attention_mask.bool() & (steps <= last_prompt_token.unsqueeze(-1))


def attention_pool(hidden: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Mean of the states that the mask lets through, each weighted by softmax_t(query . hidden_t).

    Args:
        hidden: states, shape (B, T, H).
        mask: True on the positions that count, at least one in each row, shape (B, T), bool.
        query: shape (H,); zeros give the plain mean.

    Returns:
        Shape (B, H).
    """
    scores = (hidden @ query).masked_fill(~mask, -torch.inf)  # (B, T)
    return torch.einsum("bt,bth->bh", scores.softmax(-1), hidden)


# The model.

LOG_VARIANCE_RANGE = (-10.0, 4.0)
"""Keeps exp() and the KL finite at the start of training; posteriors end well inside."""
INITIAL_LOG_VARIANCE = -2.0
"""z starts with a standard deviation of 0.37: with 1.0 the first gradients of the preference loss drown in noise."""
MINIMUM_CONCENTRATION = 1e-2
"""Below this Dirichlet samples underflow to exact zeros in float32."""
INITIAL_LOG_CONCENTRATION = 2.3
"""log c of `scaled`, so about 10 in all: samples of w start near the middle of the simplex, not in its corners."""


@strict
class VrmConfig(PreTrainedConfig):
    """Configuration: the backbone's own configuration as `text_config`, and the head's.

    Args:
        aspects: names of the K objectives.
        latent_dim: d, dimensions of z.
        reward_decoder: `mixture` (r = w . g(z)) or `mlp` (an MLP on [w; z]); transformers reserves the name `decoder`.
        prior_concentration: alpha_0 of the Dirichlet prior, per objective.
        prompt_pooling: q(w|x) reads the `last` prompt token's state, or `attention` over all of the prompt's.
        concentration: alpha = `softplus`(f(h)) + 0.01, or `scaled`: c softmax(f(h)) + 0.01 with c learned.
        scale: r = e^tau w . g(z) with tau learned, from log scale_start; needs the mixture decoder. Ours.
        residual: add b(z), linear in z and 0 at the start: the concept-residual VRM; needs that decoder. Ours.
        residual_gain: b(z) = gain v . z, v learned: under Adam b learns so many times as fast as other layers.
        residual_detached: b takes z as it is and sends it no gradient.
        generation_prompt_ids: tokens that begin every response, and
        user_turn_ids: those that begin every user turn; they locate the prompt without a given length, see `templates`.
    """

    model_type = "vrm"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3")}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    aspects: list[str] | None = None
    latent_dim: int = 16
    reward_decoder: Literal["mixture", "mlp"] = "mixture"
    prior_concentration: float = 1.0
    prompt_pooling: Literal["last", "attention"] = "last"
    concentration: Literal["softplus", "scaled"] = "softplus"
    scale: bool = False
    residual: bool = False
    scale_start: float = 1.0
    residual_gain: float = 5.0
    residual_detached: bool = False
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
        per_objective: g(z), in the ratings' unit, shape (B, K); None with the MLP decoder.
        rated: the rated-aspect reward e^tau w . g(z), shape (B,); the whole reward of a model without a residual.
        residual: b(z), shape (B,), `logits` - `rated`; None for a model without one.
    """

    logits: Tensor | None = None
    alpha: Tensor | None = None
    mu: Tensor | None = None
    log_variance: Tensor | None = None
    per_objective: Tensor | None = None
    rated: Tensor | None = None
    residual: Tensor | None = None

    @classmethod
    def of(cls, posterior: Posterior) -> VrmOutput:
        """The record in the shape that takers of sequence classifiers expect."""
        filled = posterior.filled()
        return cls(logits=filled.pop("reward").unsqueeze(-1), **filled)

    @property
    def posterior(self) -> Posterior:
        """The record that it was made of."""
        return Posterior(reward=self.logits.squeeze(-1), **{k: v for k, v in self.items() if k != "logits"})


class Decoded(NamedTuple):
    """Parts of a reward; see `Posterior` for each of them."""

    reward: Tensor
    rated: Tensor
    per_objective: Tensor | None
    residual: Tensor | None


class VrmHead(nn.Module):
    """Both encoders and the reward decoder, on pooled hidden states.

    What a variant does not ask for has no parameters; what it may add (query, log c, tau, b) starts at a constant and
    draws no random numbers, so that seeds keep their meaning.

    Args:
        hidden_size: H, of the backbone.
        num_objectives: K.
        latent_dim: d.
        decoder: `mixture` or `mlp`, see `VrmConfig.reward_decoder`.
        prompt_pooling, concentration, scale, scale_start, residual, residual_gain, residual_detached: see `VrmConfig`.

    Raises:
        ValueError: there is no objective, or the decoder has no per-objective scores to scale or to add to.
    """

    def __init__(
        self,
        hidden_size: int,
        num_objectives: int,
        latent_dim: int,
        decoder: str,
        *,
        prompt_pooling: str = "last",
        concentration: str = "softplus",
        scale: bool = False,
        scale_start: float = 1.0,
        residual: bool = False,
        residual_gain: float = 5.0,
        residual_detached: bool = False,
    ) -> None:
        super().__init__()
        if num_objectives < 1:
            raise ValueError("a VRM needs at least one objective: set `aspects`")
        if decoder != "mixture" and (scale or residual):
            raise ValueError("scale and residual need the mixture decoder")
        self.kind = decoder
        self.scale_start, self.residual_gain, self.residual_detached = scale_start, residual_gain, residual_detached
        # hidden states of pretrained models differ in scale by orders of magnitude; the head should not care
        self.norm = nn.LayerNorm(hidden_size)
        self.weight_encoder = _mlp(hidden_size, hidden_size, num_objectives)
        self.latent_encoder = nn.Linear(hidden_size, 2 * latent_dim)
        if decoder == "mixture":
            self.decoder = _mlp(latent_dim, 4 * latent_dim, num_objectives)
        else:
            self.decoder = _mlp(num_objectives + latent_dim, 4 * latent_dim, 1)
        self.query = nn.Parameter(torch.empty(hidden_size)) if prompt_pooling == "attention" else None
        self.residual = nn.Parameter(torch.empty(latent_dim)) if residual else None  # a bias cancels in every pair
        # both numbers in one parameter: of one element each, FSDP2 would leave all processes but the first with empty
        # shards, and with several such parameters gloo fails to gather the optimiser's states for a checkpoint
        self.has_concentration, self.has_scale = concentration == "scaled", scale
        self.scalars = nn.Parameter(torch.empty(2)) if self.has_concentration or self.has_scale else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Constants for the head's own parameters; its layers have theirs."""
        for parameter in (self.query, self.residual):
            if parameter is not None:
                nn.init.zeros_(parameter)
        if self.scalars is not None:
            start = torch.tensor([INITIAL_LOG_CONCENTRATION, math.log(self.scale_start)])
            init.copy_(self.scalars, start)

    @property
    def log_concentration(self) -> Tensor | None:
        """log c, shape (1,)."""
        return self.scalars[:1] if self.has_concentration else None

    @property
    def tau(self) -> Tensor | None:
        """Logarithm of the reward's scale, shape (1,)."""
        return self.scalars[1:] if self.has_scale else None

    def forward(self, prompt_state: Tensor, final_state: Tensor, sampler: Sampler | None = None) -> Posterior:
        """Posteriors and rewards of N texts from their pooled states.

        Args:
            prompt_state: of the prompt, shape (N, H), float32.
            final_state: of the last real token, shape (N, H), float32.
            sampler: draws the latents that rewards are made of; None takes the posterior means.
        """
        alpha = self.encode_weights(prompt_state)
        mu, log_variance = self.encode_latents(final_state)
        weights, latents = (dirichlet_mean(alpha), mu) if sampler is None else sampler(alpha, mu, log_variance)
        return Posterior(alpha, mu, log_variance, **self.decode(weights, latents)._asdict())

    def pool_prompt(self, hidden: Tensor, attention_mask: Tensor, last_prompt_token: Tensor) -> Tensor:
        """The prompt's state, shape (B, H), float32, from all states (B, T, H) and each prompt's last index (B,)."""
        if self.query is None:
            return hidden[torch.arange(len(hidden), device=hidden.device), last_prompt_token].float()
        return attention_pool(hidden.float(), prompt_mask(attention_mask, last_prompt_token), self.query)

    def encode_weights(self, prompt_state: Tensor) -> Tensor:
        """Concentrations of q(w|x): (B, H) -> (B, K). Source: VRM, Eq. 4."""
        found = self.weight_encoder(self.norm(prompt_state))
        if self.log_concentration is None:
            return F.softplus(found) + MINIMUM_CONCENTRATION
        return self.log_concentration.exp() * found.softmax(-1) + MINIMUM_CONCENTRATION

    def encode_latents(self, final_state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x,y): (B, H) -> two of (B, d). Source: VRM, Eq. 5."""
        mu, log_variance = self.latent_encoder(self.norm(final_state)).chunk(2, dim=-1)
        return mu, (log_variance + INITIAL_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)

    def scaled(self, scores: Tensor) -> Tensor:
        """From the ratings' unit, that of g(z), to the reward's: times e^tau."""
        return scores if self.tau is None else self.tau.exp() * scores

    def decode(self, weights: Tensor, latents: Tensor) -> Decoded:
        """Reward r(w, z), shape (...,), and its parts, from weights (..., K) and latents (..., d)."""
        if self.kind != "mixture":
            reward = self.decoder(torch.cat([weights, latents], dim=-1)).squeeze(-1)
            return Decoded(reward, reward, None, None)
        scores = self.decoder(latents)
        rated = self.scaled((weights * scores).sum(-1))
        if self.residual is None:
            return Decoded(rated, rated, scores, None)
        # what is reported, and what the penalty is on, holds back b and leaves z alone
        alone = self._residual_of(latents.detach())
        reward = rated + (alone if self.residual_detached else self._residual_of(latents))
        return Decoded(reward, rated, scores, alone)

    def _residual_of(self, latents: Tensor) -> Tensor:
        return self.residual_gain * (latents @ self.residual)


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
            config.text_config.hidden_size,
            config.num_objectives,
            config.latent_dim,
            config.reward_decoder,
            prompt_pooling=config.prompt_pooling,
            concentration=config.concentration,
            scale=config.scale,
            residual=config.residual,
            scale_start=config.scale_start,
            residual_gain=config.residual_gain,
            residual_detached=config.residual_detached,
        ).float()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's fan-in initialisation for the head: the backbone's 0.02 is too small for narrow layers.

        transformers calls this for what a checkpoint lacks, e.g. the head when `from_pretrained` reads a causal LM.
        """
        if isinstance(module, nn.Linear | nn.LayerNorm | VrmHead):
            module.reset_parameters()

    @classmethod
    def from_backbone(
        cls,
        path: str | PreTrainedModel,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        **head: object,
    ) -> VrmForSequenceClassification:
        """A fresh head on the weights of any causal LM.

        Args:
            path: local directory or hub id of a causal LM, or a model of hidden states as it is.
            dtype: dtype of the backbone; None keeps the checkpoint's.
            revision: commit of the hub model.
            head: the head's fields of `VrmConfig`.
        """
        if isinstance(path, PreTrainedModel):
            backbone = path
        else:
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
        sampler: Sampler | None = None,
        position_ids: Tensor | None = None,
        layout: Layout | None = None,
        **others: object,
    ) -> VrmOutput:
        """Rewards and posteriors of B texts.

        Args:
            input_ids: token ids, shape (B, T), padded on either side.
            attention_mask: 1 on real tokens, shape (B, T); None where nothing is padded.
            prompt_lengths: tokens of the prompt, shape (B,); None locates it by the configuration's
                `generation_prompt_ids` and `user_turn_ids`, see `vrm.models.templates`.
            sampler: draws the latents that rewards are made of, and None takes posterior means. `sample_pairs` takes
                rows as B/2 chosen followed by B/2 rejected texts of the same prompts, and draws w once a pair (Eq. 10).
            position_ids, layout: of a packed batch, whose rows `input_ids` are (`PackedBatch.inputs`); B is then the
                number of its texts, and masks and prompt lengths are not read.
            others: what trainers and adapters pass to every classifier, None or False: `labels`, `use_cache`, ...

        Raises:
            TypeError: one of the others asks for something.
            ValueError: a prompt can't be located.
        """
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked:
            raise TypeError(f"a VRM does not take {', '.join(asked)}; its loss is `vrm.models.latents.objective`")
        if layout is None:
            states = self._padded(input_ids, attention_mask, prompt_lengths)
        else:
            states = self._packed(input_ids, position_ids, layout)
        with torch.autocast(input_ids.device.type, enabled=False):
            return VrmOutput.of(self.head(*states, sampler))

    def _padded(
        self, input_ids: Tensor, attention_mask: Tensor | None, prompt_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The prompts' and the texts' states, shape (B, H) each, float32."""
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
            end = last_prompt_token(input_ids, attention_mask, prompt_lengths, self.config)
            prompt_state = self.head.pool_prompt(hidden, attention_mask, end)
            return prompt_state, hidden[rows, last_token(attention_mask)].float()

    def _packed(self, input_ids: Tensor, position_ids: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
        """What `_padded` gives, of the texts of a packed batch."""
        hidden = packed_states(self.model, input_ids, position_ids, layout)  # (R, W, H)
        with torch.autocast(hidden.device.type, enabled=False):
            return pooled_prompts(self.head, hidden, layout), layout.text_ends(hidden).float()


def last_prompt_token(
    input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor | None, config: PreTrainedConfig
) -> Tensor:
    """Index of each prompt's last token, shape (B,).

    Args:
        input_ids: token ids, shape (B, T), padded on either side.
        attention_mask: 1 on real tokens, shape (B, T).
        prompt_lengths: tokens of the prompt, shape (B,); None finds its end, see `vrm.models.templates`.
        config: has `generation_prompt_ids` and `user_turn_ids`.

    Raises:
        ValueError: a prompt's end can't be found.
    """
    start = attention_mask.argmax(-1)  # argmax of a 0/1 mask is the first real token
    if prompt_lengths is not None:
        return start + prompt_lengths - 1
    if not config.generation_prompt_ids:
        raise ValueError("pass prompt_lengths, or set config.generation_prompt_ids")
    texts = (ids[real].tolist() for ids, real in zip(input_ids, attention_mask.bool(), strict=True))
    lengths = [prompt_end(text, config.generation_prompt_ids, config.user_turn_ids) for text in texts]
    if not all(lengths):
        raise ValueError(
            f"a text does not hold the tokens {config.generation_prompt_ids} that begin a response: pass prompt_lengths"
        )
    return start + torch.tensor(lengths, device=start.device) - 1


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each real token counted from its text's first, shape (B, T); 0 on padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def last_token(attention_mask: Tensor) -> Tensor:
    """Index of the last real token of each row, shape (B,), for either padding side."""
    steps = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return (steps * attention_mask).argmax(-1)


AutoConfig.register("vrm", VrmConfig, exist_ok=True)
AutoModelForSequenceClassification.register(VrmConfig, VrmForSequenceClassification, exist_ok=True)
