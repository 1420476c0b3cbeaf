"""Who scores pairs, their scores with all seeds side by side, and their accuracy in every column of Table 2.

* A scorer is a row of Table 2: a reward model, the rated-aspect reward of one, a policy whose own reward is read as
  one, a reward model that others have trained, or no model but length alone. Whatever reads scores takes a scorer and
  asks no further.
* An accuracy is a mean over seeds with an interval over seeds and prompts (`vrm.statistics.intervals`).
* RewardBench's sections weigh their subsets as upstream does; prompts then vary within subsets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, OutsideModel, PpoMethod, PreferenceMethod, Variant
from vrm.data.preference_sets import SECTIONS
from vrm.evaluation.accuracy import missing_subsets
from vrm.records import RecordError, read_jsonl
from vrm.runfiles import LENGTHS, REFUSED_PAIRS, SCORES, TRAINING, VALIDATION_SCORES, RunTable
from vrm.statistics.intervals import Interval, crossed_interval

RATED = ":rated"
"""Behind a variant's name: its rated-aspect reward alone, without the residual."""
NO_MODEL = "no model"
"""Group of length alone."""
OUTSIDE = "outside model"
"""Group of reward models that others have trained, and what follows their labels."""


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
    """Something that scores pairs, trained once a seed; what was not trained here has a seed that stands for none.

    Args:
        name: its key in the configuration, with `RATED` behind it for that part of its reward alone; no policy has the
            name of a reward model.
        label: what its row is called.
        ours: not in the paper.
        folder: its directory in the run's, which holds `seed<seed>/scores.csv`.
        seeds: the seeds it was trained with.
        group: `policy`, `reward model`, `ours` (a reward model that the paper does not have), `OUTSIDE` or `NO_MODEL`.
    """

    name: str
    label: str
    ours: bool
    folder: str
    seeds: Sequence[int]
    group: str

    @property
    def variant(self) -> str:
        """Its key in the configuration."""
        return self.name.removesuffix(RATED)

    @property
    def is_rated(self) -> bool:
        """Whether it is a rated-aspect reward alone."""
        return self.name.endswith(RATED)

    @property
    def is_trained(self) -> bool:
        """Whether a training of this run made it."""
        return self.group not in (OUTSIDE, NO_MODEL)

    def file(self, results: Path, seed: int, name: str) -> Path:
        """One of its files; those of an outside model, which has no seeds, lie in its directory itself."""
        folder = Path(results) / self.folder
        return (folder if self.group == OUTSIDE else folder / f"seed{seed}") / name


def scorers(config: Config) -> list[Scorer]:
    """The rows of Table 2: the policies of `policy.scorers_from`, the paper's reward models, ours, outside ones."""
    return [*policy_scorers(config), *rewards(config), *outside_models(config)]


def reward_models(config: Config) -> list[Scorer]:
    """The variants of `reward.run` in the order of table rows: the paper's, then ours."""
    found = [reward_model(config, name) for name in config.reward.run]
    return sorted(found, key=lambda scorer: scorer.ours)


def rewards(config: Config) -> list[Scorer]:
    """The same, and below each model with a residual its rated-aspect reward as a row of its own."""
    rows = []
    for model in reward_models(config):
        rows.append(model)
        if config.reward.variants[model.name].residual:
            rows.append(reward_model(config, model.name + RATED))
    return rows


def reward_model(config: Config, name: str) -> Scorer:
    """One of the variants, or with `RATED` its rated-aspect reward."""
    key = name.removesuffix(RATED)
    variant = config.reward.variants[key]
    group = "ours" if variant.ours else "reward model"
    label = row_label(variant) + (", rated" if key != name else "")
    return Scorer(name, label, variant.ours, f"reward/{key}", config.reward.seeds, group)


def outside_models(config: Config) -> list[Scorer]:
    """The models of `reward.run_outside`, in its order."""
    known = config.reward.outside
    return [
        Scorer(name, row_label(known[name]), False, f"outside/{name}", [0], OUTSIDE)
        for name in config.reward.run_outside
    ]


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


def row_label(entry: Variant | OutsideModel | PreferenceMethod | PpoMethod) -> str:
    """The label of a model or a method; what the paper does not have is marked as ours, or as outside."""
    if isinstance(entry, OutsideModel):
        return f"{entry.label} ({OUTSIDE})"
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


Refused = dict[str, set[str]]
"""Ids of pairs that a chat template refuses, by evaluation set."""


def refused_pairs(results: Path, scorers: Sequence[Scorer]) -> Refused:
    """What some of the scorers could not score, so that all of them can be compared on the same pairs.

    A scorer that refuses a set as a whole has no place in that set's columns, and takes nothing from the others.
    """
    found: Refused = {}
    for scorer in scorers:
        own = _own_refused(results, scorer)
        scored = set(_read_seeds(results, scorer, SCORES)["evaluation_set"]) if own else set()
        for name in own.keys() & scored:
            found[name] = found.get(name, set()) | own[name]
    return found


