"""Every reply that was paid for, in an append-only file that several processes share.

    <directory>/replies.jsonl   one `Reply`, `Unusable` or `Unanswered` a line
    <directory>/held/<key>      a request that is being asked right now

* A line is written under a file lock, with one `write` at the end of the file, and is on the disk (`fsync`) before
  anybody sees it: what callers get is what is read back.
* A writer that dies in the middle leaves a line without its end. Readers wait for line ends, and the next writer
  begins a new line; what is left of the old one is no JSON object (no prefix of one is), is set aside and counted.
* Whoever asks a request holds a lock on its file in `held/`. The kernel frees the lock of a dead process, so nobody
  waits for it. The file says whether the request had gone out: if so, an `Unanswered` line is written in its name.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from vrm.judging.exchange import NO_FIELDS, Reply, Request, Unanswered, Unusable, Usage, longest_usage, request_key

if TYPE_CHECKING:
    from vrm.config.judge import JudgeConfig, Prices

Entry = Reply | Unusable | Unanswered
KINDS: dict[str, type[Entry]] = {"reply": Reply, "unusable": Unusable, "unanswered": Unanswered}
KEY = re.compile(r"[0-9a-f]{64}")  # what `request_key` gives
NAMES = {kind: name for name, kind in KINDS.items()}


class StoreError(RuntimeError):
    """The store can't be written or read; the message names the file and what to do about it."""


class Reservation:
    """The right to ask one request, and the note that tells others how far its holder came."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self.path = descriptor, path

    def sending(self, benchmark: str, most: Usage, entries: int) -> None:
        """Note that the request goes out now.

        Args:
            benchmark: who asks.
            most: what the exchange can use at most.
            entries: lines of this request in the store so far; one more of them settles this note.

        Raises:
            StoreError: there is no room for the note; the request must not go out then.
        """
        note = json.dumps({"benchmark": benchmark, "most": asdict(most), "entries": entries}).encode()
        self.settled()
        try:
            if os.pwrite(self._descriptor, note, 0) != len(note):
                raise OSError(0, "the disk took only a part")
        except OSError as error:
            raise StoreError(f"{self.path}: a request can't be noted ({error.strerror}); make room") from None

    def settled(self) -> None:
        """Note that the store knows how it ended."""
        os.ftruncate(self._descriptor, 0)

    def note(self) -> dict[str, Any] | None:
        """What the last holder left; None: it had nothing under way."""
        return _note(os.pread(self._descriptor, 65536, 0))


class Replies:
    """What a store holds, for whoever only looks: nothing is made, locked or written, and no file is an empty store.

    Args:
        directory: of the store.

    Raises:
        StoreError: it can't be read.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.path = self.directory / "replies.jsonl"
        self._lock, self._offset, self._damaged = RLock(), 0, 0
        self._replies: dict[str, Reply] = {}
        self._entries: list[Entry] = []
        self._unusable: dict[str, list[Unusable]] = {}
        self._counts: Counter[str] = Counter()
        self._refresh()

    def find(self, key: str) -> Reply | None:
        """The usable reply to a request, whoever paid for it; the first, should there be several."""
        with self._lock:
            self._refresh()
            return self._replies.get(key)

    def entries(self) -> list[Entry]:
        """All lines, in the order in which they were written."""
        with self._lock:
            self._refresh()
            return list(self._entries)

    def unusable(self, key: str) -> list[Unusable]:
        """The replies to a request that were paid for in vain."""
        with self._lock:
            self._refresh()
            return list(self._unusable.get(key, ()))

    def count(self, key: str) -> int:
        """Lines of a request, of all kinds."""
        with self._lock:
            self._refresh()
            return self._counts[key]

    @property
    def damaged(self) -> int:
        """Lines that were set aside, because a writer died in the middle of them."""
        with self._lock:
            self._refresh()
            return self._damaged

    def _refresh(self) -> None:
        """Read the lines that have come to their end since the last time."""
        if not self._offset and not self.path.exists():
            return
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(self._offset)
                text = file.read()
        except OSError as error:
            raise StoreError(f"{self.path}: can't be read ({error.strerror}); correct judge.store") from None
        if size < self._offset:
            raise StoreError(f"{self.path}: has shrunk while it was in use; it may only grow")
        end = text.rfind(b"\n") + 1
        self._offset += end
        for line in text[:end].split(b"\n"):
            if line:
                self._take_in(_parse(line))

    def _take_in(self, entry: Entry | None) -> None:
        if entry is None:
            self._damaged += 1
            return
        self._entries.append(entry)
        self._counts[entry.key] += 1
        if isinstance(entry, Reply):
            self._replies.setdefault(entry.key, entry)
        if isinstance(entry, Unusable):
            self._unusable.setdefault(entry.key, []).append(entry)


