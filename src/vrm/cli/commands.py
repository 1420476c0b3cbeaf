"""What a command is: a function whose annotated parameters are its options. argparse is built from them.

A command is declared once, in `vrm.cli.people` or `vrm.cli.stages`:

    @stage("vrm gold --config config.yaml --samples samples.jsonl --out samples.gold.csv")
    def gold(config: ConfigFiles, samples: Annotated[Path, Option("a samples.jsonl")], out: Csv) -> None:
        \"\"\"Score a file of samples by the gold judge.\"\"\"

Its name is the function's, its text the docstring's first line, a flag the parameter's name; a parameter without a
default is required. Only the standard library is imported, so that `vrm --help` answers at once. What a shell needs to
complete commands is made of the same parser.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vrm import __version__

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Option:
    """How a parameter is given on the command line; its type and default are the parameter's own.

    Args:
        help: what it is, in a few words.
        metavar: what stands for the value in the help text; None leaves it to argparse.
        positional: given without a flag.
    """

    help: str
    metavar: str | None = None
    positional: bool = False


@dataclass(frozen=True)
class Command:
    """A command and the function it calls.

    Args:
        function: called with one keyword argument for every option.
        example: a command line, shown by `--help`.
        is_stage: a rule of the workflow calls it, and provenance is written beside its output.
        models: it runs models; any other command imports neither torch nor transformers.
    """

    function: Callable[..., None]
    example: str
    is_stage: bool
    models: bool

    @property
    def name(self) -> str:
        """As it is typed."""
        return self.function.__name__.replace("_", "-")

    @property
    def text(self) -> str:
        """What it does, in one sentence."""
        return inspect.getdoc(self.function).splitlines()[0]


COMMANDS: dict[str, Command] = {}
"""Every command by name, in the order of `--help`."""

ConfigFiles = Annotated[list[Path], Option("configuration; later files win", metavar="YAML")]
Fill = Annotated[Path, Option("directory to fill")]
Make = Annotated[Path, Option("directory to make")]
Csv = Annotated[Path, Option("CSV to write")]


def person(example: str, models: bool = False) -> Callable[[F], F]:
    """Declare a command that a person types."""
    return _declare(example, is_stage=False, models=models)


def stage(example: str, models: bool = False) -> Callable[[F], F]:
    """Declare a command that a rule of the workflow calls; it has `config` and `out`, for the provenance record."""
    return _declare(example, is_stage=True, models=models)


def _declare(example: str, is_stage: bool, models: bool) -> Callable[[F], F]:
    def declare(function: F) -> F:
        command = Command(function, example, is_stage, models)
        assert command.name not in COMMANDS, f"two commands are called {command.name}"
        COMMANDS[command.name] = command
        return function

    return declare


HINT = (
    "Each command has an example: `vrm COMMAND --help`. Stages take what the workflow's rule of that name takes; "
    "`snakemake -n -p` prints them all. There they read results/<run>/config.yaml, which a real run writes; before "
    "that, name your own YAML files. `VRM_TRACEBACK=1` shows the traceback of an error."
)


@cache
def parser() -> argparse.ArgumentParser:
    """The command line as argparse knows it, built from `COMMANDS`; once in a process and its forks."""
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
        epilog=textwrap.fill(HINT, _columns()),
        formatter_class=raw,
    )
    top.add_argument("--version", action="version", version=f"vrm {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for command in COMMANDS.values():
        sub = subparsers.add_parser(
            command.name,
            help=command.text,
            prog=f"vrm {command.name}",
            description=textwrap.fill(command.text, _columns()),
            epilog="example:\n  " + command.example.replace("\n", "\n  "),
            formatter_class=raw,
        )
        add_options(sub, command.function)
    return top


def _listed(title: str, commands: Sequence[Command]) -> str:
    indent = max(map(len, COMMANDS)) + 4
    room = {"width": max(_columns(), indent + 20), "subsequent_indent": " " * indent, "break_on_hyphens": False}
    rows = (textwrap.fill(f"  {command.name}".ljust(indent) + command.text, **room) for command in commands)
    return "\n".join([f"{title}:", *rows])


def _columns() -> int:
    """Letters of a line of help, as argparse counts them."""
    return shutil.get_terminal_size().columns - 2


def add_options(parser: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """Give a parser one argument for every parameter of a command's function."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, option = get_args(hints[name])[:2]
        settings = {"help": option.help, **_settings(kind)}
        if option.metavar:
            settings["metavar"] = option.metavar
        if option.positional:
            parser.add_argument(name, **settings)
            continue
        if parameter.default is inspect.Parameter.empty:
            settings["required"] = True
        elif kind is not bool:
            settings["default"] = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)


