"""`from vrm import RewardModel`: a reward model for one's own code, and in the shapes that other libraries call.

* `score`: prompts and responses in, `RewardOutput` out; the contract of `vrm.models.base`.
* Called, it is an entry of TRL's `reward_funcs`, and logs what else it knows by TRL's `log_metric` and `log_extra`.
* `pipeline`: a pipeline of transformers. `RewardBenchPipeline`: what RewardBench builds of a model and its tokenizer.
* Any other object with such a `score` can stand in it: `RewardModel(my_model)`.

Text is the boundary: a policy and its reward model may have different tokenizers and chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from vrm.models import base
from vrm.models.base import RewardOutput, as_prompt
from vrm.models.scoring import HuggingFaceRewardModel, limits_of, load_reward_model
from vrm.records import Message, Prompt

SAMPLES = 64
"""Posterior samples of a reward's standard deviation."""


class RewardModel:
    """A reward model, ours or anybody's.

    Args:
        model: what scores; see `from_pretrained` for a directory or a model of the hub.
        name: what TRL's logs call it.
    """

    def __init__(self, model: base.RewardModel, name: str = "vrm") -> None:
        if isinstance(model, str | Path):
            raise TypeError(f"{model}: a path is loaded by RewardModel.from_pretrained")
        self.model = model
        self.__name__ = name

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str = "vrm", posterior_samples: int = SAMPLES, **options: Any
    ) -> RewardModel:
        """A trained VRM, or any published sequence classifier that gives a reward.

        Args:
            path: directory or hub id.
            name: what TRL's logs call it.
            posterior_samples: of a VRM's standard deviation; 0 leaves it out.
            options: of `vrm.models.scoring.load_reward_model`: `batch_size`, `max_length`, `device`, `dtype`,
                `revision`, `trust_remote_code`, `reward="rated"`, ...

        Raises:
            ConfigError, RecordError: it can't be used; says why and what to do.
        """
        return cls(load_reward_model(path, posterior_samples=posterior_samples, **options), name)

    @property
    def aspects(self) -> list[str]:
        """Names of the K objectives; empty for a scalar reward model."""
        return list(self.model.aspects)

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts, in the model's own unit: only differences for one prompt mean something.

        Args:
            prompts: conversations up to the response; a string is one user turn.
            responses: one a prompt.

        Raises:
            TypeError, ValueError: these are no two lists of the same length.
            Unrenderable: the model's chat template refuses a conversation.
        """
        return self.model.score(prompts, responses)

    def __call__(
        self,
        prompts: Sequence[Prompt | str],
        completions: Sequence[list[Message] | str],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Rewards of N completions, as TRL's trainers ask for them.

        Args:
            prompts: conversations, or plain texts.
            completions: the turns that follow, or plain texts. What comes before the last turn (calls of tools and
                their results) is taken as a part of the prompt.
            log_metric: TRL's; gets the mean standard deviation, and the mean weight of each aspect.
            log_extra: TRL's; gets both for each completion, as columns of its table of completions.
            columns: what else TRL passes; not used.

        Source: TRL 1.16, `GRPOTrainer._calculate_rewards`.
        """
        pairs = [_last_turn(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        output = self.score([prompt for prompt, _ in pairs], [text for _, text in pairs])
        for column, values in self._logged(output).items():
            if log_metric is not None:
                log_metric(f"{self.__name__}/{column}", sum(values) / max(len(values), 1))
            if log_extra is not None:
                log_extra(f"{self.__name__}/{column}", values)
        return output.mean.tolist()

    def _logged(self, output: RewardOutput) -> dict[str, list[float]]:
        """What is known of each text beside its reward, by column."""
        found = {"truncated": output.truncated.astype(float).tolist()}
        found |= {name: getattr(output, name) for name in ("std", "rated", "residual")}
        if output.weights is not None:
            found |= {f"weight_{aspect}": output.weights[:, k] for k, aspect in enumerate(self.aspects)}
        return {
            name: values if isinstance(values, list) else values.tolist()
            for name, values in found.items()
            if values is not None
        }

    def pipeline(self) -> RewardPipeline:
        """The same as a pipeline of transformers.

        Raises:
            TypeError: the model is none of transformers.
        """
        if not isinstance(self.model, HuggingFaceRewardModel):
            raise TypeError(f"{type(self.model).__name__} is no model of transformers, so there is no pipeline of it")
        return RewardPipeline(model=self.model.model, tokenizer=self.model.encoder.tokenizer, scorer=self.model)


def _last_turn(prompt: Prompt | str, completion: list[Message] | str) -> tuple[Prompt, str]:
    turns = as_prompt(prompt)
    if isinstance(completion, str):
        return turns, completion
    return [*turns, *completion[:-1]], completion[-1]["content"]


class RewardPipeline(Pipeline):
    """A transformers pipeline: `{"prompt", "response"}`, or a list of them, to `{"score", ...}` each.

    A result has `score`, the reward, and where the model has them `std`, `weights` and `per_objective` (both by
    aspect), `rated` and `residual`. All texts of a call are scored together: `batch_size` is the scorer's business.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: str = "text-classification",
        scorer: HuggingFaceRewardModel | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, task=task, device=model.device, **options)
        self.scorer = scorer or HuggingFaceRewardModel(model, tokenizer, **limits_of(model.config))

    def _sanitize_parameters(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """None: what a text-classification pipeline can be told has no meaning for a reward."""
        return {}, {}, {}

    def preprocess(self, input_: Any, **_: Any) -> Any:
        """Nothing: the scorer encodes."""
        return input_

    def _forward(self, input_tensors: Any, **_: Any) -> list[dict[str, Any]]:
        rows = input_tensors
        output = self.scorer.score([row["prompt"] for row in rows], [row["response"] for row in rows])
        return rows_of(output, self.scorer.aspects)

    def postprocess(self, model_outputs: Any, **_: Any) -> Any:
        """Nothing either."""
        return model_outputs

    def __call__(self, inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]], **_: Any) -> Any:
        """One result for one text, a list of them for a list."""
        alone = isinstance(inputs, Mapping)
        results = self._forward([inputs] if alone else list(inputs))
        return results[0] if alone else results


class RewardBenchPipeline:
    """What RewardBench's `REWARD_MODEL_CONFIG[...]["pipeline_builder"]` makes: rendered texts to a tensor of rewards.

    RewardBench renders the conversations itself, by the tokenizer's chat template, and hands over texts. A VRM finds
    the end of each prompt in them.

    Source: allenai/reward-bench, scripts/run_rm.py and rewardbench/models (custom pipelines).
    """

    def __init__(self, task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        self.task, self.model, self.tokenizer = task, model, tokenizer
        self.scorer = HuggingFaceRewardModel(model, tokenizer, **limits_of(model.config))

    def __call__(self, samples: str | Sequence[str], **_: Any) -> Tensor:
        """Rewards of N rendered texts, shape (N,), float32."""
        texts = [samples] if isinstance(samples, str) else list(samples)
        return torch.tensor(self.scorer.score_rendered(texts).mean, dtype=torch.float32)


def rows_of(output: RewardOutput, aspects: Sequence[str]) -> list[dict[str, Any]]:
    """An output as one mapping a text, without what the model does not have."""
    rows: list[dict[str, Any]] = [{"score": float(value)} for value in output.mean]
    for name in ("std", "rated", "residual"):
        values = getattr(output, name)
        for row, value in zip(rows, [] if values is None else values, strict=False):
            row[name] = float(value)
    for name in ("weights", "per_objective"):
        values = getattr(output, name)
        for row, parts in zip(rows, [] if values is None else values, strict=False):
            row[name] = dict(zip(aspects, map(float, parts), strict=True))
    for row, cut in zip(rows, output.truncated, strict=True):
        row["truncated"] = bool(cut)
    return rows
