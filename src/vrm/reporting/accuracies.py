"""Accuracy of every scorer in every column of Table 2, with intervals; numbers only, no layout.

* A cell is a mean over seeds with an interval over seeds and prompts; see `variance_components`.
* RewardBench's sections weigh their subsets as upstream does; prompts then vary within subsets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vrm.config import Config
from vrm.evaluation.reward_bench import SECTIONS, missing_subsets
from vrm.records import RecordError

from .results import PROBES, PairScores, Scorer, pair_scores, read_scores, scorers
from .stats import Interval
from .variance_components import crossed_interval


@dataclass(frozen=True)
class Column:
    """One number a scorer.

    Args:
        evaluation_set: name of the set in the configuration.
        title: what stands above the column.
        paper: the column's name in the paper's table, whether the paper has it or not.
        section: RewardBench's section; "" for the accuracy over all pairs.
    """

    evaluation_set: str
    title: str
    paper: str
    section: str = ""


@dataclass(frozen=True)
class Measured:
    """One scorer in one column.

    Args:
        interval: accuracy in 0..1.
        pairs: number of pairs behind it.
        prompts: number of different prompts.
        without_leaked: the same over the pairs whose prompt is not in training; None where there are none, and for
            itself.
    """

    interval: Interval
    pairs: int
    prompts: int
    without_leaked: Measured | None = None


@dataclass(frozen=True)
class Measurements:
    """Everything that Table 2 shows.

    Args:
        scorers: from top to bottom.
        columns: from left to right.
        cells: by (scorer's name, column); a section of which no subset is present has none.
        sets: scores by (scorer's name, evaluation set), for the counts below the table.
    """

    scorers: Sequence[Scorer]
    columns: Sequence[Column]
    cells: dict[tuple[str, Column], Measured]
    sets: dict[tuple[str, str], PairScores]


def measure(config: Config, results: Path) -> Measurements:
    """Measure every scorer on every set of `evaluation.run` but the probes.

    Raises:
        RecordError: scores are missing or broken, scorers scored different pairs, or a RewardBench set has a subset
            that RewardBench does not have.
    """
    columns, rows = table_columns(config), scorers(config)
    cells: dict[tuple[str, Column], Measured] = {}
    sets: dict[tuple[str, str], PairScores] = {}
    for scorer in rows:
        scores = read_scores(results, scorer)
        for set_name in dict.fromkeys(column.evaluation_set for column in columns):
            sets[scorer.name, set_name] = pair_scores(scores, set_name, scorer.name)
            _check(config, set_name, rows[0].name, scorer.name, sets)
        for column in columns:
            inside = members(column, sets[scorer.name, column.evaluation_set])
            if inside.any():
                pairs = sets[scorer.name, column.evaluation_set].select(inside)
                cells[scorer.name, column] = _measure_cell(config, column, pairs)
    return Measurements(rows, columns, cells, sets)


def table_columns(config: Config) -> list[Column]:
    """The four sections for a set in RewardBench's format, one accuracy for every other."""
    shown = [name for name in config.evaluation.run if name != PROBES]
    benches = [name for name in shown if config.evaluation.sets[name].format == "reward_bench"]
    columns = []
    for name in shown:
        label = config.evaluation.sets[name].label
        if name not in benches:
            columns.append(Column(name, label, slug(name)))
            continue
        for section in SECTIONS:
            title = section if len(benches) == 1 else f"{label}: {section}"
            columns.append(Column(name, title, f"rewardbench_{slug(section)}", section))
    return columns


def slug(text: str) -> str:
    """Lower case, with underscores for everything that is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def members(column: Column, scores: PairScores) -> NDArray[np.bool_]:
    """Which pairs stand in a column: those of RewardBench's section, or all; shape (N,)."""
    if not column.section:
        return np.ones(len(scores.prompts), dtype=bool)
    return np.isin(scores.subsets, list(SECTIONS[column.section]))


def _measure_cell(config: Config, column: Column, scores: PairScores) -> Measured:
    clean = scores.select(~scores.leaked)
    whole = _measure_pairs(config, column, scores)
    return replace(whole, without_leaked=_measure_pairs(config, column, clean) if len(clean.prompts) else None)


def _measure_pairs(config: Config, column: Column, scores: PairScores) -> Measured:
    weights = SECTIONS.get(column.section)
    strata = scores.subsets if weights else None
    interval = crossed_interval(scores.wins, scores.prompts, config.report.level, strata, weights)
    return Measured(interval.within(0, 1), len(scores.prompts), len(set(scores.prompts.tolist())))


def _check(config: Config, set_name: str, first: str, name: str, sets: dict[tuple[str, str], PairScores]) -> None:
    scores = sets[name, set_name]
    if not np.array_equal(scores.prompts, sets[first, set_name].prompts):
        raise RecordError(
            f"evaluation set {set_name}: {first} and {name} scored different pairs; score them again on the same files"
        )
    if config.evaluation.sets[set_name].format == "reward_bench":
        try:
            missing_subsets(set(scores.subsets.tolist()))
        except ValueError as error:
            raise RecordError(f"evaluation set {set_name}: {error}; other subsets need format: pairs") from None
