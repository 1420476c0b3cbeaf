"""Write docs/reliability.md: what was done to a run, and what came of it.

    python tools/reliability.py                    everything again: an hour on two cores
    python tools/reliability.py --only audit fuzz  these parts alone; the others stay as they were found
    python tools/reliability.py --only             nothing again: the page from what was found before
    python tools/reliability.py --only audit --advisories DIR  without PyPI: with a copy of its advisories

What was found stands in docs/reliability.json, each part with its date, commit and machine. The kill harness, the load
and the soak are programs of tests/faults, the fault table and the fuzz counts come from the tests themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
FAULTS = ROOT / "tests" / "faults"
DEEP = 12
"""Times as many examples of each fuzz test as CI has: some ten minutes."""


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in this environment, from the repository."""
    search = os.pathsep.join(str(ROOT / name) for name in ("src", "tests/support", "tests/faults"))
    full = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=ROOT, env=full, capture_output=True, text=True)


def program(name: str, *options: object) -> Any:
    """What a program of tests/faults found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = run(FAULTS / f"{name}.py", *options, "--out", out)
        if not out.exists():
            raise SystemExit(f"tests/faults/{name}.py found nothing:\n{done.stderr[-2000:]}")
        return json.loads(out.read_text())


def kills(*options: object) -> Any:
    """The kill harness: on the smoke preset with fewer repeats, or as `options` say."""
    with tempfile.TemporaryDirectory() as folder:
        return program("kills", "--work", folder, "--seed", 17, *options)


SMOKE = ("--config", ROOT / "config.yaml", ROOT / "workflow" / "presets" / "smoke.yaml")


def faults() -> list[dict[str, str]]:
    """The rows that the tests of faults write."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "faults.jsonl"
        files = [FAULTS / f"test_{name}.py" for name in ("faults", "runs")]
        done = run("-m", "pytest", "-q", *files, VRM_FAULTS=str(out))
        if done.returncode:
            raise SystemExit(done.stdout[-3000:])
        return [json.loads(line) for line in out.read_text().splitlines()]


def fuzz() -> Any:
    """The fuzz tests, at random and deeper than CI looks."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts.json"
        done = run("-m", "pytest", "tests/test_fuzz.py", VRM_FUZZ=str(DEEP), VRM_FUZZ_COUNTS=str(out))
        last = done.stdout.strip().splitlines()[-1]
        return {"examples": json.loads(out.read_text()), "ended": last, "failed": done.returncode != 0}


def audit(advisories: Path | None) -> dict[str, str]:
    """Whether what is installed fits together, is what is locked, and has no known weakness.

    Args:
        advisories: a copy of github.com/pypa/advisory-database, for machines that reach no database.
    """
    fits = run("-m", "pip", "check")
    lines = (ROOT / "requirements.lock").read_text().split()
    locked = {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    here = {canonical(each.metadata["Name"]): each.version.partition("+")[0] for each in distributions()}
    other = [name for name, version in sorted(locked.items()) if here.get(name, version) != version.partition("+")[0]]
    return {
        "packages that do not fit together (pip check)": fits.stdout.strip().replace("\n", "; "),
        "locked packages": str(len(locked)),
        "installed in another version than locked": ", ".join(other) or "none",
        "known weaknesses (pip-audit)": weaknesses(),
        "known weaknesses (copy of PyPI's advisories)": from_copy(advisories, locked),
    }


def canonical(name: str) -> str:
    """A package's name, however it is written."""
    return name.lower().replace("_", "-")


def weaknesses() -> str:
    """What pip-audit says of the lock; or why it can't say anything."""
    if run("-c", "import pip_audit").returncode:
        return (
            "not looked up: pip-audit is not installed here (`pip install pip-audit`, then `make audit`); "
            f"what it asks PyPI for is {answer()}"
        )
    options = ("--requirement", "requirements.lock", "--no-deps", "--disable-pip", "--format", "json")
    done = run("-m", "pip_audit", *options)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        words = done.stderr.strip().splitlines()
        return f"not looked up: its database can't be reached ({words[-1] if words else 'no word from it'})"
    bad = [f"{p['name']} {p['version']}: {', '.join(v['id'] for v in p['vulns'])}" for p in packages if p.get("vulns")]
    skipped = sum("skip_reason" in package for package in packages)
    if skipped == len(packages):
        return f"not looked up: its database can't be reached from here (it knows none of the {skipped} packages)"
    return f"{'; '.join(bad) or 'none'} (of {len(packages)} packages, {skipped} of them not in its database)"


