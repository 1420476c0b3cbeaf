"""The gold reward of sampled answers: the judge that over-optimisation is measured against, and that no training sees.

The configuration names it (`policy.gold`), as a function of a module or as the directory of a reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import ConfigError
from vrm.models.base import RewardModel, RewardOutput, checked_prompts
from vrm.records import Prompt, RecordError, read_jsonl
from vrm.runfiles import GOLD_REWARDS
from vrm.watch import watched


class TextFunction:
    """A function of (prompt text, response text) behind the contract of `vrm.models.base`.

    Args:
        function: the reward; the prompt's text is the content of its last user turn.
    """

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self.function = function
        self.aspects: list[str] = []

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts; see `RewardModel.score`.

        Raises:
            ValueError: a prompt has no user turn.
        """
        pairs = zip(checked_prompts(prompts, responses), responses, strict=True)
        found = watched(list(pairs), "gold", "answers")
        rewards = [self.function(last_user_turn(prompt), response) for prompt, response in found]
        return RewardOutput(
            mean=np.array(rewards, dtype=float), truncated=np.zeros(len(rewards), dtype=bool), link=None
        )


def load_gold(spec: str) -> RewardModel:
    """The gold judge of a configuration.

    Args:
        spec: `module:function` of (prompt text, response text) to a number, or the directory of a reward model.

    Raises:
        ConfigError: there is no such directory, module or function.
    """
    if Path(spec).is_dir():
        # a function needs no torch
        from vrm.models.scoring import load_reward_model

        return load_reward_model(spec, progress=True)
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ConfigError(f"policy.gold is {spec!r}: neither `module:function` nor a directory")
    try:
        function = getattr(import_module(name), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"policy.gold is {spec!r}: {error}") from error
    if not callable(function):
        raise ConfigError(f"policy.gold is {spec!r}: {name} has no function {attribute!r}")
    return TextFunction(function)


def last_user_turn(prompt: Prompt) -> str:
    """The content of a conversation's last user turn.

    Raises:
        ValueError: there is none.
    """
    for message in reversed(prompt):
        if message["role"] == "user":
            return message["content"]
    raise ValueError("a prompt without a user turn has no text to judge an answer by")


def score_gold(spec: str, samples: Path, out: Path) -> None:
    """Score a `samples.jsonl` by the gold judge.

    Args:
        spec: which judge, see `load_gold`.
        samples: rows with `prompt` (messages) and `response`; see docs/files.md.
        out: CSV with the column `gold`, a row a sample, in their order.

    Raises:
        ConfigError: there is no such judge.
        RecordError: a row lacks its prompt or response; names the file and the row.
    """
    model = load_gold(spec)
    prompts, responses = [], []
    for number, row in read_jsonl(samples):
        try:
            prompts.append(row["prompt"])
            responses.append(row["response"])
        except KeyError as error:
            raise RecordError(f"{samples}, row {number}: has no {error}") from None
    GOLD_REWARDS.write(out, pd.DataFrame({"gold": model.score(prompts, responses).mean}))
