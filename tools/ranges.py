"""Do the ranges of pyproject.toml resolve, from their lower ends to their upper ones? Needs uv and a package index.

    python tools/ranges.py                            exit 1 if something does not, 3 if no index answers
    python tools/ranges.py "the library" "all extras" these alone

* The library alone, with each extra, and with all of them; for the oldest and the newest Python that we say. Extras of
  `APART` are not among all of them, but with all that they can be had with.
* Lower ends: uv takes of every direct requirement the lowest version that resolves. A bound that can't be reached, as
  another package wants more, says something that is not so, and is named with what it would have to be.
* Upper ends: the newest versions that the ranges allow. requirements.lock, which the tests run with, lies between.
* requirements-vllm.lock, which `pip` takes as constraints where the extra `vllm` is installed, resolves with it.

What resolves is not thereby tested: the tests run with the lock alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.14")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = {"vllm": {"serve", "slurm"}}
"""Extras, and with which others they can't be had on every Python."""
LOCKS = {"vllm": ("requirements-vllm.lock", ["vllm", "workflow", "judge", "report", "tensorboard"])}
"""Pins for an extra that are others than those of requirements.lock, and what is installed with them."""


def resolved(extras: list[str], resolution: str, python: str, *options: str) -> dict[str, Version]:
    """Version by package.

    Args:
        extras: of ours, beside the library.
        resolution: `lowest-direct` or `highest`.
        python: version.
        options: further ones of `uv pip compile`.

    Raises:
        RuntimeError: nothing satisfies all ranges; uv says why.
        ConnectionError: the index could not be asked.
    """
    wanted = [part for extra in extras for part in ("--extra", extra)]
    how = ["--resolution", resolution, "--python-version", python, "--no-annotate", "--no-header", "--quiet"]
    command = ["uv", "pip", "compile", "pyproject.toml", *wanted, *how, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise (ConnectionError if done.returncode == 2 else RuntimeError)(done.stderr.strip())
    pins = (line.split(";")[0].strip().split("==") for line in done.stdout.splitlines() if "==" in line)
    return {canonicalize_name(name.split("[")[0]): Version(version) for name, version in pins}


def direct(extras: Sequence[str]) -> Iterator[Requirement]:
    """What the library itself requires, or what some extras do; an extra that requires another one of ours aside."""
    for text in [text for extra in extras for text in EXTRAS[extra]] if extras else PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement


def out_of_reach(found: dict[str, Version], requirements: Iterator[Requirement]) -> Iterator[str]:
    """Lower bounds below what they resolve to."""
    for requirement in requirements:
        lower = [Version(spec.version) for spec in requirement.specifier if spec.operator == ">="]
        version = found.get(canonicalize_name(requirement.name))
        if lower and version and version > max(lower):
            yield f"{requirement.name}>={max(lower)} can't be reached, the lowest that resolves is {version}"


def main() -> int:
    """Print a line a resolution; the exit code."""
    try:
        return check(sys.argv[1:])
    except ConnectionError as error:
        print(f"tools/ranges.py: nothing is checked further: {error}", file=sys.stderr)
        return 3


def combinations() -> dict[str, list[str]]:
    """What is resolved together, by name."""
    found = {"the library": [], **{name: [name] for name in EXTRAS}}
    found["all extras"] = [name for name in EXTRAS if name not in APART]
    for name, others in APART.items():
        found[f"{name} and what goes with it"] = [extra for extra in EXTRAS if extra not in others]
    return found


def locked(extra: str) -> list[str]:
    """What is wrong with an extra's own lock; for Linux, where the package that it is about runs.

    Raises:
        ConnectionError: the index could not be asked.
    """
    lock, extras = LOCKS[extra]
    how = ("--constraint", lock, "--python-platform", "x86_64-manylinux_2_28")
    try:
        found = [resolved(extras, "highest", python, *how) for python in PYTHONS]
    except RuntimeError as error:
        return [f"{lock}: {error}"]
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / lock).read_text(encoding="utf-8").split()}
    loose = sorted(found[0].keys() - pinned)  # newer Pythons may want what older ones bring along
    print(f"{lock}: {len(found[0])} packages with {', '.join(extras)}; {extra} {found[0][extra]}")
    return [f"{lock}: has no {', '.join(loose)}"] if loose else []


def check(wanted: Sequence[str]) -> int:
    """Resolve what is named, everything by default; the exit code.

    Raises:
        ConnectionError: the index could not be asked.
    """
    if shutil.which("uv") is None:
        print("tools/ranges.py: needs uv: pip install uv", file=sys.stderr)
        return 2
    faults = []
    for what, extras in combinations().items():
        for python in PYTHONS if not wanted or what in wanted else ():
            try:
                lowest, highest = (resolved(extras, how, python) for how in ("lowest-direct", "highest"))
            except RuntimeError as error:
                faults.append(f"{what}, Python {python}: {error}")
                continue
            # an extra may want more of a package than the library does; newer Pythons want newer versions
            alone = [] if len(extras) > 1 or python != PYTHONS[0] else list(out_of_reach(lowest, direct(extras)))
            faults += [f"{what}, Python {python}: {fault}" for fault in alone]
            print(f"{what}, Python {python}: {len(lowest)} packages at the lower ends, {len(highest)} at the upper")
        faults += locked(what) if what in LOCKS and (not wanted or what in wanted) else []
    print("\n".join(dict.fromkeys(faults)), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
