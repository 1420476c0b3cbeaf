"""The files of a run that one stage writes and another reads: where each lies, its columns, its reader and its writer.

* Paths are below `results/<run>/`; what each column means stands in `docs/files.md`.
* A stage writes a table by `RunTable.write`, and whoever needs its numbers gets them by `RunTable.read`: a column's
  name is typed here and nowhere else.
* A file that is missing, lacks a column or holds a number that is not finite is refused, never read in part.
* What several seeds left behind (`PolicyRun`) is read with a column `seed`. Seeds have to agree on their items, steps
  and counts: an interval over seeds and prompts is not defined otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.records import RecordError, read_jsonl, require_columns, write_json, write_jsonl, write_whole

NINE_DIGITS = "%.9g"
"""Tells any two float32 apart: rounding must not make a tie of a win."""


@dataclass(frozen=True)
class RunTable:
    """A CSV file that stages share.

    Args:
        name: of the file, or how the names of such files end.
        columns: those that every such file has, in their order; a writer may add further ones behind them.
        made_by: how to make it, for errors, e.g. `score the reward model`.
        text: columns of text, in which an empty cell is "" and `NA` is a name like any other.
        floats: format of the numbers that are written; None: as many digits as it takes to read the same number again.
    """

    name: str
    columns: tuple[str, ...]
    made_by: str
    text: tuple[str, ...] = ()
    floats: str | None = NINE_DIGITS

    def write(self, path: Path, table: pd.DataFrame) -> None:
        """Write a file whole.

        Raises:
            RecordError: the table lacks a column.
        """
        require_columns(path, table, self.columns, "a fault of this program: it was about to write that file")
        write_whole(path, table.to_csv(index=False, float_format=self.floats, lineterminator="\n"))

    def read(self, path: Path) -> pd.DataFrame:
        """Read a file.

        Raises:
            RecordError: it is missing, no table, or lacks a column.
        """
        if not Path(path).is_file():
            raise RecordError(f"{path}: missing; {self.made_by} first")
        try:
            # a subset may be called "NA" or "None": only an empty cell means that there is nothing
            table = pd.read_csv(path, dtype=dict.fromkeys(self.text, str), keep_default_na=False, na_values=[""])
        except ValueError as error:  # an empty file, or rows of different lengths
            raise RecordError(f"{path}: not a table ({str(error).strip()}); {self.made_by} again") from None
        require_columns(path, table, self.columns, f"{self.made_by} again")
        text = [column for column in self.text if column in table]
        return table.assign(**{column: table[column].fillna("") for column in text})


@dataclass(frozen=True)
class RunRows:
    """A JSONL file that stages share, one mapping a line.

    Args:
        name: of the file.
        fields: those that its readers need; a line has more of them.
        made_by: how to make it, for errors.
    """

    name: str
    fields: tuple[str, ...]
    made_by: str

    def write(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a file whole."""
        write_jsonl(path, rows)

    def read(self, path: Path) -> pd.DataFrame:
        """The needed fields, one row a line.

        Raises:
            RecordError: the file is missing or has no line, or a line lacks a field.
        """
        if not Path(path).is_file():
            raise RecordError(f"{path}: missing; {self.made_by} first")
        rows: list[dict[str, Any]] = []
        for number, row in read_jsonl(path):
            if lacking := [name for name in self.fields if name not in row]:
                raise RecordError(f"{path}, row {number}: lacks {', '.join(lacking)}; {self.made_by} again")
            rows.append({name: row[name] for name in self.fields})
        if not rows:
            raise RecordError(f"{path}: no answer; {self.made_by} again")
        return pd.DataFrame(rows)


