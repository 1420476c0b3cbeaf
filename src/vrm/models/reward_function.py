"""A trained reward model as a reward function of TRL's trainers: `GRPOTrainer(reward_funcs=RewardFunction(path))`.

The trainer hands over text, so its policy may have another tokenizer and chat template than the reward model. See
docs/plug.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrm.models.base import RewardModel, as_prompt
from vrm.models.scoring import load_reward_model
from vrm.records import Message, Prompt


class RewardFunction:
    """Calls a reward model the way TRL calls a reward function.

    Args:
        model: a `RewardModel`, or the directory of a trained one.
        name: what TRL's logs call it.
        options: keyword arguments of `load_reward_model`, for a directory.

    Raises:
        TypeError: options for a model that is loaded already.
    """

    def __init__(self, model: RewardModel | str | Path, name: str = "vrm", **options: Any) -> None:
        if isinstance(model, str | Path):
            model = load_reward_model(model, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: only for a model that is loaded here; give a directory")
        self.model = model
        self.__name__ = name

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[list[Message] | str], **columns: Any
    ) -> list[float]:
        """Rewards of N completions, in the model's own unit.

        Args:
            prompts: conversations, or plain texts.
            completions: the turns that follow, or plain texts. What comes before the last turn (calls of tools and
                their results) is taken as a part of the prompt.
            columns: what else TRL passes; not used.
        """
        pairs = [_last_turn(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return self.model.score([prompt for prompt, _ in pairs], [text for _, text in pairs]).mean.tolist()


def _last_turn(prompt: Prompt | str, completion: list[Message] | str) -> tuple[Prompt, str]:
    turns = as_prompt(prompt)
    if isinstance(completion, str):
        return turns, completion
    return [*turns, *completion[:-1]], completion[-1]["content"]
