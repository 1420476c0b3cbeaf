"""Write envs/*.yaml from requirements.lock, so that conda environments and .venv have one source of pins.

    python tools/envs.py            write them
    python tools/envs.py --check    exit 1 if they differ (a test does this)

conda brings Python and pip; the packages come from PyPI in the very versions of the lock. What an environment needs
beside its roots is read from the metadata of the packages that are installed here.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"

TARGET = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
"""Where the environments are used; requirements may depend on it."""

LIGHT = ("numpy", "pandas", "pydantic", "pyyaml", "tqdm")
"""What every stage imports."""


def pins() -> dict[str, str]:
    """The lines of the lock by package."""
    lines = [line.strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(line.split("==")[0]): line for line in lines if line and not line.startswith("#")}


def needed(roots: Iterable[str]) -> set[str]:
    """The roots, and whatever they require on `TARGET`.

    Raises:
        SystemExit: one of them is not installed.
    """
    found: set[tuple[str, tuple[str, ...]]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        package = todo.pop()
        key = canonicalize_name(package.name), tuple(sorted(package.extras))
        if key in found:
            continue
        found.add(key)
        try:
            children = [Requirement(text) for text in requires(package.name) or []]
        except PackageNotFoundError:
            raise SystemExit(f"{package.name} is not installed; run `make lock`, which uses .venv") from None
        extras = [TARGET | {"extra": extra} for extra in ("", *package.extras)]
        todo += [c for c in children if c.marker is None or any(c.marker.evaluate(extra) for extra in extras)]
    return {name for name, _ in found}


def environment(name: str, roots: Iterable[str]) -> str:
    """One conda environment."""
    wanted = needed(roots)
    head = [
        "# Written by tools/envs.py from requirements.lock; edit that, then `make lock`.",
        f"name: vrm-{name}",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.12",
        "  - pip",
        "  - pip:",
    ]
    return "\n".join(head + [f"      - {line}" for package, line in pins().items() if package in wanted]) + "\n"


def environments() -> dict[str, str]:
    """By path: what training and drawing need, and what judging needs. Snakemake runs them and is in neither."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {
        "envs/train.yaml": environment("train", [*project["dependencies"], *extras["plots"]]),
        "envs/judge.yaml": environment("judge", [*LIGHT, *extras["judge"]]),
    }


def main() -> int:
    """Write, or with --check compare."""
    stale = []
    for name, text in environments().items():
        path = ROOT / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{', '.join(stale)} differ from requirements.lock: run `make lock`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
