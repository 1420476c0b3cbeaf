"""What each training did on held-out data, and whether any went wrong in a way that no accuracy or reward shows.

* `training_summary`: one table for SFT and the preference methods, one for PPO. A number is a mean over seeds with an
  interval over seeds and held-out items; a change is paired by item. A training moved as expected where the interval of
  its objective's change lies on the right side of zero.
* `health`: one row a training, the worst seed of each measure at its end, on held-out data, and what it shows: reward
  models, then SFT and the preference methods of each base, then PPO. `vrm.training.symptoms` has the measures and their
  bounds; a training's own log says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config, Method, PpoMethod
from vrm.evaluation.accuracy import length_correlation
from vrm.records import RecordError
from vrm.reporting.rendering import (
    EMPTY,
    Cell,
    Grid,
    Row,
    interval_cell,
    number,
    of_seeds,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import Scorer, read_training, read_validation, reward_models, row_label, starts_group
from vrm.runfiles import LENGTHS, SFT, HeldOutChange, PolicyRun, policy_run, read_held_out, read_ppo_samples
from vrm.statistics.intervals import Interval, crossed_interval
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

# What each policy training did.

FALLS, RISES = "falls", "rises"

_PREFERENCE = ("loss", "margin", "chosen_logratio", "rejected_logratio")

_PPO = ("reward", "kl", "entropy", "length")

_NEVER_NEGATIVE = ("kl", "entropy", "length")


@dataclass(frozen=True)
class Training:
    """One row of the table.

    Args:
        run: where its files are, and its seeds.
        base: label of the base.
        label: what the row is called.
        method: its entry in the configuration; None for supervised fine-tuning.
    """

    run: PolicyRun
    base: str
    label: str
    method: Method | None

    @property
    def is_ppo(self) -> bool:
        """Whether it was trained by PPO."""
        return isinstance(self.method, PpoMethod)

    @property
    def objective(self) -> str:
        """The metric that it optimises."""
        return "reward" if self.is_ppo else "loss"


@dataclass(frozen=True)
class Outcome:
    """One metric of one training.

    Args:
        start: mean before the training; NaN where it has no meaning there.
        end: mean after it.
        change: of the paired differences; NaN where `start` is.
        items: number of held-out items.
        expected: `falls` or `rises` for the training's own objective, "" for what is only watched.
    """

    start: float
    end: Interval
    change: Interval
    items: int
    expected: str = ""

    @property
    def verdict(self) -> str:
        """Whether the objective moved as expected: yes, no, or not distinguishable; "" for what is only watched."""
        if not self.expected:
            return ""
        down, up = self.change.high < 0, self.change.low > 0
        if not (down or up):
            return "not distinguishable"
        return "yes" if (down if self.expected == FALLS else up) else "no"


def trainings(config: Config) -> list[Training]:
    """Of each base: supervised fine-tuning, where it has that, then the methods of `policy.run`."""
    policy = config.policy
    found = []
    for base in policy.run_bases:
        label = policy.bases[base].label
        if policy.bases[base].sft:
            found.append(Training(policy_run(config, base, SFT), label, "SFT", None))
        for name in policy.run:
            method = policy.methods[name]
            found.append(Training(policy_run(config, base, name), label, row_label(method), method))
    return found


def outcomes(config: Config, results: Path, training: Training) -> dict[str, Outcome]:
    """By metric: those of `held_out.csv`, `accuracy` in points, and `gold` where there is a gold judge.

    Raises:
        RecordError: a file is missing or broken.
    """
    if training.is_ppo:
        changes = read_held_out(results, training.run, _PPO)
        if config.policy.gold:
            changes["gold"] = _gold(results, training.run)
    else:
        changes = read_held_out(results, training.run, ("loss",) if training.method is None else _PREFERENCE)
    found = {metric: _outcome(config, training, metric, change) for metric, change in changes.items()}
    if "margin" in changes:
        found["accuracy"] = _accuracy(config, training, changes["margin"])
    return found


def _outcome(config: Config, training: Training, metric: str, change: HeldOutChange) -> Outcome:
    expected = RISES if training.is_ppo else FALLS
    lowest = 0.0 if metric in _NEVER_NEGATIVE else -np.inf
    return Outcome(
        start=float(change.start.mean()),
        end=crossed_interval(change.end, change.prompts, config.report.level).within(lowest, np.inf),
        change=crossed_interval(change.end - change.start, change.prompts, config.report.level),
        items=len(change.prompts),
        expected=expected if metric == training.objective else "",
    )


def _accuracy(config: Config, training: Training, margin: HeldOutChange) -> Outcome:
    """Share of pairs with a positive margin, in points.

    At the start the implicit reward of a method with a reference is 0 for every response: there is no accuracy then.
    """
    right = HeldOutChange(100.0 * (margin.start > 0), 100.0 * (margin.end > 0), margin.prompts)
    outcome = _outcome(config, training, "accuracy", right)
    outcome = replace(outcome, end=outcome.end.within(0, 100))
    if not training.method.needs_reference:
        return outcome
    level = config.report.level
    return Outcome(np.nan, outcome.end, Interval(np.nan, np.nan, np.nan, level, "nothing (no start)"), outcome.items)


def _gold(results: Path, run: PolicyRun) -> HeldOutChange:
    """Gold reward of the answers at the first and the last step."""
    samples = read_ppo_samples(results, run, gold=True)
    ends = [samples[samples["step"] == step] for step in (samples["step"].min(), samples["step"].max())]
    start, end = (part.pivot(index="seed", columns="prompt_id", values="gold") for part in ends)
    return HeldOutChange(start.to_numpy(), end.to_numpy(), start.columns.to_numpy(dtype=str))


_LOSS_UNITS = {"ipo": "squared nats", "kto": "no unit"}

_DIGITS = {"loss": 3, "accuracy": 1, "margin": 2, "chosen_logratio": 1, "rejected_logratio": 1}

_DIGITS |= {"reward": 2, "gold": 2, "kl": 1, "entropy": 2, "length": 1}

_VERDICT = (
    "As expected: the interval of the change lies below 0 for a loss, above 0 for PPO's reward; it is not "
    "distinguishable from no change where it holds 0."
)

TrainingOutcomes = Sequence[tuple[Training, Mapping[str, Outcome]]]


def training_summary(config: Config, results: Path, out: Path) -> list[Path]:
    """Write training_summary.{csv,md,tex,html}: one row a training of `policy.run_bases`.

    Args:
        config: names bases, methods, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a training and metric.

    Raises:
        RecordError: nothing is trained, or a file is missing or broken.
    """
    measured = [(training, outcomes(config, results, training)) for training in trainings(config)]
    if not measured:
        raise RecordError("training_summary: no policy is trained; leave `training_summary` out of report.tables")
    offline = [row for row in measured if not row[0].is_ppo]
    ppo = [row for row in measured if row[0].is_ppo]
    grids = [*([_offline_grid(config, offline)] if offline else []), *([_ppo_grid(config, ppo)] if ppo else [])]
    grids[0] = replace(grids[0], name="training_summary")  # the first names the files
    return write_table(out, grids, _tidy(config, measured))


def _offline_grid(config: Config, measured: TrainingOutcomes) -> Grid:
    has_start = any(training.method and not training.method.needs_reference for training, _ in measured)
    header = [
        *(Cell("Base"), Cell("Method"), Cell("Loss", "unit")),
        *(Cell("Loss", "at start"), Cell("Loss", "at end"), Cell("Loss", "change")),
        *([Cell("Accuracy", "at start, %")] if has_start else []),
        *(Cell("Accuracy", "at end, %"), Cell("Margin", "at end")),
        *(Cell("Log ratio, chosen", "at end, nats"), Cell("Log ratio, rejected", "at end, nats")),
        Cell("As expected", "loss falls"),
    ]
    rows = [
        Row(
            [
                *(Cell(training.base), Cell(training.label), Cell(_loss_unit(training))),
                *_objective(training, found),
                *([Cell(_start(found, "accuracy"))] if has_start else []),
                *(_end(found, metric) for metric in ("accuracy", "margin", "chosen_logratio", "rejected_logratio")),
                Cell(found["loss"].verdict),
            ],
            rule=starts,
        )
        for (training, found), starts in _with_rules(measured)
    ]
    return Grid(
        name="training_summary",
        caption=f"What SFT and the preference methods did to held-out pairs. Data: {config.data.label}.",
        header=header,
        rows=rows,
        notes=list(_offline_notes(config, measured)),
        text_columns=3,
    )


def _ppo_grid(config: Config, measured: TrainingOutcomes) -> Grid:
    gold = [Cell("Gold reward", when) for when in ("at start", "at end", "change")] if config.policy.gold else []
    header = [
        *(Cell("Base"), Cell("Method"), Cell("Reward model")),
        *(Cell("Reward", "at start"), Cell("Reward", "at end"), Cell("Reward", "change"), *gold),
        Cell("KL from the start", "at end, nats a response"),
        *(Cell("Entropy", "nats a token"), Cell("Length", "tokens"), Cell("As expected", "reward rises")),
    ]
    rows = [
        Row(
            [
                *(Cell(training.base), Cell(training.label), Cell(_paid_by(config, training))),
                *_objective(training, found),
                *([Cell(_start(found, "gold")), _end(found, "gold"), _change(found, "gold")] if gold else []),
                _end(found, "kl"),
                *(_both(found, "entropy"), _both(found, "length")),
                Cell(found["reward"].verdict),
            ],
            rule=starts,
        )
        for (training, found), starts in _with_rules(measured)
    ]
    return Grid(
        name="training_summary_ppo",
        caption=f"What PPO did to answers to held-out prompts. Data: {config.data.label}.",
        header=header,
        rows=rows,
        notes=list(_ppo_notes(config, measured)),
        text_columns=3,
    )


def _with_rules(measured: TrainingOutcomes) -> Iterator[tuple[tuple[Training, Mapping[str, Outcome]], bool]]:
    """Each row, and whether it is the first of another base than the row above."""
    for row, previous in zip(measured, [None, *measured], strict=False):
        yield row, previous is not None and previous[0].run.base != row[0].run.base


def _objective(training: Training, found: Mapping[str, Outcome]) -> tuple[Cell, Cell, Cell]:
    """The training's own objective: at the start, at the end, its change."""
    metric = training.objective
    return (
        Cell(_start(found, metric)),
        Cell(number(found[metric].end.estimate, _DIGITS[metric])),
        _change(found, metric),
    )