class Store(Replies):
    """Replies by key, shared by the threads of a process and by processes.

    Args:
        directory: made if it is not there. Give it to nothing that deletes its outputs.

    Raises:
        StoreError: it can't be made, read, or locked.
    """

    def __init__(self, directory: str | Path) -> None:
        self._held = Path(directory) / "held"
        try:
            self._held.mkdir(parents=True, exist_ok=True)
            super().__init__(directory)
            self.path.touch()
            _sync_directory(self.directory)
            left = [path.name for path in self._held.iterdir() if _is_a_reservation(path)]
        except OSError as error:
            raise StoreError(f"{directory}: not usable as a store of replies ({error.strerror})") from None
        for key in left:
            with self.reserve(key):
                pass  # taking over from the dead is all that there is to do

    def append(self, entry: Entry) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            StoreError: the disk is full, or the file can't be written.
        """
        # ASCII, because a reply may hold half a surrogate pair, which has no UTF-8
        line = json.dumps({"kind": NAMES[type(entry)], **asdict(entry)}).encode("ascii") + b"\n"
        with self._lock:
            try:
                _append(self.path, line)
            except OSError as error:
                raise StoreError(f"{self.path}: a reply can't be written ({error.strerror}); make room") from None
            self._refresh()

    @contextmanager
    def reserve(self, key: str) -> Iterator[Reservation | None]:
        """The sole right to ask a request while the context lasts; None: somebody else has it now.

        Whoever gets it looks into the store again before asking: the last holder may have written a reply.

        Raises:
            StoreError: the file system has no locks.
        """
        path = self._held / key
        try:
            descriptor = _try_lock(path)
        except OSError as error:
            raise StoreError(f"{path}: can't be locked ({error.strerror})") from None
        if descriptor is None:
            yield None
            return
        try:
            reservation = Reservation(descriptor, path)
            self._take_over(key, reservation)
            yield reservation
            path.unlink(missing_ok=True)  # left in place after an exception: its note still tells the next one
        finally:
            os.close(descriptor)

    def _take_over(self, key: str, reservation: Reservation) -> None:
        """Write down what a dead holder had sent and nobody has seen the answer of."""
        note = reservation.note()
        if note and self.count(key) <= note["entries"]:
            self.append(Unanswered(key, note["benchmark"], "lost with its process", Usage(**note["most"])))
        reservation.settled()


def _is_a_reservation(path: Path) -> bool:
    """Whether a file in `held/` is ours, which taking over removes: by its name, or by the note in it."""
    if not path.is_file() or path.is_symlink():
        return False
    return bool(KEY.fullmatch(path.name)) or _note(path.read_bytes()) is not None


def _note(text: bytes) -> dict[str, Any] | None:
    """What `Reservation.sending` has written; None: nothing, or something else."""
    try:
        note = json.loads(text)
    except ValueError:
        return None
    return note if isinstance(note, dict) and note.keys() == {"benchmark", "most", "entries"} else None


def _parse(line: bytes) -> Entry | None:
    """The entry of a line; None: it is not one."""
    try:
        row = json.loads(line)
        return KINDS[row.pop("kind")](**{**row, "usage": Usage(**row["usage"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _append(path: Path, line: bytes) -> None:
    """One write at the end of the file, alone, and down to the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":  # its writer is dead: we hold the lock
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(0, "the disk took only a part")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of the file at `path`; None: somebody else's does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # its last holder may have removed the file after we opened it: that lock would keep out nobody
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sync_directory(directory: Path) -> None:
    """Bring the names in a directory down to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What judging has cost, from the store, and what requests will cost at most that it has no reply to.
#
# The store's tokens are the endpoint's own counts, except where it gave none; those are estimated as characters / 4 and
# reported beside the others. Estimates before a call are all characters / 4.


@dataclass(frozen=True)
class Spending:
    """What the store says of one benchmark.

    Args:
        replies: usable ones.
        unusable: replies that were paid for in vain.
        unanswered: requests whose reply never came (time-outs, lost connections, killed runs); perhaps billed.
        prompt_tokens: of `replies` and `unusable`.
        completion_tokens: likewise.
        estimated_tokens: how many of those are characters / 4, because the endpoint did not count.
        cost: dollars, of `replies` and `unusable`; None: prices are unknown.
        perhaps: dollars that `unanswered` can have cost on top, at most.
    """

    replies: int = 0
    unusable: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0
    cost: float | None = 0.0
    perhaps: float | None = 0.0


@dataclass(frozen=True)
class Estimate:
    """What requests will use, if each of them is answered at the first try.

    Args:
        requests: how many.
        prompt_tokens: characters / 4.
        completion_tokens: the most: every reply as long as it may be.
        cost: dollars, at most; None: prices are unknown.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def spending(store: Replies, prices: Prices | None) -> dict[str, Spending]:
    """What each benchmark has paid, by name in alphabetical order."""
    parts: dict[str, list[Spending]] = defaultdict(list)
    for entry in store.entries():
        parts[entry.benchmark].append(_spending(entry, prices))
    return {name: total(parts[name]) for name in sorted(parts)}


