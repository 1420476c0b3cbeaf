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
