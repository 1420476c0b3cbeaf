"""A warm interpreter for tests: who starts it, what runs in it, and what a job of it knows."""

import json
import os
import signal
import subprocess
import sys
import time

from vrm import warm

PARENT = """
import os, sys
from pathlib import Path
from vrm import warm
warm.start({}, Path(sys.argv[1]))
print(os.environ["VRM_WARM"], flush=True)
sys.stdin.read()
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for(what, seconds=60):
    """The first true value of `what()`."""
    until = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


class WarmServer:
    """A process that has started a server, and the server."""

    def __init__(self, log):
        self.log = log
        command = [sys.executable, "-c", PARENT, log]
        self.parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        self.address = self.parent.stdout.readline().strip()

    def jobs(self):
        """What the server has run, in order."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if "job" in line]

    def begin(self, *arguments, environment=ENVIRONMENT, **options):
        command = [sys.executable, "-m", "vrm", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**environment, "VRM_WARM": self.address}, **pipes, **options)

    def run(self, *arguments, **options):
        process = self.begin(*arguments, **options)
        output = process.communicate()
        return process.returncode, *output

    def place(self):
        return os.path.dirname(self.address)

    def pid(self):
        """Of the interpreter itself."""
        with open(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children") as found:
            return int(found.read().split()[0])

    def maps(self):
        """What files the interpreter has in its memory."""
        with open(f"/proc/{self.pid()}/maps") as found:
            return found.read()

    def kill(self):
        """Kill the interpreter itself, and nothing else."""
        os.kill(self.pid(), signal.SIGKILL)

    def end(self):
        self.parent.kill()
        self.parent.communicate()

    def given(self):
        """What a job of the server knows, so that a process that has it starts children as a job does."""
        inherited = warm._inherited()
        names = [name for name in ENVIRONMENT if name not in warm.FREE and not name.startswith("VRM_")]
        inherited["environment"] = {name: ENVIRONMENT[name] for name in names}
        return {"inherited": json.loads(json.dumps(inherited)), "environment": {"VRM_WARM": self.address}}

    def children(self):
        """Modules that the server has run for jobs, in the order of their ends."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line["child"] for line in lines if "child" in line]
