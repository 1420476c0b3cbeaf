"""Trained Hugging Face reward models behind the contract of `vrm.models.base`.

* Scalar and variational models differ in one method; everything else (encoding, batching, pooling) is shared.
* A stock classifier is read where its own class reads it, so that a published one gives the score of its own card: at
  the last token that is not its configuration's `pad_token_id`. What our trainings save never ends a text in that token
  (see `prepare_tokenizer`). Texts are padded on the right, whatever the tokenizer's side, as no real token sees that.
* Texts of one prompt are computed together, and the prompt once for all of them, in forward passes of up to a budget
  of tokens without padding (`vrm.models.shared_prefix`). A model that cannot share gets padded batches of like length.
  A head on a frozen backbone gets features that were computed the same way, or are stored. In any case a reward does
  not depend on its company but by rounding, and the caller's order is kept.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vrm.config import OutsideModel
from vrm.models.base import RewardOutput, checked_prompts
from vrm.models.baseline_heads import BaselineForSequenceClassification, BaselineOutput
from vrm.models.checks import checked_config, checked_tokenizer, positions_of
from vrm.models.feature_files import StoredEncoder, StoredFeatures, features_of
from vrm.models.features import FeatureModel, FeatureTable
from vrm.models.known_texts import read_texts
from vrm.models.latents import dirichlet_mean
from vrm.models.shared_prefix import by_prompt, pack, passes, share_prefixes, shares_prefixes, unsupported
from vrm.models.templates import read_template
from vrm.models.text import TextEncoder, TokenisedText, located, prepare_tokenizer
from vrm.models.vrm import VrmForSequenceClassification, last_token
from vrm.models.weights import checked_weights
from vrm.records import Prompt, RecordError, prompt_id
from vrm.watch import watched

REWARD_PARTS = ("full", "rated")
"""What a reward model can be asked for: its whole reward, or the rated-aspect reward, e^tau w . g(z), alone."""


MOST_TOKENS = 16384
"""Tokens of a forward pass, padding included: more take memory, and no less time."""

DRAWN_AT_ONCE = 64
"""Texts whose draws are decoded together."""


class HuggingFaceRewardModel:
    """A sequence classifier with one label, a VRM or a published reward model, as a `RewardModel`."""

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
        engine: Literal["shared", "shared_varlen", "padded"] = "shared",
    ) -> None:
        """Wrap a model.

        Args:
            model: in evaluation mode from here on.
            tokenizer: the one it was trained with.
            max_prompt_length, max_length: limits in tokens, see `TextEncoder`.
            batch_size: texts per forward pass; shared, as many tokens as so many texts of `max_length` have, and
                `MOST_TOKENS` at most.
            posterior_samples: draws of a VRM's reward, and for its `std`; 0 leaves both empty. Published models have
                their `std` exactly.
            seed: seed of those samples.
            progress: show a progress bar.
            reward: what `mean` and `std` are of: the whole reward, or the rated-aspect reward alone. A model without a
                residual has nothing but the whole.
            engine: a prompt once for all of its responses, where the model can do so (with FlashAttention: CUDA and
                half precision), or padded batches.

        Raises:
            ValueError: `reward` is neither.
        """
        if reward not in REWARD_PARTS:
            raise ValueError(f"reward is {reward!r}, and can be {' or '.join(REWARD_PARTS)}")
        self.model = model.eval()
        if engine != "padded" and unsupported(model) is None:
            share_prefixes(model)
        self.engine = engine
        self.encoder = TextEncoder(prepare_tokenizer(tokenizer), max_prompt_length, max_length)
        self.batch_size = batch_size
        self.posterior_samples = posterior_samples
        self.seed = seed
        self.progress = progress
        self.reward = reward
        self.aspects: list[str] = list(getattr(model.config, "aspects", None) or _labels(model.config))

    @property
    def _variational(self) -> bool:
        return isinstance(self.model, VrmForSequenceClassification)

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts; see `RewardModel.score`.

        Raises:
            Unrenderable: the chat template refuses some of the conversations; nothing is scored then.
        """
        conversations = checked_prompts(prompts, responses)
        return self._score(
            self.encoder.encode(conversations, responses), list(zip(conversations, responses, strict=True))
        )

    def score_rendered(self, texts: Sequence[str]) -> RewardOutput:
        """Rewards of N conversations that somebody has rendered by the chat template already; nothing is cut.

        Without a standard deviation, whose draws are seeded by prompt and response.

        Raises:
            Unrenderable: a text does not hold the header that begins a response, which a VRM has to find.
        """
        return self._score(self.encoder.rendered(texts), None)

    def draws(self, prompts: Sequence[Prompt | str], responses: Sequence[str], samples: int) -> np.ndarray | None:
        """Rewards of N texts with latents drawn from q, shape (samples, N); None for a model without latents.

        Responses to one prompt share their draws of w, so that of two columns the share in which one is higher is the
        posterior probability that it is the better one.
        """
        if not self._variational or not len(responses):
            return None
        conversations = checked_prompts(prompts, responses)
        texts = self.encoder.encode(conversations, responses)
        located(texts)
        rows = list(zip(conversations, responses, strict=True))
        whole, rated = self._posterior_samples(self._found(texts), rows, samples)
        return (rated if self._rated_alone else whole).T

    def _score(self, texts: list[TokenisedText], rows: list[tuple[Prompt, str]] | None) -> RewardOutput:
        if isinstance(self.model, VrmForSequenceClassification | BaselineForSequenceClassification):
            located(texts)
        if not texts:
            return RewardOutput(mean=np.zeros(0), truncated=np.zeros(0, dtype=bool))
        found = self._found(texts)
        parts = {name: found.get(name) for name in ("std", "weights", "per_objective", "rated", "residual")}
        if self.posterior_samples and "mu" in found and rows is not None:
            whole, rated = self._posterior_samples(found, rows, self.posterior_samples)
            parts["samples"] = rated if self._rated_alone else whole
            parts["rated_samples"] = rated if "residual" in found else None
            parts["std"] = parts["samples"].std(axis=1)
        truncated = np.array([text.truncated for text in texts])
        return RewardOutput(found["rated" if self._rated_alone else "mean"], truncated, link=self._link, **parts)

    @property
    def _link(self) -> Literal["means", "marginal", "thurstone"]:
        """Of non-negative rewards the means: both texts have the same noisy weights, so noise is not independent."""
        if not isinstance(self.model, BaselineForSequenceClassification) or self.model.config.kind == "nonnegative":
            return "means"
        return "thurstone" if (self.model.config.settings or {}).get("likelihood") == "thurstone" else "marginal"

    def _found(self, texts: list[TokenisedText]) -> dict[str, np.ndarray]:
        """What forward passes give of all texts, in their order."""
        if isinstance(self.model.base_model, FeatureModel):
            return self._found_by_features(texts)
        numbers = self._batches(texts)
        batches: list[dict[str, np.ndarray]] = []
        with torch.inference_mode():
            for rows in watched(numbers, "scoring", "batches", quiet=not self.progress):
                batches.append(self._forward([texts[i] for i in rows]))
        order = np.concatenate(numbers)
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return {name: np.concatenate([batch[name] for batch in batches])[inverse] for name in batches[0]}

    def _found_by_features(self, texts: list[TokenisedText]) -> dict[str, np.ndarray]:
        """The same for a head on a frozen backbone: a prompt's states are computed once for all of its responses."""
        located(texts)
        features, pad = self.model.base_model, self.encoder.tokenizer.pad_token_id
        with torch.inference_mode():
            table, rows = features_of(features, texts, pad, self.batch_size, quiet=not self.progress)
        return self._looked_up(table)._found(rows)

    def _looked_up(self, table: FeatureTable) -> HuggingFaceRewardModel:
        """The same head on features that are there already; this model stays what it is."""
        other = copy.copy(self)
        other.model = copy.copy(self.model)
        other.model._modules = {**self.model._modules, self.model.base_model_prefix: table}
        return other

    @property
    def _rated_alone(self) -> bool:
        return self.reward == "rated" and self._variational

    @property
    def _foreign(self) -> bool:
        """Whether the model brings code of its own and says what it says in its own output, as ArmoRM does."""
        known = (VrmForSequenceClassification, BaselineForSequenceClassification)
        return not isinstance(self.model, known) and not isinstance(getattr(self.model, "score", None), torch.nn.Module)

    @property
    def _shares(self) -> bool:
        # asked anew each time, as a model's backbone can be exchanged for stored features
        return self.engine != "padded" and shares_prefixes(self.model)

    def _batches(self, texts: list[TokenisedText]) -> list[list[int]]:
        """Numbers of the texts, by forward pass."""
        if self._shares:
            budget = min(self.batch_size * self.encoder.max_length, MOST_TOKENS)
            return passes([(text.ids, text.prompt_length) for text in texts], budget)
        found: list[list[int]] = []
        for i in np.argsort([len(text.ids) for text in texts], kind="stable").tolist():
            padded = (len(found[-1]) + 1) * len(texts[i].ids) if found else 0  # the longest comes last
            if not found or len(found[-1]) == self.batch_size or padded > MOST_TOKENS:
                found.append([])
            found[-1].append(i)
        return found

    def inputs(self, texts: list[TokenisedText]) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass over these texts, on its device, for either engine."""
        tokenizer = self.encoder.tokenizer
        if self._shares:
            groups, order = by_prompt([(text.ids, text.prompt_length) for text in texts])
            kernel = "varlen" if self.engine == "shared_varlen" else "groups"
            inputs = pack(groups, tokenizer.pad_token_id, order=order, kernel=kernel, unread=self._unread).inputs()
        else:
            ids, mask = pad_batch([text.ids for text in texts], tokenizer, side="right")
            lengths = torch.tensor([text.prompt_length for text in texts])
            inputs = {"input_ids": ids, "attention_mask": mask, "prompt_lengths": lengths}
        device = self.model.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}

    @property
    def _unread(self) -> int | None:
        """The token at which a stock classifier reads no text; a table of features is given rows, and no tokens."""
        stock = not hasattr(self.model, "head") and not isinstance(self.model.base_model, FeatureTable)
        return self.model.config.get_text_config().pad_token_id if stock else None

    def _forward(self, texts: list[TokenisedText]) -> dict[str, np.ndarray]:
        inputs = self.inputs(texts)
        if isinstance(self.model, BaselineForSequenceClassification):
            return _baseline_parts(self.model(**inputs))
        if self._foreign:
            return _foreign_parts(self.model, self.model(**{n: inputs[n] for n in ("input_ids", "attention_mask")}))
        if not self._variational:
            return {"mean": _numpy(self._scalar_rewards(inputs))}
        found = self.model(**inputs).posterior
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

    def _scalar_rewards(self, inputs: dict[str, Any]) -> Tensor:
        """Rewards of a stock sequence classifier, read where its own `forward` reads a single text, shape (B,)."""
        if "layout" in inputs:
            return self.model(**inputs).logits.squeeze(-1)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B,T,H)
        read = last_token(mask if self._unread is None else mask * (ids != self._unread))
        return self.model.score(hidden[torch.arange(len(ids), device=ids.device), read]).squeeze(-1)

    def _posterior_samples(
        self, found: dict[str, np.ndarray], rows: Sequence[tuple[Prompt, str]], samples: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws of r(w, z) and of its rated part under q, shape (N, samples) each.

        Each draw's seed is made of the text itself, so that batch and order matter by rounding alone; responses to one
        prompt share their draws of w, as the two responses of a pair do in Eq. 10.
        """
        whole, rated = [], []
        for start in range(0, len(rows), DRAWN_AT_ONCE):
            some = slice(start, start + DRAWN_AT_ONCE)
            w, z = self._latents({name: found[name][some] for name in ("alpha", "mu", "std_z")}, rows[some], samples)
            with torch.inference_mode():
                decoded = self.model.head.decode(self._tensor(w), self._tensor(z))
            whole.append(_numpy(decoded.reward))
            rated.append(_numpy(decoded.rated))
        return np.concatenate(whole), np.concatenate(rated)

    def _latents(
        self, found: dict[str, np.ndarray], rows: Sequence[tuple[Prompt, str]], samples: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws of w and z of N texts, shapes (N, samples, K) and (N, samples, d)."""
        keys = [prompt_id(prompt) for prompt, _ in rows]
        weights = [
            _generator(self.seed, key).dirichlet(a, samples) for key, a in zip(keys, found["alpha"], strict=True)
        ]
        shape = samples, found["mu"].shape[1]
        noise = [_generator(self.seed, k, y).standard_normal(shape) for k, (_, y) in zip(keys, rows, strict=True)]
        return np.stack(weights), found["mu"][:, None] + found["std_z"][:, None] * np.stack(noise)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self.model.device)


def load_reward_model(
    path: str | Path,
    *,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    features: Sequence[Path] = (),
    texts: Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    **options: object,
) -> HuggingFaceRewardModel:
    """Load a trained reward model, scalar or variational, from a directory or the hub.

    Args:
        path: what we have trained, or any sequence classifier with one label on a causal language model; with
            `trust_remote_code` also one with code of its own, as ArmoRM.
        max_prompt_length, max_length: limits in tokens; None takes those the model was trained with, and 1024 and 2048
            for a model that does not say, or what it has positions for.
        features: directories that `vrm features` made of all texts to score, for a model on a frozen backbone; it then
            scores these texts alone, at once.
        texts: file that `vrm tokenise-sets` made, of texts that need not be encoded anew; others can be scored, too.
        dtype: of the weights, e.g. "bfloat16"; None: the checkpoint's own.
        device: e.g. "cuda:1"; None: this process's GPU, the CPU where there is none.
        revision: commit of the hub model.
        attn_implementation: e.g. "flash_attention_2"; None lets transformers choose.
        chat_template: instead of the tokenizer's own, its text or a file.
        trust_remote_code: run the code that the model brings along.
        options: further keyword arguments of `HuggingFaceRewardModel`.

    Raises:
        ConfigError: no causal language model, fewer positions than `max_length`, or a chat template that is none.
        RecordError: there is no such model, its files are incomplete, it has no reward head, or more than one label; or
            `texts` were made with something else.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = checked_config(path, **source)
    own_code = bool(getattr(config, "auto_map", None))  # it may have a label an aspect
    if config.num_labels != 1 and not (own_code and trust_remote_code):
        other = "its own code may say what they are: read it, then allow it (trust_remote_code, --trust-remote-code)"
        raise RecordError(
            f"{path}: a reward model has one label, this one has {config.num_labels}: "
            + (other if own_code else "it is a policy, or another classifier")
        )
    limits = limits_of(config, max_prompt_length, max_length)
    tokenizer = checked_tokenizer(path, max_length=limits["max_length"], **source)
    if chat_template is not None:
        prepare_tokenizer(tokenizer, read_template(chat_template))
    model = checked_weights(
        AutoModelForSequenceClassification,
        path,
        remedy="a reward model needs its trained head; train one (vrm train-reward), or name one that has it",
        use_safetensors=True,
        dtype=dtype or "auto",
        attn_implementation=attn_implementation,
        **source,
    )
    reward_model = HuggingFaceRewardModel(model.to(device or own_device()), tokenizer, **limits, **options)
    if texts is not None:
        reward_model.encoder = read_texts(texts, reward_model.encoder)
    return with_stored_features(reward_model, features) if features else reward_model


def load_outside(model: OutsideModel, **options: object) -> HuggingFaceRewardModel:
    """A reward model that the configuration names and others have trained.

    Args:
        model: which, and how it is read.
        options: further arguments of `load_reward_model`.

    Raises:
        ConfigError, RecordError: as `load_reward_model`.
    """
    return load_reward_model(**model.model_dump(exclude={"label"}), **options)


def with_stored_features(reward_model: HuggingFaceRewardModel, features: Sequence[Path]) -> HuggingFaceRewardModel:
    """The same model, with features looked up instead of computed; for the texts of those directories alone.

    Raises:
        RecordError: the features are not those that the model was trained on.
    """
    stored = StoredFeatures.read(features)
    computed = reward_model.model.model
    if getattr(computed.config, "recipe", None) != stored.config.recipe:
        raise RecordError(f"{features[0]}: not the features that this model was trained on; make them again")
    table = stored.table(computed.config)
    table.centre, table.scale = computed.centre, computed.scale
    looked_up = reward_model._looked_up(table.to(computed.device).eval())
    looked_up.encoder = StoredEncoder(reward_model.encoder, stored)
    return looked_up


def limits_of(
    config: PreTrainedConfig, max_prompt_length: int | None = None, max_length: int | None = None
) -> dict[str, int]:
    """Limits in tokens: those given, else those of the training, else what the model has positions for.

    Half of what is kept in all may be the prompt's, unless it is said.
    """
    trained_with = getattr(config, "reward_limits", None)
    if trained_with is None:
        longest = max_length or min(2048, positions_of(config) or 2048)
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


def _baseline_parts(output: BaselineOutput) -> dict[str, np.ndarray]:
    """Mean, exact standard deviation where the reward is random, weights and per-objective scores where it has them.

    A gate's reward is of its rated aspects and of nothing else.
    """
    parts = {name: _numpy(output.parts[name]) for name in ("weights", "per_objective") if name in output.parts}
    if "variance" in output.parts:
        parts["std"] = _numpy(output.parts["variance"].sqrt())
    parts["mean"] = _numpy(output.logits.squeeze(-1))
    return parts | {"rated": parts["mean"]} if "weights" in parts else parts


def _labels(config: PreTrainedConfig) -> list[str]:
    """Names of the aspects of a model with code of its own, which are its labels; none of a model with one label."""
    return [str(config.id2label[k]) for k in sorted(config.id2label)] if config.num_labels > 1 else []


def _foreign_parts(model: PreTrainedModel, output: Any) -> dict[str, np.ndarray]:
    """What a model with code of its own says.

    Its reward is `score`, else `logits`. ArmoRM and models like it have a gate's weights over aspects as well, and raw
    scores of these, from which `reward_transform_matrix` takes length; weights x scores then are the reward.

    Source: RLHFlow/ArmoRM-Llama3-8B-v0.1, modeling_custom.py, `LlamaForRewardModelWithGating.forward`.
    """
    reward = getattr(output, "score", None)
    parts = {"mean": _numpy((output.logits if reward is None else reward).reshape(-1))}
    weights, scores = (getattr(output, name, None) for name in ("gating_output", "rewards"))
    if weights is None or scores is None:
        return parts
    matrix = getattr(model, "reward_transform_matrix", None)
    scores = scores.float() if matrix is None else scores.float() @ matrix.float()
    if not torch.allclose((weights.float() * scores).sum(-1), torch.tensor(parts["mean"]).to(scores), atol=1e-2):
        return parts  # its reward is made in another way, and weights beside it would explain nothing
    return parts | {"weights": _numpy(weights), "per_objective": _numpy(scores), "rated": parts["mean"]}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _generator(seed: int, *parts: str) -> np.random.Generator:
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
