"""A SLURM of our own with pretend GPUs, of one node and of two: started for these tests, stopped after them."""

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
    """A cluster of one node for the whole session; skipped where SLURM is not installed."""
    yield from _started(tmp_path_factory.mktemp("slurm"), nodes=1)


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory):
    """One of two nodes, both of which are this machine."""
    yield from _started(tmp_path_factory.mktemp("two_nodes"), nodes=2)


def _started(directory, nodes):
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
    started = subprocess.run([HERE / "up.sh", directory, str(CPUS), str(nodes)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield Cluster(directory)
    finally:
        subprocess.run([HERE / "down.sh", directory], check=True)
