"""Two runs in one folder, killed runs, and runs that share a store: on the workflow itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from kills import Run, marked
from paths import ROOT
from runs import DEFAULT, SMOKE, contents, snakemake

TARGET = "results/smoke/data/counts.json"
"""Two jobs: the world is made, and read."""


def start(directory, *configs):
    """Snakemake in a group of its own; its output goes to `directory`/run.txt."""
    directory.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory),
        *("--cores", "1", "--rerun-incomplete", "--configfile", *configs, "--", TARGET),
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(directory / "run.txt", "w") as out:
        return subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, env=environment, start_new_session=True
        )


def wait_for_a_job(run, directory):
    while "rule world:" not in (directory / "run.txt").read_text():
        assert run.poll() is None, (directory / "run.txt").read_text()
        time.sleep(0.05)


def again(directory, configs, **options):
    return snakemake("--rerun-incomplete", "--", TARGET, directory=directory, configs=configs, **options)


@pytest.fixture(scope="module")
def undisturbed(micro, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    again(directory, micro)
    return contents(directory / "results" / "smoke" / "data")


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_the_first_one_goes_on(micro, undisturbed, tmp_path, seen):
    first = start(tmp_path, *micro)
    wait_for_a_job(first, tmp_path)
    os.killpg(first.pid, signal.SIGSTOP)  # or it might end before the second one looks
    said = again(tmp_path, micro, check=False)
    assert "Nothing to be done" not in said
    assert f"process {first.pid} " in said
    os.killpg(first.pid, signal.SIGCONT)
    assert first.wait() == 0
    assert "Nothing to be done" in again(tmp_path, micro)
    assert contents(tmp_path / "results" / "smoke" / "data") == undisturbed
    hint = next(line for line in said.splitlines() if f"process {first.pid} " in line)
    seen("a second run in the folder of a first", saw=hint, remedy="waited, same command")


@pytest.mark.slow
def test_a_killed_run_needs_no_unlocking(micro, undisturbed, tmp_path, seen):
    run = start(tmp_path, *micro)
    wait_for_a_job(run, tmp_path)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert list((tmp_path / ".snakemake" / "locks").iterdir())  # the fault did happen
    said = again(tmp_path, micro)
    assert "LockException" not in said
    assert contents(tmp_path / "results" / "smoke" / "data") == undisturbed
    assert not list((tmp_path / ".snakemake" / "locks").glob("*.lock"))
    seen("kill -9 of a whole run", saw="(nothing: no lock to remove)", remedy="same command")


@pytest.mark.slow
def test_jobs_that_outlive_their_snakemake_are_waited_for(micro, undisturbed, tmp_path, seen):
    run = start(tmp_path, *micro)
    wait_for_a_job(run, tmp_path)
    while not (holders := [pid for pid in holding(tmp_path / ".snakemake" / "vrm.alive") if pid != run.pid]):
        assert run.poll() is None
    jobs = [*holders, *(pid for pid in group(run.pid) if pid not in (run.pid, *holders))]
    for pid in jobs:
        os.kill(pid, signal.SIGSTOP)
    run.kill()
    run.wait()
    said = again(tmp_path, micro, check=False)
    assert "at work in this folder" in said
    for pid in jobs:
        os.kill(pid, signal.SIGCONT)
    while any(Path(f"/proc/{pid}").exists() for pid in holders):
        time.sleep(0.1)
    again(tmp_path, micro)
    assert contents(tmp_path / "results" / "smoke" / "data") == undisturbed
    hint = next(line for line in said.splitlines() if "at work in this folder" in line)
    seen("kill -9 of Snakemake alone: its jobs live on", saw=hint, remedy="waited, same command")


def holding(path):
    """Living processes that have a file open; a job may be in another group than its Snakemake."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == str(path) for link in (entry / "fd").iterdir()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_gone(runs, seconds=300):
    """A warm server sees that its Snakemake has ended only after it has; no other process of a run may be left."""
    deadline = time.monotonic() + seconds
    while left := [name for run in runs for mark in run.marks for _, name in marked(mark)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def group(leader):
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == leader:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_full_disk_below_a_run(disk, micro, undisturbed, seen):
    disk.again("size=160k")
    said = again(disk.path, micro, check=False)
    log = disk.path / "results" / "smoke" / "logs" / "world.log"
    words = log.read_text() if log.exists() and log.read_text().strip() else said
    assert "No space left" in words
    disk.again("size=32m")
    again(disk.path, micro)
    assert contents(disk.path / "results" / "smoke" / "data") == undisturbed
    seen("the disk is full below a run of the workflow", saw=words, remedy="made room, same command")


@pytest.mark.slow
def test_a_run_in_a_folder_that_may_only_be_read(disk, micro, seen):
    disk.again("ro")
    said = again(disk.path, micro, check=False)
    assert "Traceback" not in said
    assert "can't be written" in said
    hint = next(line for line in said.splitlines() if "can't be written" in line)
    seen("a run of the workflow where nothing may be written", saw=hint, remedy="mounted for writing, same command")


@pytest.mark.slow
def test_times_from_the_future_change_nothing_but_what_is_run_again(micro, undisturbed, tmp_path, seen):
    again(tmp_path, micro)
    tomorrow = time.time() + 86400
    for path in (tmp_path / "results" / "smoke" / "world").iterdir():
        os.utime(path, (tomorrow, tomorrow))
    again(tmp_path, micro)
    assert contents(tmp_path / "results" / "smoke" / "data") == undisturbed
    seen("files that are dated tomorrow", saw="(what depends on them is made again)", remedy="none needed")


SMALL = {
    "reward": {"run": ["rm"]},
    "evaluation": {"run": ["noise_free"]},
    "policy": {"run": ["dpo"], "run_bases": ["qwen2_5"], "gold": None},
    "benchmarks": {"run": ["arena_hard"]},
    "report": {"tables": ["table1", "training_summary"], "figures": [], "paper": False},
}
"""Over the smoke preset: judged all the same, in 17 jobs."""


@pytest.mark.slow
@pytest.mark.long
def test_two_folders_share_a_store_and_pay_once_and_no_file_holds_the_key(tmp_path, seen, monkeypatch):
    key = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("VRM_PLANTED_KEY", key)
    judge = f"python {Path(__file__).with_name('counting_judge.py')} --model world-judge --noise 0.5"
    overlay = SMALL | {"judge": {"serve": judge, "store": str(tmp_path / "store"), "api_key_env": "VRM_PLANTED_KEY"}}
    (tmp_path / "small.json").write_text(json.dumps(overlay))
    runs = [Run(tmp_path / name, [DEFAULT, SMOKE, tmp_path / "small.json"], 1) for name in ("here", "there")]
    attempts = [run.start() for run in runs]
    assert [attempt.process.wait() for attempt in attempts] == [0, 0], attempts[0].output.path.read_text()[-3000:]
    written = [run.directory / "bills" for run in runs]  # a run whose judgments the other one has paid writes none
    bills = Counter(line for path in written if path.exists() for line in path.read_text().split())
    assert set(bills.values()) == {1}
    tables = [contents(run.directory / "results" / "smoke" / "tables") for run in runs]
    assert tables[0] == tables[1]
    wait_until_gone(runs)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    saw = f"(nothing: {bills.total()} judgments, each paid once, by either)"
    seen("two runs in two folders share the store of judgments", saw=saw, remedy="none needed")


@pytest.mark.slow
@pytest.mark.long
def test_kills_at_random_moments(tmp_path):
    """The harness on a small run; `tools/reliability.py` has it kill a large one."""
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    command = [
        *(sys.executable, Path(__file__).with_name("kills.py"), "--work", tmp_path / "work", "--kills", "4"),
        *("--seed", "3", "--config", DEFAULT, SMOKE, tmp_path / "small.json", "--out", tmp_path / "found.json"),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == 0, found
    assert found["kills"] == 4
    assert sum(stage["kills"] for stage in found["stages"].values()) + found["before_any_job"] >= 4
    assert found["judgments"] == [found["judgments_undisturbed"]]
