"""Trainings that have gone wrong stop, or say so: which measure did it, and what usually helps.

* A PPO run that has blown up stops (`Watchdog`).
* A reward model can be worthless at a finite loss and a fair accuracy: `symptoms` of its measures are said in the log
  of its training, and shown in the table `health`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Symptom:
    """What a measure of a reward model can show.

    Args:
        measure: its name in `training.csv` (validation pairs), or `LENGTH_CORRELATION`.
        title: what it is, with its unit.
        bound: the measure is bad below it; a correlation is bad where its size is above it.
        fault: what is wrong then.
        remedy: what usually helps.
    """

    measure: str
    title: str
    bound: float
    fault: str
    remedy: str

    def shows(self, value: float) -> bool:
        """Whether this value is one to worry about; a measure that a model does not have is NaN and shows nothing."""
        return abs(value) > self.bound if self.measure == LENGTH_CORRELATION else value < self.bound


LENGTH_CORRELATION = "length_correlation"
"""Pearson, over validation pairs, of the reward's difference and the difference in length."""

SYMPTOMS = (
    Symptom(
        "reward_sd",
        "sd of the reward",
        0.01,
        "the reward is constant",
        "raise reward.training.learning_rate or epochs; look at the loss in training.csv",
    ),
    # the spread was 0.002 to 0.006 where w had learned nothing, 0.017 and more where it had
    Symptom(
        "weights_sd",
        "sd of E[w] over prompts",
        0.01,
        "the weights do not move from prompt to prompt",
        "more pairs or epochs, prompt_pooling: attention, concentration: scaled; a supervision or an anchor",
    ),
    Symptom(
        "active_units",
        "active units of z",
        1,
        "the posterior of z has collapsed",
        "lower beta_z, raise beta_warmup or free_bits",
    ),
    Symptom(
        "decoder_sd",
        "sd of g, least objective",
        0.01,
        "an objective's score is constant: its decoder is dead",
        "raise score_anchor_weight, or look whether the ratings of that aspect vary",
    ),
    Symptom(
        LENGTH_CORRELATION,
        "correlation with length",
        0.9,
        "the reward is length and little else",
        "look at the pairs: is the longer response nearly always chosen? kind: length_heads takes length out",
    ),
)
"""In the order of the table's columns."""


def symptoms(measures: Mapping[str, float]) -> list[Symptom]:
    """Those that show in a reward model's measures."""
    return [symptom for symptom in SYMPTOMS if symptom.shows(measures.get(symptom.measure, math.nan))]


def warning(symptom: Symptom, value: float) -> str:
    """What a log says of it."""
    return f"warning: {symptom.fault} ({symptom.title} is {value:.3g}); {symptom.remedy}"
