"""A one-node SLURM of our own with pretend GPUs: started for these tests, stopped after them."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm_cluster import Cluster

HERE = Path(__file__).resolve().parent
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CPUS = 4
"""Jobs side by side, whatever the machine has: most of a small job is waiting."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A cluster for the whole session; skipped where SLURM is not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not installed (Debian: apt-get install slurmctld slurmd slurm-client munge); "
            "nothing was run through SLURM"
        )
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root here, and this is another user; nothing was run through it")
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("snakemake-executor-plugin-slurm (extra `slurm`) is not installed; nothing was run through SLURM")
    directory = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([HERE / "up.sh", directory, str(CPUS)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield Cluster(directory)
    finally:
        subprocess.run([HERE / "down.sh", directory], check=True)
