"""Resumable training: which checkpoint may be continued.

Checkpoints live in a directory that Snakemake does not know as an output (it deletes declared outputs before a job).
Each such directory says what it is made from, so that a run with other settings or other data never continues somebody
else's optimiser. What is removed there, and why, is said; see `vrm.ours` for what may be removed at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.other import load as load_numbers
from safetensors import SafetensorError, safe_open

from vrm.config import ConfigError, dependencies
from vrm.ours import MADE_FROM, MARKER, made_from, remove_ours, require_ours
from vrm.records import write_json

SAID = 8  # differences that the log names


def started_processes() -> int:
    """How many processes accelerate launch or torchrun has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fingerprint(settings: dict[str, Any], files: Iterable[Path]) -> dict[str, Any]:
    """What a training depends on: its settings, the number of processes, and the content of its input files.

    Where the files lie does not matter: a run that has been moved goes on.
    """
    hashes = sorted([path.name, _hash(path)] for path in files)
    return json.loads(json.dumps({"settings": settings, "processes": started_processes(), "files": hashes}))


def of_no_effect() -> set[str]:
    """Fields of a training's settings that its fingerprint leaves out, because the result is the same without them."""
    return dependencies.no_effect(started_processes())


def model_name(model: str | Path) -> str | None:
    """A hub model's id; None for a directory, which is known by its files, wherever it lies."""
    return None if Path(model).is_dir() else str(model)


def model_files(model: str | Path) -> list[Path]:
    """Everything in a local model's directory that its behaviour depends on; a hub model is known by its revision."""
    kinds = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
    files = Path(model).iterdir() if Path(model).is_dir() else []
    return sorted(
        path for path in files if path.suffix in kinds and not path.name.endswith((MARKER, ".provenance.json"))
    )


def _hash(path: Path) -> str:
    now = path.stat()
    return _hash_of(path.resolve(), now.st_size, now.st_mtime_ns)


@cache  # a job asks more than once for the weights of a model, of many GiB
def _hash_of(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def require_places(checkpoints: Path, out: Path, finished: Path) -> None:
    """Check, before anything is loaded, that a training may use its directories.

    Args:
        checkpoints: where resumable state goes.
        out: where results go.
        finished: the directory, `out` or inside it, that is replaced as a whole.

    Raises:
        ConfigError: something that we did not make would be deleted, or results would be deleted with the checkpoints.
    """
    state, whole = checkpoints.resolve(), finished.resolve()
    if state in (out.resolve(), whole) or whole in state.parents:
        raise ConfigError(
            f"--checkpoints {checkpoints} and --out {out} have to be two directories: checkpoints are removed when a "
            "training has finished"
        )
    require_ours(checkpoints, finished)


def resumable(directory: Path, wanted: dict[str, Any]) -> str | None:
    """The newest whole checkpoint in `directory` that may be continued, or None.

    Checkpoints made from other settings or data are removed, damaged ones are put aside, and the directory is marked
    as made from `wanted`. Of several processes the main one does that, and the others find it done.

    Args:
        directory: of the checkpoints.
        wanted: the training's `fingerprint`.

    Raises:
        ConfigError: the directory holds something that we did not make.
    """
    state = PartialState()
    with state.main_process_first():
        require_ours(directory)
        found = made_from(directory)
        changes = list(changes_of(found, wanted)) if found else []
        if changes:
            named = "; ".join(changes[:SAID]) + ("; ..." if len(changes) > SAID else "")
            print(f"{directory}: removed what was made from something else: {named}")
            remove_ours(directory)
        if changes or not found:
            write_json(directory / MADE_FROM, wanted)
        newest = _newest_whole(directory)
    return str(newest) if newest else None


def keep_newest(directory: Path, number: int) -> None:
    """Remove all but the newest checkpoints of a working directory that is ours."""
    for older in _checkpoints(directory)[number:] if made_from(directory) is not None else []:
        shutil.rmtree(older)


def _checkpoints(directory: Path) -> list[Path]:
    """The newest first."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def _newest_whole(directory: Path) -> Path | None:
    """Damaged checkpoints are renamed, so that a trainer that comes to the same step writes into no remains."""
    damaged = False
    for checkpoint in _checkpoints(directory):
        fault = _fault(checkpoint)
        if not fault:
            print(f"{directory}: going on from {checkpoint.name}")
            return checkpoint
        damaged = True
        print(f"{checkpoint}: not used, because {fault}")
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    if damaged:
        print(f"{directory}: no checkpoint is whole; starting from the beginning")
    return None


def _fault(checkpoint: Path) -> str:
    """Why a checkpoint can't be continued; "": it can.

    The trainer's state is the main process's last file; each of several leaves its random state besides.
    """
    state = checkpoint / "trainer_state.json"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{state.name} is missing or no JSON: the job was stopped while it wrote"
    states = list(checkpoint.glob("rng_state_*.pth"))
    if states and len(states) != started_processes():
        return f"it has the random states of {len(states)} processes, and {started_processes()} are running"
    if not any(checkpoint.glob("optimizer*")) and not any(checkpoint.glob("global_step*")):
        return "the optimiser's state is missing"
    if not any(any(checkpoint.glob(name)) for name in ("*.safetensors", "*model*.bin", "*model_fsdp*", "global_step*")):
        return "the weights are missing"
    return next((fault for path in sorted(checkpoint.rglob("*")) if (fault := _file_fault(path))), "")


def _file_fault(path: Path) -> str:
    """Why one of its files can't be read; nothing in it is executed: pickles are read as `weights_only`."""
    try:
        if path.name.endswith(".index.json"):
            shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            absent = [name for name in sorted(shards) if not (path.parent / name).is_file()]
            return f"{absent[0]} is missing" if absent else ""
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:  # checks that the tensors fill the file
                return "" if weights.keys() else f"{path.name} is empty"
        # a trainer's settings are pickled objects, which it writes and never reads
        if path.suffix in (".pt", ".pth", ".bin", ".pkl") and path.name != "training_args.bin":
            with zipfile.ZipFile(path):  # its table of contents stands at the end of the file
                pass
            # numbers alone: whatever else a pickle asks for is refused, here and by whoever reads it to go on
            load_numbers(path, map_location="cpu", mmap=True)
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path.name} is damaged ({error})"
    except Exception as error:  # unpicklers raise whatever the bytes lead them to
        return f"{path.name} can't be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return ""


def changes_of(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What is not as it was in a second `fingerprint`, a phrase each."""
    before, now = dict(_flat(old["settings"])), dict(_flat(new["settings"]))
    for name in sorted(before.keys() | now.keys()):
        leaf = name.rsplit(".", 1)[-1]
        moved = leaf in ("policy", "backbone") and now.get(name) is None  # a directory: its files are compared
        if before.get(name) != now.get(name) and not moved and leaf not in of_no_effect():
            yield f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
    if old["processes"] != new["processes"]:
        yield f"the number of processes was {old['processes']}, is {new['processes']}"
    files = [_files(record["files"]) for record in (old, new)]
    for name in sorted({name for name, _ in files[0] ^ files[1]}):
        here, there = ({key for key, _ in part} for part in files)
        yield f"{name} has changed" if name in here & there else f"{name} is {'new' if name in there else 'gone'}"


def _files(record: Any) -> set[tuple[str, str]]:
    """Names and hashes; records of earlier versions have them by path."""
    rows = [(Path(path).name, key) for path, key in record.items()] if isinstance(record, dict) else record
    return {(name, key) for name, key in rows}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings by dotted name."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
