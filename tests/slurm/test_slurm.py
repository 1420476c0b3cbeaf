"""The SLURM profile on a real SLURM: what it asks for, what it does when things go wrong, the experiment through it."""

import hashlib
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from paths import ROOT
from runs import DEFAULT, SMOKE, planned, results, snakemake
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("slurm")]

MECHANICS = Path(__file__).with_name("mechanics.smk")
KEY = "a-key-that-nobody-may-write-down"


def lines(path):
    """Its lines, one an attempt; none while it is not there."""
    return path.read_text().split() if path.exists() else []


def test_the_profile_is_one_that_snakemake_takes(tmp_path):
    """Needs no cluster; `attempt` scales what a rule gets that asks for nothing."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    said = Cluster(tmp_path).run(MECHANICS, tmp_path, "--dry-run")
    (asked,) = re.findall(r"rule cpu:.*?resources: ([^\n]*)", said, flags=re.DOTALL)
    assert {"mem_mb=4000", "runtime=120", "slurm_partition=main"} <= set(asked.split(", "))


@pytest.fixture(scope="module")
def mechanics(cluster, tmp_path_factory):
    """A finished run of the small jobs, of which one outgrew its memory and one was cancelled."""
    directory = tmp_path_factory.mktemp("mechanics")
    running = cluster.start(MECHANICS, directory, "--latency-wait", "10", VRM_TEST_KEY=KEY)
    cancelled = cluster.wait_until("the job to cancel runs", lambda: lines(directory / "attempts" / "cancelled"))
    cluster.ask("scancel", *cancelled)
    assert running.wait() == 0, (directory / "output").read_text()[-6000:]
    return directory


def test_a_rule_with_a_gpu_gets_one_and_others_see_none(mechanics):
    assert (mechanics / "gpu.txt").read_text().strip() in {"0", "1"}
    assert (mechanics / "cpu.txt").read_text().split()[0] == "none"


def test_a_job_that_outgrew_its_memory_is_tried_again_with_more(cluster, mechanics):
    assert lines(mechanics / "attempts" / "memory") == ["600", "1200"]
    states = cluster.ask("squeue", "--states=all", "--noheader", "--format=%k %m %T")
    assert {"rule_memory 600M FAILED", "rule_memory 1200M COMPLETED"} <= set(states.splitlines())
    assert re.search(r"exceeded memory limit .*being killed", cluster.log())


def test_a_cancelled_job_is_submitted_again(cluster, mechanics):
    first, second = lines(mechanics / "attempts" / "cancelled")
    states = cluster.ask("squeue", "--states=all", "--noheader", "--format=%i %T").splitlines()
    assert {f"{first} CANCELLED", f"{second} COMPLETED"} <= set(states)


def test_a_key_reaches_jobs_and_no_file_of_the_run(mechanics):
    assert (mechanics / "cpu.txt").read_text().split()[1] == hashlib.sha256(f"{KEY}\n".encode()).hexdigest()
    files = [path for path in mechanics.rglob("*") if path.is_file()]
    assert any(".snakemake" in path.parts for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_after_a_killed_controller_the_same_command_finishes(cluster, tmp_path):
    target = ("--latency-wait", "10", "--", "after_orphan.txt")
    controller = cluster.start(MECHANICS, tmp_path, *target)
    (orphan,) = cluster.wait_until("the orphan runs", lambda: lines(tmp_path / "attempts" / "orphan"))
    controller.kill()
    controller.wait()
    assert list((tmp_path / ".snakemake" / "locks").glob("*"))
    assert "LockException" in cluster.run(MECHANICS, tmp_path, *target, check=False)
    cluster.run(MECHANICS, tmp_path, "--unlock")
    cluster.wait_until("the orphan ends", lambda: not cluster.ask("squeue", "--noheader", "--format=%i", "-j", orphan))
    assert (tmp_path / "orphan.txt").exists()  # jobs outlive Snakemake
    cluster.run(MECHANICS, tmp_path, *target)
    assert (tmp_path / "after_orphan.txt").exists()
    assert lines(tmp_path / "attempts" / "orphan") == [orphan]  # what an orphan finished is not done again


def test_an_interrupted_controller_takes_its_jobs_with_it(cluster, tmp_path):
    # the executor forgets its jobs while it looks at them, and would cancel none of them
    controller = cluster.start(MECHANICS, tmp_path, "--", "orphan.txt", program=("-m", "snakemake"))
    (job,) = cluster.wait_until("the job runs", lambda: lines(tmp_path / "attempts" / "orphan"))
    controller.send_signal(signal.SIGINT)
    assert controller.wait() != 0
    state = ("squeue", "--states=all", "--noheader", "--format=%T", "-j", job)
    cluster.wait_until("the job is cancelled", lambda: cluster.ask(*state).strip() == "CANCELLED")
    assert not list((tmp_path / ".snakemake" / "locks").glob("*"))


# --- trainings

LONG = "reward={training: {epochs: 60, evaluations: 12, checkpoints: 11}}"
"""Long enough to be killed in its middle; a checkpoint at each of 12 measurements."""
VARIANTS = {"rm": "requeue", "vrm": "kill"}
MODELS = [f"results/smoke/reward/{variant}/seed1" for variant in VARIANTS]


@pytest.fixture
def places(smoke, tmp_path):
    """Two copies of what the trainings of the smoke run started from."""
    for place in (tmp_path / "undisturbed", tmp_path / "disturbed"):
        for part in ("results/smoke/data", "results/smoke/backbone", ".snakemake"):
            shutil.copytree(smoke / part, place / part)
    return tmp_path / "undisturbed", tmp_path / "disturbed"


def taken_up(log):
    """The step of the checkpoint that a training says it goes on from."""
    said = re.search(r"going on from checkpoint-(\d+)", log.read_text())
    assert said, "it began anew"
    return int(said[1])


def test_killed_trainings_go_on_from_their_checkpoints_to_the_same_bytes(cluster, places):
    """One is put back into the queue by SLURM; in the other's job all is killed, and Snakemake submits it anew."""
    undisturbed, disturbed = places
    training = ("--config", LONG, "--allowed-rules", "train_reward", "--", *(f"{model}/model" for model in MODELS))
    snakemake(*training, directory=undisturbed, configs=(DEFAULT, SMOKE))
    running = cluster.start(ROOT / "Snakefile", disturbed, "--configfile", DEFAULT, SMOKE, *training)
    reached = {}
    for variant, way in VARIANTS.items():
        checkpoints = disturbed / "results" / "smoke" / "checkpoints" / "reward" / variant / "seed1"
        state = cluster.wait_until(
            f"a checkpoint of {variant}", lambda place=checkpoints: list(place.glob("checkpoint-*/trainer_state.json"))
        )
        comment = f"rule_train_reward_wildcards_smoke_{variant}_1"
        queue = cluster.ask("squeue", "--noheader", "--format=%i %k").splitlines()
        (job,) = [line.split()[0] for line in queue if line.split()[1] == comment]
        if way == "requeue":
            cluster.ask("scontrol", "requeue", job)
        else:
            cluster.ask("scancel", "--full", "--signal=KILL", job)
        reached[variant] = int(state[0].parent.name.split("-")[1])
    assert running.wait() == 0, (disturbed / "output").read_text()[-6000:]
    for variant, model in zip(VARIANTS, MODELS, strict=True):
        log = disturbed / "results" / "smoke" / "logs" / "train_reward" / f"{variant}.seed1.log"
        assert reached[variant] <= taken_up(log)
        for name in ("model/model.safetensors", "training.csv", "counts.json"):
            assert (disturbed / model / name).read_bytes() == (undisturbed / model / name).read_bytes(), (variant, name)


