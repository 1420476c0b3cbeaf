"""Trained Hugging Face reward models behind the contract of `vrm.models.base`.

* Scalar and variational models differ in one method; everything else (encoding, batching, pooling) is shared.
* A stock classifier is read where its own class reads it, so that a published one gives the score of its own card: at
  the last token that is not its configuration's `pad_token_id`. What our trainings save never ends a text in that token
  (see `prepare_tokenizer`). Texts are padded on the right, whatever the tokenizer's side, as no real token sees that.
* Texts are batched by length and returned in the caller's order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.checks import checked_config, checked_tokenizer, checked_weights, positions_of
from vrm.models.latents import dirichlet_mean
from vrm.models.text import TextEncoder, TokenisedText, located, prepare_tokenizer
from vrm.models.vrm import VrmForSequenceClassification, last_token
from vrm.records import Prompt, RecordError, prompt_id


class HuggingFaceRewardModel:
    """A sequence classifier with one label, or a VRM, as a `RewardModel`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_length: int,
        max_length: int,
        batch_size: int = 64,
        posterior_samples: int = 0,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: in evaluation mode from here on.
            tokenizer: the one it was trained with.
            max_prompt_length, max_length: limits in tokens, see `TextEncoder`.
            batch_size: texts per forward pass.
            posterior_samples: samples for `std`; 0 leaves it empty.
            seed: seed of those samples.
            progress: show a progress bar.
        """
        self.model = model.eval()
        self.encoder = TextEncoder(prepare_tokenizer(tokenizer), max_prompt_length, max_length)
        self.batch_size = batch_size
        self.posterior_samples = posterior_samples
        self.seed = seed
        self.progress = progress
        self.aspects: list[str] = list(model.config.aspects) if self._variational else []

    @property
    def _variational(self) -> bool:
        return isinstance(self.model, VrmForSequenceClassification)

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts; see `RewardModel.score`.

        Raises:
            Unrenderable: the chat template refuses some of the conversations; nothing is scored then.
        """
        conversations = checked_prompts(prompts, responses)
        texts = self.encoder.encode(conversations, responses)
        if self._variational:
            located(texts)
        order = np.argsort([len(text.ids) for text in texts], kind="stable")
        parts: list[dict[str, np.ndarray]] = []
        with torch.inference_mode():
            for rows in self._batches(order):
                parts.append(self._forward([texts[i] for i in rows]))
        if not parts:
            return RewardOutput(mean=np.zeros(0), truncated=np.zeros(0, dtype=bool))
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        found = {name: np.concatenate([part[name] for part in parts])[inverse] for name in parts[0]}
        std = self._posterior_std(found, conversations, responses) if self.posterior_samples and "mu" in found else None
        truncated = np.array([text.truncated for text in texts])
        return RewardOutput(found["mean"], truncated, std, found.get("weights"), found.get("per_objective"))

    def _batches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc="scoring", unit="batch", disable=not self.progress):
            yield order[start : start + self.batch_size]

    def _forward(self, texts: list[TokenisedText]) -> dict[str, np.ndarray]:
        ids, mask = pad_batch([text.ids for text in texts], self.encoder.tokenizer, side="right")
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        if not self._variational:
            return {"mean": _numpy(self._scalar_rewards(ids, mask))}
        lengths = torch.tensor([text.prompt_length for text in texts], device=ids.device)
        out = self.model(input_ids=ids, attention_mask=mask, prompt_lengths=lengths)
        parts = {
            "mean": _numpy(out.logits.squeeze(-1)),
            "weights": _numpy(dirichlet_mean(out.alpha)),
            "alpha": _numpy(out.alpha),
            "mu": _numpy(out.mu),
            "std_z": _numpy((0.5 * out.log_variance).exp()),
        }
        if out.per_objective is not None:
            parts["per_objective"] = _numpy(out.per_objective)
        return parts

    def _scalar_rewards(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards of a stock sequence classifier, read where its own `forward` reads a single text, shape (B,)."""
        if not hasattr(self.model, "score"):  # code of its own
            return self.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B,T,H)
        pad = self.model.config.get_text_config().pad_token_id
        read = last_token(mask if pad is None else mask * (ids != pad))
        return self.model.score(hidden[torch.arange(len(ids), device=ids.device), read]).squeeze(-1)

    def _posterior_std(
        self, found: dict[str, np.ndarray], prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> np.ndarray:
        """Standard deviation of r(w, z) under q, shape (N,).

        Each draw's seed is made of the text itself, so that neither batch nor order matters; responses to one prompt
        share their draws of w, as the two responses of a pair do in Eq. 10.
        """
        out = np.empty(len(responses))
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            key = prompt_id(prompt)
            w = _generator(self.seed, key).dirichlet(found["alpha"][i], self.posterior_samples)  # (S, K)
            noise = _generator(self.seed, key, response).standard_normal((self.posterior_samples, found["mu"].shape[1]))
            z = found["mu"][i] + found["std_z"][i] * noise  # (S, d)
            with torch.inference_mode():
                reward, _ = self.model.head.decode(self._tensor(w), self._tensor(z))
            out[i] = float(reward.std(unbiased=False))
        return out

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self.model.device)


def load_reward_model(
    path: str | Path,
    *,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    **options: object,
) -> HuggingFaceRewardModel:
    """Load a trained reward model, scalar or variational, from a directory or the hub.

    Args:
        path: what `vrm train-reward` made, or any sequence classifier with one label on a causal language model.
        max_prompt_length, max_length: limits in tokens; None takes those the model was trained with, and 1024 and 2048
            for a model that does not say, or what it has positions for.
        dtype: of the weights, e.g. "bfloat16"; None: the checkpoint's own.
        device: e.g. "cuda:1"; None: this process's GPU, the CPU where there is none.
        revision: commit of the hub model.
        attn_implementation: e.g. "flash_attention_2"; None lets transformers choose.
        trust_remote_code: run the code that the model brings along.
        options: further keyword arguments of `HuggingFaceRewardModel`.

    Raises:
        ConfigError: no causal language model, or fewer positions than `max_length`.
        RecordError: there is no such model, its files are incomplete, it has no reward head, or more than one label.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = checked_config(path, **source)
    if config.num_labels != 1:
        raise RecordError(
            f"{path}: a reward model has one label, this one has {config.num_labels}: it is a policy, or another "
            "classifier"
        )
    limits = _limits(config, max_prompt_length, max_length)
    tokenizer = checked_tokenizer(path, max_length=limits["max_length"], **source)
    model = checked_weights(
        AutoModelForSequenceClassification,
        path,
        remedy="a reward model needs its trained head; train one (vrm train-reward), or name one that has it",
        use_safetensors=True,
        dtype=dtype or "auto",
        attn_implementation=attn_implementation,
        **source,
    )
    return HuggingFaceRewardModel(model.to(device or own_device()), tokenizer, **limits, **options)


def _limits(config: PreTrainedConfig, max_prompt_length: int | None, max_length: int | None) -> dict[str, int]:
    trained_with = getattr(config, "reward_limits", None)
    if trained_with is None:
        longest = min(2048, positions_of(config) or 2048)
        trained_with = {"max_prompt_length": longest // 2, "max_length": longest}
    given = {"max_prompt_length": max_prompt_length, "max_length": max_length}
    return {name: given[name] or trained_with[name] for name in given}


def own_device() -> torch.device:
    """This process's GPU, of several where a launcher started several processes; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def pad_batch(
    texts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, side: str | None = None
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of B texts, both (B, T), padded on that side; None: the tokenizer's padding side."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    mask = torch.zeros((len(texts), longest), dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if (side or tokenizer.padding_side) == "left" else slice(len(text))
        ids[row, place] = torch.tensor(text)
        mask[row, place] = 1
    return ids, mask


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _generator(seed: int, *parts: str) -> np.random.Generator:
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