def _start(found: Mapping[str, Outcome], metric: str) -> str:
    return number(found[metric].start, _DIGITS[metric]) if metric in found else ""


def _end(found: Mapping[str, Outcome], metric: str) -> Cell:
    return interval_cell(found[metric].end, digits=_DIGITS[metric]) if metric in found else Cell("")


def _change(found: Mapping[str, Outcome], metric: str) -> Cell:
    return interval_cell(found[metric].change, digits=_DIGITS[metric])


def _both(found: Mapping[str, Outcome], metric: str) -> Cell:
    """Start and end above the interval of the change."""
    ends = f"{_start(found, metric)} → {number(found[metric].end.estimate, _DIGITS[metric])}"
    return Cell(ends, _change(found, metric).below)


def _loss_unit(training: Training) -> str:
    return "nats a token" if training.method is None else _LOSS_UNITS.get(training.method.method, "nats a pair")


def _paid_by(config: Config, training: Training) -> str:
    return row_label(config.reward.model(training.method.reward))


def _offline_notes(config: Config, measured: TrainingOutcomes) -> Iterator[str]:
    methods = {training.method.method for training, _ in measured if training.method}
    yield _interval_note(config, measured, "loss", "validation pairs")
    yield _VERDICT
    if not methods:
        return
    yield (
        "Loss of a preference method: its own, not to be compared between methods. Margin: reward of the chosen less "
        "that of the rejected response, in the method's own reward; accuracy: share of pairs with a margin above 0."
    )
    if "simpo" in methods:
        yield (
            "SimPO's reward has no reference, so that it has an accuracy at the start; the others' is 0 for every "
            "response there."
        )
    if "wpo" in methods:
        yield "WPO's loss: without its weights."
    yield (
        "Log ratio: log π - log π_start, summed over the response. Below 0 for the chosen one: even chosen responses "
        "have become less likely."
    )


