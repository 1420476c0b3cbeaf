"""What the benchmarks that compare contestants share: texts, a small model, turns, and a table that says where it ran.

* Contestants take turns in one process (A B C, A B C, ...), so that what else the machine does hits all of them alike.
* Two times are taken: by the clock, and of the processors for this process, which others on the machine disturb less
  (with a GPU it says little).
* Each figure is a median over the rounds; a ratio is the median of the rounds' own ratios, beside the outermost two.
* Tokens are logical: what a text has by itself, its prompt included, padding excluded, however it is computed.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from reward_memory import LENGTHS, QUANTILES, SETTINGS
from transformers import PreTrainedTokenizerBase, Qwen3Config

from vrm.planning.memory import Shape
from vrm.training.backbones import train_tokenizer

PACKAGES = ("torch", "transformers", "trl", "accelerate")
VOCABULARY = 4096
MAX_PROMPT, MAX_LENGTH = 1024, 2048
"""Limits in tokens, those of the paper's preset."""
DISTRIBUTION = (
    f"prompt and response lengths in tokens by linear interpolation between the quantiles {QUANTILES}: {LENGTHS}, "
    f"from 1,000 public UltraFeedback pairs; a prompt is cut to {MAX_PROMPT}, a text to {MAX_LENGTH}"
)


SMALL = Shape(VOCABULARY, hidden=256, layers=4, heads=4, key_value_heads=2, head_dim=64, intermediate=768)
"""On which the project's targets for a CPU are stated."""
SHAPES = {"small": SMALL, **{name: setting.shape for name, setting in SETTINGS.items()}}


def model_config(name: str, tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """A Qwen3 of one of `SHAPES`."""
    shape = SHAPES[name]
    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,
    )


def drawn_lengths(rng: np.random.Generator, responses: int) -> tuple[int, list[int]]:
    """Tokens of a prompt and of its responses, see `DISTRIBUTION`."""
    prompt = min(MAX_PROMPT, round(float(np.interp(rng.random(), QUANTILES, LENGTHS["prompt"]))))
    lengths = np.interp(rng.random(responses), QUANTILES, LENGTHS["response"]).round().astype(int)
    return prompt, [min(int(length), MAX_LENGTH - prompt) for length in lengths]


def made_up_words(rng: np.random.Generator) -> list[str]:
    """Words for texts whose content does not matter."""
    return ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 9))) for _ in range(2 * VOCABULARY)]


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE with ChatML, trained on these texts."""
    return train_tokenizer(texts, VOCABULARY)


def matrix_rate(size: int = 8192, repeats: int = 10) -> float:
    """Operations a second of a product of two square matrices of random numbers in bfloat16, the median."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(3 + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        left @ right
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return 2 * size**3 / float(np.median(seconds[3:]))


class Stopwatch:
    """Seconds by the clock and of the processors, since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> np.ndarray:
        """Shape (2,)."""
        return self._now() - self._start

    @staticmethod
    def _now() -> np.ndarray:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])


@dataclass
class Turns:
    """Rounds in which every contestant has its turn.

    Args:
        contestants: by name, a function that does the work once and returns what a `Stopwatch` read.
        seconds: of each contestant, by round.
    """

    contestants: Mapping[str, Callable[[], np.ndarray]]
    seconds: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def play(self, rounds: int, warm_up: bool = True) -> None:
        """Have so many rounds, and one before them that does not count."""
        if warm_up:
            for work in self.contestants.values():
                work()
        for number in range(rounds):
            for name, work in self.contestants.items():
                self.seconds.setdefault(name, []).append(work())
            times = (f"{name} {seconds[-1][0]:.2f} s" for name, seconds in self.seconds.items())
            print(f"round {number + 1}: {', '.join(times)}", flush=True)

    def rows(self, tokens: int, against: str) -> list[dict[str, object]]:
        """A row a contestant: medians, logical tokens a second, and how many times as fast as `against` it is."""
        found = []
        for name, seconds in self.seconds.items():
            own = np.stack(seconds)  # (rounds, 2)
            ratios = np.stack(self.seconds[against]) / own
            clock, processors = np.median(own, 0)
            found.append(
                {
                    "contestant": name,
                    "rounds": len(seconds),
                    "seconds": round(clock, 3),
                    "processor_seconds": round(processors, 3),
                    "tokens_per_second": round(tokens / clock),
                    f"times_as_fast_as_{against}": round(np.median(ratios[:, 0]), 3),
                    "smallest": round(ratios[:, 0].min(), 3),
                    "largest": round(ratios[:, 0].max(), 3),
                    "by_processor_seconds": round(np.median(ratios[:, 1]), 3),
                }
            )
        return found


def environment() -> dict[str, object]:
    """Where and on what this runs."""
    commit = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12")
    found = subprocess.run(commit, capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": found.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(
    rows: Sequence[Mapping[str, object]], setting: Mapping[str, object], out: Path, lines: Path | None = None
) -> None:
    """Print a table with where it was measured, and append the rows to a CSV file that holds both.

    Args:
        rows: a contestant each.
        setting: what was measured.
        out: the CSV file.
        lines: the same as JSON lines.
    """
    where = environment()
    for name, value in {**where, **setting}.items():
        print(f"{name}: {value}")
    columns = list(rows[0])
    width = {c: max(len(c), *(len(str(row[c])) for row in rows)) for c in columns}
    print("  ".join(c.ljust(width[c]) for c in columns))
    for row in rows:
        print("  ".join(str(row[c]).ljust(width[c]) for c in columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    new = not out.exists()
    with out.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *setting, *where], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({**row, **setting, **where})
    if lines is not None:
        lines.parent.mkdir(parents=True, exist_ok=True)
        with lines.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({**row, **setting, **where}, default=str) + "\n")
