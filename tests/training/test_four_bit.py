"""QLoRA: what is packed, that it trains as it is measured, resumes exactly, and leaves an ordinary directory."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from policy_jobs import Killed, policy_job
from ppo_settings import LENGTH, PPO, SHORT
from reward_jobs import ASPECTS, LIMITS, SCALAR, TRAINING, VRM, quick, scores, train_adapters, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vrm.config import ConfigError, Lora, PreferenceMethod, SftTraining
from vrm.models.policy_scoring import load_policy_scorer
from vrm.models.scoring import load_reward_model
from vrm.records import read_pairs
from vrm.training import four_bit, reward
from vrm.training import trainer as adapters
from vrm.training.policies import train_sft
from vrm.training.ppo import PpoRun, train_ppo
from vrm.training.preference import train_preference
from vrm.training.reward import RewardJob, make_trainer, train_reward_model

PACKED = Lora(rank=4, alpha=8, load_in_4bit=True)
needs_bitsandbytes = pytest.mark.skipif(
    not four_bit.importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes: pip install 'vrm[low-memory]'"
)


def reward_job(backbone, pairs, directory, variant=VRM, training=TRAINING, **changes):
    """A job with adapters on a 4-bit backbone; `changes` replace fields of its training."""
    training = training.model_copy(update={"lora": PACKED, **changes})
    places = {"checkpoints": directory / "checkpoints", "out": directory / "out"}
    return RewardJob(variant, training, ASPECTS, 1, str(backbone), None, pairs, **places)


def rounded(weight):
    """What is left of a weight in NF4."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))


@pytest.fixture(scope="module", autouse=True)
def _no_precision_for_the_next_test():
    """Accelerate keeps that of the last training in a process."""
    yield
    AcceleratorState._reset_state()


@pytest.fixture(
    scope="module", params=[(SCALAR, False), (VRM, False), (VRM, True)], ids=["scalar", "variational", "bf16"]
)
def trained(request, tiny_backbone, toy_pairs, tmp_path_factory):
    """A finished job, and its scores right before adapters were merged and from the disk."""
    pytest.importorskip("bitsandbytes")
    variant, bf16 = request.param
    job = reward_job(tiny_backbone, toy_pairs, tmp_path_factory.mktemp("packed"), variant, bf16=bf16)
    pairs = read_pairs(toy_pairs / "validation.jsonl")

    def look(model):
        assert four_bit.is_packed(model)

    before = train_adapters(job, pairs, look)
    after = scores(load_reward_model(job.out / "model"), pairs)
    return SimpleNamespace(job=job, bf16=bf16, end=weights(job), before=before, after=after)


def test_the_directory_scores_as_the_packed_model_did(trained):
    chosen, rejected = trained.after.reshape(2, -1)
    assert (chosen > rejected).mean() > 0.9  # it has learnt, so the comparison says something
    tolerance = 0.1 * float(trained.after.std()) if trained.bf16 else 1e-5
    assert trained.after == pytest.approx(trained.before, abs=tolerance)


def test_the_directory_is_an_ordinary_model_of_rounded_weights_and_low_rank_changes(trained, tiny_backbone):
    directory = trained.job.out / "model"
    config = (directory / "config.json").read_text()
    assert "bfloat16" not in config
    assert "quantization" not in config
    assert {weight.dtype for weight in trained.end.values()} == {torch.float32}
    begin = load_file(tiny_backbone / "model.safetensors")
    start = {name.removeprefix("model."): weight for name, weight in begin.items()}
    moved = 0
    for name, end in trained.end.items():
        begun = start.get(name.removeprefix("model."))
        if begun is None:  # the head
            continue
        begun = begun.bfloat16() if trained.bf16 else begun
        if not name.endswith("_proj.weight"):
            assert torch.equal(end, begun.float()), name
            continue
        assert not torch.equal(rounded(begun), begun)
        singular = torch.linalg.svdvals(end - rounded(begun).float())
        assert singular[0] > 1e-3, name
        assert singular[PACKED.rank] < 1e-4 * singular[0], name
        moved += 1
    assert moved == 7  # of one block: q, k, v, o, gate, up, down


@needs_bitsandbytes
@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["scalar", "variational"])
def test_linear_layers_are_packed_and_what_is_trained_is_float32(tiny_backbone, toy_pairs, tmp_path, variant):
    model = make_trainer(reward_job(tiny_backbone, toy_pairs, tmp_path, variant, bf16=True))[0].model
    head = "score" if variant is SCALAR else "head"
    packed = 0
    for name, parameter in model.named_parameters():
        in_head = f".{head}." in name
        assert parameter.requires_grad == ("lora_" in name or (in_head and "modules_to_save" in name)), name
        if name.endswith("base_layer.weight"):
            assert parameter.dtype == torch.uint8, name
            assert not in_head
            packed += 1
        elif parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
        elif not in_head:
            assert parameter.dtype == torch.bfloat16, name
    assert packed == 7


@needs_bitsandbytes
def test_both_engines_and_checkpointed_activations_have_one_loss_curve(tiny_backbone, toy_pairs, tmp_path):
    logs = []
    for number, how in enumerate(
        [{"engine": "padded"}, {"engine": "shared"}, {"engine": "shared", "gradient_checkpointing": True}]
    ):
        job = reward_job(tiny_backbone, toy_pairs, tmp_path / str(number), SCALAR, **how)
        train_reward_model(job)
        logs.append(pd.read_csv(job.out / "training.csv").value)
    assert logs[0].nunique() > 10
    for log in logs[1:]:
        np.testing.assert_allclose(log, logs[0], rtol=1e-3, atol=1e-4)


