"""The bound of Theorem 5.1 on trained VRMs, as a table and as a figure.

* Numbers are those of `vrm.evaluation.bound`, one file a model; docs/theory.md says what the bound can show at all.
* The table has each term of the bound, the held-out risk beside it, and whether the bound says anything.
* Figure (a): every VRM that is measured, at its beta_z: what the KL's weight buys. Models of one beta stand side by
  side; one that is far from the others of its beta has its name beside it.
* Figure (b): one model a pair of betas, continued to other n in two ways: with the KL a pair as measured, so that
  KL_total grows with n (the theorem as it is), and with KL_total as measured, as if one posterior served the whole
  sample.
* Both panels show where the bound says nothing (1) and what guessing gives (1/2).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, number, of_seeds, write_table
from vrm.reporting.scores import Scorer, reward_models, row_label, starts_group
from vrm.runfiles import BOUND_TERMS, PAC_BAYES, read_bound_terms
from vrm.statistics.intervals import Interval, half_width, student_interval
from vrm.statistics.pac_bayes import mcallester_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_POSSIBLE = {
    **dict.fromkeys(("empirical_risk", "held_out_risk", "vacuous"), (0.0, 1.0)),
    "largest_kl_per_pair": (-np.inf, np.inf),  # negative where no KL would do
}
"""Lowest and highest value of a term where it is not 0 and infinity; an interval ends there."""

_HEADER = ("Reward model", "Empirical risk", "KL of w", "KL of z", "Bound", "Vacuous", "Held-out risk", "KL allowed")


def bound_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write bound.{csv,md,tex,html}: one row a VRM of `report.bound`.

    Args:
        config: names variants, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a term.

    Raises:
        RecordError: nothing is variational, or terms are missing or broken.
    """
    models = bounded_models(config)
    measured = {model.name: read_terms(results, model) for model in models}
    rows = [
        Row([Cell(model.label), *_cells(config, measured[model.name])], rule=starts_group(previous, model))
        for model, previous in zip(models, [None, *models], strict=False)
    ]
    grid = Grid(
        name="bound",
        caption=f"Theorem 5.1 on each trained VRM. Data: {config.data.label}.",
        header=[Cell(title) for title in _HEADER],
        rows=rows,
        notes=list(_notes(config, measured)),
    )
    return write_table(out, [grid], _tidy(config, measured))


def bounded_models(config: Config) -> list[Scorer]:
    """The VRMs whose bound is measured, in the order of table rows.

    Raises:
        RecordError: there is none.
    """
    models = [model for model in reward_models(config) if model.name in config.bounded_variants]
    if not models:
        raise RecordError("bound: reward.run has no VRM that report.bound names; leave `bound` out of the report")
    return models


def read_terms(results: Path, model: Scorer) -> pd.DataFrame:
    """The terms of one model's bound, one row a seed, one column a term.

    Raises:
        RecordError: a file is missing, or lacks a term or has one that is not a finite number.
    """
    rows = {seed: read_bound_terms(model.file(results, seed, PAC_BAYES.name)) for seed in model.seeds}
    return pd.DataFrame(rows).T.rename_axis("seed")


def _cells(config: Config, terms: pd.DataFrame) -> Iterator[Cell]:
    """Risks and the bound with their intervals; KLs a pair above the sum over the pairs."""
    yield interval_cell(over_seeds(config, terms, "empirical_risk"), digits=3)
    for name in ("kl_w", "kl_z"):
        yield Cell(_nats(terms[f"{name}_per_pair"].mean()), f"sum {_nats(terms[name].mean())}")
    yield interval_cell(over_seeds(config, terms, "bound"), digits=3)
    yield Cell(_verdict(terms["vacuous"]))
    yield interval_cell(over_seeds(config, terms, "held_out_risk"), digits=3)
    allowed = terms["largest_kl_per_pair"].mean()
    yield Cell(number(allowed, 2) if allowed > 0 else "none")


