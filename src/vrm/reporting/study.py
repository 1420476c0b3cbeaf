"""The study: what its reward models reach, as the table `ablation` and the figure `power`.

* A model with a residual has two rows: its whole reward, and the rated-aspect reward alone (`part`).
* Accuracies and their differences have intervals over seeds and prompts; correlations, one number a seed, over seeds.
* `ablation`: what made the variational reward model learn, one change at a time, each trained alike on the same pairs.
* `power`: against the number of pairs and the annotators' bias. A row of panels a metric: the accuracies that the study
  shows, then the correlation of w with the truth. The columns: training pairs in the run's own world; the bias of the
  overall judgment; the bias of the ratings. A world stands in the column of the key that it changes, beside the run's
  own at the same number of pairs; one that only has more prompts stands among the run's own. One colour a variant; the
  rated-aspect reward of one with a residual is hollow and thin.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.config.study import BASE, StudyCell
from vrm.data.preference_sets import SECTIONS
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.latents import weight_recovery, weights_spread
from vrm.reporting.rendering import (
    Cell,
    Grid,
    Row,
    counted_seeds_and_prompts,
    interval_cell,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import Column, PairScores, members, pair_scores, row_label, table_columns
from vrm.runfiles import SCORES
from vrm.statistics.intervals import Interval, crossed_interval, student_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def measure(config: Config, results: Path, cells: Sequence[StudyCell]) -> pd.DataFrame:
    """One row a model, part and metric, with `COLUMNS`; differences are to the first variant in the same world.

    Raises:
        RecordError: scores are missing or broken, or seeds or variants scored different pairs.
    """
    points: dict[tuple[str, int], dict[str, list[StudyCell]]] = {}
    for cell in cells:
        points.setdefault((cell.world, cell.pairs), {}).setdefault(cell.variant, []).append(cell)
    rows = [row for point in points.values() for row in _measure_point(config, results, point)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure_point(config: Config, results: Path, models: dict[str, list[StudyCell]]) -> Iterator[dict]:
    """All variants that were trained on the same pairs."""
    first, reference = next(iter(models)), dict[Column, PairScores]()
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
                if variant == first and part == WHOLE:
                    reference[column] = found
                row = _row(_mean(config, column, found.wins, found), column.paper) | {"n_pairs": len(found.prompts)}
                if variant != first and column in reference:
                    difference = _mean(config, column, found.wins - _same_pairs(reference[column], found, names), found)
                    row |= {"difference": difference.estimate, "compared_with": first}
                    row |= {"difference_low": difference.low, "difference_high": difference.high}
                yield names | {"part": part} | row
        yield from (names | {"part": WHOLE} | row for row in _weights(config, scores))


def _same_pairs(reference: PairScores, found: PairScores, names: dict[str, Any]) -> np.ndarray:
    """The reference's wins, once it is known that they are of the same pairs."""
    if reference.wins.shape != found.wins.shape or list(reference.prompts) != list(found.prompts):
        raise RecordError(
            f"{names['variant']} ({names['world']}, {names['pairs']} pairs): scored other pairs, or other seeds, than "
            "the first variant of the study; train and score both again on the same sets"
        )
    return reference.wins


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


# The table.


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


# The figure.

AXES = {
    "pairs": "training pairs",
    "spurious_bias": "bias of the overall judgment\n(rating points)",
    "rating_bias": "bias of the ratings\n(rating points)",
}


