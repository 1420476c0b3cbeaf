"""Rows from where the configuration says: a file, a directory of shards, a pinned hub dataset.

* Files are JSON lines (.jsonl, .ndjson), a JSON list (.json), CSV or Parquet; each may be compressed (.gz, .bz2, .xz).
  What is inside counts, not the name: a JSON list called .jsonl is a list, gzip called .jsonl is gzip.
* Rows are numbered from 1. In JSON lines the number is the line's, so that an editor finds it; through a directory's
  shards, in the order of their names, the numbers run on.
* A row that is no JSON object goes to quarantine where the caller gives one, and is an error where not. A file in
  another encoding than UTF-8 is one error that names the encoding: its rows are not damaged, they are unread.
* `datasets` is imported only where a hub dataset is read: it costs seconds.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vrm.config import ConfigError, HubDataset, Source
from vrm.records import Quarantine, RecordError

PARQUET_BATCH = 1024  # rows held as Python objects at a time

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")

COMPRESSIONS: dict[str, tuple[bytes, Callable[..., Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
}
"""Ending, first bytes, and what opens it."""

MOST_UNPACKED = 200
"""Times its packed size that a file may have; texts have 3 to 30, very repetitive ones 100."""

UNPACKED_AT_LEAST = 64 * 2**20
"""Bytes that any file may have, however small it is when packed."""

NOT_READ: dict[bytes, str] = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it (`zstd -d`)",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
"""First bytes of what people have under a data file's name."""

BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

SPLIT_NAMES = {"train", "test", "validation", "valid", "val", "dev", "eval"}


@dataclass(frozen=True)
class _Unreadable:
    """A row that is no JSON object: what is wrong with it, and the row as it stands."""

    reason: str
    record: Any


NumberedRow = tuple[int, dict[str, Any] | _Unreadable]


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
        source: a file, a directory of shards, or a hub dataset.
        quarantine: takes the rows that are no JSON object; without one, such a row is an error.

    Raises:
        ConfigError: the file or dataset is missing, of an unsupported kind, or a hub id has no revision.
        RecordError: the file can't be read as a whole, or a row can't and there is no quarantine.
    """
    rows = _hub_rows(source.hub) if source.hub is not None else _path_rows(Path(source.path))
    for number, row in rows:
        if isinstance(row, dict):
            yield number, row
        elif quarantine is not None:
            quarantine.add(number, row.reason, row.record)
        else:
            raise RecordError(f"{describe(source)}, row {number}: {row.reason}")


def _path_rows(path: Path) -> Iterator[NumberedRow]:
    if path.is_dir():
        return _shard_rows(_shards(path))
    if _ending(path) is None:
        raise ConfigError(
            f"{path}: `path` must end in {', '.join(ENDINGS)}, or one of these and {', '.join(COMPRESSIONS)}; "
            "convert the file, or read it through `hub`"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; correct `path` (relative paths start at {Path.cwd()})")
    return _file_rows(path)


def _ending(path: Path) -> str | None:
    """The format that a file's name promises, in lower case and without a compression; None if it is none of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def _shards(directory: Path) -> list[Path]:
    """The data files of a directory, which must be of one format and of one split."""
    files = sorted(f for f in directory.iterdir() if f.is_file() and not f.name.startswith(".") and _ending(f))
    if not files:
        raise ConfigError(
            f"{directory}: no file in it ends in {', '.join(ENDINGS)}; name a file, or a directory of them"
        )
    formats = sorted({_ending(file) or "" for file in files})
    if len(formats) > 1:
        raise ConfigError(f"{directory}: holds {' and '.join(formats)} files; leave the shards of one format in it")
    splits = sorted({split for file in files if (split := re.split(r"[-_.]", file.name.lower())[0]) in SPLIT_NAMES})
    if len(splits) > 1:
        raise ConfigError(
            f"{directory}: holds the splits {', '.join(splits)}, which are not to be read as one; name one file, or "
            "give the directory as hub.dataset with hub.split"
        )
    return files


def _shard_rows(files: list[Path]) -> Iterator[NumberedRow]:
    before = 0
    for file in files:
        number = 0
        for number, row in _file_rows(file):
            yield before + number, row
        before += number


def _file_rows(path: Path) -> Iterator[NumberedRow]:
    try:
        with _opened(path) as (handle, head):
            yield from _reader_of(path, head)(path, handle)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        raise RecordError(
            f"{path}: damaged or cut off ({error}); take the file again from where it comes from"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bytes]]:
    """The file's bytes, unpacked if they are packed, and the first of them (which stay to be read)."""
    with open(path, "rb") as raw:
        start = raw.read(32)
    opener = next((opener for magic, opener in COMPRESSIONS.values() if start.startswith(magic)), open)
    for magic, what in NOT_READ.items():
        if start.startswith(magic):
            raise RecordError(f"{path}: is {what}")
    with opener(path, "rb") as handle:
        if opener is not open:
            handle = io.BufferedReader(_Bounded(handle, path))
        head = handle.read(4096)
        handle.seek(0)
        yield handle, head


class _Bounded(io.RawIOBase):
    """An unpacked file that does not grow without end: a packed kilobyte can hold a gigabyte of nothing.

    Args:
        inner: the unpacking file.
        path: the packed one, for the error, and for its size.
    """

    def __init__(self, inner: IO[bytes], path: Path) -> None:
        self._inner, self._path = inner, path
        self._most = max(UNPACKED_AT_LEAST, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer: Any) -> int:
        """See `RawIOBase`.

        Raises:
            RecordError: more comes out than data hold.
        """
        content = self._inner.read(len(buffer))
        buffer[: len(content)] = content
        if self._inner.tell() > self._most:
            raise RecordError(
                f"{self._path}: unpacks to more than {MOST_UNPACKED} times its size, which no data do: it is damaged, "
                "or made to fill the memory. If you know better, unpack it and name the unpacked file"
            )
        return len(content)


