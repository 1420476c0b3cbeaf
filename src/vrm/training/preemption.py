"""SIGTERM, which a cluster sends before it takes a machine away: a training checkpoints at its next step, and leaves.

* Without this a preempted training falls back to its last regular checkpoint. With it, the same command goes on from
  the very step, to the same result (CPU, same thread count).
* Regular checkpoints lie behind measurements, at the ends of logging windows. This one may lie inside a window, so what
  that has summed up is kept beside it, one file a process, and the resumed run's log is that of an undisturbed one.
* Or it lies before a measurement, for which there is no time. The resumed run measures once it has taken up its random
  state, which a measurement draws from: latents are then sampled as in an undisturbed run.
* The signal comes to several processes at different moments: they agree on the step before each of them.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback

from vrm.records import write_json

GRACE = 30
"""Seconds that a cluster usually gives (SLURM's KillWait); a step and a checkpoint have to fit."""


MEASURE = "measure"
"""Stands in a window's place where there is none: a measurement is due."""


class PreemptedError(RuntimeError):
    """A training was asked to stop and has checkpointed; the message says where."""

    exit_code = 128 + signal.SIGTERM

    def __init__(self, step: int, checkpoints: str | Path) -> None:
        super().__init__(
            f"stopped by SIGTERM; step {step} is in {checkpoints}, and the same command goes on from there"
        )


class StopRequest:
    """Listens for SIGTERM from `listen` to `leave`; outside of that the signal ends the process, as ever."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._came, self._before = accelerator, False, None

    def listen(self) -> StopRequest:
        """From now on the signal is remembered instead of obeyed."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def leave(self) -> None:
        """Whatever held before holds again."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def came(self) -> bool:
        """Whether any process has been asked; all of them call it together."""
        if self._accelerator.num_processes == 1:
            return self._came
        flag = torch.tensor(float(self._came), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, "sum").item())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = True


class CheckpointOnStop(TrainerCallback):
    """Has a trainer of Hugging Face's checkpoint and leave when SIGTERM comes, and go on in the middle of a window.

    Args:
        trainer: the one that it is added to.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._stop = trainer, StopRequest(trainer.accelerator)
        self._leaves = self._measures_first = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Listen; take up the window of a checkpoint that lies inside one, or what one at its end still has to do."""
        self._stop.listen()
        path = self._window_file(args, state)
        if state.global_step and path.is_file():
            args.eval_on_start = False  # it goes on between two measurements, or measures a little later
            window = json.loads(path.read_text(encoding="utf-8"))
            self._measures_first = window == MEASURE
            if not self._measures_first:
                self._take_up(window)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Measure what the run that was stopped had no time for; the random state is the checkpoint's by now."""
        if self._measures_first:
            self._measures_first = False
            self._trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> Any:
        """Have this step saved, if asked to stop; after the last one there is nothing to go on with."""
        if state.global_step < state.max_steps and self._stop.came():
            self._leaves = control.should_save = True
            if control.should_evaluate:
                control.should_evaluate = False  # may take longer than we have
                write_json(self._window_file(args, state), MEASURE)
            elif not control.should_log:
                write_json(self._window_file(args, state), self._window())
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Leave.

        Raises:
            PreemptedError: always, if asked to stop.
        """
        if self._leaves:
            self._trainer.accelerator.wait_for_everyone()
            self._stop.leave()
            raise PreemptedError(state.global_step, args.output_dir)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """The signal ends the process again: results are written whole or not at all."""
        self._stop.leave()

    def _window_file(self, args: Any, state: Any) -> Path:
        process = self._trainer.accelerator.process_index
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"window.{process}.json"

    def _window(self) -> dict[str, Any]:
        """What the trainer has summed up since it last logged."""
        trainer = self._trainer
        return {
            "loss": trainer._tr_loss.item(),
            "since": trainer._globalstep_last_logged,
            "sums": {
                attribute: {name: [_plain(value) for value in values] for name, values in sums.items()}
                for attribute, sums in _sums(trainer).items()
            },
        }

    def _take_up(self, window: dict[str, Any]) -> None:
        trainer = self._trainer
        trainer._tr_loss += window["loss"]
        trainer._globalstep_last_logged = window["since"]
        for attribute, sums in _sums(trainer).items():
            for name, values in window["sums"].get(attribute, {}).items():
                device = trainer.accelerator.device
                sums[name][:] = [torch.tensor(v, device=device) if isinstance(v, list) else v for v in values]


def _sums(trainer: Trainer) -> dict[str, Any]:
    """What our trainers and TRL's collect between two logs, by attribute: lists by name."""
    found = {}
    if hasattr(trainer, "_metrics"):
        found["_metrics"] = trainer._metrics["train"]
    if hasattr(trainer, "_window"):
        found["_window"] = trainer._window
    return found


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value
