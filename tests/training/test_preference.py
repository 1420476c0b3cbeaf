"""Training on preference pairs: every method moves its own objective, resumes exactly, and leaves a usable policy."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from policy_jobs import Killed, policy_job
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vrm.config import Lora, PreferenceMethod
from vrm.models.policy_scoring import load_policy_scorer
from vrm.records import RecordError, read_pairs
from vrm.training import preference
from vrm.training.preference import train_preference
from vrm.training.symptoms import TrainingError

METHODS = {
    "dpo": PreferenceMethod(label="DPO", method="dpo"),
    "ipo": PreferenceMethod(label="IPO", method="ipo"),
    "kto": PreferenceMethod(label="KTO", method="kto"),
    "simpo": PreferenceMethod(label="SimPO", method="simpo", beta=2.0),
    "wpo": PreferenceMethod(label="WPO", method="wpo"),
}


def weights(job):
    return load_file(job.out / "model" / "model.safetensors")


def held_out(job):
    return pd.read_csv(job.out / "held_out.csv").pivot(index="item_id", columns="metric", values=["start", "end"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_its_objective_on_held_out_pairs(name, tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    train_preference(job, METHODS[name])
    table = held_out(job)
    assert (table["end"].loss < table["start"].loss).mean() > 0.9
    assert (table["end"].margin > 0).mean() > 0.9
    if name != "simpo":  # where the reference is the policy itself, nothing is preferred yet
        assert np.allclose(table["start"].margin, 0, atol=1e-5)
    log = pd.read_csv(job.out / "training.csv")
    assert {"loss", "accuracy", "margin", "chosen_logratio"} <= set(log[log.split == "validation"].metric)
    assert ("weight" in set(log.metric)) == (name == "wpo")
    assert ("kl" in set(log.metric)) == (name == "kto")
    assert json.loads((job.out / "counts.json").read_text())["train"]["pairs"] == 96
    assert not job.checkpoints.exists()
    assert {path.suffix for path in (job.out / "model").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_the_margin_is_the_implicit_reward_that_the_scorer_gives(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, epochs=1)
    train_preference(job, METHODS["dpo"])
    scorer = load_policy_scorer(job.out / "model", tiny_backbone, max_prompt_length=64, max_length=96)
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    chosen = scorer.score(prompts, [pair.chosen for pair in pairs]).mean
    rejected = scorer.score(prompts, [pair.rejected for pair in pairs]).mean
    margin = held_out(job)["end"].margin
    by_id = dict(zip([pair.pair_id for pair in pairs], 0.1 * (chosen - rejected), strict=True))
    assert margin.to_numpy() == pytest.approx([by_id[str(key)] for key in margin.index], abs=1e-4)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_killed_training_resumes_to_the_same_result(name, tiny_backbone, toy_pairs, tmp_path, monkeypatch, capsys):
    whole = policy_job(tiny_backbone, toy_pairs, tmp_path / "whole", epochs=1)
    train_preference(whole, METHODS[name])
    again = policy_job(tiny_backbone, toy_pairs, tmp_path / "again", epochs=1)
    write = preference.LogWriter.on_evaluate

    def die_late(self, args, state, control, **rest):
        write(self, args, state, control, **rest)
        if state.global_step >= 0.9 * state.max_steps:
            raise Killed

    monkeypatch.setattr(preference.LogWriter, "on_evaluate", die_late)
    with pytest.raises(Killed):
        train_preference(again, METHODS[name])
    assert list(again.checkpoints.glob("checkpoint-*"))
    monkeypatch.setattr(preference.LogWriter, "on_evaluate", write)
    train_preference(again, METHODS[name])
    assert "going on from checkpoint-" in capsys.readouterr().out  # from the beginning it would come to the same too
    expected = weights(whole)
    assert all(torch.equal(weight, expected[key]) for key, weight in weights(again).items())
    for file in ("training.csv", "held_out.csv"):
        assert (again.out / file).read_text() == (whole.out / file).read_text()


def test_selected_pairs_are_trained_on_from_easy_to_hard(tiny_backbone, toy_pairs, tmp_path):
    pairs = read_pairs(toy_pairs / "train.jsonl")
    order = np.random.default_rng(0).permutation(len(pairs))
    table = pd.DataFrame({"pair_id": [pairs[i].pair_id for i in order], "difficulty": np.arange(96.0), "runs": 1})
    table["kept"] = (table.index < 40).astype(int)
    table.to_csv(tmp_path / "difficulty.csv", index=False)
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    seen = []
    original = preference.make_trainer

    def spy(job, method, tokenizer, train, *rest):
        trainer = original(job, method, tokenizer, train, *rest)
        batches = iter(trainer.get_train_dataloader())
        seen.append(([pair.record.pair_id for pair in train], next(batches)["input_ids"][0], train[0].chosen.ids))
        return trainer

    preference.make_trainer = spy
    try:
        method = PreferenceMethod(label="S", method="selective_dpo")
        train_preference(job, method, tmp_path / "difficulty.csv")
    finally:
        preference.make_trainer = original
    kept, first, easiest = seen[0]
    assert kept == table.pair_id[:40].tolist()
    assert first[: len(easiest)].tolist() == easiest
    assert json.loads((job.out / "counts.json").read_text())["train"]["pairs_selected"] == 40


def test_adapters_are_merged_and_leave_the_start_as_reference(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, lora=Lora(rank=4, alpha=8), learning_rate=1e-2)
    train_preference(job, METHODS["dpo"])
    table = held_out(job)
    assert np.allclose(table["start"].margin, 0, atol=1e-5)
    assert (table["end"].margin > 0).mean() > 0.8
    model = AutoModelForCausalLM.from_pretrained(job.out / "model")
    start = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    assert model.state_dict().keys() == start.state_dict().keys()
    embedding = "model.embed_tokens.weight"
    assert torch.equal(model.state_dict()[embedding], start.state_dict()[embedding])


def test_a_diverged_training_stops_instead_of_looking_perfect(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"step \d+: the (loss|gradient.s norm) is nan;.*lower the learning rate"):
        train_preference(job, METHODS["dpo"])
    assert not (job.out / "model").exists()


def test_difficulties_of_other_pairs_are_refused(tiny_backbone, toy_pairs, tmp_path):
    pd.DataFrame({"pair_id": ["a"], "difficulty": [0.5], "runs": [1], "kept": [1]}).to_csv(tmp_path / "d.csv")
    method = PreferenceMethod(label="S", method="selective_dpo")
    with pytest.raises(RecordError, match=r"d\.csv: 97 pairs are only there"):
        train_preference(policy_job(tiny_backbone, toy_pairs, tmp_path), method, tmp_path / "d.csv")


def test_adapters_in_bfloat16_save_the_policy_that_was_measured(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, lora=Lora(rank=4, alpha=8), learning_rate=1e-3, bf16=True)
    train_preference(job, METHODS["dpo"])
    scorer = load_policy_scorer(job.out / "model", tiny_backbone, max_prompt_length=64, max_length=96)
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (
        scorer.score(prompts, [getattr(p, side) for p in pairs]).mean for side in ("chosen", "rejected")
    )
    by_id = dict(zip([pair.pair_id for pair in pairs], 0.1 * (chosen - rejected), strict=True))
    margin = held_out(job)["end"].margin
    # measured in bfloat16, saved in float32
    assert margin.to_numpy() == pytest.approx([by_id[str(key)] for key in margin.index], abs=0.03)