def _own_refused(results: Path, scorer: Scorer) -> Refused:
    files = [scorer.file(results, seed, REFUSED_PAIRS) for seed in scorer.seeds]
    found: Refused = {}
    for row in (row for path in files if path.is_file() for _, row in read_jsonl(path)):
        found.setdefault(row["evaluation_set"], set()).add(row["pair_id"])
    return found


def without_refused(frame: pd.DataFrame, refused: Mapping[str, set[str]] | None) -> pd.DataFrame:
    """Rows of pairs that are not refused, from a table with `evaluation_set` and `pair_id`."""
    if not refused:
        return frame
    keys = zip(frame["evaluation_set"], frame["pair_id"], strict=True)
    return frame[[identity not in refused.get(name, ()) for name, identity in keys]].reset_index(drop=True)


def read_scores(results: Path, scorer: Scorer, without: Mapping[str, set[str]] | None = None) -> pd.DataFrame:
    """The pair scores of one scorer on every evaluation set, with a column `seed`.

    Args:
        results: the run's directory.
        scorer: whose scores.
        without: pairs to leave out, see `refused_pairs`.

    Returns:
        `attrs["refused"]`: the sets of which the scorer refused pairs.

    Raises:
        RecordError: a file is missing, lacks a column, or holds a reward that is not a finite number.
    """
    frame = without_refused(_of_part(_read_seeds(results, scorer, SCORES), scorer), without)
    frame.attrs["refused"] = sorted(_own_refused(results, scorer))
    finite = np.isfinite(frame[["reward_chosen", "reward_rejected"]]).all(axis=1)
    if not finite.all():
        bad = frame[~finite].iloc[0]
        raise RecordError(
            f"{scorer.file(results, bad['seed'], SCORES.name)}: the reward of pair {bad['pair_id']} of "
            f"{bad['evaluation_set']} is not a finite number; the training diverged, lower its learning rate"
        )
    return frame


def read_validation(results: Path, scorer: Scorer) -> pd.DataFrame:
    """The same of the validation pairs, with a column `seed`.

    Raises:
        RecordError: a file is missing or lacks a column.
    """
    return _of_part(_read_seeds(results, scorer, VALIDATION_SCORES), scorer)


def length_alone(config: Config, results: Path) -> tuple[Scorer, pd.DataFrame]:
    """No model: the longer response, or the shorter one where that is right more often on the validation pairs.

    Returns:
        A scorer, and its scores as `read_scores` returns them: lengths in characters, signed.

    Raises:
        RecordError: scores are missing, or have no lengths.
    """
    model = reward_models(config)[0]
    scores, validation = read_scores(results, model), read_validation(results, model)
    for frame in (scores, validation):
        if not set(LENGTHS) <= set(frame):
            raise RecordError(f"scores of {model.name}: the responses' lengths are missing; score that model again")
    longer = validation["length_chosen"] - validation["length_rejected"]
    sign, word = (1, "longer") if (longer > 0).mean() >= (longer < 0).mean() else (-1, "shorter")
    seed = model.seeds[0]
    scores = scores[scores["seed"] == seed]
    scores = scores.assign(**{f"reward_{side}": sign * scores[f"length_{side}"] for side in ("chosen", "rejected")})
    return Scorer("length alone", f"Length alone ({word})", False, model.folder, [seed], NO_MODEL), scores


def _of_part(scores: pd.DataFrame, scorer: Scorer) -> pd.DataFrame:
    """With the rated-aspect reward and its probability in the place of the whole one's, where the scorer is that."""
    if not scorer.is_rated:
        return scores
    parts = {"reward_chosen": "rated_chosen", "reward_rejected": "rated_rejected", "probability": "rated_probability"}
    if lacking := [name for name in parts.values() if name not in scores]:
        raise RecordError(f"scores of {scorer.variant}: {', '.join(lacking)} missing; score that model again")
    return scores.assign(**{name: scores[part] for name, part in parts.items()})


def evaluation_pairs(
    config: Config, results: Path, names: Iterable[str], splits: Sequence[str] = ("train", "validation")
) -> list[int]:
    """The numbers of pairs that trainings were measured on, ascending: `evaluation_pairs`, or all that a split has.

    Args:
        config: names seeds and `reward.training.evaluation_pairs`.
        results: the run's directory; the `counts.json` of each training says how many pairs a split has.
        names: variants.
        splits: splits.

    Raises:
        RecordError: counts are missing or broken.
    """
    wanted, found = config.reward.training.evaluation_pairs, set()
    for model in (reward_model(config, name) for name in names):
        for path in (model.file(results, seed, "counts.json") for seed in model.seeds):
            found |= {min(wanted, pairs) for pairs in _pairs(path, splits)}
    return sorted(found)


