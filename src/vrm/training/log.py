"""The training log as a tidy CSV: step, epoch, split, metric, value.

`split` is `batch` (means over the logging window or the update: what was optimised; a VRM's latents are sampled then),
`train` or `validation` (measured on a fixed subset; a VRM with posterior means). The file is rewritten at every
evaluation, so that it can be watched, and is derived from the trainer's own history, so that a resumed run has one log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback

from vrm.runfiles import TRAINING
from vrm.training.watchdog import TrainingError

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
    # as objects: a count stays a count where other metrics are fractions
    TRAINING.write(path, pd.DataFrame(rows, columns=list(TRAINING.columns), dtype=object))


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