def _nats(value: float) -> str:
    """Four digits; KLs of a trained and of a collapsed posterior differ by many orders of magnitude."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _verdict(vacuous: pd.Series) -> str:
    if vacuous.nunique() == 1:
        return "yes" if vacuous.iloc[0] else "no"
    return f"{int(vacuous.sum())} of {len(vacuous)} seeds"


def over_seeds(config: Config, terms: pd.DataFrame, term: str) -> Interval:
    """Mean and interval over seeds of one of the terms that `read_terms` returned."""
    interval = student_interval(terms[term].to_numpy(dtype=float), config.report.level)
    return interval.within(*_POSSIBLE.get(term, (0.0, np.inf)))


def _notes(config: Config, measured: dict[str, pd.DataFrame]) -> Iterator[str]:
    terms = pd.concat(measured.values())
    level = f"{100 * config.report.level:g} %"
    seeds = config.reward.seeds
    over = (
        f"{of_seeds(seeds)}; in brackets the {level} interval over seeds (Student's t)."
        if len(seeds) > 1
        else f"{of_seeds(seeds)}: no interval."
    )
    yield f"Data: {config.data.label}. {over}"
    yield (
        "Bound: empirical risk + sqrt((KL + ln(1/delta) + ln n + 2) / (2n - 1)), with the KL summed over the pairs, "
        f"n = {_span(terms['pairs'])} training pairs and delta = {terms['delta'].iloc[0]:g}. Vacuous: 1 or more, which "
        "any risk meets."
    )
    yield (
        f"Risks: share of pairs in the wrong order under sampled latents ({_span(terms['samples'])} draws a pair; a "
        f"tie is an error), on the training pairs and on {_span(terms['held_out_pairs'])} held-out pairs."
    )
    width = half_width(terms["held_out_pairs"].min(), 0.5, config.report.level)
    yield (
        f"Both risks' intervals leave out the choice of the pairs: of the {_span(terms['held_out_pairs'])} held-out "
        f"ones alone it is worth ±{width:.3f} at a risk of 1/2 (Wilson)."
    )
    yield (
        "KLs: nats a pair, below them the sum over the pairs; that of z adds both responses. KL allowed: nats a pair "
        "below which the bound would not be vacuous at the same empirical risk."
    )
    yield (
        "Whatever the model, this bound is never below 1/2, the risk of guessing, and its KL grows with n; nor does it "
        "charge for what the encoder memorises (docs/theory.md)."
    )


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tidy(config: Config, measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a term; `vacuous` is the share of the seeds."""
    rows = []
    for name, terms in measured.items():
        for term in BOUND_TERMS:
            interval = over_seeds(config, terms, term)
            rows.append(
                {
                    "variant": name,
                    "label": row_label(config.reward.variants[name]),
                    "term": term,
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "level": interval.level,
                    "resampled": interval.resampled,
                    "n_seeds": len(terms),
                }
            )
    return pd.DataFrame(rows)


# The figure.

_RISKS = {"empirical_risk": ("empirical risk", "v"), "held_out_risk": ("held-out risk", "^")}

_PER_PAIR, _TOTAL = "KL per pair fixed", "total KL fixed"

_N = np.geomspace(10, 1e6, 121)

_TOTAL_DASHES = ((3, 1.5), (1, 1.2), (5, 1.2, 1, 1.2))  # of one model after the other


def bound_figure(config: Config, results: Path, out: Path) -> list[Path]:
    """Draw bound.{pdf,png,csv}.

    Args:
        config: names variants, seeds and the level.
        results: the run's directory.
        out: directory of the three files.

    Raises:
        RecordError: nothing is variational, or terms are missing or broken.
    """
    models = bounded_models(config)
    points = _points(config, results, models)
    curves = _curves(points)
    with style.styled():
        labels = 5 + curves.groupby(["variant", "kl"]).ngroups
        named = [_curve_label(*row) for row in curves[["label", "kl"]].drop_duplicates().itertuples(index=False)]
        columns = min(3, style.legend_columns(named, style.FULL_WIDTH))
        statement = _statement(config, points)
        top = 0.3 + 0.16 * -(-labels // columns)
        bottom = 0.51 + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, style.FULL_WIDTH))
        figure = style.new_figure(style.FULL_WIDTH, 1.83 + top + bottom)
        width, height = figure.get_size_inches()
        margins = {"left": 0.5 / width, "right": 1 - 0.15 / width, "bottom": bottom / height, "top": 1 - top / height}
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw=margins | {"wspace": 0.08})
        _draw_betas(left, points)
        _draw_sizes(right, curves, points)
        _risk_axis(left, points)
        (handles, names), (more_handles, more_names) = (p.get_legend_handles_labels() for p in (left, right))
        figure.legend(handles + more_handles, names + more_names, loc="upper center", ncols=columns)
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "bound", pd.concat([points, curves], ignore_index=True))


