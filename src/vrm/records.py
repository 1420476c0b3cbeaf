"""The records that cross a file boundary, with their readers and writers.

* `ScoredPrompt`: a prompt, its responses and their annotated scores (`data/scored.jsonl`).
* `PreferencePair`: chosen against rejected (`data/pairs/<split>.jsonl`, `evaluation/sets/<name>.jsonl`).
* `Message`: one turn of a conversation, in the field's `{"role", "content"}` form.
* `write_whole` is how every output file comes into being: written aside, then moved into place.

Reading other people's shapes (UltraFeedback, RewardBench) is the business of `vrm.data`; these are ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypedDict


class RecordError(ValueError):
    """A record can't be used; the message names the file, the row and what to do about it."""


def require_columns(path: str | Path, found: Container[str], required: Iterable[str], remedy: str) -> None:
    """Have a table all the columns that are read of it.

    Args:
        path: the table's file, for the error.
        found: columns that it has; a data frame is one such.
        required: columns that it must have.
        remedy: what to do about it, e.g. `make it again`.

    Raises:
        RecordError: it lacks some; names them.
    """
    if lacking := [column for column in required if column not in found]:
        raise RecordError(f"{path}: lacks the column {', '.join(lacking)}; {remedy}")


class Message(TypedDict):
    """One turn of a conversation; role is `system`, `user` or `assistant`."""

    role: str
    content: str


Prompt = list[Message]


@dataclass(frozen=True)
class ScoredResponse:
    """A response with its annotated scores.

    Args:
        model: who wrote it ("" when unknown).
        text: the response.
        scores: rating of each aspect, length K, in the order of `data.aspects`, in rating points; empty where the
            source has no ratings.
        overall: the annotated overall score, in the source's own unit; None when the source has none.
    """

    model: str
    text: str
    scores: list[float]
    overall: float | None = None


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt with all its rated or compared responses.

    Args:
        prompt_id: `prompt_id(prompt)`, equal for prompts equal after normalisation.
        prompt: the conversation up to the response.
        responses: at least two.
        true_weights: the true objective weights, length K, where they are known.
        preferences: [better, worse] indices into `responses`, where the source itself says which is better; None where
            that follows from the scores.
    """

    prompt_id: str
    prompt: Prompt
    responses: list[ScoredResponse]
    true_weights: list[float] | None = None
    preferences: list[list[int]] | None = None


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response.

    Args:
        pair_id: unique in its file.
        prompt_id: `prompt_id(prompt)`; pairs of one prompt share it.
        prompt: the conversation up to the response.
        chosen: text of the preferred response.
        rejected: text of the other one.
        subset: a name to report by; "" when there is none.
        chosen_scores: annotated scores, length K, in rating points; None when unknown.
        rejected_scores: likewise.
        chosen_normalised: `chosen_scores` less the training mean, over the training standard deviation.
        rejected_normalised: likewise.
        target: softmax of `chosen_normalised`, the supervision target of w (Eq. 13).
        true_weights: the true objective weights, length K, where they are known.
    """

    pair_id: str
    prompt_id: str
    prompt: Prompt
    chosen: str
    rejected: str
    subset: str = ""
    chosen_scores: list[float] | None = None
    rejected_scores: list[float] | None = None
    chosen_normalised: list[float] | None = None
    rejected_normalised: list[float] | None = None
    target: list[float] | None = None
    true_weights: list[float] | None = None


@dataclass
class Quarantine:
    """Rows that can't be used, kept with their reason so that nothing is lost in silence.

    Args:
        source: the file or dataset that is being read.
        rows: one entry a refused row: 1-based row number, reason, and the row itself.
    """

    source: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: int, reason: str, record: Any) -> None:
        """Keep a row (1-based) with the reason why it can't be used."""
        self.rows.append({"source": self.source, "row": row, "reason": reason, "record": record})

    def counts(self) -> dict[str, int]:
        """Number of rows by reason."""
        out: dict[str, int] = {}
        for entry in self.rows:
            out[entry["reason"]] = out.get(entry["reason"], 0) + 1
        return out

    def none_usable(self, remedy: str) -> RecordError:
        """The error for a source without one usable row: its most common reasons, and what to do about it."""
        if not self.rows:
            return RecordError(f"{self.source}: holds no rows")
        common = sorted(self.counts().items(), key=lambda item: -item[1])[:5]
        reasons = "".join(f"\n  {count} x {reason}" for reason, count in common)
        return RecordError(f"{self.source}: none of its {len(self.rows)} rows can be used:{reasons}\n{remedy}")


