"""What is known of the preference world, and what the reward models make of its probes.

The facts involve no model. The probes do: pairs that differ in one objective alone show whether that objective was
learned, pairs that differ in one spurious feature alone show whether that feature is rewarded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, over_seeds_and_prompts, write_table
from vrm.reporting.scores import Scorer, pair_scores, read_scores, reward_model, rewards
from vrm.runfiles import WORLD_STATISTICS
from vrm.statistics.intervals import Interval, crossed_interval

_FACT_LEVEL = 0.95
"""Level of the intervals in statistics.csv: the world is written once, whatever `report.level` becomes."""

_FACT_RESAMPLED = "independent pairs (Wilson), or prompts (bootstrap)"

_FACT_INTERVALS = (
    f"In brackets: {100 * _FACT_LEVEL:g} % intervals; Wilson's for shares of independent pairs, else a bootstrap over "
    "prompts."
)

_FEW = 5
"""Expected wins or losses below which an accuracy's interval is too narrow; tools/coverage.py says by how much."""


def world_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write world.{csv,md,tex,html}: the world's statistics, then probe accuracies.

    The probes are read for the variants of `report.figure4` and for ours, and left out where the set `probes` is not
    in `evaluation.run`.

    Args:
        config: names variants, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number.

    Raises:
        RecordError: the statistics or scores are missing or broken.
    """
    facts = WORLD_STATISTICS.read(Path(results) / WORLD_STATISTICS.name)
    crossed = facts["metric"].str.count("/") == 2
    grids = [_facts_grid(config, facts[~crossed]), *_crossed_grids(config, facts[crossed])]
    rows = [_fact_row(fact) for fact in facts.to_dict("records")]
    if name := config.evaluation.probes:
        probes = _measure_probes(config, name, results)
        grids.append(_probe_grid(config, probes))
        rows += [_probe_row(config, *key, interval, pairs) for key, (interval, pairs) in probes.items()]
    return write_table(out, grids, pd.DataFrame(rows))


def _facts_grid(config: Config, facts: pd.DataFrame) -> Grid:
    rows = [
        Row([Cell(str(fact["metric"])), Cell(str(fact["explanation"])), _fact_cell(fact), Cell(_count(fact["n"]))])
        for fact in facts.to_dict("records")
    ]
    return Grid(
        name="world",
        caption=f"The preference world: facts that involve no model. Data: {config.data.label}.",
        header=[Cell("Statistic"), Cell("Meaning"), Cell("Value"), Cell("n")],
        rows=rows,
        notes=[_FACT_INTERVALS],
        text_columns=2,
    )


def _crossed_grids(config: Config, facts: pd.DataFrame) -> Iterator[Grid]:
    """Facts named `what/row/column`, laid out as one table for each `what`."""
    parts = facts["metric"].str.split("/", expand=True)
    for what in dict.fromkeys(parts[0] if len(facts) else []):
        inside = parts[0] == what
        cells = {
            (row, column): _fact_cell(fact)
            for row, column, fact in zip(
                parts[inside][1], parts[inside][2], facts[inside].to_dict("records"), strict=True
            )
        }
        columns = list(dict.fromkeys(column for _, column in cells))
        rows = [
            Row([Cell(_words(row)), *(cells.get((row, column), Cell("")) for column in columns)])
            for row in dict.fromkeys(row for row, _ in cells)
        ]
        yield Grid(
            name=f"world_{what}",
            caption=f"The preference world: {_words(what)}. Data: {config.data.label}.",
            header=[Cell(""), *(Cell(_words(column)) for column in columns)],
            rows=rows,
            notes=[_FACT_INTERVALS],
        )


def _fact_cell(fact: dict[str, Any]) -> Cell:
    digits = 0 if float(fact["value"]).is_integer() and np.isnan(fact["low"]) else 3
    return interval_cell(Interval(fact["value"], fact["low"], fact["high"], np.nan, ""), digits=digits)


def _count(n: float) -> str:
    return "" if pd.isna(n) else f"{int(n):,}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _measure_probes(config: Config, name: str, results: Path) -> dict[tuple[str, str], tuple[Interval, int]]:
    """Accuracy and number of pairs by (variant, probe) on the evaluation set of this name."""
    measured = {}
    for model in _shown(config):
        scores = pair_scores(read_scores(results, model), name, model.name)
        for probe in sorted(set(scores.subsets.tolist())):
            part = scores.select(scores.subsets == probe)
            interval = crossed_interval(part.wins, part.prompts, config.report.level)
            measured[model.name, probe] = (interval.within(0, 1), len(part.prompts))
    return measured


def _shown(config: Config) -> list[Scorer]:
    """The variants of Figure 4, then ours, and the rated-aspect rewards of both."""
    return [model for model in rewards(config) if model.ours or model.variant in config.report.figure4]


def _probe_grid(config: Config, probes: dict[tuple[str, str], tuple[Interval, int]]) -> Grid:
    names = list(dict.fromkeys(name for name, _ in probes))
    header = [Cell("Probe"), *(Cell(reward_model(config, name).label) for name in names), Cell("n")]
    rows, kind = [], ""
    for probe in dict.fromkeys(probe for _, probe in probes):
        cells = [interval_cell(probes[name, probe][0], scale=100) for name in names]
        started = probe.partition("/")[0]
        rows.append(Row([Cell(probe), *cells, Cell(str(probes[names[0], probe][1]))], rule=started != kind))
        kind = started
    return Grid(
        name="probes",
        caption=f"Accuracy on the probes, in points. Data: {config.data.label}.",
        header=header,
        rows=rows,
        notes=list(_probe_notes(config, probes)),
    )


def _probe_notes(config: Config, probes: dict[tuple[str, str], tuple[Interval, int]]) -> Iterator[str]:
    yield "objective: pairs that differ in this objective alone; 50 means that it was not learned."
    yield (
        "spurious: pairs that differ in this spurious feature alone, the response without it is the better one; below "
        "50 the feature is rewarded."
    )
    yield f"In brackets: {100 * config.report.level:g} % interval over {over_seeds_and_prompts(config.reward.seeds)}."
    few: dict[str, list[str]] = {}
    for (name, probe), (interval, pairs) in probes.items():
        if pairs * min(interval.estimate, 1 - interval.estimate) < _FEW:
            few.setdefault(reward_model(config, name).label, []).append(probe)
    if few:
        listed = "; ".join(f"{label}: {', '.join(names)}" for label, names in few.items())
        yield (
            f"Fewer than {_FEW} wins or losses are expected of a seed here, so that intervals are too narrow or absent "
            f"(docs/decisions.md, Statistics): {listed}."
        )


def _fact_row(fact: dict[str, Any]) -> dict[str, Any]:
    has_interval = not np.isnan(fact["low"])
    return {
        "kind": "fact",
        "variant": "",
        "label": "",
        "metric": fact["metric"],
        "value": fact["value"],
        "low": fact["low"],
        "high": fact["high"],
        "level": _FACT_LEVEL if has_interval else np.nan,
        "resampled": _FACT_RESAMPLED if has_interval else "nothing",
        "n": fact["n"],
        "explanation": fact["explanation"],
    }


def _probe_row(config: Config, name: str, probe: str, interval: Interval, pairs: int) -> dict[str, Any]:
    return {
        "kind": "probe",
        "variant": name,
        "label": reward_model(config, name).label,
        "metric": probe,
        "value": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "level": interval.level,
        "resampled": interval.resampled,
        "n": pairs,
        "explanation": "accuracy",
    }
