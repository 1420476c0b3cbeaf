"""Whether any training went wrong in a way that an accuracy or a reward does not show.

One row a training: the worst seed of each measure at its end, on held-out data, and what it shows: reward models, then
SFT and the preference methods of each base, then PPO. `vrm.training.symptoms` has the measures and their bounds; a
training's own log says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.evaluation.accuracy import length_correlation
from vrm.records import RecordError
from vrm.reporting.rendering import EMPTY, Cell, Grid, Row, number, write_table
from vrm.reporting.scores import Scorer, read_training, read_validation, reward_models, starts_group
from vrm.reporting.training_summary import Training, trainings
from vrm.runfiles import LENGTHS
from vrm.training.symptoms import (
    FEWEST_ANSWERS,
    LENGTH_CORRELATION,
    OFFLINE_SYMPTOMS,
    SYMPTOMS,
    Symptom,
    offline_measures,
    ppo_measures,
    ppo_symptoms,
    symptoms,
)

HEALTHY = "nothing found"
LOSS = "loss"


@dataclass(frozen=True)
class Patient:
    """One training and its measures.

    Args:
        name: of the variant or the method.
        label: what its row is called.
        known: what it may suffer from.
        measured: a row a seed (its index), a column a measure; NaN where a model does not have it.
        base: key of its base, "" for a reward model.
        base_label: what that is called.
        rule: whether its row starts a group.
    """

    name: str
    label: str
    known: Sequence[Symptom]
    measured: pd.DataFrame
    base: str = ""
    base_label: str = ""
    rule: bool = False


def health_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write health.{csv,md,tex,html}: a row a reward model of `reward.run` and a row a training of each base.

    Args:
        config: names variants, methods, bases and seeds.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a training, seed and measure.

    Raises:
        RecordError: logs, scores or answers are missing or broken.
    """
    rewards = [_reward_model(results, *pair) for pair in _with_previous(reward_models(config))]
    policies = [_policy(config, results, *pair) for pair in _with_previous(trainings(config))]
    limits = ppo_symptoms(config.policy.ppo.limits)
    offline = [patient for patient in policies if patient.known is OFFLINE_SYMPTOMS]
    ppo = [patient for patient in policies if patient.known is not OFFLINE_SYMPTOMS]
    grids = [
        _reward_grid(config, rewards),
        *([_policy_grid(config, offline, "SFT and every preference method", OFFLINE_SYMPTOMS)] if offline else []),
        *([_policy_grid(config, ppo, "every PPO run", limits)] if ppo else []),
    ]
    return write_table(out, _named(grids), _tidy([*rewards, *policies]))


def _with_previous(rows: list) -> Iterator[tuple]:
    return zip(rows, [None, *rows], strict=False)


def _named(grids: list[Grid]) -> list[Grid]:
    """The first names the files."""
    return [replace(grid, name="health" + (f"_{number}" if number else "")) for number, grid in enumerate(grids)]


def _reward_model(results: Path, model: Scorer, previous: Scorer | None) -> Patient:
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
    return Patient(model.name, model.label, SYMPTOMS, table.astype(float), rule=starts_group(previous, model))


def _policy(config: Config, results: Path, training: Training, previous: Training | None) -> Patient:
    run = training.run
    known = ppo_symptoms(config.policy.ppo.limits) if training.is_ppo else OFFLINE_SYMPTOMS
    read = ppo_measures if training.is_ppo else offline_measures
    table = pd.DataFrame({seed: read(run.folder(results, seed)) for seed in run.seeds}).T
    starts = previous is not None and previous.run.base != run.base
    return Patient(run.method, training.label, known, table.astype(float), run.base, training.base, starts)