def normalise_text(text: str) -> str:
    """Unicode NFKC, lower case, runs of white space folded: what counts as the same prompt."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().lower()


def count_words(text: str) -> int:
    """Words and punctuation marks: a token count that needs no tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def prompt_id(prompt: Prompt) -> str:
    """16 hexadecimal digits, equal for prompts that are equal after normalisation."""
    turns = "\x1e".join(f"{m['role']}\x1f{normalise_text(m['content'])}" for m in prompt)
    return hashlib.sha256(turns.encode()).hexdigest()[:16]


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) aside and move it into place, so that a killed job leaves no half file.

    Raises:
        OSError: the disk is full or may not be written; names the file, and nothing is left of the attempt.
    """
    with _aside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def _aside(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, which is moved to its place when everything is in it; otherwise nothing is left of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(aside)):  # a full disk's error names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented for people."""
    write_whole(path, _utf8(json.dumps(value, indent=2, ensure_ascii=False)) + b"\n")


def _utf8(document: str) -> bytes:
    """JSON as UTF-8; half a surrogate pair, which JSON may hold and UTF-8 may not, is written as its escape."""
    try:
        return document.encode()
    except UnicodeEncodeError:  # it stands inside a string: nothing else of JSON is beyond ASCII
        return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", document).encode()


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write dataclass records or mappings, one a line; returns how many."""
    count = 0
    with _aside(path) as file:  # a line at a time: three copies of a large file in memory would be the stage's peak
        for row in rows:
            file.write(_line(row))
            count += 1
    return count


_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def write_quarantine(path: Path, *quarantines: Quarantine) -> None:
    """Write the refused rows of all `quarantines` in the order of the source.

    Refused records may hold anything (lone surrogates, dates from Parquet): so the file is ASCII-escaped JSON, and what
    JSON does not know is written as text.
    """
    entries = sorted((entry for q in quarantines for entry in q.rows), key=lambda entry: entry["row"])
    write_whole(path, "".join(json.dumps(entry, default=str) + "\n" for entry in entries))


def _line(row: Any) -> bytes:
    return _utf8(_ENCODE(_plain(row))) + b"\n"


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based row number, mapping) of each non-blank line.

    Raises:
        RecordError: a line is not a JSON object; names the file and the row.
    """
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError:
                raise RecordError(f"{path}, row {number}: not UTF-8; make the file again") from None
            except json.JSONDecodeError as error:
                raise RecordError(f"{path}, row {number}: not valid JSON ({error.msg})") from None
            except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
                raise RecordError(f"{path}, row {number}: can't be read ({error})") from None
            if not isinstance(row, dict):
                raise RecordError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
            yield number, row


def read_scored(path: str | Path) -> list[ScoredPrompt]:
    """Read what `write_jsonl` wrote of `ScoredPrompt`s.

    Raises:
        RecordError: a row or one of its responses lacks a field or has one too many; names the file and the row.
    """
    prompts = []
    for number, row in read_jsonl(path):
        try:
            responses = [ScoredResponse(**response) for response in row["responses"]]
            prompts.append(ScoredPrompt(**{**row, "responses": responses}))
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path}, row {number}: not a scored prompt ({error})") from None
    return prompts


def both_texts(pairs: Iterable[PreferencePair]) -> list[tuple[Prompt, str]]:
    """Prompt and response: the chosen and the rejected one of the first pair, of the second, ..."""
    return [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Read what `write_jsonl` wrote of `PreferencePair`s.

    Raises:
        RecordError: a row lacks a field or has one too many; names the file and the row.
    """
    pairs = []
    for number, row in read_jsonl(path):
        try:
            pairs.append(PreferencePair(**row))
        except TypeError as error:
            raise RecordError(f"{path}, row {number}: not a preference pair ({error})") from None
    return pairs


def _plain(row: Any) -> Any:
    """A record as a mapping without its empty fields: files stay small and readable."""
    if isinstance(row, (str, float, int)):  # nearly all values: asked first, it halves the time
        return row
    if is_dataclass(row):
        values = ((name, getattr(row, name)) for name in _names(type(row)))
        return {name: _plain(value) for name, value in values if value is not None}
    return [_plain(item) for item in row] if isinstance(row, list) else row


@cache
def _names(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields."""
    return tuple(field.name for field in fields(kind))
