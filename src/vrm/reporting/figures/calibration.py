"""How sure each reward model is, and how right: reliability, and accuracy of the pairs it is surest of.

* One model a column, in distribution and on Chat Hard in the same panel: what a model says of itself where it was
  trained, and where surface cues mislead it.
* Above: share of pairs won against the stated confidence, in bins of as many pairs each. On the diagonal a model is as
  right as it says. Below: accuracy on the surest pairs, against the share of pairs that is answered.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, ConfigError
from vrm.evaluation.calibration import selective_accuracy
from vrm.reporting import style
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.scores import Column, rewards
from vrm.reporting.tables.calibration import Stated, calibration_columns, state
from vrm.statistics.intervals import half_width, resampled_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 6
"""Of confidence; each holds a sixth of the pairs."""
SHARES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
"""Of the pairs, the surest first."""


def calibration_figure(config: Config, results: Path, out: Path) -> list[Path]:
    """Draw calibration.{pdf,png,csv}: a column of two panels for each variant of `report.calibration`.

    Args:
        config: names the variants, sets, seeds and the level.
        results: the run's directory.
        out: directory of the three files. The CSV has one row a point.

    Raises:
        ConfigError: `report.calibration` is empty.
        RecordError: scores are missing, broken or without probabilities.
    """
    models = [model for model in rewards(config) if model.variant in config.report.calibration]
    if not models:
        raise ConfigError("report.calibration names no variant: name some, or leave calibration out of report.figures")
    columns = calibration_columns(config)
    bare = config.model_copy(update={"report": config.report.model_copy(update={"calibration": []})})
    stated = list(state(bare, results, models, columns))  # nothing post hoc
    data = pd.DataFrame([point for row in stated for point in _points(config, row)])
    statement = _statement(config)
    width = max(style.FULL_WIDTH, 0.7 + 1.3 * len(models))
    bottom = 0.51 + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, width))
    with style.styled():
        titles = [textwrap.fill(row.scorer.label, 18, break_on_hyphens=False) for row in stated]
        top = 0.36 + 0.14 * (1 + max(title.count("\n") for title in titles))
        figure = style.new_figure(width, top + bottom + 3.0)
        height = top + bottom + 3.0
        margins = {"left": 0.62 / width, "right": 1 - 0.16 / width, "bottom": bottom / height, "top": 1 - top / height}
        grid = figure.subplots(
            2, len(stated), sharey="row", squeeze=False, gridspec_kw=margins | {"hspace": 0.42, "wspace": 0.14}
        )
        for place, (row, title) in enumerate(zip(stated, titles, strict=True)):
            own = data[data["variant"] == row.scorer.name]
            _draw_reliability(grid[0, place], own, columns)
            _draw_coverage(grid[1, place], own, columns)
            grid[0, place].set_title(title)
        _limit(grid, data)
        grid[0, 0].set_ylabel("(a) pairs won (%)")
        grid[1, 0].set_ylabel("(b) accuracy (%)")
        figure.align_ylabels(grid[:, 0])
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels))
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "calibration", data)


def _points(config: Config, row: Stated) -> Iterator[dict[str, Any]]:
    """Every point of a model, in percent."""
    for column, q in row.q.items():
        named = {
            "variant": row.scorer.name,
            "label": row.scorer.label,
            "evaluation_set": column.evaluation_set,
            "column": column.title,
            "level": config.report.level,
            "n_seeds": len(q),
        }
        for point in (*_reliability(config, q), *_coverage(config, row, column)):
            yield named | point


def _reliability(config: Config, q: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Share won of each bin of all seeds' pairs; Wilson's interval on as many pairs as a seed has there."""
    confidence, won = np.maximum(q, 1 - q).ravel(), (q > 0.5).ravel()
    edges = np.unique(np.quantile(confidence, np.arange(1, BINS) / BINS))
    place = np.searchsorted(edges, confidence, side="right")
    for number in np.unique(place):
        inside = place == number
        share, pairs = float(won[inside].mean()), inside.sum() / len(q)
        low, high = _wilson(share, pairs, config.report.level)
        yield {
            "panel": "reliability",
            "x": 100 * float(confidence[inside].mean()),
            "y": 100 * share,
            "low": 100 * low,
            "high": 100 * high,
            "n_pairs": pairs,
            "resampled": "pairs of one seed (Wilson)",
        }


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's interval, whose middle lies nearer to 1/2 than the share does."""
    half = half_width(n, share, level)
    nothing = half_width(n, 0.0, level)  # at a rate of 0 the interval is [0, 2 x this]
    middle = share + 2 * nothing * (0.5 - share)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _coverage(config: Config, row: Stated, column: Column) -> Iterator[dict[str, Any]]:
    q = row.q[column]

    def measure(places: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.array([[selective_accuracy(of_seed[places], share) for share in SHARES] for of_seed in q])

    key = f"calibration/figure/{row.scorer.name}/{column.evaluation_set}/{column.section}"
    rng = np.random.default_rng([config.report.seed, *key.encode()])
    found = resampled_intervals(measure, row.prompts[column], config.report.level, rng)
    for share, interval in zip(SHARES, found, strict=True):
        interval = interval.within(0, 1)
        yield {
            "panel": "coverage",
            "x": 100 * share,
            "y": 100 * interval.estimate,
            "low": 100 * interval.low,
            "high": 100 * interval.high,
            "n_pairs": q.shape[1],
            "resampled": interval.resampled,
        }


def _draw_reliability(panel: Axes, points: pd.DataFrame, columns: Sequence[Column]) -> None:
    panel.plot([50, 100], [50, 100], color=style.CONTEXT, linewidth=0.9, zorder=1, label="as right as it says")
    panel.axhline(50, color=style.CONTEXT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    for index, column in enumerate(columns):
        part = _select(points, "reliability", column)
        look = style.look(index)
        panel.vlines(part["x"], part["low"], part["high"], color=look["color"], alpha=0.35, linewidth=1.1, zorder=2)
        panel.plot(part["x"], part["y"], markeredgewidth=0, zorder=3, label=column.title, **look)
    panel.set_xlabel("stated confidence (%)")


def _draw_coverage(panel: Axes, points: pd.DataFrame, columns: Sequence[Column]) -> None:
    panel.axhline(50, color=style.CONTEXT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    for index, column in enumerate(columns):
        part, look = _select(points, "coverage", column), style.look(index)
        if part["low"].notna().any():
            panel.fill_between(
                part["x"], part["low"], part["high"], color=look["color"], alpha=0.16, linewidth=0, zorder=2
            )
        panel.plot(part["x"], part["y"], markeredgewidth=0, zorder=3, **look | {"marker": ""})
        panel.plot(part["x"].tail(1), part["y"].tail(1), linestyle="", zorder=4, **_only_marker(look))
    panel.set_xlim(5, 105)
    panel.set_xticks([20, 60, 100])
    panel.set_xlabel("pairs answered (%)")


def _only_marker(look: dict[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "marker": look["marker"], "markeredgewidth": 0, "clip_on": False}


def _limit(grid: NDArray[Any], data: pd.DataFrame) -> None:
    """One scale for all panels: that of shares, as far down as any goes."""
    lowest = data[["y", "low"]].min().min()
    bottom = max(-2.0, 10 * np.floor((lowest - 5) / 10))
    for panel in grid.flat:
        panel.set_ylim(bottom, 103)
        panel.set_yticks([tick for tick in (0, 25, 50, 75, 100) if tick >= bottom])
    surest = min(100.0, 5 * np.ceil(data[data["panel"] == "reliability"]["x"].max() / 5))
    for panel in grid[0]:
        panel.set_xlim(50 - 0.03 * (surest - 50), surest + 0.03 * (surest - 50))
        panel.set_xticks([50, (50 + surest) / 2, surest])


def _select(points: pd.DataFrame, panel: str, column: Column) -> pd.DataFrame:
    same = (points["panel"] == panel) & (points["column"] == column.title)
    return points[same].sort_values("x")


def _statement(config: Config) -> str:
    level, seeds = f"{100 * config.report.level:g}\u00a0%", config.reward.seeds
    return (
        f"(a) {BINS} bins of as many pairs each; bars: {level} Wilson interval on one seed's pairs. (b) Bands: {level} "
        f"interval over {counted_seeds_and_prompts(seeds)}; the marker is all pairs."
    )
