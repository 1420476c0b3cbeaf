"""A policy as a scorer of texts (the contract of `vrm.models.base`), from log-probabilities of TRL's fused head.

* With a reference it is the implicit reward of DPO and its relatives, the log ratio summed over the response: beta
  would only scale it. Without one it is SimPO's reward, the mean log-probability. The end token is part of the
  response.
* Both are read in float32, as in training: a base on the hub is bfloat16 and the policy trained from it is not, so that
  their ratio would hold rounding noise.
* A prompt is computed once for all of its responses, where the model can do so.
* What the reference says of texts can be asked once for all policies that were trained from it (`ask_reference`); then
  it need not be in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.checks import checked_tokenizer, require_model
from vrm.models.known_texts import encoded_once
from vrm.models.reference_log_probs import Reference, asked_of, read_reference, write_reference
from vrm.models.responses import batch_responses, ensure_fused_head, response_outputs
from vrm.models.scoring import MOST_TOKENS, own_device
from vrm.models.shared_prefix import passes, share_prefixes, unsupported
from vrm.models.templates import NO_KWARGS
from vrm.models.text import PolicyEncoder, TextEncoder, TokenisedText, end_ids, prepare_tokenizer
from vrm.models.weights import checked_weights
from vrm.records import Prompt
from vrm.watch import watched


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
        engine: Literal["shared", "padded"] = "shared",
    ) -> None:
        """Wrap a policy.

        Args:
            policy: what scores; in evaluation mode from here on.
            reference: what it is compared with, likewise; None scores by mean log-probability. See also `know`.
            tokenizer: of both.
            max_prompt_length, max_length: limits in tokens, see `PolicyEncoder`.
            batch_size: texts per forward pass; shared, as many tokens as so many texts of `max_length` have, and
                `MOST_TOKENS` at most.
            chat_template_kwargs: passed to the chat template.
            progress: show a progress bar.
            engine: a prompt once for all of its responses, where both models can do so; or padded batches.
        """
        models = [ensure_fused_head(model.eval()) for model in (policy, reference) if model is not None]
        self.model, self.reference = models[0], models[1] if reference is not None else None
        self.known: Reference | None = None
        self._shares = engine == "shared" and not any(map(unsupported, models))
        if self._shares:
            for model in models:
                share_prefixes(model)
        limits = max_prompt_length, max_length
        tokenizer, ends = prepare_tokenizer(tokenizer), end_ids(policy.generation_config, tokenizer)
        self.encoder: TextEncoder = PolicyEncoder(
            tokenizer, *limits, chat_template_kwargs=chat_template_kwargs, ends=ends
        )
        self.batch_size = batch_size
        self.progress = progress
        self.aspects: list[str] = []

    def know(self, path: Path, reference: str | Path, revision: str | None) -> None:
        """Compare with what a reference has said of every text that is to be scored, in place of the model itself.

        Args:
            path: what `ask_reference` wrote.
            reference, revision: who must have been asked.

        Raises:
            RecordError: the file is missing, damaged or made from something else.
        """
        self.known = read_reference(path, self.encoder, asked_of(reference, revision, self.encoder, FLOAT32))
        self.encoder = self.known.encoder()

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts: nats with a reference, nats a token without; see `RewardModel.score`.

        Raises:
            RecordError: a file of what the reference said does not hold one of them, see `know`.
        """
        prompts = checked_prompts(prompts, responses)
        texts = self.encoder.encode(prompts, responses)
        said = 0 if self.known is None else self.known.said(zip(prompts, responses, strict=True))
        rewards = self._found(texts) - said
        if self.known is None and self.reference is None:
            rewards /= np.array([len(text.ids) - text.prompt_length for text in texts], dtype=np.float32)
        truncated = np.array([text.truncated for text in texts], dtype=bool)
        return RewardOutput(mean=rewards, truncated=truncated, link=None)  # in no unit of log-odds

    def _found(self, texts: Sequence[TokenisedText]) -> np.ndarray:
        """Log-probabilities of N responses, summed, less those of a reference that is a model, shape (N,)."""
        found = np.zeros(len(texts), dtype=np.float32)
        with torch.no_grad():
            for rows in watched(self._batches(texts), "scoring", "batches", quiet=not self.progress):
                found[rows] = self._forward([texts[i] for i in rows]).cpu().numpy()
        return found

    def _batches(self, texts: list[TokenisedText]) -> list[list[int]]:
        """Numbers of the texts, by forward pass."""
        if self._shares:
            budget = min(self.batch_size * self.encoder.max_length, MOST_TOKENS)
            return passes([(text.ids, text.prompt_length) for text in texts], budget)
        order = np.argsort([len(text.ids) for text in texts], kind="stable").tolist()
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _forward(self, texts: list[TokenisedText]) -> Tensor:
        kernel = "groups" if self._shares else None
        tokens = [(text.ids, text.prompt_length) for text in texts]
        batch = batch_responses(tokens, self.encoder.tokenizer.pad_token_id, kernel, device=self.model.device)
        found = response_outputs(self.model, batch).log_probs
        if self.reference is not None:
            found = found - response_outputs(self.reference, batch).log_probs
        return found.sum(1)


