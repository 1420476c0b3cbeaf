"""Whether any reward model's training went wrong in a way that an accuracy does not show.

One row a model: the worst seed of each measure at the end of training, on validation pairs, and what it shows.
`vrm.training.watchdog` has the measures' bounds; a training's own log says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.evaluation.accuracy import length_correlation
from vrm.records import RecordError
from vrm.reporting.rendering import EMPTY, Cell, Grid, Row, number, write_table
from vrm.reporting.scores import Scorer, read_training, read_validation, reward_models, starts_group
from vrm.runfiles import LENGTHS
from vrm.training.watchdog import LENGTH_CORRELATION, SYMPTOMS, Symptom, symptoms

HEALTHY = "nothing found"
LOSS = "loss"


def health_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write health.{csv,md,tex,html}: a row a reward model of `reward.run`.

    Args:
        config: names variants and seeds.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a model, seed and measure.

    Raises:
        RecordError: logs or scores are missing or broken.
    """
    models = reward_models(config)
    measured = {model.name: _measure(results, model) for model in models}
    rows = [
        Row(_cells(model, measured[model.name]), rule=starts_group(previous, model))
        for model, previous in zip(models, [None, *models], strict=False)
    ]
    grid = Grid(
        name="health",
        caption=f"Health of every reward model, on validation pairs. Data: {config.data.label}.",
        header=[
            Cell("Reward model"),
            Cell("Found"),
            Cell("loss (nats)"),
            *(Cell(s.title, _bound(s)) for s in SYMPTOMS),
        ],
        rows=rows,
        notes=list(_notes(config)),
        text_columns=2,
    )
    return write_table(out, [grid], _tidy(models, measured))


def _measure(results: Path, model: Scorer) -> pd.DataFrame:
    """Every measure of every seed, NaN where a model does not have it; indexed by seed."""
    log, validation = read_training(results, model), read_validation(results, model)
    last = (
        log[log["split"] == "validation"]
        .sort_values("step", kind="stable")
        .groupby(["seed", "metric"])["value"]
        .last()
        .unstack()
    )
    if LOSS not in last or last[LOSS].isna().any():
        raise RecordError(f"training log of {model.name}: a seed lacks the loss of split validation; train it again")
    table = last.reindex(columns=[LOSS, *(symptom.measure for symptom in SYMPTOMS)])
    if set(LENGTHS) <= set(validation):
        of_seed = {seed: length_correlation(part) for seed, part in validation.groupby("seed")}
        table[LENGTH_CORRELATION] = pd.Series(of_seed)
    return table.astype(float)


def _cells(model: Scorer, measured: pd.DataFrame) -> list[Cell]:
    values = [Cell(_worst(symptom, measured[symptom.measure])) for symptom in SYMPTOMS]
    loss = Cell(number(measured[LOSS].max(), 3))
    return [Cell(model.label), Cell(verdict(measured)), loss, *values]


def verdict(measured: pd.DataFrame) -> str:
    """What shows, and in which seeds."""
    found: dict[str, list[str]] = {}
    for seed, row in measured.iterrows():
        for symptom in symptoms(row):
            found.setdefault(symptom.fault, []).append(str(seed))
    if not np.isfinite(measured[LOSS]).all():
        return "the loss is not finite"
    everywhere = len(measured)
    named = [fault + ("" if len(s) == everywhere else f" (seed {', '.join(s)})") for fault, s in found.items()]
    return "; ".join(named) or HEALTHY


def _worst(symptom: Symptom, values: pd.Series) -> str:
    if values.isna().all():
        return EMPTY
    correlated = symptom.measure == LENGTH_CORRELATION
    worst = values[values.abs().idxmax()] if correlated else values.min()
    return number(worst, 0 if symptom.measure == "active_units" else 2 if correlated else 3)


def _bound(symptom: Symptom) -> str:
    return f"{'size ≤' if symptom.measure == LENGTH_CORRELATION else '≥'} {symptom.bound:g}"


def _notes(config: Config) -> Iterator[str]:
    seeds = config.reward.seeds
    which = f"the worst of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    yield f"Each number: {which}, at the end of training. Below the titles: what is asked of it. A dash: no such part."
    yield (
        "Weights that are the same for every prompt, and collapsed posteriors, are what λ = 0 and the strict ELBO are "
        "expected to give: there they are a finding and no fault."
    )
    for symptom in SYMPTOMS:
        yield f"{symptom.title}: where it fails, {symptom.fault}; what usually helps: {symptom.remedy}."
    yield "A loss or a gradient that is not finite stops a training, which leaves its batch in stopped_batch.json."


def _tidy(models: Sequence[Scorer], measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": model.name,
            "label": model.label,
            "seed": seed,
            "measure": name,
            "value": value,
            "fault": "; ".join(s.fault for s in symptoms({name: value})),
        }
        for model in models
        for seed, row in measured[model.name].iterrows()
        for name, value in row.items()
    )
