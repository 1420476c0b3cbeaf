"""Figures 3 to 5: what happens along training, read from the runs' training logs.

* A curve is the mean over seeds; its band is Student's t interval over seeds. With one seed there is no interval, and
  the figure says so.
* Along a training is measured on a few pairs, the same for every seed. The figure says how many, and what their choice
  alone is worth.
* Small multiples: one variant stands out in each panel, the others lie behind it in grey, so that bands never cover
  each other and panels still compare.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vrm.config import Config, ConfigError, Variant
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.scores import evaluation_pairs, first_pairs, read_training, reward_model, row_label
from vrm.statistics.intervals import half_width, student_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def measured_on(config: Config, results: Path, names: Iterable[str]) -> str:
    """What a figure of accuracies along training says of the pairs behind them."""
    counts = evaluation_pairs(config, results, names)
    width = 100 * half_width(counts[0], 0.5, config.report.level)
    return (
        f"Measured on {first_pairs(counts)} of a split, the same for every seed; their choice is left out: "
        f"±{width:.1f}\u00a0points at 50\u00a0% accuracy (Wilson)."
    )


_BELOW = 0.51  # inches below the panels, for ticks and the axis's title

_SUPERVISION = {"kl": "KL", "mse": "MSE", "mae": "MAE", "rank": "rank"}


@dataclass(frozen=True)
class LoggedQuantity:
    """One quantity of the training log, as a row of panels.

    Args:
        split: `train` or `validation`.
        metric: its name in the log.
        title: what the axis says, with the unit.
        scale: factor from the log's unit to the axis's.
        possible: lowest and highest value, in the axis's unit; a band ends there.
    """

    split: str
    metric: str
    title: str
    scale: float = 1.0
    possible: tuple[float, float] = (0.0, np.inf)


TRAIN_ACCURACY = LoggedQuantity("train", "accuracy", "train accuracy (%)", 100.0, (0.0, 100.0))

EVAL_ACCURACY = LoggedQuantity("validation", "accuracy", "eval accuracy (%)", 100.0, (0.0, 100.0))

TARGET_KL = LoggedQuantity("train", "supervision_kl", "KL to target (nats)")
"""KL(target || E[w]), Eq. 13's default; of a pair's prompt."""

PRIOR_KL = LoggedQuantity("train", "kl_total", "KL to priors (nats)")
"""Of w and of z of both responses, a pair: what Theorem 5.1 sums."""


def figure3(config: Config, results: Path, out: Path) -> list[Path]:
    """Train and eval accuracy of each supervision loss over the optimiser's steps.

    Args:
        config: names the variants (`report.figure3`), the seeds and the level.
        results: the run's directory.
        out: directory of figure3.{pdf,png,csv}.

    Raises:
        ConfigError: `report.figure3` is empty.
        RecordError: a training log is missing or lacks the metric.
    """
    variants = _variants(config, "figure3")
    titles = _distinct([_SUPERVISION[v.supervision] for v in variants.values()], variants)
    return _small_multiples(config, results, out, "figure3", titles, [TRAIN_ACCURACY, EVAL_ACCURACY], "other losses")


def figure4(config: Config, results: Path, out: Path) -> list[Path]:
    """Accuracy of RM and VRM over the optimiser's steps, on the training and the validation split.

    Args and Raises: as `figure3`, with `report.figure4`.
    """
    variants = _variants(config, "figure4")
    measures = [TRAIN_ACCURACY, EVAL_ACCURACY]
    if len(variants) > 2:  # more bands than two can't be told apart in one panel
        titles = [row_label(variant) for variant in variants.values()]
        return _small_multiples(config, results, out, "figure4", titles, measures, "other models")
    data = _curves(config, results, variants, measures)
    statement = _statement(config, results, variants)
    bottom = _BELOW + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, style.FULL_WIDTH))
    with style.styled():
        figure = style.new_figure(style.FULL_WIDTH, 2.13 + bottom)
        margins = _margins(figure, left=0.55, bottom=bottom, top=0.55, right=0.16)
        axes = figure.subplots(1, 2, sharey=True, gridspec_kw=margins)
        for panel, measure, letter in zip(axes, measures, "ab", strict=True):
            for index, name in enumerate(variants):
                curve = _select(data, name, measure)
                _draw(panel, curve, label=row_label(variants[name]), **style.look(index))
            panel.set_title(f"({letter}) {measure.title.removesuffix(' (%)')}", loc="left")
            _finish(panel, data, measure)
        axes[0].set_ylabel("accuracy (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=min(len(labels), 5))
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "figure4", data)


def figure5(config: Config, results: Path, out: Path) -> list[Path]:
    """(a) train accuracy, (b) eval accuracy, (c) KL(target || E[w]) over the optimiser's steps, for each lambda.

    The paper's text speaks of (c) as the supervision term. (d) is ours: the KL to the priors, which the theorem sums.
    Both are of the fixed training subset.

    Args and Raises: as `figure3`, with `report.figure5`.
    """
    variants = _variants(config, "figure5")
    titles = _distinct([f"$\\lambda$ = {v.supervision_weight:g}" for v in variants.values()], variants)
    measures = [TRAIN_ACCURACY, EVAL_ACCURACY, TARGET_KL, PRIOR_KL]
    return _small_multiples(config, results, out, "figure5", titles, measures, "other $\\lambda$")


def _variants(config: Config, figure: str) -> dict[str, Variant]:
    names = getattr(config.report, figure)
    if not names:
        raise ConfigError(f"report.{figure} names no variant: name some, or leave {figure} out of report.figures")
    return {name: config.reward.variants[name] for name in names}


def _distinct(titles: Sequence[str], variants: dict[str, Variant]) -> list[str]:
    """The short titles where they tell the variants apart, their labels otherwise."""
    if len(set(titles)) == len(titles):
        return list(titles)
    return [row_label(variant) for variant in variants.values()]


def _curves(
    config: Config, results: Path, variants: dict[str, Variant], measures: Sequence[LoggedQuantity]
) -> pd.DataFrame:
    """One row a variant, measure and step: the mean over seeds with its interval."""
    rows: list[dict[str, Any]] = []
    for name, variant in variants.items():
        log = read_training(results, reward_model(config, name))
        for measure in measures:
            if variant.kind == "scalar" and measure.metric != "accuracy":
                continue
            if measure is TARGET_KL and "supervision_loss" not in set(log["metric"]):  # trained on plain pairs
                continue
            for step, values in _by_step(log, measure, name):
                band = student_interval(values * measure.scale, config.report.level).within(*measure.possible)
                rows.append(
                    {
                        "variant": name,
                        "label": row_label(variant),
                        "lambda": variant.supervision_weight if variant.kind == "variational" else np.nan,
                        "supervision": variant.supervision if variant.kind == "variational" else "",
                        "split": measure.split,
                        "metric": measure.metric,
                        "step": step,
                        "mean": band.estimate,
                        "low": band.low,
                        "high": band.high,
                        "level": band.level,
                        "n_seeds": len(values),
                        "resampled": band.resampled,
                    }
                )
    return pd.DataFrame(rows)


def _by_step(log: pd.DataFrame, measure: LoggedQuantity, name: str) -> list[tuple[int, np.ndarray]]:
    """(step, one value a seed), for the steps that every seed has."""
    part = log[(log["split"] == measure.split) & (log["metric"] == measure.metric)]
    table = part.pivot_table(index="step", columns="seed", values="value", aggfunc="last")
    whole = table.dropna()
    if whole.empty or whole.shape[1] < log["seed"].nunique():
        raise RecordError(
            f"training log of {name}: no step at which every seed has {measure.metric} of split {measure.split}"
        )
    return [(int(step), row.to_numpy()) for step, row in whole.iterrows()]


def _small_multiples(
    config: Config,
    results: Path,
    out: Path,
    name: str,
    titles: Sequence[str],
    measures: Sequence[LoggedQuantity],
    others: str,
) -> list[Path]:
    """One column a variant, one row a measure."""
    variants = _variants(config, name)
    data = _curves(config, results, variants, measures)
    width = max(style.FULL_WIDTH, 0.7 + 1.15 * len(variants)) if len(variants) > 1 else style.COLUMN_WIDTH + 0.6
    statement = _statement(config, results, variants)
    bottom = _BELOW + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, width))
    with style.styled():
        figure = style.new_figure(width, 0.53 + bottom + 1.35 * len(measures))
        titles = [textwrap.fill(title, max(16, 84 // len(titles))) for title in titles]
        lines = 1 + max(title.count("\n") for title in titles)
        margins = _margins(figure, left=0.62, bottom=bottom, top=0.38 + 0.14 * lines, right=0.16)
        margins |= {"hspace": 0.14, "wspace": 0.16}  # tick labels of neighbours stand at both sides of a gap
        grid = figure.subplots(
            len(measures), len(variants), sharex=True, sharey="row", squeeze=False, gridspec_kw=margins
        )
        for row, (measure, letter) in enumerate(zip(measures, "abcdef", strict=False)):
            for column, highlighted in enumerate(variants):
                panel = grid[row, column]
                _draw_context(panel, data, variants, highlighted, measure)
                curve = _select(data, highlighted, measure)
                _draw(panel, curve, **style.look(0))
                if curve.empty:
                    lacking = "scalar RM" if variants[highlighted].kind == "scalar" else "no ratings"
                    words = f"not defined:\n{lacking}"
                    panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center")
                _finish(panel, data, measure, xlabel=row == len(measures) - 1)
            grid[row, 0].set_ylabel(f"({letter}) {measure.title}")
        for column, title in enumerate(titles):
            grid[0, column].set_title(title)
        figure.align_ylabels(grid[:, 0])
        _shared_legend(figure, config, others if len(variants) > 1 else None)
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, name, data)


def _draw_context(
    panel: Axes, data: pd.DataFrame, variants: dict[str, Variant], highlighted: str, measure: LoggedQuantity
) -> None:
    for other in variants:
        curve = _select(data, other, measure)
        if other != highlighted:
            panel.plot(curve["step"], curve["mean"], color=style.CONTEXT, linewidth=0.7, zorder=1)


def _draw(panel: Axes, curve: pd.DataFrame, **keywords: Any) -> None:
    # where seeds happen to agree there is no interval, and the band goes on from the one before to the one after
    band = curve.dropna(subset=["low", "high"])
    if len(band):
        panel.fill_between(
            band["step"], band["low"], band["high"], color=keywords["color"], alpha=0.18, linewidth=0, zorder=2
        )
    panel.plot(curve["step"], curve["mean"], markeredgewidth=0, zorder=3, **keywords)


def _select(data: pd.DataFrame, name: str, measure: LoggedQuantity) -> pd.DataFrame:
    chosen = (data["variant"] == name) & (data["split"] == measure.split) & (data["metric"] == measure.metric)
    return data[chosen].sort_values("step")


def _finish(panel: Axes, data: pd.DataFrame, measure: LoggedQuantity, xlabel: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.set_ylim(*_limits(data, measure))
    if xlabel:
        panel.set_xlabel("optimiser step")


def _limits(data: pd.DataFrame, measure: LoggedQuantity) -> tuple[float, float]:
    """Limits that hold every curve of a metric, and as much of the bands as is possible at all.

    A t interval of three seeds can be wider than the scale; beyond twice the curves' own range the band is cut at the
    axis, as the footer says, and so is that of step 0, where nothing is trained. The CSV has them whole.
    """
    part = data[data["metric"] == measure.metric]
    if part.empty:
        return 0.0, 1.0  # nothing is drawn
    lowest, highest = part["mean"].min(), part["mean"].max()
    span = max(highest - lowest, 0.02 * abs(highest), 1e-6)
    trained = part[part["step"] > part["step"].min()]
    lower = max(np.nanmin([trained["low"].min(), lowest]), lowest - span)
    upper = min(np.nanmax([trained["high"].max(), highest]), highest + span)
    pad = 0.05 * (upper - lower)
    floor, ceiling = measure.possible
    return max(lower - pad, floor - pad), min(upper + pad, ceiling + pad)


def _shared_legend(figure: Figure, config: Config, others: str | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seeds = len(config.reward.seeds)
    handles: list[Any] = [Line2D([], [], markeredgewidth=0, **style.look(0))]
    labels = [f"mean of {seeds} seeds" if seeds > 1 else "one seed"]
    if seeds > 1:
        handles.append(Patch(color=style.look(0)["color"], alpha=0.18, linewidth=0))
        labels.append(f"{100 * config.report.level:g} % interval")
    if others:
        handles.append(Line2D([], [], color=style.CONTEXT, linewidth=0.9))
        labels.append(others)
    figure.legend(handles, labels, loc="upper center", ncols=len(labels))


def _statement(config: Config, results: Path, variants: Mapping[str, Variant]) -> str:
    seeds = len(config.reward.seeds)
    band = (
        f"Bands: {100 * config.report.level:g}\u00a0% Student's t interval over {seeds} seeds, cut at the axis."
        if seeds > 1
        else "One seed: no interval."
    )
    return f"{band} {measured_on(config, results, variants)}"


def _margins(figure: Figure, left: float, bottom: float, top: float, right: float = 0.1) -> dict[str, float]:
    """Margins given in inches, as the grid wants them."""
    width, height = figure.get_size_inches()
    return {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