FLOAT32 = {"precision": "float32"}
"""How policies are scored, whatever they were trained in."""


def ask_reference(
    scorer: PolicyScorer, policy: str | Path, revision: str | None, texts: Sequence[tuple[Prompt, str]], out: Path
) -> None:
    """Write what a policy says of texts, for those that are trained from it; what its template refuses is left out.

    Args:
        scorer: the policy, without a reference.
        policy, revision: where it was loaded from.
        texts: prompts and responses, of which one may occur several times.
        out: the Parquet file, `vrm.models.reference_log_probs.REFERENCE`.
    """
    known = encoded_once(scorer.encoder, texts)
    totals = scorer._found(list(known.known.values()))
    said = dict(zip(known.known, totals.tolist(), strict=True))
    write_reference(known, said, asked_of(policy, revision, scorer.encoder, FLOAT32), out)
    print(f"{out}: {len(said)} texts, {known.truncation.as_dict()}")


def load_policy_scorer(
    policy: str | Path,
    reference: str | Path | None,
    *,
    max_length: int,
    revision: str | None = None,
    reference_revision: str | None = None,
    reference_log_probs: Path | None = None,
    chat_template: str | None = None,
    **options: Any,
) -> PolicyScorer:
    """Load a policy, and what it is compared with, from directories or the hub.

    Args:
        policy: what `vrm train-preference` made, or any causal LM.
        reference: what it was trained from; None scores by mean log-probability.
        max_length: limit in tokens.
        revision: commit of a policy on the hub.
        reference_revision: commit of a reference on the hub.
        reference_log_probs: what `ask_reference` wrote of every text that is to be scored; None loads the reference.
        chat_template: instead of the policy's own, its text or a file.
        options: further keyword arguments of `PolicyScorer`.

    Raises:
        ConfigError, RecordError: one of them can't be used, see `vrm.models.checks`.
    """
    tokenizer = checked_tokenizer(policy, max_length=max_length, revision=revision, chat_template=chat_template)
    known = reference is not None and reference_log_probs is not None
    compared = None if reference is None or known else _load(reference, reference_revision)
    scorer = PolicyScorer(_load(policy, revision), compared, tokenizer, max_length=max_length, **options)
    if known:
        scorer.know(reference_log_probs, reference, reference_revision)
    return scorer


def _load(path: str | Path, revision: str | None = None) -> PreTrainedModel:
    require_model(path)
    options = {"revision": revision, "dtype": torch.float32, "use_safetensors": True}
    return checked_weights(AutoModelForCausalLM, path, **options).to(own_device())
