"""Two processes with half a batch each train what one process trains with the whole of it: plain, and sharded (FSDP2).

* PPO's answers depend on the prompt alone here (several_processes.py); sampled ones depend on the process.
* Values agree to 1e-6 where they are not near zero. Without the exchange of gradients each curve leaves the other by
  10 % at least in some metric; a VRM's does so too where both processes draw the same latent noise.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import several_processes
import torch
from accelerate import DistributedType
from paths import ROOT
from safetensors.torch import load_file

from vrm.checkpoints import fingerprint, resumable
from vrm.config import ConfigError
from vrm.launch import machine
from vrm.models.policy_scoring import load_policy_scorer
from vrm.models.scoring import load_reward_model
from vrm.records import read_pairs, write_json
from vrm.training.trainer import is_sharded

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("processes")]

PLAIN = (
    *("rm", "vrm", "concept", "vrm_lora", "gated", "bottleneck", "sft", "dpo", "kto", "dpo_known", "kto_known", "ppo"),
    *(("vrm_lora_4bit", "dpo_lora_4bit") if importlib.util.find_spec("bitsandbytes") else ()),
)
SHARDED = (
    "rm", "vrm", "concept", "gated", "bottleneck", "sft", "dpo", "kto", "dpo_known", "kto_known",
    "dpo_untied", "vrm_bf16", "vrm_lora_bf16", "dpo_lora_bf16",
)  # fmt: skip
POLICIES = ("sft", "dpo", "kto")
BY_PROCESS = {
    "ppo": [("batch", "explained_variance")],
    "sft": [("batch", "entropy"), ("batch", "mean_token_accuracy"), ("train", "loss"), ("validation", "loss")],
}
"""A ratio of variances and means over tokens, taken within each process: their mean is not that of the whole batch."""


def environment():
    """Of what trains."""
    search = [ROOT / "src", ROOT / "tests" / "support"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search))}


def launch(configuration, backbone, pairs, directory, names, stops=False):
    """Train `names` in two processes, started as the workflow starts them; what they say."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", ROOT / "workflow" / "accelerate" / f"{configuration}.yaml", "--num_processes", "2"),
            *(ROOT / "tests" / "support" / "several_processes.py", backbone, pairs, directory, *names),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=900,
    )
    assert (done.returncode != 0) == stops, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def one(tiny_backbone, toy_pairs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    for name in (*PLAIN, "vrm_uneven"):
        several_processes.train(name, tiny_backbone, toy_pairs, directory, 1)
    return directory


@pytest.fixture(scope="module")
def two(tiny_backbone, toy_pairs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    several_processes.untied(tiny_backbone, directory)
    names = dict.fromkeys([*PLAIN, *SHARDED, "vrm_uneven", "vrm_killed", "ppo_sampled"])
    launch("ddp", tiny_backbone, toy_pairs, directory, names)
    return directory


@pytest.fixture(scope="module")
def sharded(tiny_backbone, toy_pairs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharded")
    several_processes.untied(tiny_backbone, directory)
    launch("fsdp2", tiny_backbone, toy_pairs, directory, [*SHARDED, "vrm_killed"])
    return directory


def log(directory, name):
    table = pd.read_csv(directory / name / "out" / "training.csv")
    by_process = table.set_index(["split", "metric"]).index.isin(BY_PROCESS.get(name, []))
    return table[~by_process].set_index(["step", "split", "metric"]).value


def assert_same_files(expected, found):
    files = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(found) for path in found.rglob("*") if path.is_file())
    assert [path for path in files if (expected / path).read_bytes() != (found / path).read_bytes()] == []


def assert_same_training(expected, found, name):
    """Same log up to rounding, for a batch is summed in another order; same counts; one writer; nothing left behind."""
    curve = log(expected, name)
    assert curve.xs("value_loss" if name == "ppo" else "loss", level="metric").nunique() > 3
    assert list(log(found, name).index) == list(curve.index)
    assert log(found, name).to_numpy() == pytest.approx(curve.to_numpy(), rel=1e-4, abs=1e-5)
    for file in ("counts.json", "model/config.json"):
        a, b = (json.loads((directory / name / "out" / file).read_text()) for directory in (expected, found))
        # a trained model's says false, a loaded one's true, and generation takes neither
        assert a | {"use_cache": None} == b | {"use_cache": None}
    if not name.startswith(tuple(several_processes.VARIANTS)):
        held_out, same = (pd.read_csv(each / name / "out" / "held_out.csv") for each in (expected, found))
        assert not held_out.duplicated(["item_id", "metric"]).any()
        assert same.item_id.tolist() == held_out.item_id.tolist()
        assert same.end.to_numpy() == pytest.approx(held_out.end.to_numpy(), rel=1e-3, abs=1e-4)
    assert not (found / name / "checkpoints").exists()


@pytest.mark.parametrize("name", PLAIN)
def test_two_processes_have_the_loss_curve_of_one(one, two, name):
    assert_same_training(one, two, name)


def test_two_machines_with_a_process_each_train_what_one_with_two_does(two, tiny_backbone, toy_pairs, tmp_path):
    """Each starts accelerate for itself, as a task of SLURM does; the files are the same, byte for byte."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("vrm", "dpo")
    training = [ROOT / "tests" / "support" / "several_processes.py", tiny_backbone, toy_pairs, tmp_path, *names]
    arguments = ["--config_file", ROOT / "workflow" / "accelerate" / "ddp.yaml", "--num_processes", "2", *training]
    commands = [machine(2, rank, "127.0.0.1", port, [str(word) for word in arguments]) for rank in (0, 1)]
    machines = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
        for command in commands
    ]
    said = [each.communicate(timeout=900)[0] for each in machines]
    assert [each.returncode for each in machines] == [0, 0], "".join(said)[-3000:]
    for name in names:
        assert_same_files(two / name / "out", tmp_path / name / "out")


def test_an_epochs_last_batch_is_filled_up_where_it_is_smaller(one, two):
    """By accelerate, so that each process has as many pairs as in the other steps; those are the same as in one."""
    alone, together = (log(directory, "vrm_uneven") for directory in (one, two))
    assert list(alone.index) == list(together.index)
    full = alone.index.get_level_values("step") < 5
    assert together[full].to_numpy() == pytest.approx(alone[full].to_numpy(), rel=1e-4, abs=1e-5)
    last = (5, "batch", "loss")
    assert abs(alone[last] - together[last]) > 1e-3


@pytest.mark.parametrize("directory", ["two", "sharded"])
def test_a_training_that_is_killed_in_two_processes_resumes_to_the_same_result(directory, request):
    directory = request.getfixturevalue(directory)
    whole, again = (directory / name / "out" for name in ("vrm", "vrm_killed"))
    assert (again / "training.csv").read_text() == (whole / "training.csv").read_text()
    expected, found = (load_file(out / "model" / "model.safetensors") for out in (whole, again))
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


STOPPED = {"vrm": "launcher", "dpo": "one", "ppo": "launcher"}
"""Trainings that get SIGTERM, and who does: from its launcher each process gets it at a moment of its own; of several
machines one alone may be taken away."""


@pytest.fixture(scope="module")
def stopped(tiny_backbone, toy_pairs, tmp_path_factory):
    """Where STOPPED's trainings are, finished; and by name what was said when it stopped, and when it went on.

    A launch goes on with what the one before was stopped in, then begins the next: four launches for three trainings.
    """
    directory, said, stopped = tmp_path_factory.mktemp("stopped"), {}, []
    for name, target in STOPPED.items():
        words = launch("ddp", tiny_backbone, toy_pairs, directory, [*stopped, f"{name}+{target}"], stops=True)
        said |= {f"{name} stopped": words, **{f"{one.partition('+')[0]} went on": words for one in stopped}}
        checkpoint = directory / name / "checkpoints" / f"checkpoint-{several_processes.STOPS_AT}"
        assert json.loads((checkpoint / "trainer_state.json").read_text())
        assert not (directory / name / "out" / "model").exists()
        stopped = [f"{name}+{target}"]
    said[f"{name} went on"] = launch("ddp", tiny_backbone, toy_pairs, directory, stopped)
    return directory, said


@pytest.mark.parametrize("name", STOPPED)
def test_two_processes_that_get_sigterm_stop_at_the_same_step_and_go_on(two, stopped, name):
    directory, said = stopped
    stops = re.findall(r"PreemptedError: stopped by SIGTERM; step (\d+)", said[f"{name} stopped"])
    assert stops == [str(several_processes.STOPS_AT)] * 2, said[f"{name} stopped"][-3000:]
    checkpoints = directory / name / "checkpoints"
    assert f"{checkpoints}: going on from checkpoint-{several_processes.STOPS_AT}\n" in said[f"{name} went on"]
    assert_same_files(*(each / name / "out" for each in (two, directory)))
    assert not checkpoints.exists()


def test_two_processes_that_sample_end_with_the_same_weights(two):
    out = two / "ppo_sampled" / "out"
    first, second = ((out / f"norm{rank}").read_text() for rank in (0, 1))
    assert first == second
    held_out = pd.read_csv(out / "held_out.csv")
    assert not held_out.duplicated(["item_id", "metric"]).any()
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_training_has_the_loss_curve_of_a_plain_one(two, sharded, name):
    assert_same_training(two, sharded, name)
    shares = [float((sharded / f"{name}.share{rank}").read_text()) for rank in (0, 1)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_models_directory_scores_as_a_plain_ones(two, sharded, toy_pairs, name):
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    limits = {"max_prompt_length": 64, "max_length": 96}
    margins = []
    for directory in (two, sharded):
        path = directory / name / "out" / "model"
        assert {weight.dtype for weight in load_file(path / "model.safetensors").values()} == {torch.float32}
        policy = name.startswith(POLICIES)
        score = (load_policy_scorer(path, None, **limits) if policy else load_reward_model(path, **limits)).score
        chosen, rejected = ([getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected"))
        prompts = [pair.prompt for pair in pairs]
        margins.append(score(prompts, chosen).mean - score(prompts, rejected).mean)
    assert margins[0].std() > 0.005  # fifty times what they may differ by
    assert margins[1] == pytest.approx(margins[0], abs=1e-4)


def test_fsdp_that_would_not_happen_is_an_error(monkeypatch):
    unsharded = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    assert not is_sharded(unsharded)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"ddp\.yaml"):
        is_sharded(unsharded)
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        is_sharded(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))


def test_a_checkpoint_without_every_process_random_state_is_not_continued(tmp_path, monkeypatch):
    """One that lacks it would sample other latents than the others count on."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    made_from, checkpoint = fingerprint({}, []), tmp_path / "checkpoint-3"
    assert resumable(tmp_path, made_from) is None
    write_json(checkpoint / "trainer_state.json", {})
    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state_0.pth"):
        torch.save({}, checkpoint / name)
    assert resumable(tmp_path, made_from) is None
    (tmp_path / "damaged-checkpoint-3").rename(checkpoint)
    torch.save({}, checkpoint / "rng_state_1.pth")
    assert resumable(tmp_path, made_from) == str(checkpoint)