def _points(config: Config, results: Path, models: Sequence[Scorer]) -> pd.DataFrame:
    """One row a model: means over seeds, and the bound's interval."""
    rows: list[dict[str, Any]] = []
    for model in models:
        variant, terms = config.reward.variants[model.name], read_terms(results, model)
        interval = over_seeds(config, terms, "bound")
        rows.append(
            {
                "panel": "beta",
                "variant": model.name,
                "label": model.label,
                "beta_w": variant.beta_w,
                "beta_z": variant.beta_z,
                "n": terms["pairs"].mean(),
                "kl": "measured",
                "kl_per_pair": terms["kl_per_pair"].mean(),
                "empirical_risk": terms["empirical_risk"].mean(),
                "held_out_risk": terms["held_out_risk"].mean(),
                "bound": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "delta": terms["delta"].iloc[0],
                "n_seeds": len(terms),
                "level": interval.level,
                "resampled": interval.resampled,
            }
        )
    return pd.DataFrame(rows)


def _curves(points: pd.DataFrame) -> pd.DataFrame:
    """The bound of the first model of each pair of betas over n, at its mean risk and KL."""
    frames = []
    for _, model in points.drop_duplicates(["beta_w", "beta_z"]).iterrows():
        total = model["kl_per_pair"] * model["n"]
        for kl, kls in ((_PER_PAIR, model["kl_per_pair"] * _N), (_TOTAL, np.full_like(_N, total))):
            curve = {"panel": "n", "n": _N, "kl": kl, "kl_per_pair": kls / _N}
            curve["bound"] = mcallester_bound(model["empirical_risk"], kls, _N, model["delta"])
            same = ("variant", "label", "beta_w", "beta_z", "empirical_risk", "delta", "n_seeds")
            frames.append(pd.DataFrame(curve | {name: model[name] for name in same} | {"resampled": "nothing"}))
    return pd.concat(frames, ignore_index=True)


def _draw_betas(panel: Axes, points: pd.DataFrame) -> None:
    places, ticks = _places(points["beta_z"].to_numpy(dtype=float))
    look = style.look(0)
    if points["low"].notna().any():
        panel.vlines(places, points["low"], points["high"], color=look["color"], alpha=0.35, linewidth=1.1, zorder=2)
    panel.plot(places, points["bound"], "o", color=look["color"], label="bound", zorder=3)
    for name, (label, marker) in _RISKS.items():
        hollow = {"markerfacecolor": "white", "markeredgewidth": 0.7, "color": style.VERMILION, "markersize": 3.0}
        panel.plot(places, points[name], marker, label=label, zorder=3, **hollow)
    _draw_limits(panel, label=True)
    for index in _outliers(points):
        _name(panel, places[index], points.loc[index], left=places[index] > np.sqrt(min(places) * max(places)))
    panel.set_xscale("log")
    room = 2.5 * max(1.0, max(places) / max(ticks), min(ticks) / min(places))
    panel.set_xlim(min(ticks) / room, max(ticks) * room)
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.minorticks_off()
    panel.set_xlabel("weight of the KL of $z$, $\\beta_z$ (log scale)")
    panel.set_title("(a) each VRM, at its weight", loc="left")


def _outliers(points: pd.DataFrame) -> Iterator[int]:
    """Rows whose bound is further from the median of their beta's models than all the others are from each other."""
    for _, part in points.groupby("beta_z"):
        bounds = part["bound"]
        furthest = (bounds - bounds.median()).abs().idxmax()
        others = bounds.drop(furthest)
        if len(others) > 1 and abs(bounds[furthest] - bounds.median()) > np.ptp(others):
            yield furthest


