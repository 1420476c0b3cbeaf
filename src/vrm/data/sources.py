"""What came in, what was refused, and why: the counts and the quarantine file of a data stage.

Rows from where the configuration says: a .jsonl, .json or .parquet file, or a pinned hub dataset.

* Rows are numbered from 1. In a .jsonl file the number is the line's, so that an editor finds it.
* A row that is no JSON object goes to quarantine where the caller gives one, and is an error where not.
* `datasets` is imported only where a hub dataset is read: it costs seconds.

Reading single fields of other people's records: prompts, texts, numbers.

Each function returns the value or raises `Unusable` with a reason that is short, names the field, and does not quote
the value, so that equal faults count as one reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrm.config import ConfigError, HubDataset, Source
from vrm.records import Message, Prompt, Quarantine, RecordError, write_whole

PARQUET_BATCH = 1024  # rows held as Python objects at a time


@dataclass(frozen=True)
class _Unreadable:
    """A row that is no JSON object: what is wrong with it, and the row as it stands."""

    reason: str
    record: Any


def describe(source: Source) -> str:
    """The source's name in messages and in quarantine: the path, or the hub id with revision and split."""
    if source.path is not None:
        return source.path
    hub = source.hub
    name = f" ({hub.name})" if hub.name else ""
    return f"{hub.dataset}{name}@{hub.revision or 'local'}, split {hub.split}"


def read_rows(source: Source, quarantine: Quarantine | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based row number, mapping) of each row of a source.

    Args:
        source: a file or a hub dataset.
        quarantine: takes the rows that are no JSON object; without one, such a row is an error.

    Raises:
        ConfigError: the file or dataset is missing, of an unsupported kind, or a hub id has no revision.
        RecordError: the file can't be parsed as a whole, or a row can't and there is no quarantine.
    """
    rows = _hub_rows(source.hub) if source.hub is not None else _file_rows(Path(source.path))
    for number, row in rows:
        if isinstance(row, dict):
            yield number, row
        elif quarantine is not None:
            quarantine.add(number, row.reason, row.record)
        else:
            raise RecordError(f"{describe(source)}, row {number}: {row.reason}")


def _file_rows(path: Path) -> Iterable[tuple[int, dict[str, Any] | _Unreadable]]:
    readers: dict[str, Callable[[Path], Iterable[tuple[int, Any]]]] = {
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise ConfigError(
            f"{path}: `path` must end in {', '.join(readers)}; convert the file, or read it through `hub`"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; mend `path` (relative paths start at {Path.cwd()})")
    return readers[path.suffix](path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | _Unreadable]]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                yield number, _as_row(json.loads(line))
            except (ValueError, RecursionError):  # ValueError is also what an undecodable byte raises
                yield number, _Unreadable("not valid JSON", line.decode(errors="backslashreplace").rstrip("\n"))


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | _Unreadable]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); name it .jsonl if it holds one object a line") from None
    if not isinstance(rows, list):
        raise RecordError(f"{path}: expected a list of objects at the top level, found {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield number, _as_row(row)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{path}: not a readable Parquet file ({error})") from None


def _hub_rows(hub: HubDataset) -> Iterator[tuple[int, dict[str, Any]]]:
    if hub.revision is None and not Path(hub.dataset).is_dir():
        raise ConfigError(
            f"hub.revision is missing for {hub.dataset}: pin the dataset's commit, "
            "or give a local directory in the hub's layout as hub.dataset"
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(hub.dataset, hub.name, split=hub.split, revision=hub.revision)
    except (DatasetsError, OSError, ValueError) as error:
        raise ConfigError(
            f"{hub.dataset}: the dataset can't be loaded: {error}\n"
            "mend hub.dataset, hub.name, hub.split or hub.revision; without a network, give a local copy as `path`"
        ) from error
    yield from enumerate(rows, 1)


def _as_row(value: Any) -> dict[str, Any] | _Unreadable:
    if isinstance(value, dict):
        return value
    return _Unreadable(f"expected a JSON object, found {type(value).__name__}", value)


ROLES = ("system", "user", "assistant")


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

    Other keys of a message are dropped, and so is an empty system message, which public data often have.

    Raises:
        Unusable: no message is left, a role is unknown, or a content is not text or empty.
    """
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Unusable(f"{what} has a message whose role is none of {', '.join(ROLES)}")
        role, content = message["role"], message.get("content")
        if role == "system" and content == "":
            continue
        messages.append(Message(role=role, content=parse_text(content, f"a message of {what}")))
    if not messages:
        raise Unusable(f"{what} is empty")
    return messages


def parse_prompt(value: Any, what: str) -> Prompt:
    """A prompt, given as the user's text or as a conversation that ends with the user.

    Raises:
        Unusable: the text or a message can't be used, or the last message is not the user's.
    """
    if not isinstance(value, list):
        return [Message(role="user", content=parse_text(value, what))]
    prompt = parse_messages(value, what)
    if prompt[-1]["role"] != "user":
        raise Unusable(f"{what} does not end with a message of the user")
    return prompt


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


def format_counts(title: str, counts: Mapping[str, Any]) -> str:
    """Counts as one block for people: a title, then a line an entry; nested mappings are indented.

    Args:
        counts: numbers, texts, lists of texts, and mappings of these; empty mappings are left out.
    """
    lines = _lines(counts, indent=2)
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join([title, *(f"{label:<{width}}  {value}".rstrip() for label, value in lines)])


def write_quarantine(path: Path, *quarantines: Quarantine) -> None:
    """Write the refused rows of all `quarantines` in the order of the source.

    Refused records may hold anything (lone surrogates, dates from Parquet): so the file is ASCII-escaped JSON, and what
    JSON does not know is written as text.
    """
    entries = sorted((entry for q in quarantines for entry in q.rows), key=lambda entry: entry["row"])
    write_whole(path, "".join(json.dumps(entry, default=str) + "\n" for entry in entries))


def none_usable(refused: Quarantine, mend: str) -> RecordError:
    """The error for a source without one usable row: its most common reasons, and the mend."""
    if not refused.rows:
        return RecordError(f"{refused.source}: holds no rows")
    common = sorted(refused.counts().items(), key=lambda item: -item[1])[:5]
    reasons = "".join(f"\n  {count} x {reason}" for reason, count in common)
    return RecordError(f"{refused.source}: none of its {len(refused.rows)} rows can be used:{reasons}\n{mend}")


def _lines(counts: Mapping[str, Any], indent: int) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in counts.items():
        label = " " * indent + key.replace("_", " ")
        if isinstance(value, Mapping):
            nested = _lines({str(k): v for k, v in value.items()}, indent + 2)
            lines += [(label, ""), *nested] if nested else []
        elif isinstance(value, list):
            lines.append((label, ", ".join(map(str, value))))
        else:
            lines.append((label, str(value)))
    return lines
