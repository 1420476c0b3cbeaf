"""Runs of the workflow in another working directory, so that the repository's results are left alone."""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from paths import ROOT

DEFAULT = ROOT / "config.yaml"
SMOKE = ROOT / "workflow" / "presets" / "smoke.yaml"


def snakemake(*arguments, directory, configs=(DEFAULT,), check=True, **variables):
    """Run Snakemake, with these variables of the environment, and return what it said.

    A dry run (`-n`) is a fork of a process that has imported what it needs: a third of one would be imports.
    """
    options = ("--snakefile", ROOT / "Snakefile", "--directory", directory, "--cores", "2", "--configfile", *configs)
    words = [str(word) for word in (*options, *arguments)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    if "-n" in arguments:
        code, output = _dry_runs().run(words, environment)
    else:
        command = [sys.executable, "-m", "snakemake", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        code, output = done.returncode, done.stdout + done.stderr
    assert not check or code == 0, output[-6000:]
    return output


class _DryRuns:
    """The process that has imported Snakemake, and what our Snakefile imports; it ends with this one."""

    PROGRAM = """
import json, os, sys
from snakemake.cli import main
from vrm import alive, config, warm
from vrm.planning.jobs import RuleResources

for line in sys.stdin:
    words, environment, output = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(environment)
        file = os.open(output, os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        main(words)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self):
        search = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=search
        )

    def run(self, words, environment):
        with tempfile.NamedTemporaryFile("r") as output:
            self.process.stdin.write(json.dumps([words, environment, output.name]) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline()), output.read()


_dry_runs = cache(_DryRuns)


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
