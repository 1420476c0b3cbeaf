"""Runs of the workflow in another working directory, so that the repository's results are left alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT

DEFAULT = ROOT / "config.yaml"
SMOKE = ROOT / "workflow" / "presets" / "smoke.yaml"


def snakemake(*arguments, directory, configs=(DEFAULT,), check=True, **variables):
    """Run Snakemake, with these variables of the environment, and return what it said."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory),
        *("--cores", "2", "--configfile", *configs, *arguments),
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output[-6000:]
    return output


def vrm(*arguments, prefix=(), **environment):
    """Start `vrm` as a user does; the finished process."""
    return subprocess.run(
        [str(part) for part in (*prefix, sys.executable, "-m", "vrm", *arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


def contents(directory):
    """Every file below a directory that does not say when it was made."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in Path(directory).rglob("*")
        if path.is_file() and not path.name.endswith((".provenance.json", ".snakemake_timestamp"))
    }


def results(directory):
    """Every file of a smoke run but those that say when, how long, or in which order the judge's replies came."""
    return {
        name: content
        for name, content in contents(directory / "results" / "smoke").items()
        if not name.startswith(("logs/", "benchmarks/", "replies/"))
    }


def planned(output):
    """Number of jobs by rule from a dry run."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}
