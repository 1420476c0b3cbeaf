"""A policy as a scorer of texts (the contract of `vrm.models.base`), from log-probabilities of TRL's fused head.

* With a reference it is the implicit reward of DPO and its relatives, the log ratio summed over the response: beta
  would only scale it. Without one it is SimPO's reward, the mean log-probability. The end token is part of the
  response.
* Both are read in float32, as in training: a base on the hub is bfloat16 and the policy trained from it is not, so that
  their ratio would hold rounding noise.
* The (B, T, V) logits are never in memory: a causal LM is patched once, then answers `model(..., labels=...,
  fused_lm_head=True)` with what was asked for a token, and everything else, generation included, as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.checks import checked_tokenizer, require_model
from vrm.models.scoring import own_device, pad_batch
from vrm.models.templates import NO_KWARGS
from vrm.models.text import PolicyEncoder, TokenisedText, end_ids, prepare_tokenizer
from vrm.models.vrm import positions
from vrm.models.weights import checked_weights
from vrm.records import Prompt
from vrm.watch import watched


def fuse_head(model: PreTrainedModel, *outputs: str, temperature: float = 1.0) -> PreTrainedModel:
    """Give a causal LM the fused head; adapters may be on it, the head itself is never adapted.

    Args:
        model: the model; it is returned.
        outputs: what is computed a token beside `log_probs`: `entropy`, `log_sum_sq_probs`.
        temperature: what logits are divided by.
    """
    from trl.trainer import utils  # TRL takes seconds to import, and reward models need none of it

    if hasattr(utils, "_use_triton"):
        # TRL computes prompts and padding too where tile shapes must not change, which is two thirds of a preference
        # training on a CPU: there nothing is compiled, and response tokens alone do. Its kernels ask for themselves
        utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")
    utils.add_fused_lm_head(_inner(model), temperature=temperature, outputs=("log_probs", *outputs))
    return model


def ensure_fused_head(model: PreTrainedModel) -> PreTrainedModel:
    """Give a causal LM the fused head, unless its trainer has: that one may compute more, and is not taken away."""
    return model if "forward" in vars(_inner(model)) else fuse_head(model)


def _inner(model: PreTrainedModel) -> PreTrainedModel:
    """The model below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def response_outputs(model: torch.nn.Module, ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> object:
    """What the fused head says of each response token given what is before it; 0 elsewhere.

    Args:
        model: with a fused head, wrapped or not.
        ids: token ids, shape (B, T), padded on either side or both.
        attention_mask: 1 on real tokens, shape (B, T).
        response_mask: 1 or True on the tokens that count, shape (B, T).

    Returns:
        `log_probs` in nats, and the other outputs, each of shape (B, T - 1); column t belongs to token t + 1.
    """
    return model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        labels=ids.masked_fill(~response_mask.bool(), -100),
        fused_lm_head=True,
    )


class PolicyScorer:
    """A causal LM as a `RewardModel`."""

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_length: int,
        max_length: int,
        batch_size: int = 64,
        chat_template_kwargs: Mapping[str, Any] = NO_KWARGS,
        progress: bool = False,
    ) -> None:
        """Wrap a policy.

        Args:
            policy: what scores; in evaluation mode from here on.
            reference: what it is compared with, likewise; None scores by mean log-probability.
            tokenizer: of both.
            max_prompt_length, max_length: limits in tokens, see `PolicyEncoder`.
            batch_size: texts per forward pass.
            chat_template_kwargs: passed to the chat template.
            progress: show a progress bar.
        """
        self.model = ensure_fused_head(policy.eval())
        self.reference = None if reference is None else ensure_fused_head(reference.eval())
        limits = max_prompt_length, max_length
        tokenizer, ends = prepare_tokenizer(tokenizer), end_ids(policy.generation_config, tokenizer)
        self.encoder = PolicyEncoder(tokenizer, *limits, chat_template_kwargs=chat_template_kwargs, ends=ends)
        self.batch_size = batch_size
        self.progress = progress
        self.aspects: list[str] = []

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts: nats with a reference, nats a token without; see `RewardModel.score`."""
        texts = self.encoder.encode(checked_prompts(prompts, responses), responses)
        rewards = np.zeros(len(texts), dtype=np.float32)
        order = np.argsort([len(text.ids) for text in texts], kind="stable")
        starts = range(0, len(order), self.batch_size)
        with torch.no_grad():
            for start in watched(starts, "scoring", "batches", quiet=not self.progress):
                rows = order[start : start + self.batch_size]
                rewards[rows] = self._forward([texts[i] for i in rows]).cpu().numpy()
        truncated = np.array([text.truncated for text in texts], dtype=bool)
        return RewardOutput(mean=rewards, truncated=truncated, link=None)  # in no unit of log-odds

    def _forward(self, texts: list[TokenisedText]) -> Tensor:
        ids, mask = (part.to(self.model.device) for part in pad_batch([t.ids for t in texts], self.encoder.tokenizer))
        lengths = torch.tensor([text.prompt_length for text in texts], device=mask.device)
        response = mask.bool() & (positions(mask) >= lengths[:, None])  # (B, T)
        log_probs = response_outputs(self.model, ids, mask, response).log_probs
        if self.reference is None:
            return log_probs.sum(1) / response.sum(1)
        return (log_probs - response_outputs(self.reference, ids, mask, response).log_probs).sum(1)


def load_policy_scorer(
    policy: str | Path,
    reference: str | Path | None,
    *,
    max_length: int,
    reference_revision: str | None = None,
    chat_template: str | None = None,
    **options: Any,
) -> PolicyScorer:
    """Load a policy, and what it is compared with, from directories or the hub.

    Args:
        policy: what `vrm train-preference` made, or any causal LM.
        reference: what it was trained from; None scores by mean log-probability.
        max_length: limit in tokens.
        reference_revision: commit of a reference on the hub.
        chat_template: instead of the policy's own, its text or a file.
        options: further keyword arguments of `PolicyScorer`.

    Raises:
        ConfigError, RecordError: one of them can't be used, see `vrm.models.checks`.
    """
    tokenizer = checked_tokenizer(policy, max_length=max_length, chat_template=chat_template)
    compared = None if reference is None else _load(reference, reference_revision)
    return PolicyScorer(_load(policy), compared, tokenizer, max_length=max_length, **options)


def _load(path: str | Path, revision: str | None = None) -> PreTrainedModel:
    require_model(path)
    options = {"revision": revision, "dtype": torch.float32, "use_safetensors": True}
    return checked_weights(AutoModelForCausalLM, path, **options).to(own_device())