def _ppo_notes(config: Config, measured: TrainingOutcomes) -> Iterator[str]:
    yield _interval_note(config, measured, "reward", "validation prompts, one sampled answer each at start and end")
    yield _VERDICT
    yield (
        "Reward: of the reward model that PPO trains against, in its own unit, hence not to be compared between reward "
        "models. KL: log π - log π_start of the sampled answer. Brackets below start → end: the interval of the change."
    )
    if config.policy.gold:
        yield f"Gold reward: {config.policy.gold}, which no training sees; it is watched, not optimised."


def _interval_note(config: Config, measured: TrainingOutcomes, metric: str, items: str) -> str:
    counts = {found[metric].items for _, found in measured}
    count = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    seeds = config.policy.seeds
    level = f"{100 * config.report.level:g} %"
    over = f"in brackets the {level} interval over {over_seeds_and_prompts(seeds)}"
    return f"Data: {config.data.label}, {count} {items}. {of_seeds(seeds)}; {over}."


def _tidy(config: Config, measured: TrainingOutcomes) -> pd.DataFrame:
    rows = [
        {
            "base": training.run.base,
            "method": training.run.method,
            "label": training.label,
            "metric": metric,
            "start": outcome.start,
            "end": outcome.end.estimate,
            "end_low": outcome.end.low,
            "end_high": outcome.end.high,
            "change": outcome.change.estimate,
            "low": outcome.change.low,
            "high": outcome.change.high,
            "level": config.report.level,
            "n_items": outcome.items,
            "n_seeds": len(training.run.seeds),
            "expected": outcome.expected,
            "verdict": outcome.verdict,
            "resampled": outcome.change.resampled,
            "end_resampled": outcome.end.resampled,
        }
        for training, found in measured
        for metric, outcome in found.items()
    ]
    return pd.DataFrame(rows)


