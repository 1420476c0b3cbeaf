"""What made the variational reward model learn: one change at a time, each trained alike on the same pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vrm.config import Config
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, over_seeds_and_prompts, write_table
from vrm.reporting.study import CORRELATION, RATED, SPREAD, measure, shown_columns
from vrm.statistics.intervals import Interval


def ablation_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write ablation.{csv,md,tex,html}: one row a variant of `study.ablation`, and one for its rated-aspect reward.

    Args:
        config: names variants, seeds, pairs and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number, with the difference to the first variant.

    Raises:
        RecordError: scores are missing or broken.
    """
    study, data = config.study, measure(config, results, config.study.ablation_cells())
    columns = [(column.paper, column.title, 100.0, 1) for column in shown_columns(config)]
    columns += [(CORRELATION, "correlation with true w", 1.0, 2), (SPREAD, "SD of w over prompts", 1.0, 3)]
    rows = [
        Row([Cell(_name(label, part)), *(_cell(group, *column) for column in columns)])
        for (_, label, part), group in data.groupby(["variant", "label", "part"], sort=False)
    ]
    grid = Grid(
        name="ablation",
        caption=f"What made it learn: one change at a time, {study.ablation_pairs:,} pairs. Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(title) for _, title, _, _ in columns)],
        rows=rows,
        notes=[
            f"Accuracies in per cent. In brackets: {100 * config.report.level:g} % intervals over "
            f"{over_seeds_and_prompts(study.seeds)}; of both columns of w: Student's t over seeds.",
            "Correlation with the true w: Pearson over the prompts of "
            f"{config.evaluation.sets[config.evaluation.run[0]].label}, mean of the objectives.",
        ],
    )
    return write_table(out, [grid], data)


def _name(label: str, part: str) -> str:
    return f"{label}: rated aspects alone" if part == RATED else label


def _cell(group: pd.DataFrame, metric: str, title: str, scale: float, digits: int) -> Cell:
    found = group[group["metric"] == metric]
    if found.empty:
        return Cell("")
    row = found.iloc[0]
    return interval_cell(Interval(row.estimate, row.low, row.high, row.level, row.resampled), scale, digits)
