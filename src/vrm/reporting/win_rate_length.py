"""The figure `win_rate_length`: win rate against the mean length of the answers, of every judged policy.

* A column of panels a base, a row a benchmark with win rates: one reads whether what the judge prefers is longer, too.
* Markers tell kinds of training apart, hollow ones are ours, so that grey prints work. The dashed line is the mean
  length of the answers that all are compared with, where the scorer has written it.
* A label stands beside its point, clear of the others, further off where it is crowded: one after the other takes the
  cheapest of a fixed set of places, given the others, for a few rounds. Nothing is random.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.config import Config, PpoMethod
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.judged import LENGTH_UNITS, BenchmarkResults, judged_models, read_benchmarks
from vrm.reporting.judged_values import MAIN, measure_policy
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.table1 import span
from vrm.runfiles import SFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DIRECTIONS = 16

_RINGS = 30

_ROUNDS = 5

_STEPS = 12  # points of a leader that are tested

# What a place costs, in steps away from the point.
_ON_A_LABEL, _OUTSIDE = 1e5, 1e4

_ON_A_POINT, _NEAR_ANOTHER_POINT, _LEADER_ON_A_LABEL, _ON_A_BAR = 200.0, 12.0, 40.0, 2.0

_LEADER_ALONG_A_BAR = 3.0  # for each step away: a thin line on top of an interval's bar can't be seen


def place_labels(
    points: ArrayLike, sizes: ArrayLike, bars: ArrayLike, inside: ArrayLike, gap: float
) -> NDArray[np.float64]:
    """Lower left corner of each label.

    Args:
        points: what is labelled, shape (N, 2).
        sizes: width and height of each label, shape (N, 2).
        bars: boxes that labels had better not cover, as left, bottom, right, top, shape (M, 4).
        inside: box that labels must not leave, shape (4,).
        gap: distance of a label from its point where there is room, the radius of a point, and the step by which a
            label moves away.

    Returns:
        Shape (N, 2), in the unit of the arguments.
    """
    points, sizes, bars, inside = (np.asarray(part, dtype=np.float64) for part in (points, sizes, bars, inside))
    places = [_places(point, size, gap) for point, size in zip(points, sizes, strict=True)]
    fixed = [_fixed_cost(boxes, index, points, bars, inside, gap) for index, boxes in enumerate(places)]
    leaders = [_leaders(boxes, point) for boxes, point in zip(places, points, strict=True)]
    chosen = np.full((len(points), 4), np.nan)  # NaN: not placed yet, and covered by nothing
    for _ in range(_ROUNDS):
        for index, boxes in enumerate(places):
            others = np.delete(chosen, index, axis=0)
            crossed = _covered(np.concatenate([leaders[index]] * 2, axis=2).reshape(-1, 4), others)
            cost = fixed[index] + _ON_A_LABEL * _covered(boxes, others)
            cost = cost + _LEADER_ON_A_LABEL * (crossed.reshape(len(boxes), -1) > 0).any(axis=1)
            chosen[index] = boxes[np.argmin(cost)]
    return chosen[:, :2]


def _places(point: NDArray, size: NDArray, gap: float) -> NDArray[np.float64]:
    """Boxes on rings around a point, (P, 4); of a ring, right of the point first, then left, then above and below."""
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    angles = angles[np.argsort(-np.abs(np.cos(angles)) - 0.01 * np.cos(angles), kind="stable")]
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (D, 2)
    distance = gap * (1.5 + np.arange(_RINGS))[:, None, None]  # (R, 1, 1)
    centre = point + direction * (distance + size / 2)  # (R, D, 2)
    corner = (centre - size / 2).reshape(-1, 2)
    return np.concatenate([corner, corner + size], axis=1)


def _fixed_cost(
    boxes: NDArray, index: int, points: NDArray, bars: NDArray, inside: NDArray, gap: float
) -> NDArray[np.float64]:
    """What a place costs whatever the other labels do, shape (P,)."""
    ring = np.arange(len(boxes)) // _DIRECTIONS
    beyond = np.maximum(inside[:2] - boxes[:, :2], 0).sum(axis=1) + np.maximum(boxes[:, 2:] - inside[2:], 0).sum(axis=1)
    distance = np.stack([_distance(boxes, point) for point in points])  # (N, P)
    others = np.delete(distance, index, axis=0)
    leaders = _leaders(boxes, points[index])  # (P, steps, 2)
    on_bars = _covered(np.concatenate([leaders, leaders], axis=2).reshape(-1, 4), bars).reshape(len(boxes), -1)
    return (
        ring
        + _OUTSIDE * (beyond > 0) * (1 + beyond / gap)
        + _ON_A_POINT * (distance < gap).sum(axis=0)
        + _NEAR_ANOTHER_POINT * (others < distance[index] + gap).sum(axis=0)
        + _ON_A_BAR * _covered(boxes, bars)
        + _LEADER_ALONG_A_BAR * ring * ((on_bars > 0).mean(axis=1) > 0.5)
    )


def _leaders(boxes: NDArray, point: NDArray) -> NDArray[np.float64]:
    """Points on the way from a point to the nearest of each box, (P, steps, 2)."""
    nearest = np.clip(point, boxes[:, :2], boxes[:, 2:])
    return point + np.linspace(0.0, 1.0, _STEPS)[None, :, None] * (nearest - point)[:, None, :]


def _distance(boxes: NDArray, point: NDArray) -> NDArray[np.float64]:
    return np.hypot(*(np.clip(point, boxes[:, :2], boxes[:, 2:]) - point).T)


def _covered(boxes: NDArray, others: NDArray) -> NDArray[np.float64]:
    """How many of the others each box overlaps, shape (P,)."""
    if not len(others):
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (low <= high).all(axis=2).sum(axis=1).astype(np.float64)


_WITH_WIN_RATES = ("alpaca_eval", "arena_hard")

_KINDS = {
    "start": ("start of training", {"color": "#000000", "marker": "D"}),
    "preference": ("preference methods", {"color": style.BLUE, "marker": "o"}),
    "ppo": ("PPO", {"color": style.VERMILION, "marker": "s"}),
}

_LABEL_SIZE = 6.0


def win_rate_length(config: Config, results: Path, out: Path) -> list[Path]:
    """Win rate over mean answer length, for AlpacaEval and Arena-Hard, whichever are run.

    Args:
        config: names bases, methods, seeds, benchmarks and the level.
        results: the run's directory.
        out: directory of win_rate_length.{pdf,png,csv}.

    Raises:
        RecordError: no benchmark with win rates is run, or a file is missing or broken.
    """
    benchmarks = read_benchmarks(config, results, "win_rate_length")
    shown = {name: benchmark for name, benchmark in benchmarks.items() if name in _WITH_WIN_RATES}
    if not shown:
        raise RecordError("win_rate_length: no benchmark with win rates is run; leave it out of report.figures")
    data = pd.DataFrame([row for benchmark in shown.values() for row in _points(config, benchmark)])
    with style.styled():
        figure, grid = _panels(config, data, len(shown))
        for row, name in zip(grid, shown, strict=True):
            part = data[data["benchmark"] == name]
            _set_limits(row[0], part)
            for panel, base in zip(row, config.policy.run_bases, strict=True):
                _draw_panel(panel, part[part["base"] == base])
                panel.set_xlabel(f"mean length of an answer ({_unit(config, name)})")
            prompts = span(set(part["n_prompts"]))
            row[0].set_ylabel(f"{getattr(config.benchmarks, name).label}\nwin rate (%), n = {prompts}")
        for panel, base in zip(grid[0], config.policy.run_bases, strict=True):
            panel.set_title(config.policy.bases[base].label)
        figure.align_ylabels(grid[:, 0])
        return style.save(figure, out, "win_rate_length", data)


def _points(config: Config, benchmark: BenchmarkResults) -> list[dict[str, Any]]:
    """One row a model."""
    metric, rows = MAIN[benchmark.name], []
    for model in judged_models(config):
        measured = measure_policy(config, benchmark, model, metric)
        if model.method == SFT:
            kind = "start"
        else:
            kind = "ppo" if isinstance(config.policy.methods[model.method], PpoMethod) else "preference"
        rows.append(
            {
                "benchmark": benchmark.name,
                "base": model.base,
                "method": model.method,
                "label": model.label,
                "kind": kind,
                "ours": model.ours,
                "length": benchmark.length(model),
                "length_unit": _unit(config, benchmark.name),
                "reference_length": benchmark.reference_length(model.base),
                "metric": metric.name,
                "estimate": measured.interval.estimate,
                "low": measured.interval.low,
                "high": measured.interval.high,
                "level": measured.interval.level,
                "n_prompts": measured.prompts,
                "n_seeds": len(model.seeds),
                "resampled": measured.interval.resampled,
            }
        )
    return rows


def _unit(config: Config, name: str) -> str:
    """The unit of a benchmark's lengths, with what counts them."""
    counter = config.benchmarks.arena_hard.token_counter
    if LENGTH_UNITS[name] == "tokens":
        return "words" if counter == "words" else f"tokens of {counter}"
    return LENGTH_UNITS[name]


