"""`vrm init`: the workflow's files, from the wheel or from the repository, into a directory of one's own."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from vrm.config import ConfigError

FILES = ("Snakefile", "config.yaml", "workflow", "envs")


def workflow_files() -> Path:
    """Where the files are: in an installed package, or in the repository that it is run from.

    Raises:
        ConfigError: in neither.
    """
    package = Path(__file__).parents[1]
    for place in (package / "laid_out", package.parents[1]):
        if all((place / name).exists() for name in FILES):
            return place
    raise ConfigError(f"{package}: was installed without the workflow; install the wheel, or clone the repository")


def lay_out(out: Path) -> str:
    """Copy the workflow and say how it is run.

    Args:
        out: a directory that is not there yet, or is empty.

    Returns:
        What to type next.

    Raises:
        ConfigError: the directory holds something, or the package came without the files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already; give a directory that is new or empty")
    source = workflow_files()
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        part = source / name
        if part.is_dir():
            shutil.copytree(part, out / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(part, out / name)
    hint = "" if find_spec("snakemake") else "pip install 'vrm[workflow,judge]'\n"
    smoke = "snakemake --cores all --configfile config.yaml workflow/presets/smoke.yaml"
    return f"{out}: laid out. Next:\n{hint}cd {out} && {smoke} -n\n"
