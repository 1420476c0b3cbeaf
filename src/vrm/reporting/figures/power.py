"""The figure `power`: what the study's reward models reach, against their number of pairs and the annotators' bias.

* A row of panels a metric: the accuracies that the study shows, then the correlation of w with the truth.
* The columns: training pairs in the run's own world; the bias of the overall judgment; the bias of the ratings. A world
  stands in the column of the key that it changes, beside the run's own at the same number of pairs.
* One colour a variant; the rated-aspect reward of one with a residual is hollow and thin.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vrm.config import Config
from vrm.config.study import BASE
from vrm.reporting import style
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.scores import row_label
from vrm.reporting.study import CORRELATION, RATED, measure, shown_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        shared = world != BASE or pairs == study.worlds_pairs
        at["at_pairs"].append(pairs if world == BASE else None)
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
        ticks = sorted(config.study.pairs)
        panel.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
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
