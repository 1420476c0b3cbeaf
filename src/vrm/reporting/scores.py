"""Who scores pairs, their scores with all seeds side by side, and their accuracy in every column of Table 2.

* A scorer is a row of Table 2: a reward model, or a policy whose own reward is read as one. Whatever reads scores takes
  a scorer and asks no further.
* An accuracy is a mean over seeds with an interval over seeds and prompts (`vrm.statistics.intervals`).
* RewardBench's sections weigh their subsets as upstream does; prompts then vary within subsets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, PpoMethod, PreferenceMethod, Variant
from vrm.data.reward_bench import SECTIONS
from vrm.evaluation.accuracy import missing_subsets
from vrm.records import RecordError
from vrm.runfiles import SCORES, TRAINING, RunTable
from vrm.statistics.intervals import Interval, crossed_interval


@dataclass(frozen=True)
class PairScores:
    """One scorer's scores on one evaluation set; S seeds, N pairs.

    Args:
        wins: 1.0 where the chosen response scores strictly higher (a tie is a loss), shape (S, N).
        ties: True where both rewards are equal, shape (S, N).
        prompts: prompt id of each pair, shape (N,).
        subsets: subset of each pair, "" where there is none, shape (N,).
        leaked: True where the prompt also occurs in training, shape (N,).
        truncated: True where a text was cut before scoring, shape (N,).
    """

    wins: NDArray[np.float64]
    ties: NDArray[np.bool_]
    prompts: NDArray[np.str_]
    subsets: NDArray[np.str_]
    leaked: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    def select(self, inside: NDArray[np.bool_]) -> PairScores:
        """The pairs where `inside`, shape (N,), is True."""
        return PairScores(
            self.wins[:, inside],
            self.ties[:, inside],
            self.prompts[inside],
            self.subsets[inside],
            self.leaked[inside],
            self.truncated[inside],
        )


@dataclass(frozen=True)
class Scorer:
    """Something that scores pairs, trained once a seed.

    Args:
        name: its key in the configuration; no policy has the name of a reward model.
        label: what its row is called.
        ours: not in the paper.
        folder: its directory in the run's, which holds `seed<seed>/scores.csv`.
        seeds: the seeds it was trained with.
        group: `policy`, `reward model` or `ours` (a reward model that the paper does not have).
    """

    name: str
    label: str
    ours: bool
    folder: str
    seeds: Sequence[int]
    group: str

    def file(self, results: Path, seed: int, name: str) -> Path:
        """One of its files."""
        return Path(results) / self.folder / f"seed{seed}" / name


def scorers(config: Config) -> list[Scorer]:
    """The rows of Table 2: the policies of `policy.scorers_from`, the paper's reward models, then ours."""
    return [*policy_scorers(config), *reward_models(config)]


def reward_models(config: Config) -> list[Scorer]:
    """The variants of `reward.run` in the order of table rows: the paper's, then ours."""
    found = [reward_model(config, name) for name in config.reward.run]
    return sorted(found, key=lambda scorer: scorer.ours)


def reward_model(config: Config, name: str) -> Scorer:
    """One of the variants."""
    variant = config.reward.variants[name]
    group = "ours" if variant.ours else "reward model"
    return Scorer(name, row_label(variant), variant.ours, f"reward/{name}", config.reward.seeds, group)


def policy_scorers(config: Config) -> list[Scorer]:
    """The preference-trained policies of `policy.scorers_from`, in the order of `policy.run`; none without a base."""
    base, methods = config.policy.scorers_from, config.policy.methods
    names = config.policy.preference_run if base else []
    return [
        Scorer(
            name, row_label(methods[name]), methods[name].ours, f"policy/{base}/{name}", config.policy.seeds, "policy"
        )
        for name in names
    ]


def row_label(entry: Variant | PreferenceMethod | PpoMethod) -> str:
    """The label of a variant or a method; what the paper does not have is marked as ours."""
    marked = not entry.ours or "(ours)" in entry.label
    return entry.label if marked else f"{entry.label} (ours)"