def _reward_grid(config: Config, patients: Sequence[Patient]) -> Grid:
    loss = [Cell(number(patient.measured[LOSS].max(), 3)) for patient in patients]
    expected = (
        "Weights that are the same for every prompt, and collapsed posteriors, are what λ = 0 and the strict ELBO are "
        "expected to give: there they are a finding and no fault."
    )
    stopped = "A loss or a gradient that is not finite stops a training, which leaves its batch in stopped_batch.json."
    return Grid(
        name="health",
        caption=f"Health of every reward model, on validation pairs. Data: {config.data.label}.",
        header=[Cell("Reward model"), Cell("Found"), Cell("loss (nats)"), *_titles(SYMPTOMS)],
        rows=[
            Row([Cell(patient.label), Cell(verdict(patient)), cell, *_values(patient)], rule=patient.rule)
            for patient, cell in zip(patients, loss, strict=True)
        ],
        notes=[_seeds(config.reward.seeds), expected, *_faults(SYMPTOMS), stopped],
        text_columns=2,
    )


def _policy_grid(config: Config, patients: Sequence[Patient], which: str, known: Sequence[Symptom]) -> Grid:
    rows = [
        Row(
            [Cell(patient.base_label), Cell(patient.label), Cell(verdict(patient)), *_values(patient)],
            rule=patient.rule and place > 0,
        )
        for place, patient in enumerate(patients)
    ]
    if known is OFFLINE_SYMPTOMS:
        more = (
            "Changes: of the mean over validation pairs, from before the training to after it; low and high end are "
            "two standard errors off, so that chance alone is no fault. Chosen responses that become less likely are "
            "common with DPO and its relatives, and a fault only where answers suffer."
        )
    else:
        more = (
            "The highest KL is that of any update; the others are of the last answers to held-out prompts (no "
            f"correlation over fewer than {FEWEST_ANSWERS}). Bounds of KL, end and entropy: policy.ppo.limits, beyond "
            "which a run stops if it stays there."
        )
    return Grid(
        name="health",
        caption=f"Health of {which}, on held-out data. Data: {config.data.label}.",
        header=[Cell("Base"), Cell("Method"), Cell("Found"), *_titles(known)],
        rows=rows,
        notes=[_seeds(config.policy.seeds), more, *_faults(known)],
        text_columns=3,
    )


def verdict(patient: Patient) -> str:
    """What shows, and in which seeds."""
    measured = patient.measured
    if LOSS in measured and not np.isfinite(measured[LOSS]).all():
        return "the loss is not finite"
    found: dict[str, list[str]] = {}
    for seed, row in measured.iterrows():
        for symptom in symptoms(row, patient.known):
            found.setdefault(symptom.fault, []).append(str(seed))
    everywhere = len(measured)
    named = [fault + ("" if len(s) == everywhere else f" (seed {', '.join(s)})") for fault, s in found.items()]
    return "; ".join(named) or HEALTHY


def _values(patient: Patient) -> list[Cell]:
    worst = [(symptom, symptom.worst(patient.measured[symptom.measure])) for symptom in patient.known]
    return [Cell(number(value, symptom.digits)) for symptom, value in worst]


BOUNDS = {"below": "≥", "above": "≤", "beyond": "size ≤"}


def _titles(known: Sequence[Symptom]) -> list[Cell]:
    return [Cell(symptom.title, f"{BOUNDS[symptom.bad]} {symptom.bound:g}") for symptom in known]


def _seeds(seeds: Sequence[int]) -> str:
    which = f"the worst of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return (
        f"Each number: {which}, at the end of training. Below the titles: what is asked of it. A dash ({EMPTY}): no "
        "such part."
    )


def _faults(known: Sequence[Symptom]) -> Iterator[str]:
    for symptom in known:
        yield f"{symptom.title}: where it fails, {symptom.fault}; what usually helps: {symptom.remedy}."


def _tidy(patients: Sequence[Patient]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "base": patient.base,
            "variant": patient.name,
            "label": patient.label,
            "seed": seed,
            "measure": name,
            "value": value,
            "fault": "; ".join(symptom.fault for symptom in symptoms({name: value}, patient.known)),
        }
        for patient in patients
        for seed, row in patient.measured.iterrows()
        for name, value in row.items()
    )
