"""Snakemake with our profile on a SLURM that listens in a directory of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

PROFILE = ROOT / "workflow" / "profiles" / "slurm"
SNAKEMAKE = """
import sys
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
sys.exit(main())
"""
"""Snakemake that looks at its jobs each second. The plugin waits ten seconds more after each look in which no job has
ended, as a large site wants it: here most of a test would be that wait."""


@dataclass(frozen=True)
class Cluster:
    """A running SLURM, and Snakemake with our profile on it."""

    directory: Path

    @property
    def environment(self):
        """What makes SLURM's programs talk to this cluster and no other."""
        path = f"{self.directory / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "SLURM_CONF": str(self.directory / "slurm.conf")}

    def ask(self, *command):
        """Output of one of SLURM's programs."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def log(self):
        """What the daemons of its nodes have logged."""
        return "".join(path.read_text() for path in self.directory.glob("slurmd.*.log"))

    def start(self, snakefile, directory, *arguments, program=("-c", SNAKEMAKE), **variables):
        """Start Snakemake; its output goes into the file `output` in the directory.

        Args:
            program: `("-m", "snakemake")` for one that looks at its jobs as seldom as the profile says.
        """
        directory.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, *program, "--snakefile", snakefile, "--directory", directory),
            *("--workflow-profile", PROFILE, *arguments),
        ]
        with open(directory / "output", "w", encoding="utf-8") as output:
            return subprocess.Popen(
                [str(part) for part in command], stdout=output, stderr=output, env=self.environment | variables
            )

    def run(self, snakefile, directory, *arguments, check=True):
        """Run Snakemake to its end and return what it said."""
        code = self.start(snakefile, directory, *arguments).wait()
        said = (directory / "output").read_text()
        assert not check or code == 0, said[-6000:]
        return said

    def wait_until(self, what, condition, seconds=300):
        """Poll; a test that waits for ever says nothing."""
        for _ in range(seconds * 20):
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s; {self.ask('squeue', '--states=all')}")
