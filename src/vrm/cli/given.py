"""Checks of what was typed: names that the configuration knows, directories that are here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, get_args

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
