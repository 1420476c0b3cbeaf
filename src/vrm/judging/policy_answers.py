"""A policy's answers as `vrm answer` left them, one to every question, before anything is paid for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrm.data.benchmark_sets import ArenaQuestion, MtQuestion, QuestionId, read_arena_answers
from vrm.records import RecordError, read_jsonl

MEND = "answer the set again"


def read_arena_policy(path: Path, questions: Sequence[ArenaQuestion], model: str) -> dict[QuestionId, dict[str, Any]]:
    """A policy's answers to Arena-Hard in upstream's records, by question in the questions' order.

    Raises:
        RecordError: the file is missing, an answer can't be used, is another model's, is missing, or to no question.
    """
    answers = {row["question_id"]: row for row in read_arena_answers(path)}
    _require_model(path, {row["model_id"] for row in answers.values()}, model)
    ids = [question.question_id for question in questions]
    _require_same(path, ids, answers)
    return {key: answers[key] for key in ids}


def read_mt_policy(path: Path, questions: Sequence[MtQuestion], model: str) -> dict[QuestionId, tuple[str, str]]:
    """A policy's answers to both turns of MT-Bench's questions, by question in the questions' order.

    Raises:
        RecordError: as `read_arena_policy`.
    """
    answers: dict[QuestionId, tuple[str, str]] = {}
    for number, row in read_jsonl(path):
        where = f"{path}, row {number}"
        try:
            (choice,) = row["choices"]
            first, second = choice["turns"]
            key, name = row["question_id"], row["model_id"]
        except (KeyError, TypeError, ValueError):
            raise RecordError(f"{where}: not FastChat's record of one answer with two turns; {MEND}") from None
        if not isinstance(first, str) or not isinstance(second, str):
            raise RecordError(f"{where}: a turn is no text; {MEND}")
        if key in answers:
            raise RecordError(f"{where}: a second answer to question {key}; {MEND}")
        _require_model(path, {name}, model)
        answers[key] = first, second
    ids = [question.question_id for question in questions]
    _require_same(path, ids, answers)
    return {key: answers[key] for key in ids}


def _require_model(path: Path, found: Collection[str], model: str) -> None:
    if set(found) != {model}:
        raise RecordError(f"{path}: answers of {', '.join(sorted(found))}, expected those of {model}; {MEND}")


def _require_same(path: Path, ids: Sequence[QuestionId], answers: Mapping[QuestionId, Any]) -> None:
    missing, unknown = [key for key in ids if key not in answers], [key for key in answers if key not in set(ids)]
    if missing or unknown:
        what = f"no answer to question {missing[0]}" if missing else f"an answer to {unknown[0]}, which is not asked"
        raise RecordError(f"{path}: {what} ({len(missing)} missing, {len(unknown)} unknown); {MEND}")
