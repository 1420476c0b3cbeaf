"""How far each reward model's preference probabilities can be trusted, as a table and as a figure.

* On sets that annotators labelled as they did the training pairs (in distribution), and on Chat Hard, where what
  usually goes with a good answer goes with a bad one: a model that is unsure there can leave pairs to somebody else.
* Every model states its own probability (`scores.csv`). Temperature scaling and seed ensembles are fitted on validation
  pairs, for the variants of `report.calibration`; the table has what these two post hoc methods make of it.
* Definitions are those of `vrm.evaluation.calibration`; pairs count alike, also in RewardBench's section.
* The figure has one model a column, in distribution and on Chat Hard in the same panel. Above: share of pairs won
  against the stated confidence, in bins of as many pairs each; on the diagonal a model is as right as it says. Below:
  accuracy on the surest pairs, against the share of pairs that is answered.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, ConfigError
from vrm.evaluation.calibration import (
    ECE_BINS,
    calibration_metrics,
    ensemble_mean,
    ensemble_worst,
    fit_temperature,
    preference_probability,
    selective_accuracy,
    standardised,
)
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.rendering import (
    Cell,
    Grid,
    Row,
    counted_seeds_and_prompts,
    interval_cell,
    number,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import (
    Column,
    Scorer,
    members,
    pair_scores,
    read_scores,
    read_validation,
    rewards,
    seeds_by_pair,
    table_columns,
)
from vrm.statistics.intervals import Interval, half_width, resampled_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Floats = NDArray[np.float64]
AS_TRAINED, TEMPERATURE, MEAN, WORST = "as trained", "temperature", "mean of seeds", "worst of seeds"
SHIFTED = "Chat Hard"
"""RewardBench's section in which surface cues mislead."""


@dataclass(frozen=True)
class Shown:
    """A metric as the table shows it: its name, title, factor and digits; without a title it is in the CSV alone."""

    name: str
    title: str = ""
    scale: float = 1.0
    digits: int = 3


METRICS = (
    Shown("nll", "NLL (nats)"),
    Shown("brier", "Brier"),
    Shown("ece", "ECE (points)", 100, 1),
    Shown("accuracy", "accuracy, all", 100, 1),
    Shown("accuracy_at_80", "the surest 80 %", 100, 1),
    Shown("accuracy_at_50", "the surest 50 %", 100, 1),
    Shown("aurc", "AURC (points)", 100, 1),
    Shown("ece_equal_mass"),
    Shown("excess_aurc"),
)
TITLED = tuple(shown for shown in METRICS if shown.title)


@dataclass(frozen=True)
class Stated:
    """The probabilities that one row states; S seeds, N pairs.

    Args:
        scorer: whose they are.
        method: one of the four above.
        q: P(chosen wins) by column, shape (S, N); (1, N) for an ensemble.
        prompts: of each pair by column, shape (N,).
        temperatures: one a seed, or one of an ensemble; none as trained.
    """

    scorer: Scorer
    method: str
    q: Mapping[Column, Floats]
    prompts: Mapping[Column, NDArray[np.str_]]
    temperatures: Sequence[float] = field(default_factory=tuple)


