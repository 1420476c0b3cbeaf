"""How many pairs the trainings of reward models are measured on along the way, and what their choice alone is worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vrm.config import Config
from vrm.records import RecordError

from .results import reward_model
from .stats import half_width

SPLITS = ("train", "validation")


def evaluation_pairs(config: Config, results: Path, names: Iterable[str], splits: Sequence[str] = SPLITS) -> list[int]:
    """The different numbers of pairs that were measured, ascending: `evaluation_pairs`, or all that a split has.

    Args:
        config: names seeds and `reward.training.evaluation_pairs`.
        results: the run's directory; the `counts.json` of each training says how many pairs a split has.
        names: variants.
        splits: splits.

    Raises:
        RecordError: counts are missing or broken.
    """
    wanted, found = config.reward.training.evaluation_pairs, set()
    for model in (reward_model(config, name) for name in names):
        for path in (model.file(results, seed, "counts.json") for seed in model.seeds):
            found |= {min(wanted, pairs) for pairs in _pairs(path, splits)}
    return sorted(found)


def first_pairs(counts: Sequence[int]) -> str:
    """In words: "the first 120 pairs"."""
    return f"the first {counts[0]} pairs" if len(counts) == 1 else f"the first {counts[0]} to {counts[-1]} pairs"


def measured_on(config: Config, results: Path, names: Iterable[str]) -> str:
    """What a figure of accuracies along training says of the pairs behind them."""
    counts = evaluation_pairs(config, results, names)
    width = 100 * half_width(counts[0], 0.5, config.report.level)
    return (
        f"Measured on {first_pairs(counts)} of a split, the same for every seed; their choice is left out: "
        f"±{width:.1f}\u00a0points at 50\u00a0% accuracy (Wilson)."
    )


def _pairs(path: Path, splits: Sequence[str]) -> list[int]:
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        return [int(counts[split]["pairs"]) for split in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no counts of pairs ({type(error).__name__})"
        raise RecordError(f"{path}: {what}; train that reward model again") from None
