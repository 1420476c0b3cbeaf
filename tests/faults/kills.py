"""Kills a run of the workflow again and again, starts it again, and compares what comes out with an undisturbed run.

    python tests/faults/kills.py --work /tmp/kills --kills 50 --seed 0 --out kills.json

* A kill is `kill -9` of Snakemake's whole process group, while a job of a drawn stage has run for a drawn share of the
  time that it took undisturbed; every tenth comes before any job.
* As long as a stage of the run has met no kill, it is waited for and killed first: as soon as Snakemake says that its
  rule has started, for a short job is over before a drawn time.
* The next run is the same command, at once: what outlives a kill on purpose (whoever stores judgments that are under
  way) is met by it. No lock may have to be removed by hand.
* The judge writes down what it bills (`counting_judge.py`).
* After the last kill the run goes to its end. Every output of every stage is compared byte by byte.
* `--summarise` kills nothing: it says what came of the runs that are in `--work` and have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "VRM_KILLS"
"""Environment variable by which processes of an attempt are found, in whichever session or group they are."""

LONGEST_GOODBYE = 60.0
"""Seconds that what stores the replies under way may take to leave."""

SHORT = 3.0
"""Seconds; a job that takes no longer is killed when it starts. Snakemake's times are whole seconds."""

MOST_FAILURES = 3
"""Runs that may end by themselves before a harness gives up."""

JUDGE = "--model world-judge --position-bias 0.3 --length-bias 0.3 --noise 0.5"
NOT_COMPARED = (".provenance.json", ".snakemake_timestamp", ".log", ".tsv")
"""Ends of names of what says when and how long, which differs between any two runs."""


@dataclass
class Job:
    """A job as Snakemake's output tells of it."""

    rule: str
    outputs: list[str]
    started: datetime
    finished: datetime | None = None


@dataclass
class Run:
    """Results directory, and what happened to it."""

    directory: Path
    configs: list[Path]
    cores: int
    attempts: int = 0
    marks: list[str] = field(default_factory=list)

    def start(self) -> Attempt:
        """The same command as ever."""
        self.attempts += 1
        self.directory.mkdir(parents=True, exist_ok=True)
        mark = f"{self.directory.resolve()}#{self.attempts}"
        self.marks.append(mark)
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", self.directory),
            *("--cores", self.cores, "--rerun-incomplete", "--configfile", *self.configs),
        ]
        environment = {**os.environ, MARK: mark, "VRM_BILLS": str((self.directory / "bills").resolve())}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        log = self.directory / f"attempt{self.attempts}.txt"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=out, env=environment, start_new_session=True
            )
        return Attempt(process, Output(log), mark)


class Output:
    """What Snakemake has written so far; it is read again only when it has grown, for it is looked at all the time."""

    def __init__(self, path: Path) -> None:
        self.path, self._size, self._jobs = path, 0, {}

    def jobs(self) -> dict[int, Job]:
        """Jobs that have started, by Snakemake's number."""
        size = self.path.stat().st_size
        if size != self._size:
            self._size, self._jobs = size, read_jobs(self.path.read_text(errors="replace"))
        return self._jobs