def first_pairs(counts: Sequence[int]) -> str:
    """In words: "the first 120 pairs"."""
    return f"the first {counts[0]} pairs" if len(counts) == 1 else f"the first {counts[0]} to {counts[-1]} pairs"


def _pairs(path: Path, splits: Sequence[str]) -> list[int]:
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        return [int(counts[split]["pairs"]) for split in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no counts of pairs ({type(error).__name__})"
        raise RecordError(f"{path}: {what}; train that reward model again") from None


def pair_scores(scores: pd.DataFrame, evaluation_set: str, source: str) -> PairScores:
    """Line the seeds of one evaluation set up by pair.

    Args:
        scores: what `read_scores` returned.
        evaluation_set: name of the set.
        source: what to call the scores in an error, e.g. the scorer's name.

    Returns:
        Without any pair where the scorer's chat template refused them all.

    Raises:
        RecordError: the set was not scored, or the seeds scored different pairs.
    """
    frame = scores[scores["evaluation_set"] == evaluation_set]
    if frame.empty and evaluation_set not in scores.attrs.get("refused", ()):
        raise RecordError(f"scores of {source}: no pair of evaluation set {evaluation_set}; score it again")
    frame = frame.assign(margin=frame["reward_chosen"] - frame["reward_rejected"])
    if frame.duplicated(["pair_id", "seed"]).any():
        raise RecordError(f"scores of {source}, set {evaluation_set}: a pair id occurs twice; pair ids must be unique")
    margins = frame.pivot(index="pair_id", columns="seed", values="margin")  # (N, S)
    if frame.empty:
        margins = margins.reindex(columns=sorted(scores["seed"].unique()))
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


def seeds_by_pair(scores: pd.DataFrame, evaluation_set: str, name: str) -> NDArray[np.float64]:
    """A column of what `read_scores` returned, shape (S, N), in the order of `pair_scores`."""
    frame = scores[scores["evaluation_set"] == evaluation_set]
    return frame.pivot(index="pair_id", columns="seed", values=name).to_numpy(dtype=np.float64).T


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
        refused: pairs that are left out, as some scorer's chat template refuses them.
    """

    scorers: Sequence[Scorer]
    columns: Sequence[Column]
    cells: dict[tuple[str, Column], CellAccuracy]
    sets: dict[tuple[str, str], PairScores]
    refused: Refused = field(default_factory=dict)

    def pairs_of(self, evaluation_set: str) -> PairScores:
        """A set as the scorers know it that scored any of it."""
        return self.sets[_first(self.scorers, self.sets, evaluation_set), evaluation_set]


def measure_accuracies(config: Config, results: Path) -> AccuracyTable:
    """Measure every scorer on every set of `evaluation.run` but the probes.

    Raises:
        RecordError: scores are missing or broken, scorers scored different pairs, or a RewardBench set has a subset
            that RewardBench does not have.
    """
    columns = table_columns(config)
    none, lengths = length_alone(config, results)
    rows = [*scorers(config), none]
    refused = refused_pairs(results, rows[:-1])
    lengths = without_refused(lengths, refused)
    cells: dict[tuple[str, Column], CellAccuracy] = {}
    sets: dict[tuple[str, str], PairScores] = {}
    for scorer in rows:
        scores = lengths if scorer is none else read_scores(results, scorer, refused)
        for set_name in dict.fromkeys(column.evaluation_set for column in columns):
            sets[scorer.name, set_name] = pair_scores(scores, set_name, scorer.name)
            if len(sets[scorer.name, set_name].prompts):
                _check(config, set_name, _first(rows, sets, set_name), scorer.name, sets)
        for column in columns:
            inside = members(column, sets[scorer.name, column.evaluation_set])
            if inside.any():
                pairs = sets[scorer.name, column.evaluation_set].select(inside)
                cells[scorer.name, column] = _measure_cell(config, column, pairs)
    return AccuracyTable(rows, columns, cells, sets, refused)


def _first(rows: Sequence[Scorer], sets: Mapping[tuple[str, str], PairScores], name: str) -> str:
    """The first scorer that scored a pair of the set; the first of all where none did."""
    return next((row.name for row in rows if len(sets[row.name, name].prompts)), rows[0].name)


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
    whole = measure_pairs(config, column, scores)
    return replace(whole, without_leaked=measure_pairs(config, column, clean) if len(clean.prompts) else None)


def measure_pairs(config: Config, column: Column, scores: PairScores) -> CellAccuracy:
    """The accuracy of a column's pairs; RewardBench's subsets are weighted in its sections."""
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