def power_figure(config: Config, results: Path, out: Path) -> list[Path]:
    """Draw power.{pdf,png,csv}; the CSV has one row a point and metric.

    Args:
        config: names variants, pairs, worlds and the level.
        results: the run's directory.
        out: directory of the three files.

    Raises:
        RecordError: scores are missing or broken.
    """
    data = placed(config, measure(config, results, config.study.power_cells()))
    metrics = {column.paper: textwrap.fill(f"{column.title} (%)", 16) for column in shown_columns(config)}
    metrics |= {CORRELATION: "correlation\nwith true w"}
    axes = [axis for axis in AXES if axis == "pairs" or data[f"at_{axis}"].nunique() > 1]
    with style.styled():
        handles, labels = _legend(config, data)
        width, height = style.FULL_WIDTH, 1.35 * len(metrics) + 1.4
        figure = style.new_figure(width, height)
        columns = style.legend_columns(labels, width)
        top = 0.25 + 0.16 * -(-len(labels) // columns)
        margins = {"left": 0.125, "right": 0.985, "bottom": 0.92 / height, "top": 1 - top / height}
        spaces = {"hspace": 0.14, "wspace": 0.1}
        grid = figure.subplots(
            len(metrics), len(axes), sharex="col", sharey="row", squeeze=False, gridspec_kw=margins | spaces
        )
        for row, (metric, title) in zip(grid, metrics.items(), strict=True):
            row[0].set_ylabel(title, fontsize=7.5)
            for panel, axis in zip(row, axes, strict=True):
                _draw(panel, config, data[data["metric"] == metric], axis, 1 if metric == CORRELATION else 100)
        for panel, axis in zip(grid[-1], axes, strict=True):
            panel.set_xlabel(AXES[axis])
        figure.align_ylabels(grid[:, 0])
        figure.legend(handles, labels, loc="upper center", ncols=columns)
        over = counted_seeds_and_prompts(config.study.seeds)
        statement = (
            f"Bars: {100 * config.report.level:g}\u00a0% interval over {over}; of the correlation: over seeds. "
            + (f"Against bias: {config.study.worlds_pairs:,} pairs." if len(axes) > 1 else "")
        )
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "power", data)


def placed(config: Config, data: pd.DataFrame) -> pd.DataFrame:
    """The points with columns `at_<axis>`: where each stands on an axis, empty where it does not belong there."""
    study = config.study
    own = {axis: getattr(config.world, axis) for axis in ("spurious_bias", "rating_bias")}
    at: dict[str, list[Any]] = {f"at_{axis}": [] for axis in AXES}
    for world, pairs in zip(data["world"], data["pairs"], strict=True):
        changed = own if world == BASE else study.worlds[world].changes()
        shared = pairs == study.worlds_pairs
        at["at_pairs"].append(pairs if world == BASE or set(changed) == {"prompts"} else None)
        # a world that changes both stands where its ratings do
        alone = set(changed) == {"spurious_bias"} or world == BASE
        at["at_spurious_bias"].append(changed["spurious_bias"] if shared and alone else None)
        at["at_rating_bias"].append(changed.get("rating_bias") if shared else None)
    return data.assign(**{name: pd.array(values, dtype="Float64") for name, values in at.items()})


def _draw(panel: Axes, config: Config, data: pd.DataFrame, axis: str, scale: float) -> None:
    for (variant, part), curve in data.dropna(subset=f"at_{axis}").groupby(["variant", "part"], sort=False):
        curve = curve.sort_values(f"at_{axis}")
        x = curve[f"at_{axis}"].astype(float)
        look = _look(config, variant, part)
        panel.vlines(x, scale * curve["low"], scale * curve["high"], color=look["color"], alpha=0.35, linewidth=1.1)
        panel.plot(x, scale * curve["estimate"], **look)
    if axis == "pairs":
        panel.set_xscale("log")
        ticks = sorted(data["at_pairs"].dropna().astype(int).unique())
        panel.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        panel.set_xticks(ticks, [f"{tick / 1000:g}k" if tick >= 1000 else str(tick) for tick in ticks])
        panel.minorticks_off()


def _look(config: Config, variant: str, part: str) -> dict[str, Any]:
    look = style.look(config.study.variants.index(variant))
    hollow = {"markerfacecolor": "white", "linewidth": 0.8, "linestyle": "-"}
    return look | hollow if part == RATED else look


def _legend(config: Config, data: pd.DataFrame) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    found = list(data.groupby(["variant", "part"], sort=False).groups)
    handles = [Line2D([], [], **_look(config, variant, part)) for variant, part in found]
    labels = [
        row_label(config.reward.variants[variant]) + (", rated aspects alone" if part == RATED else "")
        for variant, part in found
    ]
    return handles, labels
