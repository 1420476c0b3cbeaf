"""A policy's answers as `vrm answer` left them, one to every question, before anything is paid for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrm.data.benchmark_sets import ArenaQuestion, MtQuestion, QuestionId, read_arena_answers
from vrm.records import RecordError, read_jsonl

MEND = "answer the set again"


def read_alpaca_policy(path: Path, references: Sequence[Mapping[str, Any]], model: str) -> list[str]:
    """A policy's outputs to AlpacaEval's instructions, one a row of the references and in their order.

    Raises:
        RecordError: the file is missing, or a row can't be used, is another model's, or of another instruction.
    """
    rows = read_alpaca_list(path, len(references), MEND)
    for number, (row, reference) in enumerate(zip(rows, references, strict=True), 1):
        where = f"{path}, row {number}"
        if row.get("instruction") != reference["instruction"]:
            raise RecordError(f"{where}: not the instruction of the reference's row; {MEND}")
        if not isinstance(row.get("output"), str):
            raise RecordError(f"{where}: `output` is no text; {MEND}")
        _require_model(where, row.get("generator"), model)
    return [row["output"] for row in rows]


def read_alpaca_list(path: Path, number: int, mend: str) -> list[dict[str, Any]]:
    """AlpacaEval's kind of file: one JSON list with a row for each of so many instructions.

    Raises:
        RecordError: it is missing, or something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; {mend}") from None
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); {mend}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordError(f"{path}: not a list of JSON objects; {mend}")
    if len(rows) != number:
        raise RecordError(f"{path}: {len(rows)} rows for {number} instructions; {mend}")
    return rows


def read_arena_policy(path: Path, questions: Sequence[ArenaQuestion], model: str) -> dict[QuestionId, dict[str, Any]]:
    """A policy's answers to Arena-Hard in upstream's records, by question in the questions' order.

    Raises:
        RecordError: the file is missing, an answer can't be used, is another model's, is missing, or to no question.
    """
    answers = {row["question_id"]: row for row in read_arena_answers(path)}
    for key, row in answers.items():
        _require_model(f"{path}, question {key}", row["model_id"], model)
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
        _require_model(where, name, model)
        answers[key] = first, second
    ids = [question.question_id for question in questions]
    _require_same(path, ids, answers)
    return {key: answers[key] for key in ids}


def _require_model(where: str, found: Any, model: str) -> None:
    if found != model:
        raise RecordError(f"{where}: answers of {found}, expected those of {model}; {MEND}")


def _require_same(path: Path, ids: Sequence[QuestionId], answers: Mapping[QuestionId, Any]) -> None:
    known = set(ids)
    missing, unknown = [key for key in ids if key not in answers], [key for key in answers if key not in known]
    if missing or unknown:
        what = f"no answer to question {missing[0]}" if missing else f"an answer to {unknown[0]}, which is not asked"
        raise RecordError(f"{path}: {what} ({len(missing)} missing, {len(unknown)} unknown); {MEND}")
