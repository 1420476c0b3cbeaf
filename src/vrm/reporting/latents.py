"""The latents of each VRM: learned weights, their recovery of the truth, and the size of both KLs.

* A prompt counts once, however many pairs it has: w depends on the prompt alone.
* A collapsed posterior shows here: KLs near zero, no active unit, and a negative ELBO at its lower bound of log 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.evaluation.accuracy import SetMetric
from vrm.records import RecordError
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, write_table
from vrm.reporting.scores import (
    Scorer,
    evaluation_pairs,
    first_pairs,
    read_scores,
    read_training,
    reward_models,
    row_label,
    starts_group,
)
from vrm.runfiles import LEARNED_WEIGHT, TRUE_WEIGHT
from vrm.statistics.intervals import Interval, crossed_interval, student_interval


def weight_recovery(scores: pd.DataFrame) -> list[SetMetric]:
    """Learned against true weights over the prompts whose true weights are known.

    Args:
        scores: one row a pair with prompt_id, weight_<aspect> and true_weight_<aspect> (empty where unknown).

    Returns:
        Nothing where no true weights are known or the model has none; else
        weight_correlation/<aspect>: Pearson correlation over prompts, NaN where either side does not vary;
        weight_correlation/mean: their mean, NaN if one of them is;
        weight_mae: mean absolute error over prompts and objectives;
        weight_mae_constant: the same of the best that ignores the prompt and knows the mean true weights: the baseline.
    """
    aspects = _aspects(scores)
    if not aspects or any(TRUE_WEIGHT + aspect not in scores for aspect in aspects):
        return []
    true_columns = [TRUE_WEIGHT + aspect for aspect in aspects]
    known = scores.dropna(subset=true_columns).drop_duplicates("prompt_id")
    if known.empty:
        return []
    learned = known[[LEARNED_WEIGHT + aspect for aspect in aspects]].to_numpy(dtype=float)  # (N, K)
    true = known[true_columns].to_numpy(dtype=float)  # (N, K)
    correlations = [_pearson(learned[:, k], true[:, k]) for k in range(len(aspects))]
    n = len(known)
    return [
        *(SetMetric(f"weight_correlation/{a}", r, n) for a, r in zip(aspects, correlations, strict=True)),
        SetMetric("weight_correlation/mean", float(np.mean(correlations)), n),
        SetMetric("weight_mae", float(np.abs(learned - true).mean()), n),
        SetMetric("weight_mae_constant", float(np.abs(true - true.mean(axis=0)).mean()), n),
    ]


def _aspects(scores: pd.DataFrame) -> list[str]:
    """Aspects with a learned weight, in the order of the columns; rows of other models leave none."""
    return [column.removeprefix(LEARNED_WEIGHT) for column in scores if column.startswith(LEARNED_WEIGHT)]


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def weights_spread(scores: pd.DataFrame) -> float | None:
    """Standard deviation of E[w] over prompts, mean over the objectives; None for a model without weights.

    Args:
        scores: as `weight_recovery` takes them.
    """
    columns = [LEARNED_WEIGHT + aspect for aspect in _aspects(scores)]
    if not columns or scores[columns].isna().any(axis=None):
        return None
    return float(scores.drop_duplicates("prompt_id")[columns].std(ddof=0).mean())


# The table.


@dataclass(frozen=True)
class _Quantity:
    """A column of the table.

    Args:
        metric: its name in the files.
        title: what stands above it.
        digits: decimals for people.
        split: of the training log; "" for what is read from scores.
        possible: lowest and highest value; an interval ends there. The units of z end at their number, besides.
    """

    metric: str
    title: str
    digits: int
    split: str = ""
    possible: tuple[float, float] = (0.0, np.inf)


# The negative ELBO is read where latents are sampled: at posterior means the bound of log 2 does not hold.
_FROM_TRAINING = (
    _Quantity("kl_w", "KL of w (nats)", 3, "validation"),
    _Quantity("kl_z", "KL of z (nats)", 3, "validation"),
    _Quantity("active_units", "active units of z", 1, "validation"),
    _Quantity("negative_elbo", "negative ELBO (nats)", 3, "batch"),
)

_RECOVERY = (
    _Quantity("weight_correlation/mean", "correlation with true w", 2, possible=(-1.0, 1.0)),
    _Quantity("weight_mae", "absolute error of w", 3, possible=(0.0, 1.0)),
    _Quantity("weight_mae_constant", "the same, best constant w", 3, possible=(0.0, 1.0)),
)


def latents_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write latents.{csv,md,tex,html}: one row a VRM of `reward.run`.

    Args:
        config: names variants, aspects, seeds and the level; weights are read on the first set of `evaluation.run`.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number.

    Raises:
        RecordError: scores or training logs are missing, or lack the weights or a metric.
    """
    models = [model for model in reward_models(config) if config.reward.variants[model.name].kind == "variational"]
    if not models:
        raise RecordError("latents: reward.run names no variational variant; leave `latents` out of report.tables")
    measured = {model.name: dict(_measure(config, results, model)) for model in models}
    quantities = list(dict.fromkeys(quantity for row in measured.values() for quantity in row))
    rows = [
        Row(
            [Cell(model.label), *_cells(measured[model.name], quantities)],
            rule=starts_group(previous, model),
        )
        for model, previous in zip(models, [None, *models], strict=False)
    ]
    grid = Grid(
        name="latents",
        caption=f"The latents of each VRM at the end of training. Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(quantity.title) for quantity in quantities)],
        rows=rows,
        notes=list(_notes(config, results, quantities, [model.name for model in models])),
    )
    return write_table(out, [grid], _tidy(config, measured))


