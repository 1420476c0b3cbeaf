"""Where a run's processor time goes: starting jobs, and what they do; with the warm interpreter and without it.

    python benchmarks/startup.py                       # the smoke preset, both ways
    python benchmarks/startup.py --how warm --target results/smoke/data/pairs/train.jsonl

* `plain` runs every job as a process of its own, through a `python` that counts: the processor time until its command
  begins and of every import (`start-up`), of tokenising, of measuring held-out pairs, and the rest.
* `warm` runs the jobs as users do. Start-up is then what the server, and the clients that wait for jobs, have used; the
  jobs' own time is the server's log's. What they do is the same as in `plain`, byte for byte.
* Snakemake's own time is apart: parsing the workflow, and choosing the next job.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COUNTS = "BENCHMARK_STARTUP"
TIMED = {
    "vrm.models.text": [("TextEncoder", "encode", "tokenising"), ("TextEncoder", "try_encode", "tokenising")],
    "transformers.trainer": [("Trainer", "evaluate", "measuring")],
}
"""Methods whose time is counted, by the module that they are in, and as what."""


def main() -> None:
    """Run the preset each way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--how", nargs="+", choices=("plain", "warm"), default=["plain", "warm"])
    parser.add_argument("--target", nargs="*", default=[], help="files to make instead of all")
    parser.add_argument("--cores", default="2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.csv")
    options = parser.parse_args()
    rows = []
    for how in options.how:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(a_run(how, Path(directory), options))
    from side_by_side import report

    report(rows, {"preset": options.preset, "run_with_cores": options.cores}, options.out)


def a_run(how: str, directory: Path, options: argparse.Namespace) -> dict[str, object]:
    """One run of the workflow in an empty directory; seconds of the processors by cause."""
    counts = directory / "counts.jsonl"
    counts.touch()
    environment = {**os.environ, COUNTS: str(counts), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("VRM_WARM", None)
    if how == "plain":
        shim = directory / "bin" / "python"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" --job "$@"\n')
        shim.chmod(0o755)
        environment |= {"PATH": f"{shim.parent}:{environment['PATH']}", "VRM_WARM": "off"}
    presets = [ROOT / "config.yaml", ROOT / "workflow" / "presets" / f"{options.preset}.yaml"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    command += [*options.target, "--cores", options.cores, "--configfile", *presets, "--quiet", "all"]
    before, began = processor_seconds(), time.perf_counter()
    subprocess.run([str(part) for part in command], env=environment, check=True)
    wall, children = time.perf_counter() - began, processor_seconds() - before
    seconds = Counter()
    if how == "plain":
        jobs = [json.loads(line) for line in counts.read_text().splitlines()]
        for job in jobs:
            seconds.update(job)
        total, work = children, sum(seconds.values())
    else:
        (log,) = directory.glob("results/*/logs/warm.log")
        lines = waited(log)
        jobs = [line for line in lines if "job" in line]
        # what a job starts as a fork, too, has a line of its own
        seconds["the rest"] = sum(line.get("processor_seconds", 0.0) for line in lines)
        seconds["start-up"] = lines[-1]["server"] + len(jobs) * client_seconds()
        work = seconds["the rest"] + len(jobs) * client_seconds()
        total = children + seconds["the rest"] + lines[-1]["server"]
        work += lines[-1]["server"]
    names = ("start-up", "tokenising", "measuring", "the rest")
    return {
        "how": how,
        "jobs": len(jobs),
        "seconds": round(wall, 1),
        "processor_seconds": round(total, 1),
        **{name: round(seconds[name], 1) for name in names},
        "snakemake_and_shells": round(total - work, 1),
        "share_of_start_up": round(seconds["start-up"] / total, 3),
    }


def processor_seconds() -> float:
    """Of all ended child processes, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@functools.cache
def client_seconds() -> float:
    """What a command costs that only waits for its job."""
    before = processor_seconds()
    for _ in range(10):
        subprocess.run([sys.executable, "-c", "import json, resource, signal, socket, pathlib"], check=True)
    return (processor_seconds() - before) / 10


def waited(log: Path) -> list[dict[str, Any]]:
    """The server's log, once the server has ended."""
    while True:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        if lines and "server" in lines[-1]:
            return lines
        time.sleep(0.1)


def counted_job(arguments: list[str]) -> None:
    """Run `python ARGUMENTS` here, and append what took how long to the file that COUNTS names."""
    seconds: Counter[str] = Counter()
    running: list[str] = []

    def timed(function: Callable[..., Any], cause: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if cause in running:
                return function(*args, **options)
            began, inner = time.process_time(), sum(seconds.values())
            running.append(cause)
            try:
                return function(*args, **options)
            finally:
                running.pop()
                # what was counted inside is not counted twice
                seconds[cause] += time.process_time() - began - (sum(seconds.values()) - inner)
                if cause == "start-up":
                    wrap()

        return call

    def wrap() -> None:
        for module in [name for name in waiting if name in sys.modules]:
            for kind, method, cause in waiting[module]:
                if not hasattr(sys.modules[module], kind):
                    break  # still being imported
                owner = getattr(sys.modules[module], kind)
                setattr(owner, method, timed(getattr(owner, method), cause))
            else:
                del waiting[module]

    waiting = dict(TIMED)
    seconds["start-up"] = time.process_time()
    builtins.__import__ = timed(builtins.__import__, "start-up")
    importlib.import_module = timed(importlib.import_module, "start-up")
    module = arguments[arguments.index("-m") + 1]
    sys.argv = [module, *arguments[arguments.index("-m") + 2 :]]
    sys.path[0] = os.getcwd()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        seconds["the rest"] += time.process_time() - sum(seconds.values())
        with open(os.environ[COUNTS], "a") as file:
            file.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        counted_job(sys.argv[2:])
    else:
        main()