def _name(panel: Axes, place: float, point: pd.Series, left: bool) -> None:
    panel.annotate(
        textwrap.fill(point["label"], 18),
        (place, point["bound"]),
        (-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=6.5,
    )


def _draw_sizes(panel: Axes, curves: pd.DataFrame, points: pd.DataFrame) -> None:
    for index, (name, part) in enumerate(curves.groupby("variant", sort=False)):
        look = style.look(index + 2)
        model = points[points["variant"] == name]
        for kl, curve in part.groupby("kl", sort=False):
            solid = kl == _PER_PAIR
            dashes = _TOTAL_DASHES[index % len(_TOTAL_DASHES)]
            keywords = {"linestyle": "-" if solid else (0, dashes), "linewidth": 1.3 if solid else 0.9}
            panel.plot(curve["n"], curve["bound"], color=look["color"], zorder=3, **keywords)
            # the marker where the model was measured, and in the legend, on the line of either kind
            label = _curve_label(curve["label"].iloc[0], kl)
            panel.plot(model["n"], model["bound"], label=label, zorder=4, **look | keywords)
    _draw_limits(panel)
    panel.set_xscale("log")
    panel.set_xlim(_N[0], _N[-1])
    panel.minorticks_off()
    panel.set_xlabel("training pairs, $n$ (log scale)")
    panel.set_title("(b) one model of each $\\beta$, were there $n$ pairs", loc="left")


def _risk_axis(panel: Axes, points: pd.DataFrame) -> None:
    """A logarithmic axis that holds every point; curves may leave it above."""
    risks = points[list(_RISKS)].to_numpy(dtype=float)
    low = max(0.01, 0.7 * min(0.5, risks[risks > 0].min(initial=0.5)))
    high = 1.3 * max(2.0, points["bound"].max(), points["high"].max() if points["high"].notna().any() else 0.0)
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_ylabel("risk (log scale)")


def _curve_label(label: str, kl: str) -> str:
    return f"{label}: {kl}"


def _draw_limits(panel: Axes, label: bool = False) -> None:
    for height, text, dashes in ((1.0, "1: says nothing", (4, 2)), (0.5, "1/2: guessing", (1, 1.5))):
        line = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, dashes), "zorder": 1}
        panel.axhline(height, **line, label=text if label else None)


def _places(betas: np.ndarray) -> tuple[list[float], dict[float, str]]:
    """Where each model stands on the logarithmic axis, equal betas side by side, and the axis's ticks.

    A beta of 0 stands a decade below the smallest other one.
    """
    positive = betas[betas > 0]
    zero = (positive.min() if len(positive) else 1.0) / 10
    shown = np.where(betas > 0, betas, zero)
    known = np.unique(shown)
    gap = np.diff(np.log10(known)).min() if len(known) > 1 else 1.0
    places = []
    for index, beta in enumerate(shown):
        same = int((shown == beta).sum())
        rank = int((shown[:index] == beta).sum())
        spread = min(0.6, 0.5 * gap) * (rank - (same - 1) / 2) / max(same - 1, 1)
        places.append(float(beta * 10**spread))
    return places, _ticks(known, zero)


def _ticks(known: np.ndarray, zero: float) -> dict[float, str]:
    """The betas whose labels do not touch."""
    span = max(np.log10(known[-1] / known[0]), 1.0)
    ticks: dict[float, str] = {}
    for beta in known:
        if not ticks or np.log10(beta / max(ticks)) > 0.12 * span:
            ticks[float(beta)] = "0" if beta == zero and zero not in ticks else f"{beta:g}"
    return ticks


def _statement(config: Config, points: pd.DataFrame) -> str:
    seeds = int(points["n_seeds"].max())
    bars = (
        f"Means of {seeds} seeds; bars: {100 * config.report.level:g} % Student's t interval over them."
        if seeds > 1
        else "One seed: no interval."
    )
    named = "; a name is of the one far from the others" if any(True for _ in _outliers(points)) else ""
    return (
        f"{bars} δ = {points['delta'].iloc[0]:g}. (a) Models of one β stand side by side{named}. (b) The first model "
        "of each pair of weights."
    )
