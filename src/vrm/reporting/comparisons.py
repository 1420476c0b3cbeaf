"""Whether the reward models differ: paired tests on the same pairs, adjusted for their number.

* Asked: VRM against RM; each score-anchored VRM against RM and against the multi-task RM, which is given the same
  ratings; the rated-aspect reward of each against both, and against its own whole reward; each supervision loss against
  the first of Figure 3.
* One row a question and column of Table 2; all of them together are one family for Holm's adjustment.
* What a set of that size can tell apart at all stands beside each difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.data.preference_sets import SECTIONS
from vrm.records import RecordError
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, number, write_table
from vrm.reporting.scores import (
    RATED,
    Column,
    PairScores,
    Scorer,
    members,
    pair_scores,
    read_scores,
    refused_pairs,
    reward_model,
    table_columns,
)
from vrm.statistics.intervals import half_width, stratify
from vrm.statistics.paired_tests import FLIPS, PairedTest, family_note, holm, p_text, paired_test


@dataclass(frozen=True)
class _Compared:
    """One row: two reward models in one column; accuracies in 0..1.

    Args:
        first, second: the difference is that of the first less the second.
        column: the column of Table 2.
        test: the paired test of the two.
        half_width: of the second's accuracy, were it of independent prompts of a fixed model.
        pairs, prompts: how many are behind it.
    """

    first: Scorer
    second: Scorer
    column: Column
    test: PairedTest
    half_width: float
    pairs: int
    prompts: int


def comparisons_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write comparisons.{csv,md,tex}: one row a question and column of Table 2.

    Args:
        config: names variants, columns, seeds and the level.
        results: the run's directory.
        out: directory of the three files. The CSV has one row a test, in points.

    Raises:
        RecordError: there is nothing to compare, scores are missing or broken, or two models scored different pairs.
    """
    asked = questions(config)
    if not asked:
        raise RecordError(
            "comparisons: there is no RM beside a VRM, and report.figure3 has no two losses; leave `comparisons` out "
            "of report.tables"
        )
    rows = list(_compare(config, results, asked))
    adjusted = holm([row.test.p_value for row in rows])
    grid = Grid(
        name="comparisons",
        caption=f"Differences in pairwise accuracy, in points. Data: {config.data.label}.",
        header=[Cell(title) for title in ("Compared", "Column", "Pairs", "Difference", "Half-width", "p", "p, Holm")],
        rows=list(_rows(rows, adjusted)),
        notes=list(_notes(config, rows, adjusted)),
        text_columns=2,
    )
    return write_table(out, [grid], _tidy(config, rows, adjusted))


def questions(config: Config) -> list[tuple[str, str]]:
    """Which variants are compared: (first, second), by name."""
    variants, run = config.reward.variants, config.reward.run
    scalar = [name for name in (*config.report.figure4, *run) if variants[name].kind == "scalar"]
    asked = []
    ours = [name for name in run if variants[name].score_anchor_weight > 0]
    plain = [*scalar[:1], *(name for name in run if variants[name].kind == "multitask")]
    if scalar:
        vrms = (name for name in config.report.figure4 if variants[name].kind == "variational")
        asked += [(name, scalar[0]) for name in vrms]
    for name in ours:
        parts = [name, name + RATED] if variants[name].residual else [name]
        asked += [(part, other) for part in parts for other in plain]
        asked += [(part, name) for part in parts[1:]]
    asked += [(name, config.report.figure3[0]) for name in config.report.figure3[1:]]
    return list(dict.fromkeys(asked))


def _compare(config: Config, results: Path, asked: Sequence[tuple[str, str]]) -> Iterator[_Compared]:
    models = {name: reward_model(config, name) for name in dict.fromkeys(name for names in asked for name in names)}
    refused = refused_pairs(results, list(models.values()))
    scores = {name: read_scores(results, model, refused) for name, model in models.items()}
    columns = table_columns(config)
    for first, second in asked:
        for column in columns:
            sides = [_select(scores[name], column, name) for name in (first, second)]
            if not all(len(side.prompts) for side in sides):
                continue  # no subset of the section, or all pairs refused
            if not np.array_equal(sides[0].prompts, sides[1].prompts):
                raise RecordError(
                    f"evaluation set {column.evaluation_set}: {first} and {second} scored different pairs; score them "
                    "again on the same files"
                )
            yield _test(config, models[first], models[second], column, *sides)