def starts_group(previous: Scorer | None, scorer: Scorer) -> bool:
    """Whether a row starts another group than that of the row above."""
    return previous is not None and previous.group != scorer.group


def read_training(results: Path, scorer: Scorer) -> pd.DataFrame:
    """The training logs of one scorer, one below the other, with a column `seed`.

    Raises:
        RecordError: a log is missing or lacks a column.
    """
    return _read_seeds(results, scorer, TRAINING)


def read_scores(results: Path, scorer: Scorer) -> pd.DataFrame:
    """The pair scores of one scorer on every evaluation set, with a column `seed`.

    Raises:
        RecordError: a file is missing, lacks a column, or holds a reward that is not a finite number.
    """
    frame = _read_seeds(results, scorer, SCORES)
    finite = np.isfinite(frame[["reward_chosen", "reward_rejected"]]).all(axis=1)
    if not finite.all():
        bad = frame[~finite].iloc[0]
        raise RecordError(
            f"{scorer.file(results, bad['seed'], SCORES.name)}: the reward of pair {bad['pair_id']} of "
            f"{bad['evaluation_set']} is not a finite number; the training diverged, lower its learning rate"
        )
    return frame


def pair_scores(scores: pd.DataFrame, evaluation_set: str, source: str) -> PairScores:
    """Line the seeds of one evaluation set up by pair.

    Args:
        scores: what `read_scores` returned.
        evaluation_set: name of the set.
        source: what to call the scores in an error, e.g. the scorer's name.

    Raises:
        RecordError: the set was not scored, or the seeds scored different pairs.
    """
    frame = scores[scores["evaluation_set"] == evaluation_set]
    if frame.empty:
        raise RecordError(f"scores of {source}: no pair of evaluation set {evaluation_set}; score it again")
    frame = frame.assign(margin=frame["reward_chosen"] - frame["reward_rejected"])
    if frame.duplicated(["pair_id", "seed"]).any():
        raise RecordError(f"scores of {source}, set {evaluation_set}: a pair id occurs twice; pair ids must be unique")
    margins = frame.pivot(index="pair_id", columns="seed", values="margin")  # (N, S)
    if margins.shape[1] < scores["seed"].nunique() or margins.isna().any(axis=None):
        raise RecordError(f"scores of {source}, set {evaluation_set}: seeds scored different pairs; score them again")
    pairs = frame.drop_duplicates("pair_id").set_index("pair_id").loc[margins.index]
    margin = margins.to_numpy().T  # (S, N)
    return PairScores(
        wins=(margin > 0).astype(np.float64),
        ties=margin == 0,
        prompts=pairs["prompt_id"].to_numpy(dtype=str),
        subsets=pairs["subset"].to_numpy(dtype=str),
        leaked=pairs["leaked"].to_numpy(dtype=bool),
        truncated=pairs["truncated"].to_numpy(dtype=bool),
    )


def _read_seeds(results: Path, scorer: Scorer, kind: RunTable) -> pd.DataFrame:
    frames = [kind.read(scorer.file(results, seed, kind.name)).assign(seed=seed) for seed in scorer.seeds]
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Column:
    """One number a scorer.

    Args:
        evaluation_set: name of the set in the configuration.
        title: what stands above the column.
        paper: the column's name in the paper's table, whether the paper has it or not.
        section: RewardBench's section; "" for the accuracy over all pairs.
    """

    evaluation_set: str
    title: str
    paper: str
    section: str = ""


@dataclass(frozen=True)
class CellAccuracy:
    """One scorer in one column.

    Args:
        interval: accuracy in 0..1.
        pairs: number of pairs behind it.
        prompts: number of different prompts.
        without_leaked: the same over the pairs whose prompt is not in training; None where there are none, and for
            itself.
    """

    interval: Interval
    pairs: int
    prompts: int
    without_leaked: CellAccuracy | None = None


