"""What a training can suffer from without an accuracy or a reward that shows it: measures, bounds, and what helps.

* A reward model can be worthless at a finite loss and a fair accuracy, and a policy at a good reward.
* A training says the symptoms of its measures in its log; the table `health` shows the same of all seeds.
* A PPO run that has blown up stops before its end, and says which measure did it and what usually helps (`Watchdog`).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from vrm.config import PpoLimits
from vrm.runfiles import ANSWER_MEASURES, HELD_OUT, PPO_SAMPLES, TRAINING


@dataclass(frozen=True)
class Symptom:
    """What a measure of a model or of its training can show.

    Args:
        measure: its name: in `training.csv` (validation pairs), `LENGTH_CORRELATION`, or as below.
        title: what it is, with its unit.
        bound: where it begins to be bad.
        fault: what is wrong then.
        remedy: what usually helps.
        bad: the measure is bad below the bound, above it, or (beyond) where its size is above it.
        digits: decimal places that are shown.
    """

    measure: str
    title: str
    bound: float
    fault: str
    remedy: str
    bad: Literal["below", "above", "beyond"] = "below"
    digits: int = 3

    def shows(self, value: float) -> bool:
        """Whether this value is one to worry about; a measure that a model does not have is NaN and shows nothing."""
        if self.bad == "below":
            return value < self.bound
        return (abs(value) if self.bad == "beyond" else value) > self.bound

    def worst(self, values: pd.Series) -> float:
        """The worst of some seeds' values; NaN where none has any."""
        if values.isna().all():
            return math.nan
        if self.bad == "beyond":
            return values[values.abs().idxmax()]
        return values.min() if self.bad == "below" else values.max()


LENGTH_CORRELATION = "length_correlation"
"""Of a reward with length: Pearson, over validation pairs of their differences, over PPO's answers of themselves."""

CONSTANT_REWARD = 0.01
"""A reward with a smaller standard deviation tells nothing apart."""

ONLY_LENGTH = Symptom(
    LENGTH_CORRELATION,
    "correlation with length",
    0.9,
    "the reward is length and little else",
    "look at the pairs: is the longer response nearly always chosen? kind: length_heads takes length out",
    bad="beyond",
    digits=2,
)

SYMPTOMS = (
    Symptom(
        "reward_sd",
        "sd of the reward",
        CONSTANT_REWARD,
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
        digits=0,
    ),
    Symptom(
        "decoder_sd",
        "sd of g, least objective",
        0.01,
        "an objective's score is constant: its decoder is dead",
        "raise score_anchor_weight, or look whether the ratings of that aspect vary",
    ),
    ONLY_LENGTH,
)
"""Of a reward model, in the order of the table's columns."""

NOT_FINITE = Symptom(
    "not_finite",
    "numbers not finite",
    0,
    "a number is not finite: the training diverged",
    "lower its learning rate",
    bad="above",
    digits=0,
)

OFFLINE_SYMPTOMS = (
    NOT_FINITE,
    Symptom(
        "loss_change",
        "change of the loss, low end",
        0,
        "the loss on held-out pairs has risen",
        "lower the learning rate or epochs",
        bad="above",
    ),
    Symptom(
        "margin_change",
        "change of the margin, high end",
        0,
        "the margin has collapsed: rejected responses gain on chosen ones",
        "lower the learning rate, or look whether chosen and rejected are the right way round",
    ),
    # of the implicit reward, which a policy that has learned tells apart by a tenth of its unit at least
    Symptom(
        "margin_sd",
        "sd of the margin's change",
        0.001,
        "the margin is the same for every pair: the policy has not moved",
        "raise the learning rate, epochs or beta",
    ),
    Symptom(
        "chosen_logratio",
        "log ratio of the chosen (nats)",
        -1,
        "chosen responses have become less likely",
        "fewer epochs, a lower learning rate or a higher beta; a longer SFT before it",
        digits=1,
    ),
)
"""Of supervised fine-tuning, which has the first two alone, and of training on preference pairs."""

REMEDIES = {
    "kl": "raise policy.ppo.kl_coefficient or lower policy.ppo.learning_rate",
    "entropy": "the policy repeats itself: raise policy.ppo.kl_coefficient, or lower policy.ppo.learning_rate",
    "missing_end": "responses do not end: raise policy.ppo.missing_end_penalty or policy.generation.max_new_tokens, or "
    "train the SFT policy longer",
    "explained_variance": "the critic is lost: lower policy.ppo.critic_learning_rate or raise policy.ppo.value_clip",
    "length": "responses are empty: the reward pays for silence; look at what samples.jsonl is paid for",
}


