"""What a stage says while it works and at its end: how far it is, and what it has counted.

How far is a bar with rate and remaining time in a terminal, and plain lines in a log.
Every stage that may take minutes says it by a `Watch`, and by nothing else: bars of libraries write a carriage return a
step, which a log keeps as one line of megabytes. `plain_libraries` turns those off where there is no terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from threading import Lock
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

FIRST, EVERY = 5.0, 30.0
"""Seconds before a log's first line, and between two lines."""
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Variables that transformers (the first, too) and datasets read when they are imported."""


def plain_libraries() -> None:
    """Have Hugging Face's libraries draw no bars where standard error is no terminal; before they are imported."""
    if not sys.stderr.isatty():
        for name in BARS:
            os.environ.setdefault(name, "1")


class Watch:
    """Counts what is done. Several threads may count.

    Args:
        what: is being done, e.g. "scoring".
        unit: of what is counted, e.g. "rows".
        total: how many there are; None where nobody knows.
        done: how many were done before.
        quiet: count, and say nothing.
        stream: where it is said; None is standard error.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.unit, self.total, self.done, self.quiet = what, unit, total, done, quiet
        self.stream, self.clock, self._lock = stream or sys.stderr, clock, Lock()
        self._first, self._started, self._values = done, clock(), {}
        self._printed: int | None = None  # how many were done when a log last got a line
        self._due = self._started + min(FIRST, EVERY)
        self._bar = None
        if self.stream.isatty() and not quiet:
            from tqdm import tqdm  # here, as most commands need none

            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", file=self.stream)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, number: int = 1, **values: float) -> None:
        """So many more are done; `values` are measurements that stand behind the count."""
        with self._lock:
            self.done += number
            self._values = values
            if self._bar is not None:
                self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
                self._bar.update(number)
            elif self.clock() >= self._due:
                self._print()

    def say(self, text: str) -> None:
        """A line of its own, at once."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        elif not self.quiet:
            print(text, file=self.stream, flush=True)

    def line(self) -> str:
        """How far it is, in words."""
        seconds = max(self.clock() - self._started, 1e-9)
        rate = (self.done - self._first) / seconds
        text = f"{self.what}: {self.done}" + (f" of {self.total}" if self.total else "") + f" {self.unit}, {rate:.3g}/s"
        if self.total and rate and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        return ", ".join([text, *(f"{name} {value:.3g}" for name, value in self._values.items())])

    def close(self) -> None:
        """Nothing more will come; a log gets a last line if it took long enough for one."""
        if self._bar is not None:
            self._bar.close()
        elif self.clock() - self._started >= EVERY and self.done != self._printed:
            self._print()

    def _print(self) -> None:
        self._due, self._printed = self.clock() + EVERY, self.done
        self.say(self.line())


def watched(items: Iterable[T], what: str, unit: str, *, quiet: bool = False) -> Iterator[T]:
    """The items, one after the other, under a `Watch`."""
    with Watch(what, unit, len(items) if isinstance(items, Sized) else None, quiet=quiet) as watch:
        for item in items:
            yield item
            watch.add()


def duration(seconds: float) -> str:
    """E.g. "2 min 40 s"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_counts(title: str, counts: Mapping[str, Any]) -> str:
    """Counts as one block for people: a title, then a line an entry; nested mappings are indented.

    Args:
        counts: numbers, texts, lists of texts, and mappings of these; empty lists and mappings are left out.
    """
    lines = _lines(counts, indent=2)
    width = max((len(label) for label, _ in lines), default=0)
    text = "\n".join([title, *(f"{label:<{width}}  {value}".rstrip() for label, value in lines)])
    return text.encode(errors="backslashreplace").decode()  # half a surrogate pair in a column's name


def _lines(counts: Mapping[str, Any], indent: int) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in counts.items():
        label = " " * indent + key.replace("_", " ")
        if isinstance(value, Mapping):
            nested = _lines({str(k): v for k, v in value.items()}, indent + 2)
            lines += [(label, ""), *nested] if nested else []
        elif isinstance(value, list):
            lines += [(label, ", ".join(map(str, value)))] if value else []
        else:
            lines.append((label, str(value)))
    return lines
