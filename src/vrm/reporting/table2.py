"""Table 2: accuracy of every scorer on every evaluation set, the paper's value beside ours.

Rows are policies read as reward models, then the paper's reward models, then ours. The notes are `table2_notes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config

from .accuracies import Column, Measured, Measurements, measure, slug
from .paper.published import published
from .rendering import EMPTY, Cell, Grid, Row, interval_cell, number, write_table
from .results import Scorer, starts_group
from .stats import Interval
from .table2_notes import clean_notes, notes


def table2(config: Config, results: Path, out: Path) -> list[Path]:
    """Write table2.{csv,md,tex,html}: one row a scorer, one column a set of `evaluation.run`.

    The scorers are the preference-trained policies of `policy.scorers_from`, if that names a base, and the variants of
    `reward.run`. The probes are left out: the world table reads them one by one.

    Args:
        config: names rows, columns, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a cell, in points; `paper_method` is the paper's name of
            the row.

    Raises:
        RecordError: as `accuracies.measure`.
    """
    measured = measure(config, results)
    paper = _paper_values(measured)
    policies = any(scorer.group == "policy" for scorer in measured.scorers)
    first, what = ("Scorer", "policies and reward models") if policies else ("Reward model", "the reward models")
    grid = Grid(
        name="table2",
        caption=f"Pairwise accuracy of {what}, in points. Data: {config.data.label}.",
        header=[Cell(first), *_header(measured)],
        rows=list(_rows(measured, paper)),
        notes=list(notes(config, measured, has_paper=bool(paper))),
    )
    grids = [grid, *_without_leaked(config, measured, first)]
    return write_table(out, grids, _tidy(measured, paper))


def _paper_values(measured: Measurements) -> dict[tuple[str, Column], float]:
    """The paper's values by (scorer, column), for the scorers whose name or label is a method of the paper."""
    values = {}
    for scorer in measured.scorers:
        row = _paper_row(scorer)
        values |= {(scorer.name, c): float(row[c.paper]) for c in measured.columns if c.paper in row}
    return values


def _paper_row(scorer: Scorer) -> dict[str, str]:
    """The paper's row of a scorer; empty where it has none."""
    if scorer.ours:
        return {}
    methods = {slug(row["method"]): row for row in published("table2")}
    return methods.get(slug(scorer.name)) or methods.get(slug(scorer.label)) or {}


def _header(measured: Measurements) -> Iterator[Cell]:
    for column in measured.columns:
        cell = measured.cells.get((measured.scorers[0].name, column))
        yield Cell(column.title, f"n = {cell.pairs if cell else 0}")


def _rows(measured: Measurements, paper: dict[tuple[str, Column], float]) -> Iterator[Row]:
    """A row a scorer; below it the paper's own, where the paper has it."""
    for scorer, previous in zip(measured.scorers, [None, *measured.scorers], strict=False):
        cells = (measured.cells.get((scorer.name, column)) for column in measured.columns)
        ours = [interval_cell(cell.interval, scale=100) if cell else Cell(EMPTY) for cell in cells]
        yield Row([Cell(scorer.label), *ours], rule=starts_group(previous, scorer))
        beside = [paper.get((scorer.name, column)) for column in measured.columns]
        if any(value is not None for value in beside):
            cells = [Cell("" if value is None else number(value)) for value in beside]
            yield Row([Cell(f"{scorer.label}, in the paper†"), *cells])


def _without_leaked(config: Config, measured: Measurements, first: str) -> Iterator[Grid]:
    """The same accuracies without the prompts that also occur in training; nothing where no prompt leaked."""
    leaky = {name for (_, name), scores in measured.sets.items() if scores.leaked.any()}
    columns = [column for column in measured.columns if column.evaluation_set in leaky]
    if not columns:
        return
    rows = []
    for scorer, previous in zip(measured.scorers, [None, *measured.scorers], strict=False):
        cells = [_clean(measured, scorer, column) for column in columns]
        values = [interval_cell(cell.interval, scale=100) if cell else Cell(EMPTY) for cell in cells]
        rows.append(Row([Cell(scorer.label), *values], rule=starts_group(previous, scorer)))
    counts = [_clean(measured, measured.scorers[0], column) for column in columns]
    titles = [Cell(c.title, f"n = {cell.pairs if cell else 0}") for c, cell in zip(columns, counts, strict=True)]
    caption = f"The same without the prompts that also occur in training. Data: {config.data.label}."
    yield Grid("table2-without-leaked", caption, [Cell(first), *titles], rows, list(clean_notes(config, measured)))


def _clean(measured: Measurements, scorer: Scorer, column: Column) -> Measured | None:
    cell = measured.cells.get((scorer.name, column))
    return cell and cell.without_leaked


def _tidy(measured: Measurements, paper: dict[tuple[str, Column], float]) -> pd.DataFrame:
    """One row a cell; numbers in points."""
    rows = []
    for scorer in measured.scorers:
        for column in measured.columns:
            cell = measured.cells.get((scorer.name, column))
            if cell is not None:
                rows.append(_tidy_row(scorer, column, cell, paper.get((scorer.name, column), np.nan)))
    return pd.DataFrame(rows)


def _tidy_row(scorer: Scorer, column: Column, cell: Measured, paper: float) -> dict[str, Any]:
    nothing = Measured(Interval(np.nan, np.nan, np.nan, cell.interval.level, "nothing (no pair)"), 0, 0)
    clean = cell.without_leaked or nothing
    return {
        "variant": scorer.name,
        "label": scorer.label,
        "group": scorer.group,
        "evaluation_set": column.evaluation_set,
        "column": column.title,
        "estimate": 100 * cell.interval.estimate,
        "low": 100 * cell.interval.low,
        "high": 100 * cell.interval.high,
        "level": cell.interval.level,
        "n_pairs": cell.pairs,
        "n_prompts": cell.prompts,
        "n_seeds": len(scorer.seeds),
        "without_leaked": 100 * clean.interval.estimate,
        "without_leaked_low": 100 * clean.interval.low,
        "without_leaked_high": 100 * clean.interval.high,
        "n_pairs_without_leaked": clean.pairs,
        "paper_method": _paper_row(scorer).get("method", ""),
        "paper": paper,
        "resampled": cell.interval.resampled,
    }