def ppo_symptoms(limits: PpoLimits) -> tuple[Symptom, ...]:
    """Those of a PPO run, which a run that was not stopped can have too: the limits stop it only after a while."""
    kl, missing_end, entropy = limits.kl, limits.missing_end, limits.entropy
    look = "look at what the reward model says of samples.jsonl, and at that model's own row"
    return (
        NOT_FINITE,
        Symptom(
            "kl", "KL, highest (nats)", kl, "the policy ran away from its start", REMEDIES["kl"], "above", digits=1
        ),
        Symptom(
            "missing_end",
            "answers without end",
            missing_end,
            "answers do not end",
            REMEDIES["missing_end"],
            "above",
            digits=2,
        ),
        Symptom(
            "entropy",
            "entropy (nats a token)",
            entropy,
            "the policy has one answer",
            REMEDIES["entropy"],
            digits=2,
        ),
        Symptom("reward_sd", "sd of the reward", CONSTANT_REWARD, "the reward is constant over answers", look),
        Symptom(
            LENGTH_CORRELATION,
            "correlation with length",
            ONLY_LENGTH.bound,
            "the reward of answers is length and little else",
            "pay by a reward model that takes length out (kind: length_heads); " + look,
            "beyond",
            digits=2,
        ),
    )


FEWEST_ANSWERS = 10
"""A correlation over fewer answers says nothing."""


def symptoms(measures: Mapping[str, float], known: Iterable[Symptom] = SYMPTOMS) -> list[Symptom]:
    """Those that show in a model's measures."""
    return [symptom for symptom in known if symptom.shows(measures.get(symptom.measure, math.nan))]


def say_symptoms(measures: Mapping[str, float], known: Iterable[Symptom] = SYMPTOMS) -> None:
    """Say them in the log."""
    for symptom in symptoms(measures, known):
        value = measures[symptom.measure]
        print(f"warning: {symptom.fault} ({symptom.title} is {value:.3g}); {symptom.remedy}", file=sys.stderr)


def offline_measures(folder: Path) -> dict[str, float]:
    """Measures of `OFFLINE_SYMPTOMS` of a finished training.

    Args:
        folder: holds its `training.csv` and `held_out.csv`.

    Raises:
        RecordError: one is missing or broken.
    """
    log, held_out = TRAINING.read(folder / TRAINING.name), HELD_OUT.read(folder / HELD_OUT.name)
    numbers = held_out[["start", "end"]].apply(pd.to_numeric, errors="coerce")
    change = (numbers["end"] - numbers["start"]).groupby(held_out["metric"])
    mean, spread = change.mean(), change.std(ddof=0)
    twice = 2 * spread / np.sqrt(change.size())  # standard errors: chance alone is no fault
    return {
        "not_finite": _not_finite(log[["value"]]) + _not_finite(numbers),
        "loss_change": (mean - twice).get("loss", math.nan),
        "margin_change": (mean + twice).get("margin", math.nan),
        "margin_sd": spread.get("margin", math.nan),
        "chosen_logratio": mean.get("chosen_logratio", math.nan),
    }


def ppo_measures(folder: Path) -> dict[str, float]:
    """Measures of `ppo_symptoms` of a finished run: the highest KL of its updates, the rest of its last answers.

    Args:
        folder: holds its `training.csv` and `samples.jsonl`.

    Raises:
        RecordError: one is missing or broken.
    """
    log, samples = TRAINING.read(folder / TRAINING.name), PPO_SAMPLES.read(folder / PPO_SAMPLES.name)
    log = log[log["metric"] != "explained_variance"]  # which a batch of equal returns does not have
    numbers = samples[list(ANSWER_MEASURES)].apply(pd.to_numeric, errors="coerce")
    last = numbers[samples["step"] == samples["step"].max()]
    ended = samples.loc[last.index, "ended"]
    kl = pd.to_numeric(log.loc[log["metric"] == "kl", "value"], errors="coerce")
    varies = len(last) >= FEWEST_ANSWERS and last["reward"].std() > 0 and last["length"].std() > 0
    return {
        "not_finite": _not_finite(log[["value"]]) + _not_finite(numbers),
        "kl": float(kl.max()),
        "missing_end": float(1 - ended.astype(float).mean()),
        "entropy": float(last["entropy"].mean()),
        "reward_sd": float(last["reward"].std(ddof=0)),
        LENGTH_CORRELATION: float(last["reward"].corr(last["length"])) if varies else math.nan,
    }


def _not_finite(values: pd.DataFrame) -> int:
    numbers = values.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    return int((~np.isfinite(numbers)).sum())


# What stops a training.


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
