"""What is substance and what is flattery: the parts of every concept-residual VRM, as a table and as a figure.

* The table has the accuracy of r, w . g and b, each alone, and what b's differences go with. b is what the rated
  aspects do not explain, good or bad; a bias that raters share with annotators stays in g.
* The figure has the first concept-residual VRM of `reward.run`, (a) on every evaluation set, (b) on pairs that differ
  in one thing alone. Right of the line at 50 % a part prefers the better response; left of it, on a spurious feature,
  the part pays for that feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.rendering import (
    Cell,
    Grid,
    Row,
    counted_seeds_and_prompts,
    interval_cell,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import (
    Column,
    PairScores,
    Scorer,
    measure_pairs,
    members,
    pair_scores,
    read_scores,
    reward_models,
    row_label,
    table_columns,
)
from vrm.statistics.intervals import Interval, crossed_interval, student_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PARTS = {"reward": "r, whole", "rated": "w . g, rated aspects", "residual": "b, residual"}
"""Prefixes of a part's columns in `scores.csv`, and what its row is called."""
Cells = dict[tuple[str, str, str, str], Interval]


def residual_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write residual.{csv,md,tex,html}: accuracy of each part of every concept-residual VRM, and what b goes with.

    Args:
        config: names variants, sets, aspects, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number; accuracies in points.

    Raises:
        RecordError: no variant has a residual, or scores are missing, broken or without parts.
    """
    models, cells = measure_parts(config, results)
    grids = [_accuracy_grid(config, models, cells), _correlation_grid(config, models, cells)]
    if config.evaluation.probes:
        grids.append(_probe_grid(config, models, cells))
    return write_table(out, grids, _tidy_parts(config, cells))


def measure_parts(config: Config, results: Path) -> tuple[list[Scorer], Cells]:
    """The models with a residual, and every number of the table by model, part, kind and name.

    Kinds are `column` and `probe`, accuracies in 0..1, and `correlation`, of the residual's differences with others.

    Raises:
        RecordError: as `residual_table`.
    """
    models = [model for model in reward_models(config) if config.reward.variants[model.name].residual]
    if not models:
        raise RecordError("residual: no variant of reward.run has a residual; leave `residual` out of the report")
    cells: Cells = {}
    columns = table_columns(config)
    for model in models:
        scores = read_scores(results, model)
        for part in PARTS:
            cells |= {(model.name, part, *key): found for key, found in _accuracies(config, scores, part, columns)}
        cells |= {(model.name, "residual", *key): found for key, found in _goes_with(config, scores)}
    return models, cells


def _accuracies(
    config: Config, scores: pd.DataFrame, part: str, columns: Sequence[Column]
) -> Iterator[tuple[tuple[str, str], Interval]]:
    """Accuracy of one part in each column, and on each probe; by `column` or `probe` and its name."""
    sides = {f"reward_{side}": f"{part}_{side}" for side in ("chosen", "rejected")}
    if lacking := [name for name in sides.values() if name not in scores]:
        raise RecordError(f"scores of a variant with a residual lack {', '.join(lacking)}; score that model again")
    own = scores.assign(**{name: scores[column] for name, column in sides.items()})
    for column in columns:
        pairs = pair_scores(own, column.evaluation_set, part)
        pairs = pairs.select(members(column, pairs))
        if len(pairs.prompts):
            yield ("column", column.title), measure_pairs(config, column, pairs).interval
    if name := config.evaluation.probes:
        pairs = pair_scores(own, name, part)
        for probe in sorted(set(pairs.subsets.tolist())):
            yield ("probe", probe), _plain_accuracy(config, pairs.select(pairs.subsets == probe))


def _plain_accuracy(config: Config, pairs: PairScores) -> Interval:
    return crossed_interval(pairs.wins, pairs.prompts, config.report.level).within(0, 1)


def _goes_with(config: Config, scores: pd.DataFrame) -> Iterator[tuple[tuple[str, str], Interval]]:
    """Correlation over pairs of b's differences with those of other quantities, one a seed; see `_measured_on`."""
    inside = scores[scores["evaluation_set"] == _measured_on(config)]
    names = {name: f"{{side}}_{name}" for name in config.data.aspects}
    names |= {"rated": "rated_{side}", "length": "length_{side}"}
    for other in names:
        values = []
        for _, part in inside.groupby("seed"):
            b, x = (
                part[name.format(side="chosen")] - part[name.format(side="rejected")]
                for name in ("residual_{side}", names[other])
            )
            values.append(float(np.corrcoef(b, x)[0, 1]) if b.std() > 0 and x.std() > 0 else np.nan)
        yield ("correlation", other), student_interval(values, config.report.level).within(-1, 1)