# --- several nodes


def test_a_rule_on_two_nodes_gets_its_gpus_evenly(two_nodes, tmp_path):
    two_nodes.run(MECHANICS, tmp_path, "--", "nodes.txt")
    assert sorted((tmp_path / "nodes.txt").read_text().splitlines()) == ["node1 0 2", "node2 0 2"]


def processes_of(job, rank):
    """Ids of a job's processes that are a training's of this rank."""
    wanted, found = {f"SLURM_JOB_ID={job}".encode(), f"RANK={rank}".encode()}, []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # has ended
            if wanted <= set(environment.read_bytes().split(b"\0")):
                found.append(int(environment.parent.name))
    return found


def test_a_training_on_two_nodes_gives_the_bytes_of_one_node_whatever_happens_to_it(two_nodes, places):
    """SLURM puts it back into the queue, and sends SIGTERM first; then one process of the second node is killed."""
    undisturbed, disturbed = places
    model = MODELS[1]
    target = ("--allowed-rules", "train_reward", "--", f"{model}/model")
    spread = LONG.replace("checkpoints: 11", "checkpoints: 11, processes: 2")
    snakemake("--config", spread, *target, directory=undisturbed, configs=(DEFAULT, SMOKE))
    on_two = spread.replace("processes: 2", "processes: 2, nodes: 2")
    files = ("--configfile", DEFAULT, SMOKE, "--config", on_two)
    running = two_nodes.start(ROOT / "Snakefile", disturbed, *files, *target)
    checkpoints = disturbed / "results" / "smoke" / "checkpoints" / "reward" / "vrm" / "seed1"
    log = disturbed / "results" / "smoke" / "logs" / "train_reward" / "vrm.seed1.log"

    def reached():
        steps = [path.parent.name.split("-")[1] for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(map(int, steps), default=0)

    two_nodes.wait_until("a checkpoint", reached)
    (job,) = two_nodes.ask("squeue", "--noheader", "--format=%i").split()
    assert two_nodes.ask("squeue", "--noheader", "--format=%N").strip() == "node[1-2]"
    two_nodes.ask("scontrol", "requeue", job)
    two_nodes.wait_until("it goes on", lambda: log.exists() and "going on from" in log.read_text())
    stopped = taken_up(log)
    two_nodes.wait_until("a further checkpoint", lambda: reached() > stopped)
    (second,) = processes_of(job, rank=1)
    os.kill(second, signal.SIGKILL)
    state = ("squeue", "--states=all", "--noheader", "--format=%T", "-j", job)
    two_nodes.wait_until("all of the job ends", lambda: two_nodes.ask(*state).strip() == "FAILED", seconds=60)
    assert running.wait() == 0, (disturbed / "output").read_text()[-6000:]
    assert taken_up(log) > stopped
    for name in ("model/model.safetensors", "training.csv", "counts.json"):
        assert (disturbed / model / name).read_bytes() == (undisturbed / model / name).read_bytes(), name
    # where its processes were is no reason to train a model again
    said = snakemake("-n", "--config", spread, *target, directory=disturbed, configs=(DEFAULT, SMOKE))
    assert not planned(said)


# --- the experiment

MADE = {
    "score": ("reward/vrm/seed1/scores.csv", "reward/vrm/seed1/validation.csv"),
    "answer": ("policy/qwen3/dpo/seed1/answers/arena_hard.jsonl",),
    "judge": ("policy/qwen3/dpo/seed1/judgments/arena_hard.jsonl", "replies/replies.jsonl"),
    "table": ("tables/latents.csv", "tables/latents.md", "tables/latents.tex", "tables/latents.html"),
}
"""What is made again through SLURM, by rule: a job of each kind of request beside trainings, which are above.

If VRM_SLURM_SMOKE=all, the whole smoke preset is made, from nothing."""


def test_the_smoke_preset_through_slurm_gives_the_local_files(cluster, smoke, tmp_path):
    whole = os.environ.get("VRM_SLURM_SMOKE") == "all"
    targets = [] if whole else [f"results/smoke/{MADE[rule][0]}" for rule in ("judge", "table")]
    if not whole:
        shutil.copytree(smoke, tmp_path, dirs_exist_ok=True)
        for name in sum(MADE.values(), ()):
            (tmp_path / "results" / "smoke" / name).unlink()
    said = cluster.run(ROOT / "Snakefile", tmp_path, "--configfile", DEFAULT, SMOKE, "--", *targets)
    assert whole or planned(said).keys() == MADE.keys()
    found, local = results(tmp_path), results(smoke)
    assert found.keys() == local.keys()
    assert [name for name in local if found[name] != local[name]] == []
