"""Runs of the workflow in another working directory, so that the repository's results are left alone."""

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT

DEFAULT = ROOT / "config.yaml"
SMOKE = ROOT / "workflow" / "presets" / "smoke.yaml"


def snakemake(*arguments, directory, configs=(DEFAULT,), check=True):
    """Run Snakemake and return what it said."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory),
        *("--cores", "2", "--configfile", *configs, *arguments),
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
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
