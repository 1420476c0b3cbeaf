"""PPO: it reaches the optimum where that is known, resumes exactly, and stops when it has blown up."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from policy_jobs import Killed, policy_job
from ppo_settings import LENGTH, NEVER, PPO, SHORT, FunctionReward
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vrm.config import ConfigError, Generation, Lora, PpoTraining
from vrm.records import read_jsonl, read_pairs
from vrm.training.ppo import PpoRun, train_ppo
from vrm.training.symptoms import TrainingError


def good(response):
    """1 where a response begins with one of half of the letters."""
    return response[:1].lower() in "abcdefghijklm" and response[:1] != ""


def weights(job):
    return load_file(job.out / "model" / "model.safetensors")


def test_it_reaches_the_closed_form_optimum_of_the_regularised_bandit(tiny_backbone, toy_pairs, tmp_path):
    """One token an answer: pi*(a) is proportional to pi_ref(a) exp(r(a) / kl_coefficient)."""
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    coefficient = 0.5
    settings = PpoTraining(
        updates=80,
        prompts_per_update=64,
        minibatch_size=32,
        epochs=2,
        learning_rate=3e-3,
        critic_learning_rate=1e-2,
        critic_warmup=2,
        kl_coefficient=coefficient,
        normalise_rewards=False,
        missing_end_penalty=0.0,
        evaluations=1,
        evaluation_prompts=16,
        checkpoints=0,
        limits=NEVER,
    )
    train_ppo(job, settings, Generation(max_new_tokens=1), FunctionReward(good))
    run = PpoRun(job, settings, Generation(max_new_tokens=1), FunctionReward(good))
    words = [run.tokenizer.decode([i], skip_special_tokens=True).strip() for i in range(len(run.tokenizer))]
    reward = torch.tensor([float(good(word)) for word in words])
    reached, optimal, before = [], [], []
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(tiny_backbone)
        policy = AutoModelForCausalLM.from_pretrained(job.out / "model")
        for question in run.held_out:
            ids = torch.tensor([question.ids])
            p_ref = reference(ids).logits[0, -1].softmax(-1)
            p_optimal = p_ref * (reward / coefficient).exp()
            p_optimal = p_optimal / p_optimal.sum()
            before.append((p_ref * reward).sum())
            optimal.append((p_optimal * reward).sum())
            reached.append((policy(ids).logits[0, -1].softmax(-1) * reward).sum())
    before, optimal, reached = (torch.stack(values).mean().item() for values in (before, optimal, reached))
    assert optimal - before > 0.25  # there was something to learn
    assert reached == pytest.approx(optimal, abs=0.05)


def test_a_longer_answer_is_learnt_where_length_is_paid(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    settings = PPO.model_copy(update={"updates": 20, "prompts_per_update": 16, "learning_rate": 3e-3})
    train_ppo(job, settings, SHORT, LENGTH)
    table = pd.read_csv(job.out / "held_out.csv")
    change = table.assign(change=table.end - table.start).groupby("metric").change.mean()
    assert change.reward > 2
    assert change.kl > 0.1
    assert set(change.index) == {"reward", "kl", "entropy", "length"}
    start = table[(table.metric == "kl")].start
    assert np.allclose(start, 0, atol=1e-5)  # the reference is where the policy starts


def test_what_a_run_leaves_behind(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    train_ppo(job, PPO, SHORT, LENGTH)
    samples = [row for _, row in read_jsonl(job.out / "samples.jsonl")]
    assert [row["step"] for row in samples] == [0] * 5 + [3] * 5 + [6] * 5
    assert len({row["prompt_id"] for row in samples}) == 5
    assert samples[0].keys() == {
        *("step", "prompt_id", "prompt", "response", "reward", "kl", "entropy", "length", "ended"),
    }
    assert all(row["reward"] == len(row["response"]) for row in samples)
    log = pd.read_csv(job.out / "training.csv")
    batch = log[log.split == "batch"].pivot(index="step", columns="metric", values="value")
    assert batch.index.tolist() == [1, 2, 3, 4, 5, 6]
    wanted = {"reward", "score", "kl", "entropy", "length", "missing_end", "explained_variance", "policy_loss"}
    assert wanted | {"value_loss", "clipped", "approximate_kl", "actor_gradient_norm"} <= set(batch)
    assert batch.actor_gradient_norm.iloc[0] == 0  # the critic warms up alone
    assert (batch.actor_gradient_norm.iloc[1:] > 0).all()
    counts = json.loads((job.out / "counts.json").read_text())
    assert counts["answers"] == 48
    assert counts["prompts_cut"] == 0
    assert not job.checkpoints.exists()


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapters"])
def test_a_killed_run_resumes_to_the_same_result(lora, tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    whole = policy_job(tiny_backbone, toy_pairs, tmp_path / "whole", lora=lora)
    train_ppo(whole, PPO, SHORT, LENGTH)
    again = policy_job(tiny_backbone, toy_pairs, tmp_path / "again", lora=lora)
    update = PpoRun.update

    def die_at_5(self, number):
        if number == 5:
            raise Killed
        return update(self, number)

    monkeypatch.setattr(PpoRun, "update", die_at_5)
    with pytest.raises(Killed):
        train_ppo(again, PPO, SHORT, LENGTH)
    assert {path.name for path in again.checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    for path in again.checkpoints.glob("checkpoint-*/*.safetensors") if lora else ():
        assert not [name for name in load_file(path) if "base_layer" in name or "embed_tokens" in name]
    calls = []
    monkeypatch.setattr(PpoRun, "update", lambda self, number: calls.append(number) or update(self, number))
    train_ppo(again, PPO, SHORT, LENGTH)
    assert calls == [4, 5]
    expected = weights(whole)
    assert all(torch.equal(weight, expected[key]) for key, weight in weights(again).items())
    for file in ("training.csv", "samples.jsonl", "held_out.csv", "counts.json"):
        assert (again.out / file).read_text() == (whole.out / file).read_text(), file


def test_another_seed_gives_another_policy(tiny_backbone, toy_pairs, tmp_path):
    quick = PPO.model_copy(update={"updates": 2, "checkpoints": 0})
    results = []
    for number, seed in enumerate([1, 1, 2]):
        job = dataclasses.replace(policy_job(tiny_backbone, toy_pairs, tmp_path / str(number)), seed=seed)
        train_ppo(job, quick, SHORT, LENGTH)
        results.append(weights(job))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(results[0][name], results[1][name])
    assert not torch.equal(results[0][name], results[2][name])


def test_gradient_accumulation_changes_nothing(tiny_backbone, toy_pairs, tmp_path):
    results = []
    for number, (size, parts) in enumerate([(8, 1), (2, 4)]):
        job = policy_job(tiny_backbone, toy_pairs, tmp_path / str(number))
        settings = {"updates": 2, "minibatch_size": size, "gradient_accumulation": parts, "critic_warmup": 0}
        train_ppo(job, PPO.model_copy(update=settings), SHORT, LENGTH)
        results.append(weights(job))
    for name, weight in results[0].items():
        assert torch.allclose(weight, results[1][name], atol=2e-4), name


def test_adapters_share_the_reference_and_are_merged(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, lora=Lora(rank=4, alpha=8))
    settings = PPO.model_copy(update={"updates": 12, "prompts_per_update": 16, "learning_rate": 2e-2})
    train_ppo(job, settings, SHORT, LENGTH)
    table = pd.read_csv(job.out / "held_out.csv").groupby("metric")[["start", "end"]].mean()
    assert table.start.kl == pytest.approx(0, abs=1e-5)
    assert table.end.kl > 0.01
    model = AutoModelForCausalLM.from_pretrained(job.out / "model")
    start = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    assert model.state_dict().keys() == start.state_dict().keys()


def test_a_run_that_blows_up_stops_with_the_reason_and_keeps_its_log(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    limits = NEVER.model_copy(update={"response_length": 100.0, "patience": 2})
    with pytest.raises(TrainingError, match="update 1: length is") as error:
        train_ppo(job, PPO.model_copy(update={"limits": limits}), SHORT, LENGTH)
    assert str(job.checkpoints) in str(error.value)  # Snakemake deletes the outputs of a failed job
    log = pd.read_csv(job.checkpoints / "training.csv")
    assert log[log.split == "batch"].step.max() == 2
    assert (job.checkpoints / "samples.jsonl").exists()
    stopped = json.loads((job.checkpoints / "stopped_batch.json").read_text())
    assert stopped["update"] == 1
    assert len(stopped["answers"]) == PPO.prompts_per_update
    prompts = [pair.prompt for pair in read_pairs(toy_pairs / "train.jsonl")]
    assert all(answer["prompt"] in prompts for answer in stopped["answers"])
    assert not (job.out / "model").exists()


def test_a_batch_that_cannot_be_dealt_out_names_the_keys(tiny_backbone, toy_pairs, tmp_path):
    with pytest.raises(ConfigError, match=r"prompts_per_update \(8\) must be .* minibatch_size \(3\)"):
        train_ppo(
            policy_job(tiny_backbone, toy_pairs, tmp_path), PPO.model_copy(update={"minibatch_size": 3}), SHORT, LENGTH
        )


def test_every_prompt_is_asked_once_a_pass(tiny_backbone, toy_pairs, tmp_path):
    run = PpoRun(policy_job(tiny_backbone, toy_pairs, tmp_path), PPO, SHORT, LENGTH)
    total = len(run.questions)
    asked = [question.prompt_id for update in range(total // 8) for question in run._questions(update)]
    assert sorted(asked) == sorted(question.prompt_id for question in run.questions)
    later = [question.prompt_id for question in run._questions(total // 8)]
    assert later != asked[:8]
