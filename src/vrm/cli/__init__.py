"""`vrm <command>`: parses, calls one function, says what went wrong, writes provenance after a stage.

* `commands`: how a function becomes a command, the list of them all, the parser that is made of it, checks of what was
  typed, and what a command need not import
* `people`: what a person types; `stages`: what a rule of the workflow types
* `errors`: which exceptions become one line
* `doctor`: what this machine can run

Nothing heavy is imported before a command is chosen: `vrm --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrm import alive
from vrm.cli import people, stages  # noqa: F401  declare the commands; in this order they stand in the help text
from vrm.cli.commands import COMMANDS, UNUSED, Command, hide, parser
from vrm.cli.errors import explain
from vrm.watch import plain_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 after an error said in one block, 143 after SIGTERM."""
    options = vars(parser().parse_args(arguments))
    command = COMMANDS[options.pop("command")]
    # a reproduction must not talk to the network unless it is asked to fetch something
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plain_libraries()
    alive.join()
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
