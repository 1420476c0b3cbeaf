"""Who works in a folder right now, so that a lock of Snakemake's that nobody holds any more is removed, not explained.

* Snakemake notes what it makes in `.snakemake/locks`; a run that is killed leaves these notes, and the next one is
  refused until somebody has understood `--unlock`.
* Every run, and every job of it, holds a shared lock of the kernel's on `.snakemake/vrm.alive`. The kernel frees the
  locks of the dead, kill -9 and power cuts included. Whoever gets the file alone knows that nobody is left: notes that
  lie there are of the dead.
* What runs on other machines is not known here: notes of a run that gave its jobs to a cluster, or that another
  machine started, stay, and it is said what to look at.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ALIVE = "VRM_ALIVE"
"""Environment variable by which a job finds its run's file."""

NAME = "vrm.alive"

CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


def begin(folder: Path) -> str:
    """Hold the folder's lock while this process lives; remove Snakemake's notes if nobody else does.

    Args:
        folder: Snakemake's working directory.

    Returns:
        What a person should know: who is at work here, or why notes of a run that has ended were left; "": nothing.

    Raises:
        ConfigError: the folder can't be written.
    """
    notes = list((folder / ".snakemake" / "locks").glob("*.lock"))
    path = folder / ".snakemake" / NAME
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = _hold(path, fcntl.LOCK_EX)
        alone = descriptor is not None
        if alone and notes and not (reason := _kept(path)):
            for note in notes:
                note.unlink(missing_ok=True)
            notes = []
        if alone:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # for as long as we live: nobody closes it
        else:
            _hold(path, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            from vrm.config import ConfigError  # a job, which only joins, need not wait for it

            raise ConfigError(
                f"{folder}: can't be written ({error.strerror}), and results go below it; make room, have it mounted "
                "for writing, or run in another folder (`--directory`)"
            ) from None
        return ""  # a file system without locks: Snakemake's own words have to do
    if not notes:
        return ""
    return reason if alone else _at_work(path)


def started(folder: Path, run: str, is_local: bool) -> None:
    """Write down who makes a run, for whoever comes second."""
    from vrm.records import write_json  # a job, which only joins, need not wait for it

    write_json(_owner(folder / ".snakemake" / NAME), _myself() | {"run": run, "is_local": is_local})


def join() -> None:
    """Hold the lock of the run whose job this process is; no run, no lock."""
    path = os.environ.get(ALIVE)
    if path:
        with suppress(OSError):  # a courtesy of the job's: its work does not depend on it
            _hold(Path(path), fcntl.LOCK_SH)


def _hold(path: Path, kind: int) -> int | None:
    """A descriptor that holds the lock until this process ends; None: others hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _owner(path: Path) -> Path:
    return path.with_suffix(".json")


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read(path: Path) -> dict[str, Any]:
    """Who made the last run here; empty where nobody can say."""
    try:
        found = json.loads(_owner(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"host", "process", "since", "run", "is_local"} <= found.keys() else {}


def _said(owner: dict[str, Any]) -> str:
    return f"{owner['run']!r} (process {owner['process']} on {owner['host']}, since {owner['since']})"


def _kept(path: Path) -> str:
    """Why notes of a run that has ended here can't be removed; "": they can."""
    owner = _read(path)
    if not owner or (owner["is_local"] and owner["host"] == socket.gethostname()):
        return ""
    where = "its jobs are on a cluster" if not owner["is_local"] else f"it ran on {owner['host']}"
    return (
        f"the run {_said(owner)} ended without tidying up, and {where}: if `squeue --me`, or that machine, shows none "
        "of them any more, run `snakemake --unlock` once, and then this command again"
    )


def _at_work(path: Path) -> str:
    owner = _read(path)
    who = f"the run {_said(owner)}" if owner else "another run"
    return (
        f"{who} is at work in this folder, or jobs that it has left. Whoever makes the same files is refused: "
        "wait until the first has ended, or stop it, and run this command again; nothing has to be unlocked"
    )
