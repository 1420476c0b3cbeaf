"""`vrm <command>`: parses, calls one function, says what went wrong in one line, writes provenance after a stage.

* `commands`: how a function becomes a command, the list of them all, the parser that is made of it, checks of what was
  typed, and what a command need not import
* `people`: what a person types; `stages`: what a rule of the workflow types
* `doctor`: what this machine can run

Nothing heavy is imported before a command is chosen: `vrm --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrm import alive
from vrm.cli import people, stages  # noqa: F401  declare the commands; in this order they stand in the help text
from vrm.cli.commands import COMMANDS, UNUSED, Command, hide, parser
from vrm.watch import plain_libraries

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 after an error said in one block, 143 after SIGTERM."""
    options = vars(parser().parse_args(arguments))
    command = COMMANDS[options.pop("command")]
    # a reproduction must not talk to the network unless it is asked to fetch something
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plain_libraries()
    alive.join()
    if command.models:
        keep_freed_memory()
    started = time.monotonic()
    try:
        if command.models and command.is_stage:  # a person hears of a mistake before seconds of imports
            hide(*UNUSED)
        command.function(**options)
        main_process = os.environ.get("RANK", "0") == "0"  # of those that accelerate launch or torchrun started
        if command.is_stage and main_process:
            _write_provenance(command, options, time.monotonic() - started)
    except Exception as error:
        text = explain(error, options)
        if text is None:
            raise
        print(f"vrm {command.name}: {text}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB that was freed, instead of giving it back and fetching it page by page.

    Each step of a training frees what the next one asks for again: on a CPU up to a quarter of a job's time went there
    (docs/benchmarks.md). Results are the same. Whoever has settings of his own keeps them; other libraries have none.
    """
    has_own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if has_own or not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # larger blocks are mapped, and given back, one by one; some versions take no more than the second number
        mallopt(M_MMAP_THRESHOLD, 256 << 20) or mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _write_provenance(command: Command, options: Mapping[str, object], seconds: float) -> None:
    """Leave `<what>.provenance.json` in an output directory or beside an output file."""
    from vrm import provenance as lineage
    from vrm.config import dump, load
    from vrm.provenance import provenance
    from vrm.records import write_json

    out, config = options["out"], load(options["config"])
    extra = {
        "stage": command.name,
        "arguments": {name: _plain(value) for name, value in options.items()},
        "seed": options.get("seed"),
        "inputs": lineage.inputs(options),
        "data": lineage.data(config),
        "judge": lineage.judge(config),
        "outside": lineage.outside(config, options),
        "device": _device() if command.models else "cpu",
        "seconds": round(seconds, 2),
        "config": config.model_dump(mode="json"),
    }
    if "results" in options:
        extra["run"] = lineage.run(options["results"])
    name = options.get("name") or command.name
    inside = out / f"{name}.provenance.json"  # named: several stages share a directory
    target = inside if out.is_dir() else out.with_suffix(".provenance.json")
    write_json(target, provenance(dump(config), Path(__file__).parents[3], extra))


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _device() -> str:
    """The device in use, without importing torch where the stage could do without it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu"


# Errors: what becomes one line with file, cause and remedy instead of a traceback.
#
# Classes are named by text, so that the table imports nothing; a test looks up every one of them.

OWN = (
    "vrm.config.base.ConfigError",
    "vrm.records.RecordError",
    "vrm.training.symptoms.TrainingError",
    "vrm.training.preemption.PreemptedError",
    "vrm.judging.client.JudgeError",
    "vrm.judging.store.StoreError",
)
"""Errors of ours: their message has all three already."""

DISK_FULL = "make room there and run the same command again: what is finished is kept, nothing half-written is used"

FULL = (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed writing", "unexpected pos")
"""How safetensors and torch say that a disk is full."""

MODEL_FILES = "fetch or copy the model again (of a clone made without git-lfs: `git lfs pull`), or name another one"

REMEDIES = {
    "builtins.FileNotFoundError": "correct the path, or make that file first",
    "builtins.PermissionError": "change the permissions, or name another place",
    "builtins.ModuleNotFoundError": "install that package into this environment; `vrm doctor` says what is missing",
    "safetensors.SafetensorError": MODEL_FILES,
    "jinja2.exceptions.TemplateError": "give another chat template by the configuration (`chat_template`)",
    "torch.OutOfMemoryError": "make `batch_size` or `max_length` smaller; `vrm plan` says what is needed",
    "builtins.OSError": MODEL_FILES,
}
"""Errors of others, and what can be done. The first entry that fits is taken: subclasses stand before their bases."""

BY_NUMBER = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), DISK_FULL),
    errno.EROFS: "it is on a file system that may only be read: have it mounted for writing, or name another place",
    errno.EIO: "the disk or the network file system fails; once it works, run the same command again",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (`ulimit -n 4096`)"),
}
"""Errors of the operating system, which come in several classes."""

MODELS = ("model", "policy", "reference", "backbone", "models")
"""Options that name models; they are named where an error does not say which file it is about."""


def explain(error: Exception, options: Mapping[str, object]) -> str | None:
    """An expected error in one line.

    Args:
        error: what was raised.
        options: of the command, by name.

    Returns:
        Cause, file and remedy; None for an error that nobody expects, whose traceback has to be seen. The environment
        variable VRM_TRACEBACK=1 asks for the traceback of the others' errors too.
    """
    if any(_is(error, name) for name in OWN):
        return str(error)
    remedy = _of_the_system(error) or next((text for name, text in REMEDIES.items() if _is(error, name)), None)
    if remedy is None and type(error) is Exception and "tokenizer" in _origin(error):
        remedy = MODEL_FILES  # the tokenizers library has no class of its own
    if remedy is None or os.environ.get("VRM_TRACEBACK") == "1":
        return None
    cause, file = _first_line(error), None
    if isinstance(error, OSError) and error.errno is not None:
        file, cause = error.filename, error.strerror or cause
        is_model_file = file is not None and Path(os.fsdecode(file)).suffix in (".safetensors", ".json", ".jinja")
        if remedy is MODEL_FILES and not is_model_file:
            remedy = "VRM_TRACEBACK=1 shows where"
    file = file or _models(options)
    return f"{os.fsdecode(file)}: {cause}; {remedy}" if file else f"{cause}; {remedy}"


def _of_the_system(error: Exception) -> str | None:
    """The remedy for what the operating system refuses; libraries in other languages pass on its words alone."""
    if isinstance(error, OSError) and error.errno in BY_NUMBER:
        return BY_NUMBER[error.errno]
    return DISK_FULL if any(words in str(error) for words in FULL) else None


def _is(error: Exception, name: str) -> bool:
    """Whether it is of that class; a class whose module nobody imported can't have been raised."""
    module, _, kind = name.rpartition(".")
    known = getattr(sys.modules.get(module), kind, None)
    return known is not None and isinstance(error, known)


def _models(options: Mapping[str, object]) -> str:
    values = [options[name] for name in MODELS if options.get(name)]
    flat = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return ", ".join(str(entry) for entry in flat)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _origin(error: Exception) -> str:
    """File of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename if trace else ""
