"""What a person's options must be before anything is read or written; each error names the option and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vrm.config import ConfigError


def require_at_least(least: float, **values: float | None) -> None:
    """Numbers that are given, each by its option's name, are finite and not below `least`.

    Raises:
        ConfigError: one is.
    """
    for name, value in values.items():
        if value is not None and not (value >= least and math.isfinite(value)):
            raise ConfigError(f"{_option(name)} {value:g}: must be {least:g} or more")


def require_above_zero(**values: float | None) -> None:
    """As `require_at_least`, of what may be as small as it likes, but not 0."""
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{_option(name)} {value:g}: must be above 0")


def require_different(name: str, values: Sequence[str]) -> None:
    """No name is given twice.

    Raises:
        ConfigError: one is.
    """
    twice = sorted({value for value in values if list(values).count(value) > 1})
    if twice:
        raise ConfigError(f"{_option(name)}: {', '.join(twice)} twice; every name once")


def require_apart(name: str, out: str | Path | None, **read: str | Path | None) -> None:
    """What is written is none of what is read, and lies in no directory of data.

    Args:
        name: the option of what is written.
        out: its path; None and `-` are no file.
        read: paths by their option's name.

    Raises:
        ConfigError: it is, and would be overwritten.
    """
    if out in (None, "-"):
        return
    target = Path(out).resolve()
    for option, path in read.items():
        if path in (None, "-") or not Path(path).exists():
            continue
        source = Path(path).resolve()
        if target == source:
            raise ConfigError(
                f"{_option(name)} {out}: is what {_option(option)} names, and would be overwritten; give another path"
            )
        if option == "data" and source in target.parents:
            raise ConfigError(f"{_option(name)} {out}: lies in the directory that --data reads; give a path outside it")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
