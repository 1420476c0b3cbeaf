"""What the machine does to a run: each fault is made to happen, is said clearly, loses nothing, and can be mended."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from judging_jobs import config, is_complete, requests
from paths import ROOT
from reward_jobs import ASPECTS, SCALAR, TRAINING, weights
from runs import contents, vrm
from server import Server

from vrm.cli import explain
from vrm.judging import Judge, Store
from vrm.judging.store import StoreError
from vrm.training.reward import RewardJob, train_reward_model


def world(out, micro, **environment):
    return vrm("world", "--config", *micro, "--out", out, **environment)


def reward_job(backbone, pairs, directory):
    return RewardJob(
        variant=SCALAR,
        training=TRAINING.model_copy(update={"epochs": 1, "evaluations": 3}),
        aspects=ASPECTS,
        seed=1,
        backbone=str(backbone),
        revision=None,
        pairs=pairs,
        checkpoints=directory / "checkpoints",
        out=directory / "out",
    )


@pytest.fixture(scope="module")
def whole_world(micro, tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "world"
    assert world(out, micro).returncode == 0
    return contents(out)


def test_a_full_disk(disk, micro, whole_world, seen):
    disk.again("size=64k")
    out = disk.path / "world"
    said = world(out, micro)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "No space left" in said.stderr
    assert contents(out).items() <= whole_world.items()  # what is there is whole
    disk.again("size=16m")
    assert world(out, micro).returncode == 0
    assert contents(out) == whole_world
    seen("the disk is full while a stage writes", saw=said.stderr, remedy="made room, same command")


def test_a_full_disk_while_a_training_checkpoints(disk, tiny_backbone, toy_pairs, tmp_path, seen):
    whole = reward_job(tiny_backbone, toy_pairs, tmp_path / "whole")
    train_reward_model(whole)
    job = reward_job(tiny_backbone, toy_pairs, disk.path)
    disk.again("size=200k")
    with pytest.raises(Exception) as error:
        train_reward_model(job)
    said = explain(error.value, {"out": job.out})
    assert said is not None
    assert "make room" in said
    assert not (job.out / "model").exists()
    disk.again("size=16m")
    train_reward_model(job)
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(job).items())
    assert (job.out / "training.csv").read_text() == (whole.out / "training.csv").read_text()
    seen("the disk is full while a training checkpoints", saw=said, remedy="made room, same command")


def test_a_full_disk_below_the_store_of_judgments(disk, tmp_path, seen, monkeypatch):
    monkeypatch.setenv("VRM_TEST_JUDGE_KEY", "sk-of-a-test-0123456789")
    disk.again("size=24k")
    with Server() as server:
        with pytest.raises(StoreError) as error:
            Judge(config(server.url), Store(disk.path / "store")).ask(requests(0, 200))
        paid = server.billed.total()
        disk.again("size=16m")
        store = Store(disk.path / "store")
        kept = len(store.entries())
        Judge(config(server.url), store).ask(requests(0, 200))
        twice = sum(count - 1 for count in server.billed.values())
    assert paid > 8
    assert twice <= config(server.url).concurrency  # those under way when there was no room for their replies
    unanswered = [entry for entry in store.entries() if type(entry).__name__ == "Unanswered"]
    assert len(unanswered) >= twice
    lost = f"at most the replies under way: {twice} of {paid}, counted as unanswered; {kept - len(unanswered)} kept"
    seen("the disk is full below the judgments", saw=str(error.value), lost=lost, remedy="made room, same command")


def test_a_folder_that_may_only_be_read(disk, micro, whole_world, seen):
    out = disk.path / "world"
    disk.again("ro")
    said = world(out, micro)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "Read-only" in said.stderr
    disk.again("rw")
    assert world(out, micro).returncode == 0
    assert contents(out) == whole_world
    seen("the results folder may only be read", saw=said.stderr, remedy="mounted for writing, same command")


def test_sigterm_to_a_training(micro, toy_pairs, tmp_path, seen):
    """From outside, as a cluster does it."""
    long = tmp_path / "long.yaml"
    long.write_text("backbone: {create: {pretraining_steps: 100000}}\n")
    command = [
        *(sys.executable, "-m", "vrm", "backbone", "--config", *micro, long, "--pairs", toy_pairs),
        *("--checkpoints", tmp_path / "checkpoints", "--out", tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with open(tmp_path / "log", "w+") as log:
        training = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment)
        while " of 100000 " not in (tmp_path / "log").read_text():  # it is under way
            assert training.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        time.sleep(1)
        began = time.monotonic()
        training.send_signal(signal.SIGTERM)
        status, took = training.wait(60), time.monotonic() - began
    said = (tmp_path / "log").read_text()
    assert status == 128 + signal.SIGTERM
    assert took < 30
    assert "Traceback" not in said
    assert list((tmp_path / "checkpoints").glob("checkpoint-*/trainer_state.json"))
    assert not (tmp_path / "out").exists()
    seen(f"SIGTERM to a training ({took:.1f} s to leave, 30 s are given)", saw=said, remedy="same command")


def test_a_clock_that_jumps(tiny_backbone, toy_pairs, tmp_path, monkeypatch, seen):
    """Hours back and forth between any two looks at it: numbers stay, nobody waits."""
    whole, jumped = (reward_job(tiny_backbone, toy_pairs, tmp_path / name) for name in ("whole", "jumped"))
    train_reward_model(whole)
    rng, clock = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + rng.uniform(-1e5, 1e5))
    monkeypatch.setenv("VRM_TEST_JUDGE_KEY", "sk-of-a-test-0123456789")
    train_reward_model(jumped)
    assert contents(jumped.out).keys() == contents(whole.out).keys()
    assert (jumped.out / "training.csv").read_bytes() == (whole.out / "training.csv").read_bytes()
    with Server({"429": 0.3, "500": 0.3}) as server:
        began = time.monotonic()
        Judge(config(server.url), Store(tmp_path / "store")).ask(requests(0, 60))
        is_complete(tmp_path / "store", server, 60)
    assert time.monotonic() - began < 30
    seen("a clock that jumps by hours, in a training and while judging", saw="(nothing)", remedy="none needed")


def test_a_temporary_folder_that_is_gone(micro, toy_pairs, tmp_path, seen):
    """A node whose /tmp can't be written, and a TMPDIR that names nothing."""
    short = tmp_path / "short.yaml"
    short.write_text("backbone: {create: {pretraining_steps: 2}}\n")
    command = (
        *("backbone", "--config", *micro, short, "--pairs", toy_pairs),
        *("--checkpoints", tmp_path / "checkpoints", "--out", tmp_path / "out"),
    )
    said = vrm(*command, TMPDIR=str(tmp_path / "gone"))
    assert said.returncode in (0, 1)
    assert "Traceback" not in said.stderr, said.stderr
    if said.returncode:
        assert "TMPDIR" in said.stderr
        assert vrm(*command).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    seen(
        "the folder for temporary files is gone",
        saw=said.stderr if said.returncode else "(nothing)",
        remedy="another TMPDIR, same command" if said.returncode else "none needed",
    )


def test_two_judges_share_a_store(tmp_path, seen, monkeypatch):
    monkeypatch.setenv("VRM_TEST_JUDGE_KEY", "sk-of-a-test-0123456789")
    with Server(judges=lambda body, _: f"of {body['model']}") as server:
        for name, _ in itertools.product(("first", "second"), range(2)):
            judge = config(server.url).model_copy(update={"model": name})
            replies = Judge(judge, Store(tmp_path)).ask(requests(0, 20))
            assert {reply.text for reply in replies} == {f"of {name}"}
        assert set(server.billed.values()) == {2}  # once a judge
    seen("two judges with one store", saw="(nothing: each gets its own replies)", remedy="none needed")