def _measure(config: Config, results: Path, model: Scorer) -> Iterator[tuple[_Quantity, Interval]]:
    scores = read_scores(results, model)
    scores = scores[scores["evaluation_set"] == config.evaluation.run[0]]
    yield from _learned_weights(config, scores, model.name)
    yield from _recovery(config, scores)
    yield from _end_of_training(config, read_training(results, model), model.name)


def _learned_weights(config: Config, scores: pd.DataFrame, name: str) -> Iterator[tuple[_Quantity, Interval]]:
    """Mean weight of each aspect; a prompt counts once, however many pairs it has."""
    for aspect in config.data.aspects:
        column = f"weight_{aspect}"
        if column not in scores or scores[column].isna().any():
            raise RecordError(f"scores of {name}: column {column} is missing or has gaps; score the variant again")
        table = scores.pivot_table(index="prompt_id", columns="seed", values=column, aggfunc="first")  # (N, S)
        quantity = _Quantity(column, f"w: {aspect.replace('_', ' ')}", 3, possible=(0.0, 1.0))
        interval = crossed_interval(table.to_numpy().T, table.index.to_numpy(), config.report.level)
        yield quantity, interval.within(*quantity.possible)


def _recovery(config: Config, scores: pd.DataFrame) -> Iterator[tuple[_Quantity, Interval]]:
    """Learned against true weights, one number a seed; nothing where the truth is unknown."""
    by_seed = [{m.metric: m.value for m in weight_recovery(part)} for _, part in scores.groupby("seed")]
    for quantity in _RECOVERY:
        if all(quantity.metric in metrics for metrics in by_seed):
            values = [metrics[quantity.metric] for metrics in by_seed]
            yield quantity, student_interval(values, config.report.level).within(*quantity.possible)


def _end_of_training(config: Config, log: pd.DataFrame, name: str) -> Iterator[tuple[_Quantity, Interval]]:
    """Last value of each seed."""
    for quantity in _FROM_TRAINING:
        part = log[(log["split"] == quantity.split) & (log["metric"] == quantity.metric)]
        last = part.sort_values("step").groupby("seed")["value"].last()
        if len(last) < len(config.reward.seeds):
            raise RecordError(f"training log of {name}: a seed lacks {quantity.metric} of split {quantity.split}")
        units = config.reward.variants[name].latent_dim
        possible = (0.0, units) if quantity.metric == "active_units" else quantity.possible
        yield quantity, student_interval(last, config.report.level).within(*possible)


def _cells(row: dict[_Quantity, Interval], quantities: list[_Quantity]) -> Iterator[Cell]:
    for quantity in quantities:
        yield interval_cell(row[quantity], digits=quantity.digits) if quantity in row else Cell("")


def _notes(config: Config, results: Path, quantities: list[_Quantity], names: list[str]) -> Iterator[str]:
    label = config.evaluation.sets[config.evaluation.run[0]].label
    level = f"{100 * config.report.level:g} %"
    seeds = len(config.reward.seeds)
    yield f"w: posterior mean weight, mean over the prompts of {label}; a prompt counts once."
    pairs = first_pairs(evaluation_pairs(config, results, names, ["validation"]))
    yield f"KLs and active units: {pairs} of the validation split, end of training; KL of z sums both responses."
    yield (
        "Negative ELBO: the strict one (unit KL weights) under sampled latents, last logging window of training; its "
        "expectation is never below log 2 = 0.693."
    )
    if any(quantity in quantities for quantity in _RECOVERY):
        yield "Correlation with the true w: Pearson over prompts, mean of the objectives; a dash where w does not vary."
    if seeds > 1:
        yield (
            f"In brackets: {level} intervals; w: over {seeds} seeds and prompts (variance components, Student's t); "
            f"all others: Student's t over {seeds} seeds, which leaves out the choice of pairs and prompts. None where "
            "all seeds have the same value."
        )
    else:
        yield f"In brackets: {level} intervals of w over prompts (Student's t); one seed, so all others have none."


def _tidy(config: Config, measured: dict[str, dict[_Quantity, Interval]]) -> pd.DataFrame:
    rows = [
        {
            "variant": name,
            "label": row_label(config.reward.variants[name]),
            "metric": quantity.metric,
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "resampled": interval.resampled,
            "n_seeds": len(config.reward.seeds),
        }
        for name, row in measured.items()
        for quantity, interval in row.items()
    ]
    return pd.DataFrame(rows)
