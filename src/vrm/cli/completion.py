"""What a shell needs to complete `vrm`: a script, made of the parser; no Python runs when a key is pressed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import shtab

from vrm.cli.commands import parser
from vrm.config.base import ShapeName
from vrm.config.reward import PRESETS

VALUES = {"kind": list(PRESETS), "shape": list(get_args(ShapeName))}
"""Of options that are texts to argparse, as what they can be is checked later: it takes half a second to import."""


def script(shell: str) -> str:
    """The script.

    Args:
        shell: bash, zsh or fish.
    """
    top = parser()
    for action in _options(top):
        if action.dest in VALUES:
            action.choices = VALUES[action.dest]
        elif action.nargs != 0 and action.choices is None and action.type in (Path, str):
            action.complete = shtab.FILE  # a directory too; a model of the hub has to be typed
    return shtab.complete(top, shell)


def _options(top: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option of every command."""
    for action in top._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # `vrm --help` hides argparse's list of commands behind our own; the shell needs it
            for command in action.choices.values():
                yield from _options(command)
        else:
            yield action