@dataclass(frozen=True)
class AccuracyTable:
    """Everything that Table 2 shows.

    Args:
        scorers: from top to bottom.
        columns: from left to right.
        cells: by (scorer's name, column); a section of which no subset is present has none.
        sets: scores by (scorer's name, evaluation set), for the counts below the table.
    """

    scorers: Sequence[Scorer]
    columns: Sequence[Column]
    cells: dict[tuple[str, Column], CellAccuracy]
    sets: dict[tuple[str, str], PairScores]


def measure_accuracies(config: Config, results: Path) -> AccuracyTable:
    """Measure every scorer on every set of `evaluation.run` but the probes.

    Raises:
        RecordError: scores are missing or broken, scorers scored different pairs, or a RewardBench set has a subset
            that RewardBench does not have.
    """
    columns, rows = table_columns(config), scorers(config)
    cells: dict[tuple[str, Column], CellAccuracy] = {}
    sets: dict[tuple[str, str], PairScores] = {}
    for scorer in rows:
        scores = read_scores(results, scorer)
        for set_name in dict.fromkeys(column.evaluation_set for column in columns):
            sets[scorer.name, set_name] = pair_scores(scores, set_name, scorer.name)
            _check(config, set_name, rows[0].name, scorer.name, sets)
        for column in columns:
            inside = members(column, sets[scorer.name, column.evaluation_set])
            if inside.any():
                pairs = sets[scorer.name, column.evaluation_set].select(inside)
                cells[scorer.name, column] = _measure_cell(config, column, pairs)
    return AccuracyTable(rows, columns, cells, sets)


def table_columns(config: Config) -> list[Column]:
    """The four sections for a set in RewardBench's format, one accuracy for every other."""
    shown = [name for name in config.evaluation.run if name != config.evaluation.probes]
    benches = [name for name in shown if config.evaluation.sets[name].format == "reward_bench"]
    columns = []
    for name in shown:
        label = config.evaluation.sets[name].label
        if name not in benches:
            columns.append(Column(name, label, slug(name)))
            continue
        for section in SECTIONS:
            title = section if len(benches) == 1 else f"{label}: {section}"
            columns.append(Column(name, title, f"rewardbench_{slug(section)}", section))
    return columns


def slug(text: str) -> str:
    """Lower case, with underscores for everything that is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def members(column: Column, scores: PairScores) -> NDArray[np.bool_]:
    """Which pairs stand in a column: those of RewardBench's section, or all; shape (N,)."""
    if not column.section:
        return np.ones(len(scores.prompts), dtype=bool)
    return np.isin(scores.subsets, list(SECTIONS[column.section]))


def _measure_cell(config: Config, column: Column, scores: PairScores) -> CellAccuracy:
    clean = scores.select(~scores.leaked)
    whole = _measure_pairs(config, column, scores)
    return replace(whole, without_leaked=_measure_pairs(config, column, clean) if len(clean.prompts) else None)


def _measure_pairs(config: Config, column: Column, scores: PairScores) -> CellAccuracy:
    weights = SECTIONS.get(column.section)
    strata = scores.subsets if weights else None
    interval = crossed_interval(scores.wins, scores.prompts, config.report.level, strata, weights)
    return CellAccuracy(interval.within(0, 1), len(scores.prompts), len(set(scores.prompts.tolist())))


def _check(config: Config, set_name: str, first: str, name: str, sets: dict[tuple[str, str], PairScores]) -> None:
    scores = sets[name, set_name]
    if not np.array_equal(scores.prompts, sets[first, set_name].prompts):
        raise RecordError(
            f"evaluation set {set_name}: {first} and {name} scored different pairs; score them again on the same files"
        )
    if config.evaluation.sets[set_name].format == "reward_bench":
        try:
            missing_subsets(set(scores.subsets.tolist()))
        except ValueError as error:
            raise RecordError(f"evaluation set {set_name}: {error}; other subsets need format: pairs") from None