def _measured_on(config: Config) -> str:
    """The first set that is labelled as training pairs are."""
    plain = [column.evaluation_set for column in table_columns(config) if not column.section]
    measured = [name for name in plain if config.evaluation.sets[name].role == "measured"]
    return (measured or plain or config.evaluation.run)[0]


def _columns_of(cells: Cells, kind: str) -> list[str]:
    return list(dict.fromkeys(name for _, _, found, name in cells if found == kind))


def _accuracy_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    titles = _columns_of(cells, "column")
    rows = [
        Row(
            [
                Cell(f"{model.label}: {name}"),
                *(interval_cell(cells[model.name, part, "column", title], scale=100) for title in titles),
            ],
            rule=place == 0 and model is not models[0],
        )
        for model in models
        for place, (part, name) in enumerate(PARTS.items())
    ]
    level = f"{100 * config.report.level:g} %"
    return Grid(
        name="residual",
        caption=f"Accuracy of each part of a concept-residual reward, in points. Data: {config.data.label}.",
        header=[Cell("Part"), *map(Cell, titles)],
        rows=rows,
        notes=[
            "r = e^τ w . g(z) + b(z). Each part alone prefers the response that it gives more; 50 says nothing.",
            "b is only what the rated aspects do not explain. If ratings share the annotators' bias, it stays in g; "
            "what is good and not rated is in b too.",
            f"In brackets: {level} interval over {over_seeds_and_prompts(config.reward.seeds)}.",
        ],
    )


def _correlation_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    names = _columns_of(cells, "correlation")
    titles = {"rated": "Δ(w . g)", "length": "Δ length"} | {
        a: f"Δg: {a.replace('_', ' ')}" for a in config.data.aspects
    }
    label = config.evaluation.sets[_measured_on(config)].label
    return Grid(
        name="residual-correlations",
        caption=f"Correlation of Δb, chosen less rejected, with other differences. Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(titles[name]) for name in names)],
        rows=[
            Row(
                [
                    Cell(model.label),
                    *(interval_cell(cells[model.name, "residual", "correlation", name], digits=2) for name in names),
                ]
            )
            for model in models
        ],
        notes=[f"Pearson over the pairs of {label}; in brackets Student's t over seeds. Length in characters."],
    )


def _probe_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    header = [Cell("Probe"), *(Cell(model.label, name) for model in models for name in PARTS.values())]
    rows, kind = [], ""
    for probe in _columns_of(cells, "probe"):
        found = [cells[model.name, part, "probe", probe] for model in models for part in PARTS]
        started = probe.partition("/")[0]
        rows.append(
            Row([Cell(probe), *(interval_cell(i, scale=100) for i in found)], rule=bool(kind) and started != kind)
        )
        kind = started
    return Grid(
        name="residual-probes",
        caption=f"The parts on pairs that differ in one thing alone, accuracy in points. Data: {config.data.label}.",
        header=header,
        rows=rows,
        notes=[
            "objective: 50 is not learned. spurious: the response without the feature is right; below 50 it is paid."
        ],
    )


