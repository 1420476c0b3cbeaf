"""Reading what the policies' trainings left behind: `held_out.csv`, and sampled answers with their gold rewards.

* Every reader takes all seeds of one training and gives one row an item and seed, with a column `seed`.
* Seeds have to agree on their items, steps and counts: an interval over seeds and prompts is not defined otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.records import RecordError, read_jsonl, require_columns

BEST_OF_N = "best_of_n"

SFT = "sft"

_HELD_OUT = ("item_id", "prompt_id", "metric", "start", "end")

_MEASURES = ("reward", "kl", "entropy", "length")


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

    def file(self, results: Path, seed: int, name: str) -> Path:
        """One of its files.

        Raises:
            RecordError: it is missing.
        """
        path = Path(results) / "policy" / self.base / self.method / f"seed{seed}" / name
        if not path.is_file():
            made_by = {"samples.gold.csv": "score the samples by the gold judge"}.get(name, f"run {self.method}")
            raise RecordError(f"{path}: missing; {made_by} for base {self.base} with seed {seed} first")
        return path


@dataclass(frozen=True)
class Change:
    """One metric of all held-out items at both ends of a training; S seeds, N items.

    Args:
        start: under the policy that the training started from, shape (S, N).
        end: under the finished one, shape (S, N).
        prompts: prompt id of each item, shape (N,).
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    prompts: NDArray[np.str_]


def policy_run(config: Config, base: str, method: str) -> PolicyRun:
    """The training of a method on a base, with the seeds of the configuration."""
    return PolicyRun(base, method, config.policy.seeds)


def read_held_out(results: Path, run: PolicyRun, metrics: Sequence[str]) -> dict[str, Change]:
    """What a training did to held-out data, by metric.

    Raises:
        RecordError: a file is missing, lacks a column or one of `metrics`, holds a number that is not finite or an item
            twice, or seeds measured different items.
    """
    frames = {seed: _read_table(run.file(results, seed, "held_out.csv"), _HELD_OUT) for seed in run.seeds}
    found = {}
    for metric in metrics:
        parts = {}
        for seed, frame in frames.items():
            path = run.file(results, seed, "held_out.csv")
            part = frame[frame["metric"] == metric]
            if part.empty:
                raise RecordError(f"{path}: no row of metric {metric}; train it again")
            if part["item_id"].duplicated().any():
                raise RecordError(f"{path}: metric {metric} has an item twice; item ids must be unique")
            _require_finite(path, part, ["start", "end"])
            parts[seed] = part.set_index("item_id").sort_index()
        first = next(iter(parts.values()))
        if any(not part.index.equals(first.index) for part in parts.values()):
            raise RecordError(f"{path}: seeds measured different items of {metric}; train them on the same pairs")
        found[metric] = Change(
            start=np.stack([part["start"] for part in parts.values()]),
            end=np.stack([part["end"] for part in parts.values()]),
            prompts=first["prompt_id"].to_numpy(dtype=str),
        )
    return found


def read_samples(results: Path, run: PolicyRun, gold: bool) -> pd.DataFrame:
    """Answers along PPO: step, prompt_id, reward, kl, entropy, length, ended, seed and, if `gold`, gold.

    Raises:
        RecordError: a file is missing or broken, or a step or a seed has other prompts than the others.
    """
    frames = []
    for seed in run.seeds:
        path = run.file(results, seed, "samples.jsonl")
        frame = _read_rows(path, ("step", "prompt_id", *_MEASURES, "ended"))
        _require_finite(path, frame, _MEASURES)
        if frame.duplicated(["step", "prompt_id"]).any():
            raise RecordError(f"{path}: a prompt is answered twice at one step; train it again")
        frames.append(_with_gold(results, run, seed, frame) if gold else frame.assign(seed=seed))
    table = pd.concat(frames, ignore_index=True)
    rows = table["step"].nunique() * table["prompt_id"].nunique() * len(run.seeds)
    if len(table) != rows:
        raise RecordError(f"{path}: steps or seeds answer different prompts; train every seed again")
    return table


def read_best_of_n(results: Path, run: PolicyRun, rewards: Sequence[str], gold: bool) -> pd.DataFrame:
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
        path = run.file(results, seed, "samples.jsonl")
        frame = _read_rows(path, ("prompt_id", "length", "ended", "rewards"))
        found = pd.DataFrame(frame.pop("rewards").tolist(), index=frame.index)
        lacking = [name for name in rewards if name not in found or found[name].isna().any()]
        if lacking:
            raise RecordError(f"{path}: a row lacks the reward of {', '.join(lacking)}; sample again")
        frame = frame.join(found[list(rewards)])
        _require_finite(path, frame, rewards)
        frames.append(_with_gold(results, run, seed, frame) if gold else frame.assign(seed=seed))
    table = pd.concat(frames, ignore_index=True)
    counts = table.groupby(["prompt_id", "seed"]).size()
    if counts.nunique() > 1 or len(counts) < table["prompt_id"].nunique() * len(run.seeds):
        raise RecordError(f"{path}: prompts have different numbers of answers, or seeds other prompts; sample again")
    return table


def _with_gold(results: Path, run: PolicyRun, seed: int, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `samples.jsonl` with their gold rewards."""
    path = run.file(results, seed, "samples.gold.csv")
    gold = _read_table(path, ("gold",))
    if len(gold) != len(frame):
        raise RecordError(
            f"{path}: {len(gold)} gold rewards for {len(frame)} answers of samples.jsonl; score the samples again"
        )
    _require_finite(path, gold, ["gold"])
    return frame.assign(gold=gold["gold"].to_numpy(), seed=seed)


def _read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    text = dict.fromkeys(("item_id", "prompt_id", "metric"), str)
    try:
        frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except ValueError as error:  # an empty file, or rows of different lengths
        raise RecordError(f"{path}: not a table ({str(error).strip()}); make it again") from None
    require_columns(path, frame, required, "make it again")
    return frame


def _read_rows(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """The named fields of a JSONL file, one row a line."""
    rows: list[dict[str, Any]] = []
    for number, row in read_jsonl(path):
        lacking = [name for name in required if name not in row]
        if lacking:
            raise RecordError(f"{path}, row {number}: lacks {', '.join(lacking)}; make the file again")
        rows.append({name: row[name] for name in required})
    if not rows:
        raise RecordError(f"{path}: no answer; make the file again")
    return pd.DataFrame(rows)


def _require_finite(path: Path, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        values = pd.to_numeric(frame[column], errors="coerce")
        if not np.isfinite(values).all():
            row = int(frame.index[~np.isfinite(values)][0]) + 1
            raise RecordError(
                f"{path}: {column} of row {row} is not a finite number; the training diverged, lower its learning rate"
            )
