"""Rows and fields of the judged benchmarks' files. What can't be used is a RecordError: file, row, field, mend.

`where` is the beginning of such a message: file and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from vrm.config import Source
from vrm.data.fields import Unusable, parse_label, parse_text
from vrm.data.sources import read_rows
from vrm.records import RecordError

QuestionId = int | str
Row = dict[str, Any]


def first_choice(row: Row, where: str) -> Row:
    """The answer in a record of upstream's; there is one."""
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RecordError(f'{where}: choices is not a list of answers; expected [{{"index": 0, "turns": [...]}}]')
    return choices[0]


def get_turns(turns: list[Any], what: str, where: str) -> tuple[str, str]:
    """Two turns as texts with something in them; `what` names the list."""
    named = {f"{what}[{i}]": turn for i, turn in enumerate(turns)}
    first, second = (get_text(named, name, where) for name in named)
    return first, second


def get_template(row: Row, expected: Sequence[str], where: str) -> str:
    """`row["prompt_template"]`, a format string with exactly the expected placeholders."""
    template = get_text(row, "prompt_template", where)
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise RecordError(f"{where}: prompt_template is no format string ({error}); double its other braces") from None
    missing, unknown = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or unknown:
        wrong = [f"lacks {{{name}}}" for name in missing] + [f"has an unknown {{{name}}}" for name in unknown]
        raise RecordError(f"{where}: prompt_template {', '.join(wrong)}; it must have {', '.join(expected)}")
    return template


def require_answers(path: Path, questions: Sequence[QuestionId], answers: Mapping[QuestionId, Any]) -> None:
    """Raise RecordError where questions have no answer: how many, and the first three."""
    missing = [str(question) for question in questions if question not in answers]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise RecordError(f"{path}: no answer to {len(missing)} of {len(questions)} questions ({first}); add them")


def rows_by_question(path: Path) -> Iterator[tuple[str, Row]]:
    """(file and row, record) of each row, whose `question_id` occurs once."""
    seen: dict[QuestionId, int] = {}
    for number, row in rows_of(path):
        where, question = f"{path}, row {number}", row.get("question_id")
        if isinstance(question, bool) or not isinstance(question, int | str) or question == "":
            raise RecordError(f"{where}: question_id is missing, or neither number nor text; give each row its own")
        if question in seen:
            raise RecordError(f"{where}: question_id {question} is that of row {seen[question]} too; keep one")
        seen[question] = number
        yield where, row


def rows_of(path: Path) -> list[tuple[int, Row]]:
    """(row number from 1, record) of a .json or .jsonl file; at least one."""
    rows = list(read_rows(Source(path=str(existing_file(path)))))
    if not rows:
        raise RecordError(f"{path}: holds no rows; take the file again from where it comes from (docs/data.md)")
    return rows


def existing_file(path: Path) -> Path:
    """The path, where there is a file."""
    if not path.is_file():
        raise RecordError(f"{path}: no such file; `vrm benchmark-set` fills the directory, docs/data.md says with what")
    return path


def get_list(row: Mapping[str, Any], name: str, length: int, where: str) -> list[Any]:
    """A list of so many entries."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) != length:
        found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise RecordError(f"{where}: {name} is not a list of {length} (found {found}); see docs/data.md for the format")
    return value


def get_text(row: Mapping[str, Any], name: str, where: str, mend: str = "mend it") -> str:
    """A text with something in it."""
    return _parsed(parse_text, row, name, where, mend)


def get_label(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text that may be empty or missing."""
    return _parsed(parse_label, row, name, where, "mend it")


def _parsed(parse: Callable[[Any, str], str], row: Mapping[str, Any], name: str, where: str, mend: str) -> str:
    try:
        return parse(row.get(name), name)
    except Unusable as error:
        raise RecordError(f"{where}: {error}; {mend}") from None
