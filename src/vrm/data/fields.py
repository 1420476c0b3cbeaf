"""One field of a row: a text, a prompt in any of the shapes that people have, a number.

* A function returns the value or raises `Unusable` with a reason that is short, names the field, and does not quote the
  value, so that equal faults count as one reason.
* A prompt is a text, messages (also ShareGPT's, OpenAI's parts, or messages written out as text), or a transcript.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vrm.records import Message, Prompt

ROLES = ("system", "user", "assistant")

ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
}
"""What public data call a role, and which of ours it is."""

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")

TEXT_PARTS = ("text", "input_text", "output_text")

_WRITTEN_OUT = re.compile(r"""\s*\[?\s*\{\s*(['"])(?:role|content|from|value)\1\s*:""")

_TURN = re.compile(r"(?:^|\n\n)(Human|User|Assistant):")


class Unusable(ValueError):
    """A field can't be used; the message is the reason that goes to quarantine."""


def parse_text(value: Any, what: str) -> str:
    """A text with something in it, unchanged.

    Raises:
        Unusable: missing, not text, only white space, or holding a lone surrogate (which no UTF-8 file can hold).
    """
    if value is None:
        raise Unusable(f"{what} is missing")
    if not isinstance(value, str):
        raise Unusable(f"{what} is not text")
    if not value.strip():
        raise Unusable(f"{what} is empty")
    return _require_unicode(value, what)


def parse_label(value: Any, what: str) -> str:
    """An optional name, number or id, as text; "" when missing.

    Raises:
        Unusable: holding a lone surrogate.
    """
    return "" if value is None else _require_unicode(str(value), what)


def parse_messages(value: list[Any], what: str) -> list[Message]:
    """A conversation as `{"role", "content"}` messages, at least one.

    Messages may be ShareGPT's `{"from", "value"}`, and a content a list of OpenAI's text parts. Other keys of a message
    are dropped, and so is a system message without a text, which public data often have.

    Raises:
        Unusable: no message is left, a role is unknown, or a content is not text or empty.
    """
    messages: list[Message] = []
    for message in value:
        role, content = _role_and_content(message, what)
        if isinstance(content, list):
            content = _join_parts(content, what)
        if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
            continue
        messages.append(Message(role=role, content=parse_text(content, f"a message of {what}")))
    if not messages:
        raise Unusable(f"{what} is empty")
    return messages


def parse_prompt(value: Any, what: str) -> Prompt:
    """A prompt: the user's text, a conversation that ends with the user, or a transcript that ends with `Assistant:`.

    Raises:
        Unusable: the text or a message can't be used, or the last message is not the user's.
    """
    value = read_written_out(value, what)
    if isinstance(value, dict):
        value = value["messages"] if isinstance(value.get("messages"), list) else [value]
    if isinstance(value, list):
        prompt = parse_messages(value, what)
    elif is_open_transcript(value):
        prompt = parse_transcript(value, what)
    else:
        return [Message(role="user", content=parse_text(value, what))]
    if prompt[-1]["role"] != "user":
        raise Unusable(f"{what} does not end with a message of the user")
    return prompt


def parse_row_prompt(row: Mapping[str, Any], columns: Sequence[str]) -> Prompt:
    """The prompt of a row, in whichever of `columns` comes first, with the row's system text and earlier turns.

    Raises:
        Unusable: none of the columns holds a usable prompt, or the system text is given twice and differs.
    """
    column = prompt_column(row, columns)
    value = row.get(column)
    if (
        column == "instruction"
        and isinstance(value, str)
        and isinstance(row.get("input"), str)
        and row["input"].strip()
    ):
        value = f"{value}\n{row['input']}"  # Alpaca's two columns, joined as LLaMA-Factory joins them
    return add_system(row, _history(row) + parse_prompt(value, column))


def prompt_column(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The first of `columns` that has a value in the row; if none has one, the first."""
    return next((column for column in columns if row.get(column) is not None), columns[0])


def add_system(row: Mapping[str, Any], prompt: Prompt) -> Prompt:
    """The prompt with the text of the row's system column as its first turn.

    Raises:
        Unusable: the prompt has another system turn already.
    """
    column = next((column for column in SYSTEM_COLUMNS if row.get(column) is not None), None)
    if column is None:
        return prompt
    text = _join_parts(row[column], column) if isinstance(row[column], list) else row[column]
    if text is None or (isinstance(text, str) and not text.strip()):
        return prompt
    text = parse_text(text, column)
    if prompt[:1] and prompt[0]["role"] == "system":
        if prompt[0]["content"].strip() != text.strip():
            raise Unusable(f"the column {column} and the prompt's system turn disagree")
        return prompt
    return [Message(role="system", content=text), *prompt]


def read_written_out(value: Any, what: str) -> Any:
    """Messages from a text that holds them as JSON or as Python writes them (CSV, exports of pandas).

    Raises:
        Unusable: it looks like messages and can't be read as such; to score it as a text would be wrong.
    """
    if not isinstance(value, str) or value[:1] not in "[{" or not _WRITTEN_OUT.match(value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise Unusable(f"{what} is a text of messages that is neither JSON nor a Python list")


def is_open_transcript(value: Any) -> bool:
    """Whether a text is a transcript (`Human: ... Assistant: ...`) that leaves the last turn to be written."""
    if not isinstance(value, str) or not _begins_as_transcript(value):
        return False
    return value.startswith("\n\n") or value[-16:].rstrip().endswith("\n\nAssistant:")


def is_transcript(value: Any) -> bool:
    """Whether a text is a transcript with a turn of the assistant."""
    return isinstance(value, str) and _begins_as_transcript(value) and "\n\nAssistant:" in value


def parse_transcript(text: str, what: str) -> list[Message]:
    """The turns of a transcript; its last turn is left out if nothing stands in it.

    Raises:
        Unusable: a turn before the last is empty.
    """
    _, *parts = _TURN.split(text.strip())
    turns = [{"from": name.lower(), "value": said.strip()} for name, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns and not turns[-1]["value"]:
        turns.pop()
    return parse_messages(
        [{**turn, "from": "human" if turn["from"] == "user" else turn["from"]} for turn in turns], what
    )


def _begins_as_transcript(text: str) -> bool:
    return text[:16].lstrip().startswith(("Human:", "User:"))


def _role_and_content(message: Any, what: str) -> tuple[str, Any]:
    role = None
    if isinstance(message, dict):
        role = message.get("role") if message.get("role") is not None else message.get("from")
    if not isinstance(role, str) or role.lower() not in ROLE_NAMES:
        raise Unusable(f"{what} has a message whose role is none of {', '.join(ROLES)}")
    content = message.get("content")
    return ROLE_NAMES[role.lower()], message.get("value") if content is None else content


def _join_parts(parts: list[Any], what: str) -> str | None:
    """The text parts of an OpenAI content, a line each; None where there is no part."""
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS:
            part = part.get("text")
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Unusable(f"a message of {what} has a part of type {kind}: only text can be scored")
        texts.append(part)
    return "\n".join(texts) if texts else None


def _history(row: Mapping[str, Any]) -> list[Message]:
    """LLaMA-Factory's column of earlier turns, `[[user, assistant], ...]`."""
    history = row.get("history")
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        return []
    turns = [{"role": role, "content": text} for pair in history for role, text in zip(ROLES[1:], pair, strict=True)]
    return parse_messages(turns, "history") if turns else []


def parse_number(value: Any, what: str) -> float:
    """A finite number, given as a number or as text ("4", "3.667").

    Raises:
        Unusable: missing, or not a finite number ("N/A", "nan", true).
    """
    if value is None or value == "":
        raise Unusable(f"{what} is missing")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"{what} is not a number")
    return number


def parse_numbers(value: Any, length: int, what: str) -> list[float] | None:
    """An optional list of `length` finite numbers; None stays None.

    Raises:
        Unusable: not a list, another length, or an entry that is not a finite number.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != length:
        raise Unusable(f"{what} is not a list of {length} numbers, one an aspect")
    return [parse_number(entry, what) for entry in value]


def _require_unicode(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{what} is not valid Unicode") from None
    return text