def _reader_of(path: Path, head: bytes) -> Callable[[Path, IO[bytes]], Iterator[NumberedRow]]:
    """The reader for what a file holds, by its first bytes and, where these don't tell, its name."""
    if head.startswith(b"PAR1"):
        return _parquet_rows
    if (ending := _ending(path)) == ".parquet":
        raise RecordError(f"{path}: not a readable Parquet file (it does not begin as one)")
    _require_utf8_file(path, head)
    if ending == ".csv":
        return _csv_rows
    is_list = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _json_rows if is_list or ending == ".json" else _jsonl_rows


def _require_utf8_file(path: Path, head: bytes) -> None:
    """Refuse UTF-16 and UTF-32, with or without a byte order mark: text in them is full of NUL bytes."""
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if found is None and b"\x00" in head[:64]:
        found = "UTF-16BE" if head[:1] == b"\x00" else "UTF-16LE"
    if found:
        raise RecordError(_encoding_fault(path, f"is {found}", found))


def _encoding_fault(path: Path, fault: str, encoding: str) -> str:
    return (
        f"{path}: {fault}; only UTF-8 is read. Convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8_{path.name}"
    )


def _jsonl_rows(path: Path, handle: IO[bytes]) -> Iterator[NumberedRow]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip() == b"{":
                raise RecordError(
                    f"{path}: an object over several lines; write one object a line (`jq -c . {path.name}`)"
                )
        try:
            yield number, _as_row(json.loads(line))
        except UnicodeDecodeError as error:
            _require_some_utf8(path, number, error)
            yield number, _Unreadable("not valid UTF-8", line.decode(errors="backslashreplace").rstrip("\n"))
        except (ValueError, RecursionError):
            yield number, _Unreadable("not valid JSON", line.decode(errors="backslashreplace").rstrip("\n"))


def _require_some_utf8(path: Path, number: int, error: UnicodeDecodeError) -> None:
    """Tell a damaged row of a UTF-8 file from a file in another encoding, which no row of other letters proves UTF-8.

    Reads the file again: it runs only where a row could not be decoded.

    Raises:
        RecordError: outside ASCII, no row of the file is UTF-8.
    """
    with _opened(path) as (handle, _):
        if any(not line.isascii() and _is_utf8(line) for line in handle):
            return
    byte = error.object[error.start]
    fault = f"row {number} is not UTF-8 (byte 0x{byte:02x}), and no other row with such letters is; it is probably "
    encoding = "WINDOWS-1252" if any(0x80 <= b < 0xA0 for b in error.object) else "ISO-8859-1"
    raise RecordError(_encoding_fault(path, fault + "Latin-1 (ISO-8859-1) or Windows-1252", encoding))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_rows(path: Path, handle: IO[bytes]) -> Iterator[NumberedRow]:
    content = handle.read()
    try:
        rows = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); it is probably Latin-1 or Windows-1252"
        raise RecordError(_encoding_fault(path, fault, "WINDOWS-1252")) from None
    except (ValueError, RecursionError) as error:
        if _first_line_is_json(content):
            yield from _jsonl_rows(path, io.BytesIO(content))
            return
        raise RecordError(
            f"{path}: not valid JSON ({error}); expected a list of objects, or one object a line"
        ) from None
    if not isinstance(rows, list):
        lists = [name for name, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        hint = f"; if its rows are under {' or '.join(lists)}, write that list to a file of its own" if lists else ""
        raise RecordError(f"{path}: expected a list of objects at the top level, found {type(rows).__name__}{hint}")
    for number, row in enumerate(rows, 1):
        yield number, _as_row(row)


def _first_line_is_json(content: bytes) -> bool:
    """Whether lines are values of their own: then the fault is some line's, not the file's."""
    try:
        json.loads(content.lstrip().split(b"\n", 1)[0])
    except ValueError:
        return False
    return True


def _csv_rows(path: Path, handle: IO[bytes]) -> Iterator[NumberedRow]:
    """Rows of a CSV file with a header; an empty cell is no value, and a cell of JSON objects is read as such."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    try:
        header = text.readline()
        text.seek(0)
        delimiter = max(",;\t", key=header.count)
        rows = csv.DictReader(text, delimiter=delimiter, strict=True)
        cells = len(rows.fieldnames or [])
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                yield number, _Unreadable(f"the header has {cells} cells, this row has more or fewer", dict(row))
            else:
                yield number, {name: _csv_cell(cell) for name, cell in row.items()}
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); it is probably Latin-1 or Windows-1252"
        raise RecordError(_encoding_fault(path, fault, "WINDOWS-1252")) from None
    except csv.Error as error:
        raise RecordError(f"{path}: not a readable CSV file ({error})") from None


def _csv_cell(cell: str) -> Any:
    if not cell:
        return None
    if cell[0] in "[{" and cell[-1] in "]}":
        try:
            value = json.loads(cell)
        except ValueError:
            return cell
        if isinstance(value, dict) or all(isinstance(entry, dict) for entry in value):
            return value
    return cell


def _parquet_rows(path: Path, handle: IO[bytes]) -> Iterator[NumberedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(handle) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, row
    # the last two: a name that is not UTF-8, a date that Python does not know
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
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
            "correct hub.dataset, hub.name, hub.split or hub.revision; without a network, give a local copy as `path`"
        ) from error
    yield from enumerate(rows, 1)


def _as_row(value: Any) -> dict[str, Any] | _Unreadable:
    if isinstance(value, dict):
        return value
    return _Unreadable(f"expected a JSON object, found {type(value).__name__}", value)