# The health of every training.

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
    rewards = [_reward_patient(results, *pair) for pair in _with_previous(reward_models(config))]
    policies = [_policy_patient(config, results, *pair) for pair in _with_previous(trainings(config))]
    limits = ppo_symptoms(config.policy.ppo.limits)
    offline = [patient for patient in policies if patient.known is OFFLINE_SYMPTOMS]
    ppo = [patient for patient in policies if patient.known is not OFFLINE_SYMPTOMS]
    grids = [
        _reward_grid(config, rewards),
        *([_policy_grid(config, offline, "SFT and every preference method", OFFLINE_SYMPTOMS)] if offline else []),
        *([_policy_grid(config, ppo, "every PPO run", limits)] if ppo else []),
    ]
    return write_table(out, _named(grids), _tidy_health([*rewards, *policies]))


def _with_previous(rows: list) -> Iterator[tuple]:
    return zip(rows, [None, *rows], strict=False)


def _named(grids: list[Grid]) -> list[Grid]:
    """The first names the files."""
    return [replace(grid, name="health" + (f"_{number}" if number else "")) for number, grid in enumerate(grids)]


def _reward_patient(results: Path, model: Scorer, previous: Scorer | None) -> Patient:
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


def _policy_patient(config: Config, results: Path, training: Training, previous: Training | None) -> Patient:
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


def _tidy_health(patients: Sequence[Patient]) -> pd.DataFrame:
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