def calibration_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write calibration.{csv,md,tex,html}: a table a column, a row a reward model, then the post hoc rows.

    Args:
        config: names variants, seeds, sets, the level and the seed of the prompts that are drawn.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number.

    Raises:
        RecordError: no set is measured, or scores are missing, broken or without probabilities.
    """
    columns = calibration_columns(config)
    if not columns:
        raise RecordError("calibration: evaluation.run has no measured set; leave `calibration` out of report.tables")
    stated = list(state(config, results, rewards(config), columns))
    measured = {(i, column): _measure(config, row, column) for i, row in enumerate(stated) for column in columns}
    grids = [_grid(config, stated, measured, column, place) for place, column in enumerate(columns)]
    return write_table(out, grids, _tidy(stated, measured))


def calibration_columns(config: Config) -> list[Column]:
    """Columns of Table 2 that are labelled by annotators, and Chat Hard."""
    sets = config.evaluation.sets
    asked = [
        column
        for column in table_columns(config)
        if sets[column.evaluation_set].role == "measured" and column.section in ("", SHIFTED)
    ]
    return sorted(asked, key=lambda column: column.section)  # in distribution first


def state(config: Config, results: Path, models: Sequence[Scorer], columns: Sequence[Column]) -> Iterator[Stated]:
    """What each model states as it was trained, followed by what post hoc methods make of those that are asked for.

    Raises:
        RecordError: scores are missing or broken.
    """
    later: list[Stated] = []
    for scorer in models:
        scores, inside, prompts = read_scores(results, scorer), {}, {}
        if "probability" not in scores:
            raise RecordError(f"scores of {scorer.variant}: no column probability; score that model again")
        for column in columns:
            pairs = pair_scores(scores, column.evaluation_set, scorer.name)
            if (found := members(column, pairs)).any():
                inside[column], prompts[column] = found, pairs.prompts[found]
        yield Stated(scorer, AS_TRAINED, _by_column(scores, inside, "probability"), prompts)
        if scorer.variant in config.report.calibration:
            sides = [_by_column(scores, inside, f"reward_{side}") for side in ("chosen", "rejected")]
            later += _post_hoc(scorer, *sides, prompts, read_validation(results, scorer))
    yield from later


def _by_column(scores: pd.DataFrame, inside: Mapping[Column, NDArray[np.bool_]], name: str) -> dict[Column, Floats]:
    """What a file has in `name`, (S, N) for each column of the table."""
    return {column: seeds_by_pair(scores, column.evaluation_set, name)[:, pairs] for column, pairs in inside.items()}


def _post_hoc(
    scorer: Scorer,
    chosen: Mapping[Column, Floats],
    rejected: Mapping[Column, Floats],
    prompts: Mapping[Column, NDArray[np.str_]],
    validation: pd.DataFrame,
) -> Iterator[Stated]:
    """Temperature scaling of each seed, and of two ensembles of all seeds; nothing that can't be fitted."""
    table = validation.pivot(index="pair_id", columns="seed", values=["reward_chosen", "reward_rejected"])
    held_out = [table[f"reward_{side}"].to_numpy(dtype=float).T for side in ("chosen", "rejected")]  # (S, R) each
    reference = np.hstack(held_out)
    ways = {TEMPERATURE: None, MEAN: ensemble_mean, WORST: ensemble_worst}
    for method, combine in ways.items():
        if combine and len(reference) == 1:
            continue  # one seed is no ensemble
        try:
            temperatures = [fit_temperature(row) for row in _differences(*held_out, reference, combine)]
        except ValueError:  # every validation pair is won
            continue
        if not np.isfinite(temperatures).all():  # more is lost than won: every probability would be 1/2
            continue
        q = {}
        for column in chosen:
            rows = _differences(chosen[column], rejected[column], reference, combine)
            q[column] = np.stack([preference_probability(*row) for row in zip(rows, temperatures, strict=True)])
        yield Stated(scorer, method, q, prompts, temperatures)


def _differences(
    chosen: Floats, rejected: Floats, reference: Floats, combine: Callable[[Floats], Floats] | None
) -> Floats:
    """Of the rewards of S seeds, (S, N); combined into one model, (1, N)."""
    if combine is None:
        return chosen - rejected
    first, second = (combine(standardised(rewards, reference)) for rewards in (chosen, rejected))
    return (first - second)[None]


def _measure(config: Config, row: Stated, column: Column) -> dict[str, Interval]:
    """Every metric of one row in one column, in its own unit; nothing where the column has no pair."""
    if column not in row.q:
        return {}
    q = row.q[column]

    def metrics(places: NDArray[np.intp]) -> Floats:
        found = [
            calibration_metrics(of_seed[places]) | {"accuracy": float((of_seed[places] > 0.5).mean())} for of_seed in q
        ]
        return np.array([[metrics[shown.name] for shown in METRICS] for metrics in found])

    key = f"calibration/{row.scorer.name}/{row.method}/{column.evaluation_set}/{column.section}"
    rng = np.random.default_rng([config.report.seed, *key.encode()])
    found = resampled_intervals(metrics, row.prompts[column], config.report.level, rng)
    lasts = (np.inf if shown.name == "nll" else 1 for shown in METRICS)
    return {s.name: interval.within(0, last) for s, interval, last in zip(METRICS, found, lasts, strict=True)}


