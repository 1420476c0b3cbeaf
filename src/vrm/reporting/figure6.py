"""Figure 6: what the judge says of policies whose reward model was trained with and without supervision.

* Two panels a base, because win rates and MT-Bench's score have different axes; every base has the same axes.
* Points with intervals, not bars: a bar would have to start at 0, where nothing is to be seen.
* Both policies answered the same prompts: the difference below a group is paired, and its interval is the one to read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vrm.config import Config, ConfigError
from vrm.reporting import style
from vrm.reporting.judged import judged_models, read_benchmarks
from vrm.reporting.judged_values import MAIN, compare_policies, measure_policy
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.table1 import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RATES, _SCORES = "win rate (%)", "score (1 to 10)"

_GROUP_WIDTH = 0.85  # inches

_SPREAD = 0.3  # between the outer points of a group, as a share of its width

_BASES_IN_A_ROW = 2

_LEFT, _PANEL_HEIGHT, _LINE = 0.44, 1.7, 0.118  # inches: for an axis, of a panel, of a line of its labels


def figure6(config: Config, results: Path, out: Path) -> list[Path]:
    """The judged benchmarks of the methods of `report.figure6`, a pair of panels a base.

    Args:
        config: names methods, bases, benchmarks, seeds and the level.
        results: the run's directory.
        out: directory of figure6.{pdf,png,csv}. The CSV has one row a base, method and benchmark; `difference` is the
            first method's value less this one's.

    Raises:
        ConfigError: `report.figure6` is empty, or names a method that is not judged.
        RecordError: no benchmark is run, or a file is missing or broken.
    """
    names = _methods(config)
    data = _measure(config, results, names)
    axes_of = {name: _SCORES if MAIN[name].scale == 1 else _RATES for name in config.benchmarks.run}
    with style.styled():
        figure, panels = _panels(config, list(dict.fromkeys(axes_of.values())), axes_of)
        for (base, axis), panel in panels.items():
            part = data[(data["base"] == base) & (data["benchmark"].map(axes_of) == axis)]
            _draw_panel(panel, config, part, names)
            panel.set_ylabel(axis)
            panel.set_ylim(*_limits(data[data["benchmark"].map(axes_of) == axis], axis))
        _legend(figure, data, names)
        return style.save(figure, out, "figure6", data)


def _methods(config: Config) -> list[str]:
    names = config.report.figure6
    if not names:
        raise ConfigError("report.figure6 names no method: name some, or leave figure6 out of report.figures")
    judged = dict.fromkeys(policy.method for policy in config.judged_policies)
    unknown = [name for name in names if judged and name not in judged]
    if unknown:
        raise ConfigError(f"report.figure6: {', '.join(unknown)} is not judged; judged are {', '.join(judged)}")
    return list(names)


def _measure(config: Config, results: Path, names: Sequence[str]) -> pd.DataFrame:
    """One row a base, method and benchmark."""
    benchmarks = read_benchmarks(config, results, "figure6")
    models = {(model.base, model.method): model for model in judged_models(config)}
    rows = []
    for base in config.policy.run_bases:
        shown = [models[base, name] for name in names if (base, name) in models]
        for name, benchmark in benchmarks.items():
            for model in shown:
                measured = measure_policy(config, benchmark, model, MAIN[name])
                row = {**measured.row(model, MAIN[name]), "resampled": measured.interval.resampled}
                if model is not shown[0]:
                    change = compare_policies(config, benchmark, shown[0], model, MAIN[name]).difference
                    ends = {"difference_low": change.low, "difference_high": change.high}
                    row |= {"difference": change.estimate} | ends
                rows.append(row)
    columns = ["difference", "difference_low", "difference_high"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*(name for name in table if name not in columns), *columns])


def _panels(config: Config, axes: Sequence[str], axes_of: dict[str, str]) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """The page with titles and footer, and the panels by base and axis."""
    bases = config.policy.run_bases
    groups = {axis: sum(own == axis for own in axes_of.values()) for axis in axes}
    block = sum(_LEFT + _GROUP_WIDTH * count for count in groups.values())
    columns = min(len(bases), _BASES_IN_A_ROW)
    width = max(columns * block + 0.06, style.COLUMN_WIDTH)
    statement = style.footer_lines(_statement(config), config.data.label, width)
    labels = [f"{getattr(config.benchmarks, name).label} {MAIN[name].title}" for name in axes_of]
    lines = (3 if len(config.report.figure6) == 2 else 1) + max(len(_wrapped(label)) for label in labels)
    below = 0.1 + _LINE * lines
    row_height = 0.3 + _PANEL_HEIGHT + below
    bottom, rows = 0.2 + style.FOOTER_LINE * len(statement), -(-len(bases) // columns)
    height = 0.25 + rows * row_height + bottom
    figure = style.new_figure(width, height)
    panels = {}
    for index, base in enumerate(bases):
        left = (index % columns) * block
        low = bottom + (rows - 1 - index // columns) * row_height + below
        middle, top = left + _LEFT + (block - _LEFT) / 2, low + _PANEL_HEIGHT + 0.07
        figure.text(middle / width, top / height, config.policy.bases[base].label, ha="center", va="bottom")
        for axis in axes:
            left += _LEFT
            span_ = _GROUP_WIDTH * groups[axis]
            panels[base, axis] = figure.add_axes((left / width, low / height, span_ / width, _PANEL_HEIGHT / height))
            left += span_
    style.footer(figure, _statement(config), config.data.label)
    return figure, panels


def _draw_panel(panel: Axes, config: Config, data: pd.DataFrame, names: Sequence[str]) -> None:
    """A group of points a benchmark."""
    benchmarks = list(dict.fromkeys(data["benchmark"]))
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(names)) if len(names) > 1 else np.zeros(1)
    for index, (name, offset) in enumerate(zip(names, offsets, strict=True)):
        part = data[data["method"] == name].set_index("benchmark").reindex(benchmarks)
        x = np.arange(len(benchmarks)) + offset
        look = style.look(index) | {"linestyle": ""}
        panel.vlines(x, part["low"], part["high"], color=look["color"], alpha=0.5, linewidth=1.3, zorder=2)
        panel.plot(x, part["estimate"], markersize=4.2, markeredgewidth=0, zorder=3, **look)
        for position, (benchmark, value) in zip(x, part["estimate"].items(), strict=True):
            text = "no value" if np.isnan(value) else f"{value:.{MAIN[benchmark].digits}f}"
            if len(names) > 2 and not np.isnan(value):
                continue  # too narrow for numbers; the CSV has them
            at = panel.get_ylim()[0] if np.isnan(value) else value
            left = len(names) == 2 and index == 0  # outwards, away from the other
            panel.annotate(
                text,
                (position, at),
                (-3.5 if left else 3.5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=6.5,
            )
    panel.set_xlim(-0.5, len(benchmarks) - 0.5)
    panel.set_xticks(range(len(benchmarks)), [_group_label(config, data, name) for name in benchmarks])
    panel.tick_params(axis="x", length=0)
    panel.grid(visible=False, axis="x")


def _group_label(config: Config, data: pd.DataFrame, benchmark: str) -> str:
    """Name of the benchmark, number of prompts and, of two methods, their difference."""
    part, metric = data[data["benchmark"] == benchmark], MAIN[benchmark]
    label = _wrapped(f"{getattr(config.benchmarks, benchmark).label} {metric.title}")
    lines = [*label, f"n = {span(set(part['n_prompts']))}"]
    if len(part) == 2 and part["difference"].notna().any():
        change = part.iloc[1]
        low, high = (f"{change[f'difference_{end}']:.{metric.digits}f}" for end in ("low", "high"))
        lines += [f"Δ {change['difference']:+.{metric.digits}f}"]
        lines += [] if np.isnan(change["difference_low"]) else [f"[{low}, {high}]"]
    return "\n".join(lines)


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, 13) or [""]


def _limits(data: pd.DataFrame, axis: str) -> tuple[float, float]:
    """Limits that hold every interval of an axis."""
    low, high = np.nanmin(data[["low", "estimate"]]), np.nanmax(data[["high", "estimate"]])
    floor, ceiling = (1.0, 10.0) if axis == _SCORES else (0.0, 100.0)
    pad = 0.08 * max(high - low, 0.02 * ceiling)
    return max(low - pad, floor - pad), min(high + pad, ceiling + pad)


def _legend(figure: Figure, data: pd.DataFrame, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    labels = data.drop_duplicates("method").set_index("method")["label"]
    handles = [
        Line2D([], [], markersize=4.2, markeredgewidth=0, **(style.look(index) | {"linestyle": ""}))
        for index in range(len(names))
    ]
    figure.legend(handles, [labels[name] for name in names], loc="upper center", ncols=min(len(names), 4))


def _statement(config: Config) -> str:
    names = config.report.figure6
    over = counted_seeds_and_prompts(config.policy.seeds)
    change = " Δ: first less second, paired." if len(names) == 2 else ""
    return f"Bars, brackets: {100 * config.report.level:g}\u00a0% interval over {over}.{change}"
