"""`vrm <command>`: parses, calls one function, says what went wrong, writes provenance after a stage.

* `commands`: how a function becomes a command, and the list of them all
* `people`: what a person types; `stages`: what a rule of the workflow types
* `errors`: which exceptions become one line
* `doctor`: what this machine can run
* `startup`: what a command need not import

Nothing heavy is imported before a command is chosen: `vrm --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrm import __version__, alive
from vrm.cli import people, stages  # noqa: F401  declare the commands; in this order they stand in the help text
from vrm.cli.commands import COMMANDS, Command, add_options
from vrm.cli.errors import explain
from vrm.cli.startup import UNUSED, hide

HINT = """Each command has an example: `vrm COMMAND --help`. Stages take what the workflow's rule of that name takes;
`snakemake -n -p` prints them all. There they read results/<run>/config.yaml, which a real run writes; before that, name
your own YAML files. `VRM_TRACEBACK=1` shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 after an error said in one block, 143 after SIGTERM."""
    options = vars(parser().parse_args(arguments))
    command = COMMANDS[options.pop("command")]
    # a reproduction must not talk to the network unless it is asked to fetch something
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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


def parser() -> argparse.ArgumentParser:
    """The command line as argparse knows it, built from `COMMANDS`."""
    raw = argparse.RawDescriptionHelpFormatter
    people_first = "\n\n".join(
        [
            "Variational reward modelling.",
            _listed("commands", [command for command in COMMANDS.values() if not command.is_stage]),
            _listed("stages of the workflow", [command for command in COMMANDS.values() if command.is_stage]),
        ]
    )
    top = argparse.ArgumentParser(
        prog="vrm",
        usage="vrm [--help] [--version] COMMAND ...",
        description=people_first,
        epilog=HINT,
        formatter_class=raw,
    )
    top.add_argument("--version", action="version", version=f"vrm {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for command in COMMANDS.values():
        sub = subparsers.add_parser(
            command.name,
            prog=f"vrm {command.name}",
            description=command.text,
            epilog="example:\n  " + command.example.replace("\n", "\n  "),
            formatter_class=raw,
        )
        add_options(sub, command.function)
    return top


def _listed(title: str, commands: Sequence[Command]) -> str:
    width = max(map(len, COMMANDS))
    return "\n".join([f"{title}:", *(f"  {command.name:{width}s}  {command.text}" for command in commands)])


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