@dataclass
class Attempt:
    """One start of the workflow."""

    process: subprocess.Popen
    output: Output
    mark: str

    def running(self) -> list[Job]:
        """Jobs at work."""
        return [job for job in self.output.jobs().values() if not job.finished]

    def wait(self, seconds: float) -> None:
        """So long, or until the run ends."""
        until = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() > until)

    def wait_until(self, met: Callable[[], bool], poll: float = 0.01) -> bool:
        """Whether `met` came before the end of the run."""
        while self.process.poll() is None:
            if met():
                return True
            time.sleep(poll)
        return False

    def kill(self) -> list[str]:
        """End the whole group; what is left of the group is returned, and should be nothing."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        time.sleep(0.2)  # the kernel takes its time with the memory of the dead
        return [name for pid, name in marked(self.mark) if group_of(pid) == self.process.pid]


STARTED = re.compile(r"^(?:local)?rule (\w+):$")


def read_jobs(text: str) -> dict[int, Job]:
    """Jobs of Snakemake's output, by number."""
    jobs, rule, outputs, when = {}, "", [], datetime.min
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            try:
                when = datetime.strptime(line, "[%a %b %d %H:%M:%S %Y]")
            except ValueError:
                continue
        elif found := STARTED.match(line):
            rule, outputs = found[1], []
        elif line.startswith("    output: "):
            outputs = line.removeprefix("    output: ").split(", ")
        elif line.startswith("    jobid: "):
            jobs[int(line.split()[1])] = Job(rule, outputs, when)
        elif found := re.match(r"^Finished jobid: (\d+)", line):
            jobs[int(found[1])].finished = when
    return jobs


