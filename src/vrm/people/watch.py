"""How far a long piece of work is: a bar with rate and remaining time in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines of a log."""


class Watch:
    """Counts what is done.

    Args:
        what: is being done, e.g. "scoring".
        unit: of what is counted, e.g. "rows".
        total: how many there are; None where nobody knows.
        done: how many were done before.
        stream: where it is said; None is standard error.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, done
        self.stream, self.clock = stream or sys.stderr, clock
        self._first, self._started, self._said = done, clock(), clock()
        self._bar = (
            tqdm(total=total, initial=done, desc=what, unit=f" {unit}", file=self.stream) if self._terminal else None
        )

    @property
    def _terminal(self) -> bool:
        return self.stream.isatty()

    def add(self, number: int) -> None:
        """So many more are done."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self.clock() - self._said >= EVERY:
            self._said = self.clock()
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """How far it is, in words."""
        seconds = max(self.clock() - self._started, 1e-9)
        rate = (self.done - self._first) / seconds
        text = f"{self.what}: {self.done}" + (f" of {self.total}" if self.total else "") + f" {self.unit}, {rate:.3g}/s"
        if self.total and rate:
            text += f", {_duration((self.total - self.done) / rate)} left"
        return text

    def close(self) -> None:
        """Nothing more will come."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
