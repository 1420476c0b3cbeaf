"""A policy as a scorer of texts, behind the contract of `vrm.models.base`.

With a reference it is the implicit reward of DPO and its kin, the log ratio summed over the response: beta would only
scale it. Without one it is SimPO's reward, the mean log-probability. The end token is part of the response.

Both are read in float32, as in training: a base on the hub is bfloat16 and the policy trained from it is not, so that
their ratio would hold rounding noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.checks import checked_tokenizer, checked_weights, require_model
from vrm.models.log_probs import ensure_fused_head, response_outputs
from vrm.models.scoring import own_device, pad_batch
from vrm.models.text import NO_KWARGS, PolicyEncoder, TokenisedText, prepare_tokenizer
from vrm.models.vrm import positions
from vrm.records import Prompt


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
        self.encoder = PolicyEncoder(prepare_tokenizer(tokenizer), *limits, chat_template_kwargs=chat_template_kwargs)
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
            for start in tqdm(starts, desc="scoring", unit="batch", disable=not self.progress):
                rows = order[start : start + self.batch_size]
                rewards[rows] = self._forward([texts[i] for i in rows]).cpu().numpy()
        return RewardOutput(mean=rewards, truncated=np.array([text.truncated for text in texts], dtype=bool))

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