def require_finite(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table in which a training left something that is no number.

    Raises:
        RecordError: a value of `columns` is not a finite number; names its row.
    """
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce")
        if not np.isfinite(values).all():
            row = int(table.index[~np.isfinite(values)][0]) + 1
            raise RecordError(
                f"{path}: {column} of row {row} is not a finite number; the training diverged, lower its learning rate"
            )


# --- world/ -----------------------------------------------------------------------------------------------------------

WORLD_STATISTICS = RunTable(
    "world/statistics.csv", ("metric", "value", "low", "high", "n", "explanation"), "make the world", floats="%.6g"
)

# --- reward/<variant>/seed<seed>/ and policy/<base>/<method>/seed<seed>/ ----------------------------------------------

TRAINING = RunTable("training.csv", ("step", "epoch", "split", "metric", "value"), "run that training", floats=None)
"""What a training measured of itself; see `vrm.training.trainer`."""

SCORES = RunTable(
    "scores.csv",
    ("evaluation_set", "pair_id", "prompt_id", "subset", "leaked", "truncated", "reward_chosen", "reward_rejected"),
    "score with that model",
    text=("evaluation_set", "pair_id", "prompt_id", "subset"),
)
"""One row an evaluation set and pair. A VRM's has more columns, by the prefixes below and an aspect."""

VALIDATION_SCORES = RunTable(
    "validation.csv", SCORES.columns[1:], SCORES.made_by, text=("pair_id", "prompt_id", "subset")
)
"""The same of the validation pairs, beside a reward model's scores: what is fitted after training is fitted here."""

LENGTHS = ("length_chosen", "length_rejected")
"""Characters of both responses, in either file."""

REFUSED_PAIRS = "refused.jsonl"
"""Beside the scores: evaluation set and id of each pair that the model's chat template refuses, with the reason."""

LEARNED_WEIGHT, TRUE_WEIGHT = "weight_", "true_weight_"
"""Of each aspect: E[w], and the true weight where it is known."""

CHOSEN, REJECTED = "chosen_", "rejected_"
"""Of each aspect: that objective's score of the chosen and of the rejected response."""

PAC_BAYES = RunTable("pac_bayes.csv", ("term", "value"), "run `vrm pac-bayes` on that model", text=("term",))
"""Every term of Theorem 5.1 on one trained VRM."""

BOUND_TERMS = (
    *("pairs", "samples", "delta", "empirical_risk"),
    *("kl_w", "kl_z", "kl_total", "kl_w_per_pair", "kl_z_per_pair", "kl_per_pair"),
    *("bound", "vacuous", "largest_kl_per_pair", "held_out_pairs", "held_out_risk"),
)
"""The terms of `pac_bayes.csv`, in its order."""


def read_bound_terms(path: Path) -> pd.Series:
    """The terms of one model's bound, by `BOUND_TERMS`.

    Raises:
        RecordError: the file is missing, or lacks a term or has one that is not a finite number.
    """
    table = PAC_BAYES.read(path)
    if not set(BOUND_TERMS) <= set(table["term"]):
        raise RecordError(f"{path}: lacks a term of the bound; {PAC_BAYES.made_by} again")
    terms = table.set_index("term")["value"][list(BOUND_TERMS)]
    if not np.isfinite(terms.to_numpy(dtype=float)).all():
        raise RecordError(f"{path}: a term is not a finite number; the training diverged, lower its learning rate")
    return terms


# --- policy/<base>/<method>/seed<seed>/ -------------------------------------------------------------------------------

SFT, BEST_OF_N = "sft", "best_of_n"
"""Folders beside those of the methods: what every method starts from, and that policy's many answers to each prompt."""

HELD_OUT = RunTable(
    "held_out.csv",
    ("item_id", "prompt_id", "metric", "start", "end"),
    "run that training",
    text=("item_id", "prompt_id", "metric"),
)
"""Each metric of each held-out item under the policy that a training started from, and under the finished one."""

DIFFICULTY_LOSSES = RunTable(".csv", ("pair_id", "loss"), "run `vrm difficulty-run`", text=("pair_id",))
"""Selective DPO: losses (nats) of one half of the pairs under a policy that was trained on the other half."""

DIFFICULTY = RunTable(
    "difficulty.csv", ("pair_id", "difficulty", "runs", "kept"), "run `vrm difficulty`", text=("pair_id",)
)
"""Selective DPO: mean loss of each pair (nats), and whether (1 or 0) it is kept; the easiest pair first."""

ANSWER_MEASURES = ("reward", "kl", "entropy", "length")
"""What PPO measures of each answer: reward model's unit, nats a response, nats a token, tokens."""

PPO_SAMPLES = RunRows("samples.jsonl", ("step", "prompt_id", *ANSWER_MEASURES, "ended"), "train that policy")
"""Answers to the same held-out prompts along PPO, the evaluation before training first."""

BEST_OF_N_SAMPLES = RunRows("samples.jsonl", ("prompt_id", "length", "ended", "rewards"), "run `vrm best-of-n`")
"""Many answers of the starting policy to each prompt; `rewards` is by reward variant."""

GOLD_REWARDS = RunTable("samples.gold.csv", ("gold",), "run `vrm gold` on the samples")
"""The gold reward of each row of a `samples.jsonl`, in its order."""


@dataclass(frozen=True)
class PolicyRun:
    """All seeds of one training of one base.

    Args:
        base: key of `policy.bases`.
        method: key of `policy.methods`, `sft`, or `best_of_n`.
        seeds: the seeds it was trained with.
    """

    base: str
    method: str
    seeds: Sequence[int]

    def folder(self, results: Path, seed: int) -> Path:
        """Where one seed's files are."""
        return Path(results) / "policy" / self.base / self.method / f"seed{seed}"

    def file(self, results: Path, seed: int, name: str) -> Path:
        """One of its files."""
        return self.folder(results, seed) / name


def policy_run(config: Config, base: str, method: str) -> PolicyRun:
    """The training of a method on a base, with the seeds of the configuration."""
    return PolicyRun(base, method, config.policy.seeds)


@dataclass(frozen=True)
class HeldOutChange:
    """One metric of all held-out items at both ends of a training; S seeds, N items.

    Args:
        start: under the policy that the training started from, shape (S, N).
        end: under the finished one, shape (S, N).
        prompts: prompt id of each item, shape (N,).
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    prompts: NDArray[np.str_]


def read_held_out(results: Path, run: PolicyRun, metrics: Sequence[str]) -> dict[str, HeldOutChange]:
    """What a training did to held-out data, by metric.

    Raises:
        RecordError: a file is missing, lacks a column or one of `metrics`, holds a number that is not finite or an item
            twice, or seeds measured different items.
    """
    paths = {seed: run.file(results, seed, HELD_OUT.name) for seed in run.seeds}
    tables = {seed: HELD_OUT.read(path) for seed, path in paths.items()}
    found = {}
    for metric in metrics:
        parts = {seed: _of_metric(paths[seed], table, metric) for seed, table in tables.items()}
        first = next(iter(parts.values()))
        if any(not part.index.equals(first.index) for part in parts.values()):
            raise RecordError(
                f"{paths[run.seeds[-1]]}: seeds measured different items of {metric}; train them on the same pairs"
            )
        found[metric] = HeldOutChange(
            start=np.stack([part["start"] for part in parts.values()]),
            end=np.stack([part["end"] for part in parts.values()]),
            prompts=first["prompt_id"].to_numpy(dtype=str),
        )
    return found


def _of_metric(path: Path, table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one metric of a `held_out.csv`, by item."""
    part = table[table["metric"] == metric]
    if part.empty:
        raise RecordError(f"{path}: no row of metric {metric}; train it again")
    if part["item_id"].duplicated().any():
        raise RecordError(f"{path}: metric {metric} has an item twice; item ids must be unique")
    require_finite(path, part, ["start", "end"])
    return part.set_index("item_id").sort_index()


def read_ppo_samples(results: Path, run: PolicyRun, gold: bool) -> pd.DataFrame:
    """Answers along PPO: the fields of `PPO_SAMPLES`, seed and, if `gold`, gold.

    Raises:
        RecordError: a file is missing or broken, or a step or a seed has other prompts than the others.
    """
    frames = []
    for seed in run.seeds:
        path = run.file(results, seed, PPO_SAMPLES.name)
        frame = PPO_SAMPLES.read(path)
        require_finite(path, frame, ANSWER_MEASURES)
        if frame.duplicated(["step", "prompt_id"]).any():
            raise RecordError(f"{path}: a prompt is answered twice at one step; train it again")
        frames.append(_of_seed(results, run, seed, frame, gold))
    table = pd.concat(frames, ignore_index=True)
    rows = table["step"].nunique() * table["prompt_id"].nunique() * len(run.seeds)
    if len(table) != rows:
        raise RecordError(f"{path}: steps or seeds answer different prompts; train every seed again")
    return table


def read_best_of_n_samples(results: Path, run: PolicyRun, rewards: Sequence[str], gold: bool) -> pd.DataFrame:
    """Answers of the starting policy: prompt_id, length, ended, seed, one column a reward and, if `gold`, gold.

    Args:
        results: the run's directory.
        run: where the answers are.
        rewards: the reward variants that are needed.
        gold: whether gold rewards are read too.

    Raises:
        RecordError: a file is missing or broken, lacks a reward, or has not the same number of answers to each prompt
            of each seed.
    """
    frames = []
    for seed in run.seeds:
        path = run.file(results, seed, BEST_OF_N_SAMPLES.name)
        frame = BEST_OF_N_SAMPLES.read(path)
        found = pd.DataFrame(frame.pop("rewards").tolist(), index=frame.index)
        lacking = [name for name in rewards if name not in found or found[name].isna().any()]
        if lacking:
            raise RecordError(f"{path}: a row lacks the reward of {', '.join(lacking)}; sample again")
        frame = frame.join(found[list(rewards)])
        require_finite(path, frame, rewards)
        frames.append(_of_seed(results, run, seed, frame, gold))
    table = pd.concat(frames, ignore_index=True)
    counts = table.groupby(["prompt_id", "seed"]).size()
    if counts.nunique() > 1 or len(counts) < table["prompt_id"].nunique() * len(run.seeds):
        raise RecordError(f"{path}: prompts have different numbers of answers, or seeds other prompts; sample again")
    return table


def _of_seed(results: Path, run: PolicyRun, seed: int, frame: pd.DataFrame, gold: bool) -> pd.DataFrame:
    """The rows of a `samples.jsonl` with their seed and, if `gold`, their gold rewards."""
    if not gold:
        return frame.assign(seed=seed)
    path = run.file(results, seed, GOLD_REWARDS.name)
    rewards = GOLD_REWARDS.read(path)
    if len(rewards) != len(frame):
        raise RecordError(
            f"{path}: {len(rewards)} gold rewards for {len(frame)} answers of samples.jsonl; score the samples again"
        )
    require_finite(path, rewards, ["gold"])
    return frame.assign(gold=rewards["gold"].to_numpy(), seed=seed)


# --- judged/<benchmark>.{csv,items.csv,draws.csv,terms.csv,json} ------------------------------------------------------

POLICY_KEYS = ("base", "method", "seed")
"""Which policy a row of the judged benchmarks is of; the fields of `JudgedPolicy`."""

JUDGED_SCORES = RunTable(
    ".csv",
    (*POLICY_KEYS, "metric", "value", "low", "high", "n", "note"),
    "run `vrm judged-scores`",
    text=("base", "method", "metric", "note"),
    floats=None,
)
"""One row a policy and metric."""

JUDGED_ITEMS = RunTable(
    ".items.csv",
    (*POLICY_KEYS, "item_id", "part", "value", "weight"),
    "run `vrm judged-scores`",
    text=("base", "method", "item_id", "part"),
    floats=None,
)
"""What the means are means of, judged ones only."""

JUDGED_DRAWS = RunTable(".draws.csv", ("draw",), "run `vrm judged-scores`", floats="%.6g")
"""LC and SC, which are fits and no means, of each draw of the questions; a column is named by `draw_column`."""


JUDGED_TERMS = RunTable(".terms.csv", ("item_id",), "run `vrm judged-scores`", text=("item_id",), floats="%.6g")
"""Fits that are taken apart, one row an item: terms whose mean is the fit; columns as those of the draws."""


def draw_column(policy: str, metric: str) -> str:
    """What the draws and the terms of a policy's metric are called."""
    return f"{policy}/{metric}"


class JudgedTables(NamedTuple):
    """What is written of one judged benchmark.

    Args:
        scores: as `JUDGED_SCORES`.
        items: as `JUDGED_ITEMS`.
        draws: as `JUDGED_DRAWS`.
        terms: as `JUDGED_TERMS`.
        record: what the numbers depend on: the judge, the set of models, what has no judgment.
    """

    scores: pd.DataFrame
    items: pd.DataFrame
    draws: pd.DataFrame
    terms: pd.DataFrame
    record: dict[str, Any]


_JUDGED = (JUDGED_SCORES, JUDGED_ITEMS, JUDGED_DRAWS, JUDGED_TERMS)


def judged_path(results: Path, benchmark: str) -> Path:
    """The scores of one benchmark; items, draws, terms and record lie beside them."""
    return Path(results) / "judged" / f"{benchmark}.csv"


def write_judged(out: Path, tables: JudgedTables) -> None:
    """Write `out`, and items, draws, terms and record beside it."""
    for kind, table in zip(_JUDGED, tables[: len(_JUDGED)], strict=True):
        kind.write(out.with_suffix(kind.name), table)
    write_json(out.with_suffix(".json"), tables.record)


def read_judged(source: Path) -> JudgedTables:
    """Read the scores `source`, and items, draws, terms and record beside them.

    Raises:
        RecordError: one of the five is missing, broken, lacks a column, or has text where a number belongs.
    """
    made_by = f"run `vrm judged-scores --name {source.stem}`"
    kinds = [replace(kind, made_by=made_by) for kind in _JUDGED]
    tables = [_read_numbers(kind, source.with_suffix(kind.name)) for kind in kinds]
    return JudgedTables(*tables, _read_record(source.with_suffix(".json"), made_by))


def _read_numbers(kind: RunTable, path: Path) -> pd.DataFrame:
    table = kind.read(path)
    whole = dict.fromkeys(table.columns.intersection(["seed", "n", "draw"]), int)
    numbers = dict.fromkeys(table.columns.difference([*kind.text, *whole]), float)
    try:
        return table.astype(numbers | whole)
    except ValueError as error:
        raise RecordError(f"{path}: text where a number belongs ({error}); {kind.made_by} again") from None


def _read_record(path: Path, made_by: str) -> dict[str, Any]:
    if not path.is_file():
        raise RecordError(f"{path}: missing; {made_by} first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); {made_by} again") from None
    if not isinstance(record, dict):
        raise RecordError(f"{path}: expected a JSON object; {made_by} again")
    return record