def _panels(config: Config, data: pd.DataFrame, rows: int) -> tuple[Figure, NDArray]:
    """The page with legend and footer; a row of axes a benchmark, a column a base."""
    bases = len(config.policy.run_bases)
    width = 4.6 if bases == 1 else max(style.FULL_WIDTH, 0.7 + 3.1 * bases)
    statement = style.footer_lines(_statement(config), config.data.label, width)
    handles, labels = _legend(data)
    columns = style.legend_columns(labels, width)
    top, bottom = 0.36 + 0.16 * -(-len(labels) // columns), 0.5 + style.FOOTER_LINE * len(statement)
    height = top + bottom + 2.75 * rows + 0.45 * (rows - 1)
    figure = style.new_figure(width, height)
    margins = {"left": 0.68 / width, "right": 1 - 0.1 / width, "bottom": bottom / height, "top": 1 - top / height}
    grid = figure.subplots(
        rows,
        bases,
        sharex="row",
        sharey="row",
        squeeze=False,
        gridspec_kw=margins | {"hspace": 0.45 / 2.75, "wspace": 0.06},
    )
    figure.legend(handles, labels, loc="upper center", ncols=columns)
    style.footer(figure, _statement(config), config.data.label)
    return figure, grid


def _set_limits(panel: Axes, data: pd.DataFrame) -> None:
    """Limits of a row of panels, with room for labels beyond the outermost points."""
    lengths = [*data["length"], *data["reference_length"].dropna()]
    left, right = min(lengths), max(lengths)
    span = max(right - left, 0.02 * right, 1e-9)
    panel.set_xlim(left - 0.2 * span, right + 0.2 * span)
    low, high = (data[[end, "estimate"]] for end in ("low", "high"))
    bottom, top = np.nanmin([low.min().min(), 100.0]), np.nanmax([high.max().max(), 0.0])
    pad = 0.06 * max(top - bottom, 1.0)
    panel.set_ylim(bottom - pad, top + pad)


def _draw_panel(panel: Axes, data: pd.DataFrame) -> None:
    reference = data["reference_length"].iloc[0]
    if pd.notna(reference):
        panel.axvline(reference, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    if panel.get_ylim()[0] < 50 < panel.get_ylim()[1]:
        panel.axhline(50, color=style.MUTED, linewidth=0.6, zorder=1)
    measured = data[data["estimate"].notna()]
    for point in measured.itertuples():
        look = _KINDS[point.kind][1]
        panel.vlines(point.length, point.low, point.high, color=look["color"], alpha=0.35, linewidth=1.1, zorder=2)
        face = "white" if point.ours else look["color"]
        panel.plot(point.length, point.estimate, linestyle="", markerfacecolor=face, zorder=3, **look)
    _label(panel, measured)


def _label(panel: Axes, data: pd.DataFrame) -> None:
    """Write the labels beside the points, with a thin line to those that had to move away."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    figure = panel.get_figure()
    pixels = figure.dpi / 72  # of a point
    inches = {"transform": figure.dpi_scale_trans}  # a figure is saved with another dpi than it is drawn with
    halo = [withStroke(linewidth=1.6, foreground="white")]
    look = {"fontsize": _LABEL_SIZE, "linespacing": 0.95, "va": "bottom", "path_effects": halo, "zorder": 5}
    texts = [panel.text(0, 0, textwrap.fill(label, 18), **inches, **look) for label in data["label"]]
    padding = np.full(2, 1.2 * pixels)  # descenders reach a little below a text's box
    sizes = [text.get_window_extent(figure.canvas.get_renderer()).size + 2 * padding for text in texts]
    points = panel.transData.transform(data[["length", "estimate"]].to_numpy())
    inside = np.array([*panel.bbox.min, *panel.bbox.max])
    corners = place_labels(points, sizes, _bars(panel, data), inside, 2.4 * pixels)
    for text, point, corner, size in zip(texts, points, corners, sizes, strict=True):
        text.set_position((corner + padding) / figure.dpi)
        nearest = np.clip(point, corner + padding, corner + size - padding)
        if np.hypot(*(nearest - point)) > 9 * pixels:
            ends = np.stack([point, nearest]) / figure.dpi
            panel.add_artist(Line2D(*ends.T, color=style.MUTED, linewidth=0.4, zorder=4, **inches))


def _bars(panel: Axes, data: pd.DataFrame) -> NDArray[np.float64]:
    """Boxes of the intervals, in pixels, shape (N, 4)."""
    low, high = (data[end].fillna(data["estimate"]) for end in ("low", "high"))
    ends = [panel.transData.transform(np.column_stack([data["length"], end])) for end in (low, high)]
    return np.concatenate([ends[0] - [1, 0], ends[1] + [1, 0]], axis=1)


def _legend(data: pd.DataFrame) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    labels: list[str] = []
    for kind, (label, look) in _KINDS.items():
        if kind in set(data["kind"]):
            handles.append(Line2D([], [], linestyle="", **look))
            labels.append(label)
    if data["ours"].any():
        hollow = {"color": style.MUTED, "marker": "s", "markerfacecolor": "white"}
        handles.append(Line2D([], [], linestyle="", **hollow))
        labels.append("hollow: ours")
    if data["reference_length"].notna().any():
        handles.append(Line2D([], [], color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2))))
        labels.append("length of the reference")
    return handles, labels


def _statement(config: Config) -> str:
    over = counted_seeds_and_prompts(config.policy.seeds)
    return f"Bars: {100 * config.report.level:g}\u00a0% interval over {over}."