def _tidy_parts(config: Config, cells: Cells) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": name,
            "label": row_label(config.reward.variants[name]),
            "part": part,
            "kind": kind,
            "column": column,
            "estimate": (1 if kind == "correlation" else 100) * interval.estimate,
            "low": (1 if kind == "correlation" else 100) * interval.low,
            "high": (1 if kind == "correlation" else 100) * interval.high,
            "level": interval.level,
            "n_seeds": len(config.reward.seeds),
            "resampled": interval.resampled,
        }
        for (name, part, kind, column), interval in cells.items()
    )


# The figure.

SHIFTS = {"reward": 0.0, "rated": -0.22, "residual": 0.22}
"""Where a part's marker stands within its line, so that bars do not cover each other."""
LINE = 0.27
"""Inches of a line."""


def residual_figure(config: Config, results: Path, out: Path) -> list[Path]:
    """Draw residual.{pdf,png,csv}.

    Args:
        config: names variants, sets, seeds and the level.
        results: the run's directory.
        out: directory of the three files. The CSV has one row a point, in points.

    Raises:
        RecordError: no variant has a residual, or scores are missing, broken or without parts.
    """
    models, cells = measure_parts(config, results)
    model = models[0]
    data = pd.DataFrame(
        {
            "variant": model.name,
            "part": part,
            "kind": kind,
            "name": name,
            "estimate": 100 * interval.estimate,
            "low": 100 * interval.low,
            "high": 100 * interval.high,
            "level": interval.level,
            "n_seeds": len(model.seeds),
            "resampled": interval.resampled,
        }
        for (owner, part, kind, name), interval in cells.items()
        if owner == model.name and kind != "correlation"
    )
    kinds = {"column": "(a) evaluation sets", "probe": "(b) pairs that differ in one thing alone"}
    kinds = {kind: title for kind, title in kinds.items() if (data["kind"] == kind).any()}
    names = {kind: list(dict.fromkeys(data[data["kind"] == kind]["name"])) for kind in kinds}
    statement = (
        f"{model.label}. Bars: {100 * config.report.level:g}\u00a0% interval over "
        f"{counted_seeds_and_prompts(model.seeds)}."
    )
    bottom = 0.51 + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, style.FULL_WIDTH))
    height = 0.62 + LINE * max(map(len, names.values())) + bottom
    with style.styled():
        figure = style.new_figure(style.FULL_WIDTH, height)
        margins = {"left": 0.17, "right": 0.985, "bottom": bottom / height, "top": 1 - 0.62 / height, "wspace": 0.75}
        panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, gridspec_kw=margins)[0]
        for panel, (kind, title) in zip(panels, kinds.items(), strict=True):
            _draw(panel, data[data["kind"] == kind], names[kind])
            panel.set_title(title, loc="left")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels))
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "residual", data)


def _draw(panel: Axes, points: pd.DataFrame, names: Sequence[str]) -> None:
    """One line a set or probe, from top to bottom."""
    panel.axvline(50, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    for index, (part, label) in enumerate(PARTS.items()):
        own, look = points[points["part"] == part].set_index("name").reindex(names), style.look(index)
        places = [place + SHIFTS[part] for place in range(len(names))]
        panel.hlines(places, own["low"], own["high"], color=look["color"], alpha=0.4, linewidth=1.3, zorder=2)
        panel.plot(own["estimate"], places, zorder=3, label=label, **look | {"linestyle": "", "markeredgewidth": 0})
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_yticks(range(len(names)), [name.partition("/")[2].replace("_", " ") or name for name in names])
    for place in range(1, len(names)):
        if names[place].partition("/")[0] != names[place - 1].partition("/")[0] and "/" in names[place]:
            panel.axhline(place - 0.5, color=style.CONTEXT, linewidth=0.7, zorder=1)
    panel.set_xlim(0, 100)
    panel.set_xlabel("the better response preferred (%)")