def answer() -> str:
    """Whether PyPI's record of one version, as pip-audit asks for it, can be had from here."""
    url = "https://pypi.org/pypi/packaging/25.0/json"
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return f"there ({url}: {reply.status})"
    except OSError as error:
        return f"not to be had from here ({url}: {error})"


def from_copy(advisories: Path | None, locked: dict[str, str]) -> str:
    """What a copy of PyPI's advisories (OSV files, `vulns/<package>/*.yaml`) says of the locked versions."""
    if advisories is None:
        return "not looked up: no copy was given (`--advisories DIR`)"
    import yaml
    from packaging.version import Version

    files = sorted(advisories.glob("vulns/*/*.yaml"))
    if not files:
        raise SystemExit(f"{advisories}: no vulns/*/*.yaml; name a copy of github.com/pypa/advisory-database")
    newest = max(date for file in files for date in re.findall(r"^modified: '?([0-9-]{10})", file.read_text(), re.M))
    known, bad = 0, []
    for name, version in sorted(locked.items()):
        records = [yaml.safe_load(file.read_text()) for file in files if canonical(file.parent.name) == name]
        known += bool(records)
        bad += [f"{name} {version}: {r['id']}" for r in records if is_affected(r, name, Version(version))]
    return (
        f"{'; '.join(bad) or 'none'} (of {len(locked)} packages, {known} of which have advisories; the newest of "
        f"{len(files)} advisories is of {newest}, so that later ones were not looked up)"
    )


def is_affected(record: dict[str, Any], name: str, version: Any) -> bool:
    """Whether an OSV record, unless it was withdrawn, is about this version of the package."""
    from packaging.version import Version

    if "withdrawn" in record:
        return False
    for part in record["affected"]:
        if canonical(part["package"]["name"]) != name:
            continue
        if str(version) in map(str, part.get("versions", [])):
            return True
        for span in part.get("ranges", []):
            if span["type"] == "GIT":  # commits
                continue
            inside = False
            for event in span["events"]:  # from the oldest on
                (kind, at), *_ = event.items()
                at = Version(str(at))
                if kind == "introduced" and version >= at:
                    inside = True
                elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
                    inside = False
            if inside:
                return True
    return False


PARTS: dict[str, Callable[..., Any]] = {
    "kills": lambda: kills("--kills", 50),
    "kills_smoke": lambda: kills("--kills", 45, *SMOKE),
    "faults": faults,
    "fuzz": fuzz,
    "load": lambda: program("load", "--requests", 10_000, "--in-flight", 64),
    "soak": lambda: program("soak", "--updates", 500),
    "audit": audit,
}


