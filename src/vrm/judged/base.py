"""What the scores of all judged benchmarks have in common: columns, notes, records, and how judgments are read back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config, JudgeConfig, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import QuestionId
from vrm.judging.exchange import Request
from vrm.records import RecordError, read_jsonl
from vrm.statistics.draws import Array


@dataclass(frozen=True)
class Judgments:
    """What judging a policy's answers to one benchmark gave.

    Args:
        rows: the records of the file of judgments.
        requests: all that were asked, repetitions included.
        failures: one mapping a judgment that could not be had: its `id` in the benchmark, `part` where an id has
            several judgments, and the `reason`.
    """

    rows: list[dict[str, Any]]
    requests: list[Request]
    failures: list[dict[str, Any]]

    @property
    def judgments(self) -> int:
        """How many are usable; a row of Arena-Hard has two games, all others one judgment."""
        return sum(len(row.get("games", [row])) for row in self.rows) - len(self.failures)


def identity(config: JudgeConfig) -> dict[str, str | None]:
    """Who judges, for records: the model, and its address or the command that serves it; never a key or a port."""
    return {"model": config.model, "endpoint": config.base_url, "serve": config.serve}


ANSWER_AGAIN = "answer the set again"


def require_model(where: str, found: Any, model: str) -> None:
    if found != model:
        raise RecordError(f"{where}: answers of {found}, expected those of {model}; {ANSWER_AGAIN}")


def require_same(path: Path, ids: Sequence[QuestionId], answers: Mapping[QuestionId, Any]) -> None:
    known = set(ids)
    missing, unknown = [key for key in ids if key not in answers], [key for key in answers if key not in known]
    if missing or unknown:
        what = f"no answer to question {missing[0]}" if missing else f"an answer to {unknown[0]}, which is not asked"
        raise RecordError(f"{path}: {what} ({len(missing)} missing, {len(unknown)} unknown); {ANSWER_AGAIN}")


Row = dict[str, Any]

Key = tuple[QuestionId | int, ...]
"""A question's id, and the turn where the benchmark has some."""

JUDGE_AGAIN = "judge again; what was paid for is not asked again"


def score_row(
    judged: JudgedPolicy,
    metric: str,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    n: int = 0,
    note: str = "",
) -> Row:
    """A row of `JUDGED_SCORES`."""
    row = {"metric": metric, "value": value, "low": low, "high": high, "n": n, "note": note}
    return {**judged._asdict(), **row}


def join_notes(*notes: str) -> str:
    """Those that say something, as one."""
    return "; ".join(note for note in notes if note)


def count_failed(judgments: Sequence[Row], what: str) -> tuple[dict[str, int], str]:
    """Number of judgments that could not be had by reason, and a note that counts them ("" for none)."""
    failed = Counter(row["failure"] for row in judgments if row["failure"])
    note = f"{failed.total()} of {len(judgments)} {what} without a judgment" if failed else ""
    return dict(sorted(failed.items())), note


def base_record(config: Config, name: str, policies: Row) -> Row:
    """The record's beginning: which benchmark, who judges, and what of each policy has no judgment."""
    return {"benchmark": name, "judge": identity(config.judge) if config.judge else None, "policies": policies}


def interval_record(config: Config, resampled: str, samples: int) -> Row:
    """How the intervals came about."""
    seed = config.report.seed
    return {"level": config.report.level, "resampled": resampled, "seed": seed, "samples": samples}


def read_judgments(config: Config, results: Path, judged: JudgedPolicy, name: str, keys: Sequence[Key]) -> list[Row]:
    """A policy's judgments of Arena-Hard or MT-Bench, one for each key and in the keys' order.

    Raises:
        RecordError: one is missing, there twice, of another model or judge, or has neither a score nor a failure.
    """
    path = results / judged.folder / "judgments" / FILES[name]
    by_key: dict[Key, Row] = {}
    for number, row in read_jsonl(path):
        key = (row.get("question_id"), row["turn"]) if "turn" in row else (row.get("question_id"),)
        trouble = f"a second judgment of {key}" if key in by_key else _trouble(config, judged, row)
        if trouble:
            raise RecordError(f"{path}, row {number}: {trouble}; {JUDGE_AGAIN}")
        by_key[key] = row
    if set(by_key) != set(keys):
        odd = sorted(set(by_key) ^ set(keys), key=str)
        raise RecordError(f"{path}: its judgments are not of the set's questions (first {odd[0]}); {JUDGE_AGAIN}")
    return [by_key[key] for key in keys]


def _trouble(config: Config, judged: JudgedPolicy, row: Row) -> str:
    """Why a judgment can't be used; "" if it can."""
    if row.get("model") != judged.name:
        return f"judges {row.get('model')}, not {judged.name}"
    judge = row.get("judge")
    judge = judge[0] if isinstance(judge, list) and judge else judge  # MT-Bench names the prompt beside it
    if config.judge and judge != config.judge.model:
        return f"judged by {judge}, and judge.model is {config.judge.model}"
    parts = row.get("games", [row])
    if not isinstance(parts, list) or len(parts) != (2 if "games" in row else 1):
        return "not two games"
    for part in parts:
        if not isinstance(part, dict) or not {"judgment", "score", "failure"} <= part.keys():
            return "no `judgment`, `score` or `failure`"
        if part["score"] is None and not part["failure"]:
            return "neither a score nor a failure"
    return ""


def draws_table(columns: Mapping[str, Array]) -> pd.DataFrame:
    """A row a draw, numbered from 1, and a column a policy and metric; no rows where nothing was fitted."""
    rows = len(next(iter(columns.values()), []))
    return pd.DataFrame({"draw": np.arange(1, rows + 1), **columns})


def terms_table(items: Sequence[Any], columns: Mapping[str, Array]) -> pd.DataFrame:
    """A row an item, and a column a policy and metric; no rows where nothing was taken apart."""
    return pd.DataFrame({"item_id": list(items) if columns else [], **columns})
