"""Trained Hugging Face reward models behind the contract of `vrm.models.base`.

* Scalar and variational models differ in one method; everything else (encoding, batching, pooling) is shared.
* The last real token is found by the attention mask, also for stock classifiers, whose own pooling compares with
  `pad_token_id` and reads the wrong token when pad == eos.
* Texts are batched by length and returned in the caller's order.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.feature_files import StoredEncoder, StoredFeatures
from vrm.models.features import FeatureTable
from vrm.models.latents import dirichlet_mean
from vrm.models.text import TextEncoder, TokenisedText, prepare_tokenizer
from vrm.models.vrm import VrmForSequenceClassification, last_token, positions
from vrm.records import Prompt, RecordError, prompt_id

REWARD_PARTS = ("full", "rated")
"""What a reward model can be asked for: its whole reward, or the rated-aspect reward, e^tau w . g(z), alone."""


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
        reward: Literal["full", "rated"] = "full",
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
            reward: what `mean` and `std` are of: the whole reward, or the rated-aspect reward alone. A model without a
                residual has nothing but the whole.

        Raises:
            ValueError: `reward` is neither.
        """
        if reward not in REWARD_PARTS:
            raise ValueError(f"reward is {reward!r}, and can be {' or '.join(REWARD_PARTS)}")
        self.model = model.eval()
        self.encoder = TextEncoder(prepare_tokenizer(tokenizer), max_prompt_length, max_length)
        self.batch_size = batch_size
        self.posterior_samples = posterior_samples
        self.seed = seed
        self.progress = progress
        self.reward = reward
        self.aspects: list[str] = list(model.config.aspects) if self._variational else []

    @property
    def _variational(self) -> bool:
        return isinstance(self.model, VrmForSequenceClassification)

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts; see `RewardModel.score`."""
        conversations = checked_prompts(prompts, responses)
        texts = self.encoder.encode(conversations, responses)
        order = np.argsort([len(text.ids) for text in texts], kind="stable")
        batches: list[dict[str, np.ndarray]] = []
        with torch.inference_mode():
            for rows in self._batches(order):
                batches.append(self._forward([texts[i] for i in rows]))
        if not batches:
            return RewardOutput(mean=np.zeros(0), truncated=np.zeros(0, dtype=bool))
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        found = {name: np.concatenate([batch[name] for batch in batches])[inverse] for name in batches[0]}
        std = self._posterior_std(found, conversations, responses) if self.posterior_samples and "mu" in found else None
        truncated = np.array([text.truncated for text in texts])
        parts = {name: found.get(name) for name in ("weights", "per_objective", "rated", "residual")}
        return RewardOutput(found["rated" if self._rated_alone else "mean"], truncated, std, **parts)

    @property
    def _rated_alone(self) -> bool:
        return self.reward == "rated" and self._variational

    def _batches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc="scoring", unit="batch", disable=not self.progress):
            yield order[start : start + self.batch_size]

    def _forward(self, texts: list[TokenisedText]) -> dict[str, np.ndarray]:
        ids, mask = pad_batch([text.ids for text in texts], self.encoder.tokenizer)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        if not self._variational:
            return {"mean": _numpy(self._scalar_rewards(ids, mask))}
        lengths = torch.tensor([text.prompt_length for text in texts], device=ids.device)
        found = self.model(input_ids=ids, attention_mask=mask, prompt_lengths=lengths).posterior
        parts = {
            name: _numpy(value) for name, value in found.filled().items() if name not in ("reward", "log_variance")
        }
        return parts | {
            "mean": _numpy(found.reward),
            "weights": _numpy(dirichlet_mean(found.alpha)),
            **(
                {"per_objective": _numpy(self.model.head.scaled(found.per_objective))}
                if "per_objective" in parts
                else {}
            ),
            "std_z": _numpy((0.5 * found.log_variance).exp()),
        }

    def _scalar_rewards(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards of a stock sequence classifier, pooled by the attention mask, shape (B,)."""
        hidden = self.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state  # (B, T, H)
        pooled = hidden[torch.arange(len(ids), device=ids.device), last_token(mask)]
        return self.model.score(pooled).squeeze(-1)

    def _posterior_std(
        self, found: dict[str, np.ndarray], prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> np.ndarray:
        """Standard deviation of r(w, z), or of its rated part, under q, shape (N,).

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
                decoded = self.model.head.decode(self._tensor(w), self._tensor(z))
            out[i] = float((decoded.rated if self._rated_alone else decoded.reward).std(unbiased=False))
        return out

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self.model.device)


def load_reward_model(
    path: str | Path,
    *,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    features: Sequence[Path] = (),
    **options: object,
) -> HuggingFaceRewardModel:
    """Load a trained reward model, scalar or variational, from a directory or the hub.

    Args:
        path: what `vrm train-reward` made, or any sequence classifier with one label.
        max_prompt_length, max_length: limits in tokens; None takes those the model was trained with, and 1024 and 2048
            for a model that does not say.
        features: directories that `vrm features` made of all texts to score, for a model on a frozen backbone; it then
            scores these texts alone, at once.
        options: further keyword arguments of `HuggingFaceRewardModel`.

    Raises:
        RecordError: there is no such directory, it holds no model, or the model has more than one label.
    """
    _require_model(path)
    model = AutoModelForSequenceClassification.from_pretrained(str(path), use_safetensors=True).to(own_device())
    if model.config.num_labels != 1:
        raise RecordError(
            f"{path}: a reward model has one label, this one has {model.config.num_labels}: it is a policy, or another "
            "classifier"
        )
    trained_with = getattr(model.config, "reward_limits", None) or {"max_prompt_length": 1024, "max_length": 2048}
    reward_model = HuggingFaceRewardModel(
        model,
        AutoTokenizer.from_pretrained(str(path)),
        max_prompt_length=max_prompt_length or trained_with["max_prompt_length"],
        max_length=max_length or trained_with["max_length"],
        **options,
    )
    return with_stored_features(reward_model, features) if features else reward_model


def with_stored_features(reward_model: HuggingFaceRewardModel, features: Sequence[Path]) -> HuggingFaceRewardModel:
    """The same model, with features looked up instead of computed; for the texts of those directories alone.

    Raises:
        RecordError: the features are not those that the model was trained on.
    """
    stored = StoredFeatures.read(features)
    computed = reward_model.model.model
    if getattr(computed.config, "recipe", None) != stored.config.recipe:
        raise RecordError(f"{features[0]}: not the features that this model was trained on; make them again")
    table = FeatureTable(computed.config, stored.vectors)
    table.centre, table.scale = computed.centre, computed.scale
    looked_up = copy.copy(reward_model)
    looked_up.model.model = table.to(computed.device).eval()
    looked_up.encoder = StoredEncoder(reward_model.encoder, stored)
    return looked_up


def _require_model(path: str | Path) -> None:
    """Say what is wrong with a local path, before the hub takes it for a name of its own."""
    directory = Path(path)
    if directory.is_dir():
        if not (directory / "config.json").exists():
            inner = directory / "model"
            mend = f"; did you mean {inner}?" if (inner / "config.json").exists() else ""
            raise RecordError(f"{path}: holds no model (no config.json){mend}")
    elif isinstance(path, Path) or len(directory.parts) > 2 or str(path).startswith((".", "/", "~")):
        raise RecordError(f"{path}: there is no such directory; name a trained model, .../seed1/model")


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