def origin(commit: str | None = None, when: float | None = None) -> dict[str, str]:
    """When, from which commit, and where; default: now and here."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(when)),
        "commit": commit or git.stdout.strip(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load average": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def table(header: list[str], rows: list[list[object]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    yield "| " + " | ".join(header) + " |"
    yield "|:--" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def kills_text(found: dict[str, Any]) -> Iterator[str]:
    """The kill table and the sentence below it."""
    yield (
        "Snakemake's whole process group is killed by `kill -9` while a job of some stage runs, those stages first "
        "that no kill has met, and the same command is started again, at once. Every output is then compared with "
        "that of an undisturbed run, byte by byte. A kill meets all jobs that run at that moment. Recovered: the job's "
        "output was there in the end."
    )
    yield ""
    stages = found["stages"].items()
    rows = [
        [name, s["jobs"], s["kills"], s["recovered"], f"{s['files'] - len(s['different'])} of {s['files']} files"]
        for name, s in stages
    ]
    yield from table(["stage", "jobs", "kills met", "recovered", "identical"], rows)
    left = found["left_in_group"]
    different = sorted({name for _, stage in stages for name in stage["different"]})
    facts = [
        ["kills (of them before any job)", f"{found['kills']} ({found['before_any_job']})"],
        ["jobs of the run, results directories that were killed", f"{found['jobs']}, {found['runs']}"],
        *([["jobs were forks of one warm interpreter", "yes" if found["warm"] else "no"]] if "warm" in found else []),
        ["starts that a lock refused", found["locked"]],
        ["starts that failed by themselves", len(found["failures"])],
        ["processes left in a killed group", "not noted" if left is None else len(left)],
        ["processes left when all was over", len(found["orphans"])],
        ["judgments billed; undisturbed", f"{sum(found['judgments'])}; {found['judgments_undisturbed']}"],
        ["judgments billed twice", sum(found["repeated"])],
        ["files of dead jobs left aside (never read)", len(found["left_aside"])],
        ["files that differ", ", ".join(different) or "none"],
    ]
    yield from table(["what", "number"], facts)
    if found.get("remark"):
        yield found["remark"]
        yield ""


def faults_text(found: list[dict[str, str]]) -> Iterator[str]:
    """The fault table."""
    rows = [[row["fault"], quoted(row["saw"]), row["lost"], row["remedy"]] for row in found]
    yield from table(["fault", "what the user saw", "lost", "remedy, after which it went on"], rows)


def quoted(words: str) -> str:
    """What a program said, or a remark in brackets."""
    return words if words.startswith("(") else f"`{words[:300]}`"


def fuzz_text(found: dict[str, Any]) -> Iterator[str]:
    """How many examples each test has seen."""
    yield f"Hypothesis, at random: {found['ended']}"
    yield ""
    yield from table(["what comes in", "examples"], [[name, count] for name, count in found["examples"].items()])


def facts_text(found: dict[str, Any]) -> Iterator[str]:
    """Facts by name."""
    flat = {
        name: ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        for name, value in found.items()
    }
    yield from table(["what", "found"], [[name.replace("_", " "), value] for name, value in flat.items()])


TITLES: dict[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
    "kills": ("Kills", kills_text),
    "kills_smoke": ("Kills of the whole smoke preset", kills_text),
    "faults": ("Faults of the machine", faults_text),
    "fuzz": ("Input that nobody expects", fuzz_text),
    "load": ("Load: 20 % faults at the judge's endpoint", facts_text),
    "soak": ("A long PPO run", facts_text),
    "audit": ("Packages", facts_text),
}


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    lines = [
        "# Reliability",
        "",
        "Written by `make reliability` (`tools/reliability.py`) from `docs/reliability.json`; no number is typed.",
        "",
    ]
    for name, (title, text) in TITLES.items():
        lines += [f"## {title}", ""]
        if name not in found:
            lines += [f"Not measured yet: `python tools/reliability.py --only {name}`.", ""]
            continue
        where = found[name]["origin"]
        lines += [*text(found[name]["found"])]
        lines += [f"*{', '.join(f'{key} {value}' for key, value in where.items())}*", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="parts to do again (default: all)")
    parser.add_argument("--advisories", type=Path, metavar="DIR", help="a copy of github.com/pypa/advisory-database")
    more = "take what a program of tests/faults wrote, of COMMIT"
    parser.add_argument("--take", nargs=3, metavar=("PART", "JSON", "COMMIT"), help=more)
    options = parser.parse_args()
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if options.take:
        name, file, commit = options.take
        when = Path(file).stat().st_mtime
        found[name] = {"found": json.loads(Path(file).read_text()), "origin": origin(commit, when)}
    else:
        for name in PARTS if options.only is None else options.only:
            print(f"{name} ...", flush=True)
            found[name] = {"found": PARTS[name](*([options.advisories] if name == "audit" else [])), "origin": origin()}
            FOUND.write_text(json.dumps(found, indent=2) + "\n")
    FOUND.write_text(json.dumps(found, indent=2) + "\n")
    PAGE.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
