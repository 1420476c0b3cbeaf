"""What may be deleted: what we have made, and nothing else.

* A finished directory, a model for instance, is ours where its marker lists each of its files. `place` makes such
  directories.
* A working directory, for checkpoints, is ours where it says what it is made from. In it, the names that we give are
  ours; what somebody else has put there stays.
* An empty directory may be used and removed. Every other one stays as it is, and whoever asks for it gets an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vrm.config import ConfigError
from vrm.records import write_json

MARKER = ".made_by_vrm.json"
"""In a finished directory: the list of its files."""

MADE_FROM = "made_from.json"
"""In a working directory: what it is made from; see `vrm.checkpoints.fingerprint`."""

WORKING = re.compile(
    r"(damaged-)?checkpoint-\d+|answers\.jsonl|training\.csv|samples\.jsonl|losses-\d+\.npy|made_from\.json|\.made_from\.json\.\d+"
)
"""Names that we give in a working directory."""

BESIDE = re.compile(r"[\w.-]+\.provenance\.json|\.snakemake_timestamp")
"""Written into a finished directory by the command line and by Snakemake."""

SHOWN = 3  # names in an error


def foreign(directory: Path) -> list[str]:
    """Paths inside a directory that we did not make, in alphabetical order; none where it is missing or empty."""
    if not directory.is_dir():
        return []
    made = _read(directory / MARKER)
    if isinstance(made, list):
        known = {MARKER, *made}
        return sorted(name for name in _files(directory) if name not in known and not BESIDE.fullmatch(name))
    names = sorted(path.name for path in directory.iterdir())
    if made_from(directory) is not None:
        return [name for name in names if not WORKING.fullmatch(name)]
    return [name for name in names if not name.startswith(f".{MADE_FROM}.")]  # a marker that was never finished


def require_ours(*directories: Path) -> None:
    """Check, before any work, that what is in the way of our results is ours or empty.

    Args:
        directories: finished or working ones, or paths where there is nothing yet.

    Raises:
        ConfigError: one holds something that we did not make, or is no directory.
    """
    for directory in directories:
        if directory.exists() and not directory.is_dir():
            raise ConfigError(f"{directory}: is a file, and a directory is wanted; give another path")
        names = foreign(directory)
        if names and made_from(directory) is None:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ConfigError(
                f"{directory}: holds what vrm did not make ({', '.join(names[:SHOWN])}{more}), which would be deleted; "
                "give another directory, or move these files away"
            )


def made_from(directory: Path) -> dict[str, Any] | None:
    """What a working directory is made from; None: it is not one of ours."""
    value = _read(directory / MADE_FROM)
    return value if isinstance(value, dict) and {"settings", "processes", "files"} <= value.keys() else None


def remove_ours(directory: Path) -> None:
    """Remove what we made in a directory, and the directory unless something is left; what is left is said."""
    if not directory.is_dir():
        return
    names, working = foreign(directory), made_from(directory) is not None
    if working or not names:
        for path in list(directory.iterdir()):
            if path.name not in names:
                _remove(path)
    if names:
        print(f"{directory}: left in place, because vrm did not make it: {', '.join(names)}")
    elif not directory.is_symlink():
        directory.rmdir()


def place(directory: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a directory aside, then move it into place; what killed jobs have left aside is removed.

    Only one job at a time, on one machine, writes a directory.

    Raises:
        ConfigError: something that we did not make is in its place.
    """
    require_ours(directory)
    if directory.is_symlink():
        raise ConfigError(f"{directory}: is a link, which can't be replaced as a whole; give the directory itself")
    for leftover in directory.parent.glob(f".{directory.name}.*"):
        process = leftover.name.rpartition(".")[2]
        dead = process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process)))
        if dead and (leftover / MARKER).is_file():
            shutil.rmtree(leftover)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}")
    if aside.exists():
        raise ConfigError(f"{aside}: is in the way, and vrm did not make it; move it away")
    write_json(aside / MARKER, [])
    write(aside)
    write_json(aside / MARKER, sorted(name for name in _files(aside) if name != MARKER))
    remove_ours(directory)
    aside.replace(directory)


def _files(directory: Path) -> list[str]:
    """Relative paths of all files below a directory; a link is a file, whatever it leads to."""
    return [
        (Path(folder) / name).relative_to(directory).as_posix()
        for folder, folders, files in os.walk(directory)
        for name in [*files, *(name for name in folders if (Path(folder) / name).is_symlink())]
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is someone else's
        pass
    return True
