"""The training log as a tidy CSV: step, epoch, split, metric, value.

`split` is `batch` (means over the logging window or the update: what was optimised; a VRM's latents are sampled then),
`train` or `validation` (measured on a fixed subset; a VRM with posterior means). The file is rewritten at every
evaluation, so that it can be watched, and is derived from the trainer's own history, so that a resumed run has one log.

A PPO run that has blown up stops, and says which measure did it and what usually mends it.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vrm.config import PpoLimits
from vrm.records import write_whole

MENDS = {
    "kl": "raise policy.ppo.kl_coefficient or lower policy.ppo.learning_rate",
    "entropy": "the policy repeats itself: raise policy.ppo.kl_coefficient, or lower policy.ppo.learning_rate",
    "missing_end": "responses do not end: raise policy.ppo.missing_end_penalty or policy.generation.max_new_tokens, or "
    "train the SFT policy longer",
    "explained_variance": "the critic is lost: lower policy.ppo.critic_learning_rate or raise policy.ppo.value_clip",
    "length": "responses are empty: the reward pays for silence; look at what samples.jsonl is paid for",
}


class TrainingError(RuntimeError):
    """A training can't go on; the message says which measure, and the mend."""


class Watchdog:
    """Looks at the measures of each update.

    Args:
        limits: what is borne, and for how many updates in a row.
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
                    f"(policy.ppo.limits) for {self.streaks[name]} updates in a row; {MENDS[name]}"
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


COLUMNS = ("step", "epoch", "split", "metric", "value")

BOOKKEEPING = ("runtime", "per_second", "total_flos", "step", "epoch", "num_tokens", "_reward", "preparation_time")


def tidy(history: list[dict[str, Any]]) -> Iterator[tuple[int, float, str, str, float]]:
    """One row a metric from a `TrainerState.log_history`."""
    for entry in history:
        if "train_runtime" in entry:  # the trainer's closing summary
            continue
        for key, value in entry.items():
            if any(key == word or key.endswith(word) for word in BOOKKEEPING):
                continue
            split, metric = _split(key)
            if metric.startswith("eval_"):  # of TRL's trainer, which says not of which split
                continue
            yield entry["step"], round(entry.get("epoch", 0.0), 6), split, metric, value


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """Write a `TrainerState.log_history` as the tidy CSV, whole."""
    # a resumed run measures its first step again, and a history read back from a checkpoint has another key order
    rows = {
        (step, split, metric): (step, epoch, split, metric, value)
        for step, epoch, split, metric, value in tidy(history)
    }
    write_rows([rows[key] for key in sorted(rows)], path)


def write_rows(rows: list[tuple[int, float, str, str, float]], path: Path) -> None:
    """Write rows of step, epoch, split, metric, value, whole."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_whole(path, out.getvalue())


class LossWatch(TrainerCallback):
    """Stops a training that has diverged, in its last steps too."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> Any:
        """Have the last window logged, however short it is; the trainer logs no step twice."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: object) -> None:
        """Look at every loss, those of evaluations and of the whole training included.

        Raises:
            TrainingError: one is not a finite number.
        """
        for name, value in (logs or {}).items():
            if (name == "loss" or name.endswith("_loss")) and not math.isfinite(value):
                words = name.replace("_", " ")
                raise TrainingError(f"step {state.global_step}: the {words} is {value}; lower the learning rate")


class LogWriter(LossWatch):
    """Keeps `training.csv` up to date while training goes on, and stops a training that has diverged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Rewrite the log after each evaluation."""
        if state.is_world_process_zero:
            write_log(state.log_history, self.path)


def _split(key: str) -> tuple[str, str]:
    for split in ("train", "validation"):
        if key.startswith(f"eval_{split}_"):
            return split, key.removeprefix(f"eval_{split}_")
    return "batch", key
