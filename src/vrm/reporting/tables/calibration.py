"""How far each reward model's preference probabilities can be trusted, and what two post hoc methods make of them.

* On sets that annotators labelled as they did the training pairs (in distribution), and on Chat Hard, where what
  usually goes with a good answer goes with a bad one: a model that is unsure there can leave pairs to somebody else.
* Every model states its own probability (`scores.csv`). Temperature scaling and seed ensembles are fitted on validation
  pairs, for the variants of `report.calibration`.
* Definitions are those of `vrm.evaluation.calibration`; pairs count alike, also in RewardBench's section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.evaluation.calibration import (
    ECE_BINS,
    calibration_metrics,
    ensemble_mean,
    ensemble_worst,
    fit_temperature,
    preference_probability,
    standardised,
)
from vrm.records import RecordError
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, number, over_seeds_and_prompts, write_table
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
from vrm.statistics.intervals import Interval, resampled_intervals

Floats = NDArray[np.float64]
AS_TRAINED, TEMPERATURE, MEAN, WORST = "as trained", "temperature", "mean of seeds", "worst of seeds"
SHIFTED = "Chat Hard"
"""RewardBench's section in which surface cues mislead."""


@dataclass(frozen=True)
class Shown:
    """A metric as the table shows it: its name, title, factor and digits."""

    name: str
    title: str
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
)


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
            cells = [interval_cell(found[shown.name], shown.scale, shown.digits) for shown in METRICS]
            rows.append(Row([_name(row), *cells], rule=first))
    pairs = next((row.q[column].shape[1] for row in stated if column in row.q), 0)
    where = "shifted" if column.section else "in distribution"
    return Grid(
        name="calibration" if place == 0 else f"calibration-{place}",
        caption=f"Preference probabilities on {column.title} ({where}, {pairs} pairs). Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(shown.title) for shown in METRICS)],
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
        "Probability that the chosen response wins: sigmoid of the reward's difference; of a Gaussian reward, with its "
        f"noise integrated out; of a VRM, {vrms}."
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