@needs_bitsandbytes
def test_it_learns_what_adapters_on_whole_weights_learn(tiny_backbone, toy_pairs, tmp_path):
    losses = []
    for lora in (PACKED, PACKED.model_copy(update={"load_in_4bit": False})):
        job = reward_job(tiny_backbone, toy_pairs, tmp_path / str(lora.load_in_4bit), SCALAR, lora=lora)
        train_reward_model(job)
        log = pd.read_csv(job.out / "training.csv")
        losses.append(log[(log.split == "validation") & (log.metric == "loss")].value.to_numpy())
    packed, whole = losses
    assert whole[-1] < 0.5 * whole[0]
    assert packed[-1] == pytest.approx(whole[-1], abs=0.1 * whole[0])


@needs_bitsandbytes
def test_a_killed_training_resumes_to_the_same_result(tiny_backbone, toy_pairs, tmp_path, monkeypatch, capsys):
    job = reward_job(tiny_backbone, toy_pairs, tmp_path / "whole")
    train_reward_model(job)
    again = reward_job(tiny_backbone, toy_pairs, tmp_path / "again")
    write = reward.LogWriter.on_evaluate

    def die_at_step_15(self, args, state, control, **rest):
        write(self, args, state, control, **rest)
        if state.global_step >= 15:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reward.LogWriter, "on_evaluate", die_at_step_15)
        with pytest.raises(Killed):
            train_reward_model(again)
    for checkpoint in again.checkpoints.glob("checkpoint-*/*.safetensors"):
        assert not [name for name in load_file(checkpoint) if "base_layer" in name]
    capsys.readouterr()
    train_reward_model(again)
    assert "going on from checkpoint-" in capsys.readouterr().out
    assert all(torch.equal(weight, weights(job)[name]) for name, weight in weights(again).items())
    assert (again.out / "training.csv").read_text() == (job.out / "training.csv").read_text()


@needs_bitsandbytes
def test_policies_start_as_their_own_reference_and_leave_ordinary_directories(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path / "sft", lora=PACKED)
    train_sft(job, SftTraining(epochs=1, learning_rate=1e-2))
    table = pd.read_csv(job.out / "held_out.csv")
    assert (table.end < table.start).mean() > 0.8

    dpo = policy_job(tiny_backbone, toy_pairs, tmp_path / "dpo", lora=PACKED, learning_rate=1e-2)
    train_preference(dpo, PreferenceMethod(label="DPO", method="dpo"))
    table = pd.read_csv(dpo.out / "held_out.csv").pivot(index="item_id", columns="metric", values=["start", "end"])
    assert np.allclose(table["start"].margin, 0, atol=1e-5)
    assert (table["end"].margin > 0).mean() > 0.8
    # the policy that was measured, beside its reference: the start with rounded weights
    start = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    for name, parameter in start.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.data = rounded(parameter.data)
    start.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "rounded")
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    scorer = load_policy_scorer(dpo.out / "model", tmp_path / "rounded", **LIMITS)
    chosen, rejected = scores(scorer, pairs).reshape(2, -1)
    by_id = dict(zip([pair.pair_id for pair in pairs], 0.1 * (chosen - rejected), strict=True))
    assert table["end"].margin.to_numpy() == pytest.approx([by_id[str(key)] for key in table.index], abs=1e-4)
    for each in (job, dpo):
        model = AutoModelForCausalLM.from_pretrained(each.out / "model")
        assert model.state_dict().keys() == start.state_dict().keys()


@needs_bitsandbytes
def test_a_killed_ppo_resumes_from_what_is_trained_alone(tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    jobs = [policy_job(tiny_backbone, toy_pairs, tmp_path / name, lora=PACKED) for name in ("whole", "again")]
    train_ppo(jobs[0], PPO, SHORT, LENGTH)
    update = PpoRun.update

    def die_at_5(self, number):
        if number == 5:
            raise Killed
        return update(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(PpoRun, "update", die_at_5)
        with pytest.raises(Killed):
            train_ppo(jobs[1], PPO, SHORT, LENGTH)
    saved = [load_file(path) for path in jobs[1].checkpoints.glob("checkpoint-4/*.safetensors")]
    assert len(saved) == 2
    assert all("lora_" in name or "modules_to_save" in name for state in saved for name in state)
    train_ppo(jobs[1], PPO, SHORT, LENGTH)
    whole, again = map(weights, jobs)
    assert all(torch.equal(weight, whole[name]) for name, weight in again.items())
    log = pd.read_csv(jobs[0].out / "training.csv")
    assert log[(log.metric == "kl") & (log.step == 0)].value.abs().max() < 1e-5
    assert json.loads((jobs[0].out / "counts.json").read_text())["answers"] == 48


@needs_bitsandbytes
def test_it_is_not_spread_over_cards(tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    job = reward_job(tiny_backbone, toy_pairs, tmp_path, training=quick(), lora=PACKED)
    monkeypatch.setattr(adapters, "is_sharded", lambda accelerator: True)
    with pytest.raises(ConfigError, match="load_in_4bit"):
        make_trainer(job)


def test_a_missing_package_is_an_error_that_names_it(tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(four_bit.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="bitsandbytes"):
        make_trainer(dataclasses.replace(reward_job(tiny_backbone, toy_pairs, tmp_path)))
