"""Resumable training: which checkpoint may be continued, and how a finished model comes into place.

Checkpoints live in a directory that Snakemake does not know as an output (it deletes declared outputs before a job).
Each such directory carries a fingerprint of what it was made from, so that a run with other settings or other data
never continues somebody else's optimiser.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vrm.records import write_json
from vrm.training.trainer import started_processes

FINGERPRINT = "made_from.json"


def fingerprint(settings: dict[str, Any], files: Iterable[Path]) -> dict[str, Any]:
    """What a training depends on: its settings, the number of processes, and the content of its input files."""
    hashes = {str(path): _hash(path) for path in files}
    return json.loads(json.dumps({"settings": settings, "processes": started_processes(), "files": hashes}))


def of_no_effect() -> set[str]:
    """Fields of a training's settings that its fingerprint leaves out.

    Processes are counted as they were started; how they share a model, on which a checkpoint's format depends, is a
    question of several alone.
    """
    return {"processes"} if started_processes() > 1 else {"processes", "launch"}


def model_files(model: str | Path) -> list[Path]:
    """Everything in a local model's directory that its behaviour depends on; a hub model is known by its revision."""
    kinds = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
    files = Path(model).iterdir() if Path(model).is_dir() else []
    return sorted(path for path in files if path.suffix in kinds and not path.name.endswith(".provenance.json"))


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def resumable(directory: Path, made_from: dict[str, Any]) -> str | None:
    """The newest whole checkpoint in `directory` that may be continued, or None.

    Anything made from other settings or data is deleted, and the directory is marked as made from these. Of several
    processes the main one does that, and the others find it done.
    """
    marker = directory / FINGERPRINT
    with PartialState().main_process_first():
        if directory.exists() and (not marker.exists() or json.loads(marker.read_text()) != made_from):
            shutil.rmtree(directory)
        if not marker.exists():
            write_json(marker, made_from)
    whole = [path for path in directory.glob("checkpoint-*") if _is_whole(path)]
    newest = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    return str(newest) if newest else None


def _is_whole(checkpoint: Path) -> bool:
    """The trainer's state is the main process's last file; each of several leaves its random state besides."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    states = list(checkpoint.glob("rng_state_*.pth"))
    return not states or len(states) == started_processes()


def place(directory: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a directory aside, then move it into place; what killed jobs have left aside goes.

    Only one job at a time, on one machine, writes a directory.
    """
    for leftover in directory.parent.glob(f".{directory.name}.*"):
        process = leftover.name.rpartition(".")[2]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(leftover)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    shutil.rmtree(directory, ignore_errors=True)
    aside.replace(directory)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is someone else's
        pass
    return True
