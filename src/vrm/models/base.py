"""The contract of a reward model: texts in, floats out.

Whatever scores - a scalar RM, a VRM, an ensemble, a remote server - is `score(prompts, responses) -> RewardOutput`.
PPO, best-of-n, the benchmarks and the server take that and nothing more. Text is the boundary, because a policy and
its reward model may have different tokenizers and chat templates. `tests/support/contract.py` is the contract as
tests; every reward model runs through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from vrm.records import Prompt


@dataclass(frozen=True)
class RewardOutput:
    """Rewards of N texts; a scalar reward model leaves all but the first two empty.

    Args:
        mean: reward, shape (N,); its scale is the model's own, only differences for one prompt mean something.
        truncated: whether the text did not fit and was cut before it was scored, shape (N,), bool.
        std: standard deviation of the reward under the posterior, shape (N,).
        weights: E[w] of the prompt, shape (N, K), on the simplex.
        per_objective: per-objective scores in the reward's unit, e^tau g(z), shape (N, K): `weights` . `per_objective`
            is `rated`.
        rated: rated-aspect reward, e^tau w . g(z), shape (N,); `rated` + `residual` is the whole reward, and a VRM
            without a residual has its reward here.
        residual: b(z), what the model adds beside the rated aspects, shape (N,); None for a model without one.
        samples: draws of the reward under the posterior, shape (N, S). Texts of one prompt share their draws of w, so
            that the difference of two rows is a sample of the pair's (VRM, Eq. 10).
        rated_samples: the same of `rated`; None for a model without a residual.
        link: how the chance that one text is preferred to another follows where there are no samples: the sigmoid of
            the `means`' difference, the same with Gaussian noise of `std` integrated out (`marginal`), or the chance
            that the noisy reward is higher (`thurstone`). None: rewards say nothing of a chance.
    """

    mean: np.ndarray
    truncated: np.ndarray
    std: np.ndarray | None = None
    weights: np.ndarray | None = None
    per_objective: np.ndarray | None = None
    rated: np.ndarray | None = None
    residual: np.ndarray | None = None
    samples: np.ndarray | None = None
    rated_samples: np.ndarray | None = None
    link: Literal["means", "marginal", "thurstone"] | None = "means"


@runtime_checkable
class RewardModel(Protocol):
    """Anything that scores texts.

    Promises, each of them tested: the result does not depend on batch size, padding side or order; equal inputs give
    equal outputs; what had to be cut is marked in `RewardOutput.truncated`; saving and loading changes nothing.
    """

    aspects: list[str]
    """Names of the K objectives; empty for a scalar reward model."""

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts.

        Args:
            prompts: conversations up to the response, multi-turn included; a string is one user turn.
            responses: one a prompt.

        Raises:
            ValueError: the two differ in length.
        """
        ...


def as_prompt(prompt: Prompt | str) -> Prompt:
    """A string becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def checked_prompts(prompts: Sequence[Prompt | str], responses: Sequence[str]) -> list[Prompt]:
    """The prompts as conversations.

    Raises:
        TypeError: one text instead of a list of them, or what is no text.
        ValueError: there are more or fewer responses than prompts.
    """
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if isinstance(texts, str):
            raise TypeError(f"{name} is one text, and a list of texts is expected: [{name[:-1]}]")
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=False)):
        if not isinstance(prompt, (str, list, tuple)) or not isinstance(response, str):
            raise TypeError(
                f"row {index}: a prompt is a text or a list of messages and a response is a text; these are "
                f"{type(prompt).__name__} and {type(response).__name__}"
            )
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    return [as_prompt(prompt) for prompt in prompts]