def _settings(kind: Any) -> dict[str, Any]:
    """argparse's settings for a type: `bool` a switch, `list[T]` one or more, a `Literal` its choices."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # `T | None`: an option that may be left out
        (kind,) = (part for part in inner if part is not type(None))
        return _settings(kind)
    if kind is bool:
        return {"action": "store_true"}
    if origin is list:
        return {"nargs": "+", **_settings(inner[0])}
    if origin is Literal:
        return {"choices": inner, "type": type(inner[0])}
    return {"type": kind}


# Completion: a script for a shell, made of the parser; no Python runs when a key is pressed.


def completion_script(shell: str) -> str:
    """The script that completes `vrm`.

    Args:
        shell: bash, zsh or fish.
    """
    import shtab

    from vrm.config.base import ShapeName
    from vrm.config.reward import PRESETS

    # of options that are texts to argparse, as what they can be is checked later: it takes half a second to import
    values = {"kind": list(PRESETS), "shape": list(get_args(ShapeName))}
    top = parser.__wrapped__()  # one of its own, as it is changed here
    for action in _every_option(top):
        if action.dest in values:
            action.choices = values[action.dest]
        elif action.nargs != 0 and action.choices is None and action.type in (Path, str):
            action.complete = shtab.FILE  # a directory too; a model of the hub has to be typed
    return shtab.complete(top, shell)


def _every_option(top: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option of every command."""
    for action in top._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # `vrm --help` hides argparse's list of commands behind our own; the shell needs it
            for command in action.choices.values():
                yield from _every_option(command)
        else:
            yield action


# Checks of what was typed: names that the configuration knows, directories that are here.

T = TypeVar("T")


def known(entries: Mapping[str, T], name: str, what: str) -> T:
    """An entry by name.

    Raises:
        ConfigError: no entry has that name; the names that there are stand in the message.
    """
    from vrm.config import ConfigError

    if name not in entries:
        raise ConfigError(f"there is no {what} {name!r}; known are: {', '.join(entries)}")
    return entries[name]


def local(directory: str | Path, option: str) -> Path:
    """A directory that has to be here.

    Raises:
        RecordError: it is not.
    """
    from vrm.records import RecordError

    if not Path(directory).is_dir():
        raise RecordError(
            f"{option} {directory}: there is no such directory; train that model first, or correct the path"
        )
    return Path(directory)


def local_or_hub(model: str, option: str) -> str:
    """A model's directory, which has to be here unless the name can be `name` or `owner/name` on the hub.

    Raises:
        RecordError: neither.
    """
    may_be_hub_id = model.count("/") < 2 and not model.startswith((".", "/"))
    return model if may_be_hub_id else str(local(model, option))


def known_shape(shape: str | None) -> None:
    """Check the name of a file shape, where one is given.

    Raises:
        ConfigError: there is none of that name.
    """
    from vrm.config.base import ShapeName

    if shape is not None:
        known({name: name for name in get_args(ShapeName)}, shape, "shape")


def config_error(message: str) -> Exception:
    """The exception for an option that can't be used; its class takes half a second to import."""
    from vrm.config import ConfigError

    return ConfigError(message)


def installed(modules: Iterable[str], extra: str) -> None:
    """Packages that come with an extra of ours.

    Raises:
        ConfigError: some are not here.
    """
    from vrm.config import ConfigError

    if lacking := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ConfigError(f"{', '.join(lacking)}: not installed; pip install 'vrm[{extra}]'")


# What a command need not import: optional packages that transformers takes in wherever they are installed.
#
# scipy is there for losses of object detection, scikit-learn for a kind of assisted generation, PEFT for adapters: a
# second and a half of processor time a job, and no reward model needs any of it.

UNUSED = ("scipy", "sklearn")
"""Nothing of ours needs these through transformers; whoever imports them by name still gets them."""


def hide(*packages: str) -> None:
    """Have transformers take packages for missing, in this process; one that is imported already changes nothing."""
    from transformers.utils import import_utils

    for package in packages:
        if package in sys.modules:
            continue
        available = getattr(import_utils, f"is_{package}_available")
        available.cache_clear()
        sys.modules[package] = None  # Python's own way to say that a module can't be imported
        try:
            available()  # is asked once, and remembered
        finally:
            del sys.modules[package]


def hide_peft(backbone: str) -> None:
    """Do without PEFT in a training without adapters, unless the backbone itself is published as an adapter."""
    if Path(backbone).is_dir() and not (Path(backbone) / "adapter_config.json").exists():
        hide("peft")
