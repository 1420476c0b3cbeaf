"""How far work is and what was counted: what a terminal shows, what a log keeps."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from vrm import watch
from vrm.watch import BARS, Watch, format_counts, watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A second hand that is moved by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_log_gets_a_line_soon_and_then_now_and_then_with_rate_and_remaining_time():
    clock, log = Clock(), io.StringIO()
    with Watch("scoring", "rows", total=100, stream=log, clock=clock) as seen:
        for _ in range(10):
            clock.now += 8
            seen.add(5, reward=0.25)
        clock.now += 40
    assert log.getvalue().splitlines() == [
        "scoring: 5 of 100 rows, 0.625/s, 2 min 32 s left, reward 0.25",
        "scoring: 25 of 100 rows, 0.625/s, 2 min 00 s left, reward 0.25",
        "scoring: 45 of 100 rows, 0.625/s, 1 min 28 s left, reward 0.25",
        "scoring: 50 of 100 rows, 0.417/s, 2 min 00 s left, reward 0.25",
    ]


def test_what_is_short_leaves_no_line_in_a_log():
    log = io.StringIO()
    with Watch("scoring", "rows", total=2, stream=log, clock=Clock()) as seen:
        seen.add(2)
        seen.say("step 1")
    assert log.getvalue() == "step 1\n"


def test_a_terminal_has_a_bar_with_rate_and_remaining_time():
    terminal = Terminal()
    with Watch("scoring", "rows", total=4, done=1, stream=terminal) as seen:
        for _ in range(3):
            seen.add(reward=0.5)
    shown = terminal.getvalue()
    for part in ("scoring: 100%", "4/4", "rows/s", "reward=0.5", "\r"):
        assert part in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_a_quiet_one_says_nothing(stream, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.0)
    with Watch("scoring", "rows", 2, quiet=True, stream=stream) as seen:
        seen.add()
        seen.say("step 1")
    assert (seen.done, stream.getvalue()) == (1, "")


def test_items_are_counted_when_they_are_done(capsys, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.0)
    assert list(watched([3, 1], "scoring", "batches")) == [3, 1]
    assert capsys.readouterr().err.startswith("scoring: 1 of 2 batches, ")
    assert list(watched((n for n in range(2)), "scoring", "batches")) == [0, 1]
    assert capsys.readouterr().err.startswith("scoring: 1 batches, ")


def test_threads_count_together():
    seen = Watch("judging", "requests", 4000, stream=io.StringIO())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: seen.add(), range(4000)))
    assert seen.done == 4000


def test_libraries_draw_no_bar_into_a_log():
    code = (
        "from vrm.watch import plain_libraries; plain_libraries()\n"
        "from transformers.utils import logging; from datasets.utils import are_progress_bars_disabled\n"
        "assert not logging.is_progress_bar_enabled() and are_progress_bars_disabled()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in BARS}
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_log_has_its_last_line_once():
    stream, seconds = io.StringIO(), iter(range(0, 100_000, 60))
    watch = Watch("scoring", "rows", 2, stream=stream, clock=lambda: next(seconds))
    watch.add()
    watch.add()
    watch.close()
    assert sum("2 of 2" in line for line in stream.getvalue().splitlines()) == 1


def test_counts_are_aligned_and_empty_groups_left_out():
    text = format_counts("Title", {"rows_read": 10, "because": {}, "aspects": ["a", "b"], "split": {"pairs": 3}})
    assert text.splitlines() == ["Title", "  rows read  10", "  aspects    a, b", "  split", "    pairs    3"]


def test_counts_can_be_printed_whatever_a_column_is_called():
    assert format_counts("Title", {"columns": ["\ud800", "ü"]}).encode().decode().endswith("\\ud800, ü")
