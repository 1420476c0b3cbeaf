"""A PPO run that has blown up stops, and says which measure did it and what usually helps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from vrm.config import PpoLimits

REMEDIES = {
    "kl": "raise policy.ppo.kl_coefficient or lower policy.ppo.learning_rate",
    "entropy": "the policy repeats itself: raise policy.ppo.kl_coefficient, or lower policy.ppo.learning_rate",
    "missing_end": "responses do not end: raise policy.ppo.missing_end_penalty or policy.generation.max_new_tokens, or "
    "train the SFT policy longer",
    "explained_variance": "the critic is lost: lower policy.ppo.critic_learning_rate or raise policy.ppo.value_clip",
    "length": "responses are empty: the reward pays for silence; look at what samples.jsonl is paid for",
}


class TrainingError(RuntimeError):
    """A training can't go on; the message says which measure, and what to do."""


class Watchdog:
    """Looks at the measures of each update.

    Args:
        limits: what is tolerated, and for how many updates in a row.
        critic_warmup: updates in which the critic's explained variance is not looked at.
    """

    def __init__(self, limits: PpoLimits, critic_warmup: int = 0) -> None:
        self.limits = limits
        self.critic_warmup = critic_warmup
        self.streaks: Counter[str] = Counter()

    def check(self, update: int, measures: Mapping[str, float]) -> None:
        """Look at one update.

        Args:
            update: its number, from 0.
            measures: reward, kl (nats a response), entropy (nats a token), length (tokens), missing_end (share),
                explained_variance (NaN where returns do not vary), and losses, which have to be finite.

        Raises:
            TrainingError: a measure is not finite, or has been beyond its limit for `limits.patience` updates in a row.
        """
        for name, value in measures.items():
            if not math.isfinite(value) and name != "explained_variance":
                raise TrainingError(f"update {update}: {name} is {value}; lower policy.ppo.learning_rate")
        for name, beyond, limit in self._verdicts(update, measures):
            self.streaks[name] = self.streaks[name] + 1 if beyond else 0
            if self.streaks[name] >= self.limits.patience:
                raise TrainingError(
                    f"update {update}: {name} is {measures[name]:.4g}, beyond its limit of {limit:g} "
                    f"(policy.ppo.limits) for {self.streaks[name]} updates in a row; {REMEDIES[name]}"
                )

    def _verdicts(self, update: int, measures: Mapping[str, float]) -> list[tuple[str, bool, float]]:
        limits = self.limits
        warm = update >= self.critic_warmup
        return [
            ("kl", measures["kl"] > limits.kl, limits.kl),
            ("entropy", measures["entropy"] < limits.entropy, limits.entropy),
            ("missing_end", measures["missing_end"] > limits.missing_end, limits.missing_end),
            ("length", measures["length"] < limits.response_length, limits.response_length),
            (
                "explained_variance",
                warm and measures["explained_variance"] < limits.explained_variance,
                limits.explained_variance,
            ),
        ]