def _grid(
    config: Config,
    stated: Sequence[Stated],
    measured: Mapping[tuple[int, Column], dict[str, Interval]],
    column: Column,
    place: int,
) -> Grid:
    rows = []
    for i, row in enumerate(stated):
        if found := measured[i, column]:
            first = row.method != AS_TRAINED and stated[i - 1].method == AS_TRAINED
            cells = [interval_cell(found[shown.name], shown.scale, shown.digits) for shown in TITLED]
            rows.append(Row([_name(row), *cells], rule=first))
    pairs = next((row.q[column].shape[1] for row in stated if column in row.q), 0)
    where = "shifted" if column.section else "in distribution"
    return Grid(
        name="calibration" if place == 0 else f"calibration-{place}",
        caption=f"Preference probabilities on {column.title} ({where}, {pairs} pairs). Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(shown.title) for shown in TITLED)],
        rows=rows,
        notes=list(_notes(config, stated)) if place == 0 else ["Notes: as above."],
    )


def _name(row: Stated) -> Cell:
    if row.method == AS_TRAINED:
        return Cell(row.scorer.label)
    temperatures = sorted(row.temperatures)
    span = number(temperatures[0], 2)
    if len(temperatures) > 1:
        span += f" to {number(temperatures[-1], 2)}"
    return Cell(f"{row.scorer.label}: {row.method}", f"T = {span}")


def _notes(config: Config, stated: Sequence[Stated]) -> Iterator[str]:
    seeds, level = config.reward.seeds, f"{100 * config.report.level:g} %"
    draws = config.reward.posterior_samples
    vrms = f"a mean over {draws} draws of its posterior, w once for both responses" if draws else "at posterior means"
    yield (
        "Probability that the chosen response wins: sigmoid of the reward's difference; of a Gaussian reward, as it "
        "was trained, the normal distribution function of the difference over its deviation or the sigmoid with the "
        f"noise integrated out; of a VRM, {vrms}."
    )
    if draws:
        yield (
            "Those draws leave an error of the posterior's deviation over the root of their number: where all "
            "probabilities of a VRM are nearer to 1/2 than that, as after a collapse, which response it calls the "
            "likelier one is chance, and its accuracy here is not Table 2's, which takes posterior means."
        )
    yield (
        "Pairs count alike, also in RewardBench's section, whose subsets Table 2 weighs. The CSV has ECE in bins of as "
        "many pairs each and AURC less that of an oracle with the same errors as well."
    )
    yield (
        f"NLL and Brier: lower is better; always saying ½ has {np.log(2):.3f} and 0.250. ECE: {ECE_BINS} equal bins; "
        "never 0 on a finite set. AURC: share of errors among the surest pairs, a mean over how many are answered."
    )
    yield (
        f"In brackets: {level} intervals over {over_seeds_and_prompts(seeds)}; prompts are drawn anew for their part. "
        "An ensemble is one model of all seeds: over prompts."
    )
    asked = [row for row in stated if row.method != AS_TRAINED]
    if asked:
        yield (
            "temperature: sigmoid of the difference of mean rewards over T, which is fitted on the validation pairs. "
            "mean, worst of seeds: the mean or the least of rewards in standard deviations of the validation "
            "responses', then the same."
        )
    wanted = [name for name in config.report.calibration if name in config.reward.run]
    if missing := sorted(set(wanted) - {row.scorer.variant for row in asked}):
        yield (
            "No temperature could be fitted on the validation pairs, of which none is lost, or most: "
            f"{', '.join(missing)}."
        )


def _tidy(stated: Sequence[Stated], measured: Mapping[tuple[int, Column], dict[str, Interval]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": row.scorer.name,
            "label": row.scorer.label,
            "method": row.method,
            "evaluation_set": column.evaluation_set,
            "column": column.title,
            "metric": metric,
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "temperature": float(np.mean(row.temperatures)) if row.temperatures else np.nan,
            "n_pairs": row.q[column].shape[1],
            "n_prompts": len(set(row.prompts[column].tolist())),
            "n_seeds": len(row.q[column]),
            "resampled": interval.resampled,
        }
        for i, row in enumerate(stated)
        for column in row.q
        for metric, interval in measured[i, column].items()
    )


# The figure.

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
    for k in np.unique(place):
        inside = place == k
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