def spending_of(store: Replies, keys: Collection[str], prices: Prices | None) -> Spending:
    """What the requests with these keys have cost, whoever asked and whatever came back."""
    nothing = Spending(cost=_dollars(Usage(0, 0), prices), perhaps=_dollars(Usage(0, 0), prices))
    return total([nothing, *(_spending(entry, prices) for entry in store.entries() if entry.key in keys)])


def estimate(
    requests: Iterable[Request], prices: Prices | None, *, max_tokens: int, fields: Mapping[str, Any] = NO_FIELDS
) -> Estimate:
    """What requests will use; tokens are characters / 4.

    Args:
        requests: which are to be paid for; `not_stored` gives those.
        prices: None leaves the cost unknown.
        max_tokens: the longest reply where a request sets none, `JudgeConfig.max_tokens`.
        fields: `JudgeConfig.request`.
    """
    most = [longest_usage(request, max_tokens, fields) for request in requests]
    usage = Usage(sum(each.prompt_tokens for each in most), sum(each.completion_tokens for each in most))
    return Estimate(len(most), usage.prompt_tokens, usage.completion_tokens, _dollars(usage, prices))


def not_stored(requests: Iterable[Request], config: JudgeConfig, store: Replies) -> list[Request]:
    """The requests that would be asked, each once: those to which the store has no reply."""
    unique = {request_key(request, config): request for request in requests}
    return [request for key, request in unique.items() if store.find(key) is None]


def total(parts: Iterable[Spending] | Mapping[str, Spending]) -> Spending:
    """The sum of at least one; an unknown cost makes the sum's unknown."""
    rows = list(parts.values() if isinstance(parts, Mapping) else parts)
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields_of(Spending)}
    return Spending(**{name: None if None in column else _sum(column) for name, column in columns.items()})


def _sum(column: list[int] | list[float]) -> int | float:
    """Dollars to the last bit, whatever the order: replies come in any."""
    return math.fsum(column) if any(isinstance(value, float) for value in column) else sum(column)


def _spending(entry: Reply | Unusable | Unanswered, prices: Prices | None) -> Spending:
    usage, none = entry.usage, _dollars(Usage(0, 0), prices)
    if isinstance(entry, Unanswered):
        return Spending(unanswered=1, cost=none, perhaps=_dollars(usage, prices))
    tokens = (usage.prompt_tokens, usage.completion_tokens)
    usable = isinstance(entry, Reply)
    return Spending(usable, not usable, 0, *tokens, usage.estimated * sum(tokens), _dollars(usage, prices), none)


def _dollars(usage: Usage, prices: Prices | None) -> float | None:
    if prices is None:
        return None
    return (usage.prompt_tokens * prices.prompt + usage.completion_tokens * prices.completion) / 1e6