def marked(mark: str) -> list[tuple[int, str]]:
    """Living processes of an attempt: number and command."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]))
        except OSError:  # it has just ended
            continue
    return [(pid, name) for pid, name in found if name]  # a zombie has no command


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


class Undisturbed:
    """The run that nobody kills, beside the others; one that is under way or finished is taken as it is."""

    def __init__(self, run: Run) -> None:
        self.output = Output(run.directory / "attempt1.txt")
        self.mark = f"{run.directory.resolve()}#1"
        if not self.output.path.exists():
            run.start()

    def jobs(self) -> dict[int, Job]:
        """Its jobs so far."""
        return self.output.jobs()

    def unmet(self, tally: Tally) -> set[str]:
        """Stages that write something and that no kill has met, as far as the run has come."""
        return {job.rule for job in self.jobs().values() if job.outputs and not tally.met[job.rule]}

    def lasted(self, rule: str) -> list[float]:
        """Seconds that jobs of a rule have taken, at least one."""
        found = [(job.finished - job.started).total_seconds() for job in self.jobs().values() if job.finished]
        of_rule = [
            (job.finished - job.started).total_seconds()
            for job in self.jobs().values()
            if job.finished and job.rule == rule
        ]
        return of_rule or found or [5.0]

    def wait(self) -> None:
        """Until it has ended well."""
        while "(100%) done" not in self.output.path.read_text(errors="replace"):
            if not marked(self.mark):
                raise SystemExit(f"the undisturbed run failed; see {self.output.path}")
            time.sleep(1)


def disturb(run: Run, reference: Undisturbed, kills: int, rng: random.Random, tally: Tally) -> bool:
    """Start and kill until the run has ended or there were enough kills; whether it has ended."""
    failures = len(tally.failures)
    while tally.kills < kills and len(tally.failures) < failures + MOST_FAILURES:
        attempt = run.start()
        wait_for_the_moment(attempt, reference, rng, tally)
        if attempt.process.poll() is None:
            running = attempt.running()
            tally.killed(running, attempt.kill())
        else:
            tally.ended(attempt)
            if attempt.process.returncode == 0:
                return True
    return False


def wait_for_the_moment(attempt: Attempt, reference: Undisturbed, rng: random.Random, tally: Tally) -> None:
    """Return when the run should be killed, or when it has ended."""
    if rng.random() < 0.1:
        return attempt.wait(rng.uniform(0.2, 6.0))
    number, chosen = rng.randint(2, 4), []

    def unmet() -> Job | None:
        """A job at work whose stage no kill has met."""
        return next((job for job in attempt.running() if not tally.met[job.rule] and job.outputs), None)

    def is_found() -> bool:
        """A job of a stage that no kill has met; where the run has none any more, the job of the drawn number."""
        if job := unmet():
            chosen.append(job)
        elif not reference.unmet(tally):
            chosen.extend([job for job in list(attempt.output.jobs().values())[number - 1 :] if not job.finished][:1])
        return bool(chosen)

    if attempt.wait_until(is_found):
        lasted = rng.choice(reference.lasted(chosen[0].rule))
        attempt.wait(rng.random() * lasted if lasted > SHORT else 0.0)
    return None


@dataclass
class Tally:
    """What the kills met, and what was seen after them."""

    kills: int = 0
    met: Counter = field(default_factory=Counter)
    killed_outputs: list[tuple[str, str]] = field(default_factory=list)
    before_any_job: int = 0
    left_in_group: list[str] | None = field(default_factory=list)
    """None: not known, where kills are read from what Snakemake wrote."""
    failures: list[str] = field(default_factory=list)

    def killed(self, running: list[Job], left: list[str]) -> None:
        """Count a kill and the jobs that it met."""
        self.kills += 1
        self.before_any_job += not running
        for job in running:
            self.met[job.rule] += 1
            self.killed_outputs.append((job.rule, job.outputs[0] if job.outputs else ""))
        if self.left_in_group is not None:
            self.left_in_group += left
        print(f"kill {self.kills}: {', '.join(job.rule for job in running) or 'before any job'}", flush=True)

    def read(self, logs: list[Path]) -> None:
        """Count the kills of a run by what Snakemake has written in each attempt; a killed one says no end."""
        self.left_in_group = None
        for log in logs:
            text = log.read_text(errors="replace")
            if "Exiting because" in text:
                self.failures.append(str(log))
            elif "(100%) done" not in text:
                self.killed([job for job in read_jobs(text).values() if not job.finished], [])

    def ended(self, attempt: Attempt) -> None:
        """Note a run that failed though nobody killed it."""
        if attempt.process.returncode:
            log = attempt.output.path
            self.failures.append(f"{log}: exit {attempt.process.returncode}")
            print(f"an attempt ended by itself with {attempt.process.returncode}: {log}", flush=True)


def files_below(directory: Path, output: str) -> dict[str, bytes]:
    """Content of an output, a file or a directory, by path; without what says when."""
    path = directory / output
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.is_file() else []
    return {str(p.relative_to(directory)): p.read_bytes() for p in files if not p.name.endswith(NOT_COMPARED)}


def compare(reference: Run, other: Run, jobs: dict[int, Job]) -> dict[str, dict[str, list[str] | int]]:
    """By stage: how many files there are, and which of them differ."""
    stages: dict[str, dict] = {}
    for job in jobs.values():
        if not job.outputs:  # a rule that only asks for others' files
            continue
        stage = stages.setdefault(job.rule, {"files": 0, "different": []})
        for output in job.outputs:
            here, there = files_below(reference.directory, output), files_below(other.directory, output)
            stage["files"] += len(here)
            names = sorted(here.keys() | there.keys())
            stage["different"] += [name for name in names if here.get(name) != there.get(name)]
    return stages


def repeated(run: Run) -> tuple[int, int]:
    """Judgments that were billed, and how many of them were billed again."""
    bills = Counter((run.directory / "bills").read_text().split()) if (run.directory / "bills").exists() else Counter()
    return bills.total(), bills.total() - len(bills)


def leftovers(run: Run) -> list[str]:
    """What dead jobs have left aside; it is never read, and goes when its job runs again."""
    return [str(p) for p in (run.directory / "results").rglob(".*.[0-9]*") if p.name.rpartition(".")[2].isdigit()]


def harness(work: Path, configs: list[Path], kills: int, seed: int, cores: int) -> dict:
    """The undisturbed run, the killed ones, and what they amount to."""
    reference = Run(work / "reference", configs, cores)
    undisturbed = Undisturbed(reference)
    rng, tally, runs = random.Random(seed), Tally(), []
    while tally.kills < kills and len(tally.failures) < MOST_FAILURES:
        runs.append(Run(work / f"killed{len(runs) + 1}", configs, cores))
        if disturb(runs[-1], undisturbed, kills, rng, tally):
            continue
        attempt = runs[-1].start()
        if attempt.process.wait():
            tally.ended(attempt)
    return {"seed": seed, **summary(reference, undisturbed, runs, tally)}


def summarise(work: Path) -> dict:
    """What came of the killed runs in `work` that have ended, where the harness was ended before its last one."""
    reference = Run(work / "reference", [], 0)
    runs, tally = [], Tally()
    for directory in sorted(work.glob("killed*")):
        run = Run(directory, [], 0, attempts=len(list(directory.glob("attempt*.txt"))))
        run.marks = [f"{directory.resolve()}#{number + 1}" for number in range(run.attempts)]
        logs = [directory / f"attempt{number + 1}.txt" for number in range(run.attempts)]
        if "(100%) done" in logs[-1].read_text(errors="replace"):
            runs.append(run)
            tally.read(logs)
    if not runs:
        raise SystemExit(f"{work}: no killed run has ended there")
    return {"seed": None, **summary(reference, Undisturbed(reference), runs, tally)}


def summary(reference: Run, undisturbed: Undisturbed, runs: list[Run], tally: Tally) -> dict:
    """What the kills of some runs amount to, once everything has ended."""
    deadline = time.monotonic() + LONGEST_GOODBYE
    orphans = [name for run in runs for mark in run.marks for _, name in marked(mark)]
    while orphans and time.monotonic() < deadline:
        time.sleep(1)
        orphans = [name for run in runs for mark in run.marks for _, name in marked(mark)]
    undisturbed.wait()
    jobs = undisturbed.jobs()
    logs = [log.read_text(errors="replace") for run in runs for log in run.directory.glob("attempt*.txt")]
    compared = [compare(reference, run, jobs) for run in runs]
    return {
        "kills": tally.kills,
        "runs": len(runs),
        "jobs": len(jobs),
        "warm": all(any(run.directory.glob("results/*/logs/warm.log")) for run in runs),
        "before_any_job": tally.before_any_job,
        "left_in_group": tally.left_in_group,
        "orphans": orphans,
        "locked": sum("LockException" in text for text in logs),
        "failures": tally.failures,
        "judgments": [repeated(run)[0] for run in runs],
        "judgments_undisturbed": repeated(reference)[0],
        "repeated": [repeated(run)[1] for run in runs],
        "left_aside": [name for run in runs for name in leftovers(run)],
        "stages": {
            rule: {
                "jobs": sum(job.rule == rule for job in jobs.values()),
                "kills": tally.met[rule],
                "recovered": sum(
                    any((run.directory / output).exists() for run in runs)
                    for name, output in tally.killed_outputs
                    if name == rule
                ),
                "files": part["files"],
                "different": sorted({name for table in compared for name in table[rule]["different"]}),
            }
            for rule, part in compared[0].items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for the runs; an undisturbed one is reused")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--config", type=Path, nargs="*", help="default: the smoke preset, fewer repeats")
    parser.add_argument("--summarise", action="store_true", help="kill nothing: what came of the runs that are there")
    parser.add_argument("--out", type=Path, help="write what was found to this JSON file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    judge = options.work / "judge.yaml"
    serve = f"python {Path(__file__).resolve().with_name('counting_judge.py')} {JUDGE}"
    judge.write_text(json.dumps({"judge": {"serve": serve}}))
    smoke = [ROOT / "config.yaml", ROOT / "workflow" / "presets" / "smoke.yaml"]
    configs = options.config or [*smoke, Path(__file__).with_name("kills.yaml")]
    configs = [path.resolve() for path in (*configs, judge)]
    work = options.work.resolve()
    given = (configs, options.kills, options.seed, options.cores)
    found = summarise(work) if options.summarise else harness(work, *given)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    good = not (found["left_in_group"] or found["orphans"] or found["locked"] or found["failures"])
    good = good and not any(found["repeated"]) and not any(stage["different"] for stage in found["stages"].values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
