"""Table 1: every judged policy on every judged benchmark, the paper's value beside ours.

Rows are the policies of each base, from the start of training on. The notes are `table1_notes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config, ConfigError, PpoMethod

from ..accuracies import slug
from ..paper.published import published
from ..policy_results import SFT
from ..rendering import EMPTY, Cell, Grid, Row, interval_cell, number, write_table
from .measures import JudgedTable, Metric, measure_table
from .results import Model
from .table1_notes import notes, span

Paper = dict[tuple[str, str, Metric], float]

# The reward model that the paper's PPO rows train against: another kind under the same name is not the paper's row.
_REWARD_KINDS = {"ppo": "scalar", "vrm_ppo": "variational"}


def table1(config: Config, results: Path, out: Path) -> list[Path]:
    """Write table1.{csv,md,tex,html}: one row a judged policy, the columns those of `benchmarks.run`.

    Args:
        config: names bases, methods, seeds, benchmarks and the level; `policy.bases.<base>.paper` names the policy of
            the paper whose values stand beside a base's.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a cell, in percent or rating points; `paper_method`
            is the paper's name of the row, whether or not the base stands for one of the paper's policies.

    Raises:
        ConfigError: the paper has no policy of such a name.
        RecordError: as `measures.measure_table`.
    """
    table = measure_table(config, results)
    paper = _paper_values(config, table)
    grid = Grid(
        name="table1",
        caption=(
            "Judged benchmarks: win rates (WR, LC, SC) in percent, MT-Bench's score in rating points from 1 to 10. "
            f"Data: {config.data.label}."
        ),
        header=[Cell("Base"), Cell("Method"), *_header(config, table)],
        rows=list(_rows(config, table, paper)),
        notes=list(notes(config, table, has_paper=bool(paper))),
        text_columns=2,
    )
    return write_table(out, [grid], _tidy(config, table, paper))


def _paper_values(config: Config, table: JudgedTable) -> Paper:
    """The paper's values of the bases that stand for a policy of the paper, for the paper's own methods."""
    theirs = {(row["policy"], slug(row["method"])): row for row in published("table1")}
    policies = dict.fromkeys(policy for policy, _ in theirs)
    values: Paper = {}
    for model in table.models:
        policy = config.policy.bases[model.base].paper
        if policy is not None and policy not in policies:
            raise ConfigError(f"policy.bases.{model.base}.paper: {policy!r} is none of {', '.join(policies)}")
        row = theirs.get((policy, _paper_method(config, model)))
        if row:
            shown = [metric for metric in table.columns if metric.paper]
            values |= {(model.base, model.method, metric): float(row[metric.paper]) for metric in shown}
    return values


def _paper_method(config: Config, model: Model) -> str:
    """What the paper's row of a method would be called; "" for what is not the paper's."""
    if model.method == SFT or model.ours:
        return ""
    entry = config.policy.methods[model.method]
    if not isinstance(entry, PpoMethod):
        return next((name for name in (slug(model.method), slug(model.label)) if name not in _REWARD_KINDS), "")
    kind = config.reward.variants[entry.reward].kind
    names = (slug(model.method), slug(model.label))
    return next((name for name in names if _REWARD_KINDS.get(name) == kind), "")


def _header(config: Config, table: JudgedTable) -> Iterator[Cell]:
    for metric in table.columns:
        prompts = span({table.cell(model, metric).prompts for model in table.models})
        yield Cell(getattr(config.benchmarks, metric.benchmark).label, f"{metric.title}, n = {prompts}")


def _rows(config: Config, table: JudgedTable, paper: Paper) -> Iterator[Row]:
    """A row a policy; below it the paper's own, where the paper has it."""
    previous = None
    for model in table.models:
        cells = [table.cell(model, metric) for metric in table.columns]
        ours = [
            interval_cell(cell.interval, digits=metric.digits) if not cell.missing else Cell(EMPTY)
            for cell, metric in zip(cells, table.columns, strict=True)
        ]
        starts_base = previous is not None and previous.base != model.base
        yield Row([Cell(model.base_label), Cell(model.label), *ours], rule=starts_base)
        previous = model
        beside = [paper.get((model.base, model.method, metric)) for metric in table.columns]
        if any(value is not None for value in beside):
            cells = [
                Cell("" if value is None else number(value, metric.digits))
                for value, metric in zip(beside, table.columns, strict=True)
            ]
            name = config.policy.bases[model.base].paper
            yield Row([Cell(str(name)), Cell(f"{model.label}, in the paper†"), *cells])


def _tidy(config: Config, table: JudgedTable, paper: Paper) -> pd.DataFrame:
    """One row a cell."""
    names = {slug(row["method"]): row["method"] for row in published("table1")}
    rows = []
    for model in table.models:
        paper_method = names.get(_paper_method(config, model), "")
        rows += [_tidy_row(table, paper, model, metric, paper_method) for metric in table.columns]
    return pd.DataFrame(rows)


def _tidy_row(table: JudgedTable, paper: Paper, model: Model, metric: Metric, paper_method: str) -> dict[str, Any]:
    cell = table.cell(model, metric)
    return {
        **cell.row(model, metric),
        "paper_method": paper_method,
        "paper": paper.get((model.base, model.method, metric), np.nan),
        "resampled": cell.interval.resampled,
        "note": cell.note,
    }
