"""What the study measured: accuracies, differences and recovered weights of its models, from their scores.

* A model with a residual has two rows: its whole reward, and the rated-aspect reward alone (`part`).
* Accuracies and their differences have intervals over seeds and prompts; correlations, one number a seed, over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.config.study import Cell
from vrm.data.reward_bench import SECTIONS
from vrm.evaluation.latents import weight_recovery, weights_spread
from vrm.reporting.scores import Column, PairScores, members, pair_scores, row_label, table_columns
from vrm.runfiles import SCORES
from vrm.statistics.intervals import Interval, crossed_interval, student_interval

CORRELATION, SPREAD = "weight_correlation", "weight_sd"
"""Metrics of the weights, beside the accuracies, which are named as their columns in Table 2."""
WHOLE, RATED = "full", "rated"
COLUMNS = (
    *("world", "variant", "label", "part", "pairs", "metric", "estimate", "low", "high"),
    *("difference", "difference_low", "difference_high", "compared_with", "level", "n_pairs", "n_seeds", "resampled"),
)


def shown_columns(config: Config) -> list[Column]:
    """What the study shows of Table 2: accuracies over whole sets, and the section made to mislead."""
    return [column for column in table_columns(config) if column.section in ("", "Chat Hard")]


def measure(config: Config, results: Path, cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a model, part and metric, with `COLUMNS`; differences are to the first variant in the same world.

    Raises:
        RecordError: scores are missing or broken, or seeds or variants scored different pairs.
    """
    points: dict[tuple[str, int], dict[str, list[Cell]]] = {}
    for cell in cells:
        points.setdefault((cell.world, cell.pairs), {}).setdefault(cell.variant, []).append(cell)
    rows = [row for point in points.values() for row in _measure_point(config, results, point)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure_point(config: Config, results: Path, models: dict[str, list[Cell]]) -> Iterator[dict]:
    """All variants that were trained on the same pairs."""
    first, reference = next(iter(models)), {}
    for variant, cells in models.items():
        scores = pd.concat([SCORES.read(results / cell.file).assign(seed=cell.seed) for cell in cells])
        label = row_label(config.reward.variants[variant])
        names = {"world": cells[0].world, "variant": variant, "label": label, "pairs": cells[0].pairs}
        names |= {"level": config.report.level, "n_seeds": len(cells)}
        for part, table in _parts(scores):
            for column in shown_columns(config):
                found = pair_scores(table, column.evaluation_set, f"{variant} ({cells[0].world})")
                found = found.select(members(column, found))
                if not len(found.prompts):
                    continue
                reference.setdefault(column, found.wins)
                row = _row(_mean(config, column, found.wins, found), column.paper) | {"n_pairs": len(found.prompts)}
                if variant != first and found.wins.shape == reference[column].shape:
                    difference = _mean(config, column, found.wins - reference[column], found)
                    row |= {"difference": difference.estimate, "compared_with": first}
                    row |= {"difference_low": difference.low, "difference_high": difference.high}
                yield names | {"part": part} | row
        yield from (names | {"part": WHOLE} | row for row in _weights(config, scores))


def _parts(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The whole reward, and the rated-aspect reward where there is a residual beside it."""
    yield WHOLE, scores
    if "rated_chosen" in scores:
        yield RATED, scores.assign(reward_chosen=scores["rated_chosen"], reward_rejected=scores["rated_rejected"])


def _mean(config: Config, column: Column, values: np.ndarray, found: PairScores) -> Interval:
    """Mean of (S, N) values of a column's pairs, weighted as the column weighs its subsets."""
    weights = SECTIONS.get(column.section)
    strata = found.subsets if weights else None
    return crossed_interval(values, found.prompts, config.report.level, strata, weights)


def _weights(config: Config, scores: pd.DataFrame) -> Iterator[dict]:
    """Recovery of the true weights, and how much w differs between prompts, on the first set."""
    table = scores[scores["evaluation_set"] == config.evaluation.run[0]]
    by_seed = [part for _, part in table.groupby("seed")]
    recovered = [{m.metric: m for m in weight_recovery(part)} for part in by_seed]
    metric = "weight_correlation/mean"
    if all(metric in found for found in recovered):
        values = [found[metric].value for found in recovered]
        yield _row(student_interval(values, config.report.level), CORRELATION) | {"n_pairs": recovered[0][metric].n}
    spreads = [weights_spread(part) for part in by_seed]
    if all(value is not None for value in spreads):
        yield _row(student_interval(spreads, config.report.level), SPREAD)


def _row(interval: Interval, metric: str) -> dict:
    ends = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    return {"metric": metric, **ends, "resampled": interval.resampled}
