"""How many texts there are and how long they are, before anything is read: what the time of a job is made of.

Rows of local files are counted. Of hub datasets those of our presets are known; their lengths are means in tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from math import comb
from pathlib import Path
from typing import Any

from vrm.config import Config, Source

CHARACTERS = 4
"""Characters of a token, in English text."""
SAMPLE = 200
"""Lines of a local file whose length is measured."""


@dataclass(frozen=True)
class Texts:
    """Rows of a dataset, and the mean length of what is in them.

    Args:
        rows: how many.
        prompt: mean tokens of a prompt.
        response: mean tokens of a response.
        known: False where this is a stand-in because the data are not here yet.
    """

    rows: int
    prompt: float
    response: float
    known: bool = True


UNKNOWN = Texts(0, 0, 0, known=False)

PUBLIC: dict[tuple[str, str], Texts] = {
    ("openbmb/UltraFeedback", "train"): Texts(63_967, 185, 305),
    ("allenai/ultrafeedback_binarized_cleaned", "test_prefs"): Texts(2_000, 185, 305),
    ("allenai/reward-bench", "filtered"): Texts(2_985, 185, 305),
}
"""Hub datasets by id and split.

Source: UltraFeedback: rows from its card, lengths from its paper; they agree with the 405,688,662 bytes of the 61,135
rows of HuggingFaceH4/ultrafeedback_binarized, each of which holds the prompt four times and a response three times, at
4 characters a token. RewardBench's rows are the benchmark's; its lengths, and all of the last two sets' beside their
size, are taken to be UltraFeedback's.
"""


def texts_of(source: Source) -> Texts:
    """Rows and lengths of a source; `UNKNOWN` where neither the file is here nor the dataset is one of `PUBLIC`."""
    if source.hub is not None:
        return PUBLIC.get((source.hub.dataset, source.hub.split), UNKNOWN)
    path = Path(source.path)
    if path.suffix != ".jsonl" or not path.is_file():
        return UNKNOWN
    with open(path, encoding="utf-8", errors="replace") as handle:
        head = list(islice(handle, SAMPLE))
        rows = len(head) + sum(1 for _ in handle)
    lengths = [_lengths(line) for line in head]
    prompt, response = (sum(side) / max(len(lengths), 1) / CHARACTERS for side in zip(*lengths, strict=True))
    return Texts(rows, prompt, response)


def training_pairs(config: Config) -> int:
    """Pairs that are trained on, at most: ties and unusable rows come off."""
    data = config.data
    a_prompt = 1 if data.pairing != "all" else min(comb(4, 2), data.max_pairs_per_prompt or comb(4, 2))
    return round(texts_of(data).rows * (1 - data.validation_fraction - data.test_fraction)) * a_prompt


def _lengths(line: str) -> tuple[int, int]:
    """Characters of a row's prompt, and of one of its responses on average."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0, 0
    if not isinstance(row, dict):
        return 0, 0
    completions = row.get("completions")
    if isinstance(completions, list) and completions:
        texts = [c.get("response") for c in completions if isinstance(c, dict)]
    else:
        texts = [row.get("chosen"), row.get("rejected")]
    return _characters(row.get("instruction", row.get("prompt"))), sum(map(_characters, texts)) // max(len(texts), 1)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(str(message.get("content", ""))) for message in value or [] if isinstance(message, dict))
