"""The training log as a tidy CSV: step, epoch, split, metric, value.

`split` is `batch` (means over the logging window or the update: what was optimised; a VRM's latents are sampled then),
`train` or `validation` (measured on a fixed subset; a VRM with posterior means). The file is rewritten at every
evaluation, so that it can be watched, and is derived from the trainer's own history, so that a resumed run has one log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from vrm.records import write_whole
from vrm.runfiles import TRAINING
from vrm.training.symptoms import TrainingError
from vrm.watch import Watch

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


class StepWatch(TrainerCallback):
    """Says how far a trainer is, and of what it measures the loss and the accuracy; the log file has the rest.

    It takes the place of transformers' own bar and of its printed dictionaries.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.measuring: Watch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Begin, at the step of the checkpoint that is resumed."""
        self.watch = Watch(
            "training", "steps", state.max_steps, state.global_step, quiet=not state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """One more step."""
        self.watch.add(state.global_step - self.watch.done)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: object) -> None:
        """One more batch of what is measured."""
        if self.measuring is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self.measuring = Watch("measuring", "batches", total, quiet=not state.is_world_process_zero)
        self.measuring.add()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """It is measured."""
        if self.measuring is not None:
            self.measuring.close()
        self.measuring = None

    on_predict = on_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: object) -> None:
        """Say what was measured."""
        if "train_runtime" in (logs or {}):  # the trainer's closing summary
            return
        shown = [(*_split(name), value) for name, value in (logs or {}).items()]
        words = [f"{metric} {value:.4g} ({split})" for split, metric, value in shown if metric in ("loss", "accuracy")]
        if words and self.watch is not None:
            self.watch.say(f"step {state.global_step} of {state.max_steps}: {', '.join(words)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """The end."""
        self.watch.close()


def watch_steps(trainer: Trainer) -> None:
    """Have a trainer say how far it is by a `StepWatch`, in place of whatever it would print."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StepWatch())


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


STOPPED = "stopped_batch"
"""Stem of the two files that a training leaves which stopped at a number that is not finite."""


class FiniteWatch(TrainerCallback):
    """Stops a training at a loss or gradient that is not finite, and saves the batch that it came from.

    A device is asked one step late, so that it need not be waited for in every step; before anything is measured,
    logged or saved it is asked at once, so that no checkpoint holds what came of it.

    Args:
        out: directory of `stopped_batch.json` (step, numbers, texts) and `.safetensors` (every tensor of the batch).
        tokenizer: makes texts of token ids.
    """

    def __init__(self, out: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.out, self.tokenizer = out, tokenizer
        self.waiting: tuple[int, torch.Tensor, torch.Tensor, Mapping[str, Any]] | None = None
        for path in self._files:
            path.unlink(missing_ok=True)  # an earlier attempt's

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.out / f"{STOPPED}.json", self.out / f"{STOPPED}.safetensors"

    def look(self, step: int, loss: torch.Tensor, model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        """Look at the step before, and remember this one, right after its backward pass.

        Raises:
            TrainingError: the step before was not finite.
        """
        self.check()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        self.waiting = (step, loss.detach(), norm.full_tensor() if hasattr(norm, "full_tensor") else norm, inputs)

    def check(self) -> None:
        """Look at what is waiting.

        Raises:
            TrainingError: its loss or its gradient is not finite.
        """
        if self.waiting is None:
            return
        step, *numbers, inputs = self.waiting
        self.waiting = None
        loss, norm = (float(number) for number in numbers)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self._save(step, loss, norm, inputs)
        which, value = ("loss", loss) if not math.isfinite(loss) else ("gradient's norm", norm)
        raise TrainingError(
            f"step {step}: the {which} is {value}; the batch is in {self._files[0]}: if its texts are as they should "
            "be, lower the learning rate"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Before what comes of the step is measured, logged or saved."""
        if control.should_save or control.should_evaluate or control.should_log or state.global_step >= state.max_steps:
            self.check()

    def _save(self, step: int, loss: float, norm: float, inputs: Mapping[str, Any]) -> None:
        tensors = {name: value.cpu().contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        ids = tensors.get("input_ids")
        texts = self.tokenizer.batch_decode(ids) if self.tokenizer is not None and ids is not None else []
        record, batch = self._files
        save_file(tensors, batch)
        entry = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "texts": texts}  # JSON has no NaN
        write_whole(record, json.dumps(entry, ensure_ascii=False, indent=2) + "\n")


class WatchedTrainer(Trainer):
    """transformers' trainer, whose steps are looked at."""

    watch: FiniteWatch | None = None

    def look_out(self, out: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """From now on; see `FiniteWatch`."""
        self.watch = FiniteWatch(out, tokenizer)
        self.add_callback(self.watch)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any) -> torch.Tensor:
        """Forward and backward pass, looked at."""
        loss = super().training_step(model, inputs, *rest, **options)
        if self.watch:
            self.watch.look(self.state.global_step + 1, loss, model, inputs)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it takes every parameter's name at every step, and nobody reads the sum."""
        return 0


def _split(key: str) -> tuple[str, str]:
    for split in ("train", "validation"):
        if key.startswith(f"eval_{split}_"):
            return split, key.removeprefix(f"eval_{split}_")
    return "batch", key
