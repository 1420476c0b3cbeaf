"""Point estimates of every reward model on every evaluation set, in one tidy file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from vrm.data.reward_bench import SECTIONS
from vrm.evaluation.accuracy import SetMetric, preference_accuracy, section_scores, subset_accuracy
from vrm.evaluation.latents import learned_weights, weight_recovery
from vrm.records import RecordError, write_whole
from vrm.runfiles import SCORES


def evaluate(scores: Mapping[tuple[str, int], Path], set_formats: Mapping[str, str], out: Path) -> pd.DataFrame:
    """Measure every scored reward model and write one tidy CSV.

    Args:
        scores: scores.csv of each (variant, seed).
        set_formats: format of each known evaluation set, `pairs` or `reward_bench`.
        out: the CSV, with columns variant, seed, evaluation_set, metric, value, n. Metrics are those of
            `preference_accuracy`, `learned_weights` and `weight_recovery`, and section/<name> for `reward_bench`.

    Returns:
        What was written.

    Raises:
        RecordError: a file is missing, lacks a column or a set that another file has, holds a reward that is not
            finite, or a subset that RewardBench does not have; names the file.
    """
    tables = {key: SCORES.read(path) for key, path in scores.items()}
    names = list(dict.fromkeys(name for table in tables.values() for name in table["evaluation_set"].unique()))
    rows = []
    for (variant, seed), table in tables.items():
        path = scores[variant, seed]
        by_set = dict(iter(table.groupby("evaluation_set")))
        for name in names:
            if name not in by_set:
                raise RecordError(f"{path}: evaluation set {name} is missing, other files have it; score it again")
            if name not in set_formats:
                raise RecordError(f"{path}: evaluation set {name} is unknown; known are: {', '.join(set_formats)}")
            try:
                metrics = list(_metrics(by_set[name], set_formats[name]))
            except ValueError as error:
                raise RecordError(f"{path}, evaluation set {name}: {error}") from None
            rows += [(variant, seed, name, *metric) for metric in metrics]
    tidy = pd.DataFrame(rows, columns=["variant", "seed", "evaluation_set", *SetMetric._fields])
    write_whole(out, tidy.to_csv(index=False, lineterminator="\n"))
    print(f"{out}: {len(tidy)} point estimates of {len(scores)} reward models on {', '.join(names)}")
    return tidy


def _metrics(table: pd.DataFrame, set_format: str) -> Iterator[SetMetric]:
    yield from preference_accuracy(table)
    if set_format == "reward_bench":
        yield from _sections(table)
    yield from learned_weights(table)
    yield from weight_recovery(table)


def _sections(table: pd.DataFrame) -> Iterator[SetMetric]:
    """RewardBench's section scores; n is the number of pairs, not the sum of the weights."""
    accuracy = subset_accuracy(table["subset"].tolist(), table["reward_chosen"], table["reward_rejected"])
    for section, score in section_scores(accuracy).items():
        yield SetMetric(f"section/{section}", score, int(table["subset"].isin(list(SECTIONS[section])).sum()))