def _select(scores: pd.DataFrame, column: Column, name: str) -> PairScores:
    """The pairs of a column; none where RewardBench's section has no subset in the set."""
    pairs = pair_scores(scores, column.evaluation_set, name)
    return pairs.select(members(column, pairs))


def _test(
    config: Config, first: Scorer, second: Scorer, column: Column, of_first: PairScores, of_second: PairScores
) -> _Compared:
    weights = SECTIONS.get(column.section)
    strata = of_first.subsets if weights else None
    key = f"comparisons/{first.name}/{second.name}/{column.evaluation_set}/{column.section}"
    test = paired_test(
        of_first.wins,
        of_second.wins,
        of_first.prompts,
        np.random.default_rng([config.report.seed, *key.encode()]),
        level=config.report.level,
        strata=strata,
        weights=weights,
    )
    parts = stratify(of_second.wins, of_second.prompts, strata, weights)
    rate = float(np.mean(sum(part.share * part.means for part in parts)))
    # prompts of equal weight that would say as much (Kish)
    effective = 1 / sum(part.share**2 * ((part.sizes / part.sizes.sum()) ** 2).sum() for part in parts)
    prompts = len(set(of_first.prompts.tolist()))
    half = half_width(effective, rate, config.report.level)
    return _Compared(first, second, column, test, half, len(of_first.prompts), prompts)


def _rows(rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> Iterator[Row]:
    """A rule where the next question begins."""
    starts = [False, *((a.first, a.second) != (b.first, b.second) for a, b in pairwise(rows))]
    for row, p, rule in zip(rows, adjusted, starts, strict=True):
        cells = [
            Cell(f"{row.first.label} − {row.second.label}"),
            Cell(row.column.title),
            Cell(str(row.pairs)),
            interval_cell(row.test.difference, scale=100),
            Cell(f"±{number(100 * row.half_width)}"),
            Cell(p_text(row.test.p_value)),
            Cell(p_text(p)),
        ]
        yield Row(cells, rule=rule)


def _notes(config: Config, rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> Iterator[str]:
    level = f"{100 * config.report.level:g} %"
    seeds = config.reward.seeds
    if len(seeds) > 1:
        yield (
            f"Data: {config.data.label}. Difference of means over {len(seeds)} seeds ({', '.join(map(str, seeds))}) on "
            f"the same pairs; in brackets its {level} interval over seeds and prompts (variance components, Student's "
            "t). p: where that interval meets 0; against no difference between the methods, seeds being as random as "
            "prompts, so that a large difference that varies from seed to seed may not pass."
        )
    else:
        yield (
            f"Data: {config.data.label}. Difference on the same pairs, one seed ({seeds[0]}); in brackets its {level} "
            f"interval over prompts (Student's t). p: {FLIPS:,} sign flips over prompts, against no difference "
            "between these two trained models; the variation between seeds is left out."
        )
    named = [f"{row.first.label} − {row.second.label} on {row.column.title}" for row in rows]
    yield family_note(named, adjusted, config.report.level)
    yield (
        f"Half-width: of the {level} interval (Wilson) of the second model's accuracy on that many prompts, subsets "
        "weighted as in Table 2: what a set of this size can tell apart at all, were there one model and no seeds."
    )


def _tidy(config: Config, rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> pd.DataFrame:
    """One row a test; differences and half-widths in points."""
    return pd.DataFrame(
        {
            "first": row.first.name,
            "second": row.second.name,
            "evaluation_set": row.column.evaluation_set,
            "column": row.column.title,
            "difference": 100 * row.test.difference.estimate,
            "low": 100 * row.test.difference.low,
            "high": 100 * row.test.difference.high,
            "level": row.test.difference.level,
            "p": row.test.p_value,
            "p_holm": p,
            "tests": len(rows),
            "half_width": 100 * row.half_width,
            "n_pairs": row.pairs,
            "n_prompts": row.prompts,
            "n_seeds": len(config.reward.seeds),
            "resampled": row.test.difference.resampled,
            "test": row.test.test,
        }
        for row, p in zip(rows, adjusted, strict=True)
    )
