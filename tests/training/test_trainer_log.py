"""The log's watch: a training that has diverged stops, whichever loss says so, and the last window is logged."""

import json
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from policy_jobs import policy_job
from reward_jobs import ASPECTS, SCALAR, TRAINING
from safetensors.torch import load_file
from transformers import Trainer
from trl import SFTTrainer

from vrm import watch
from vrm.config import PreferenceMethod, SftTraining, Variant
from vrm.records import read_pairs
from vrm.training.policies import train_sft
from vrm.training.preference import PreferenceTrainer, train_preference
from vrm.training.reward import RewardJob, train_reward_model
from vrm.training.symptoms import LENGTH_CORRELATION, SYMPTOMS, TrainingError
from vrm.training.trainer import LossWatch, tidy

DPO = PreferenceMethod(label="DPO", method="dpo")
TRAININGS = {
    "sft": (SFTTrainer, lambda job: train_sft(job, SftTraining(epochs=1))),
    "preference": (PreferenceTrainer, lambda job: train_preference(job, DPO)),
}


def five_steps(backbone, pairs, directory, evaluations=2):
    """A job on 96 pairs in batches of 20."""
    return policy_job(backbone, pairs, directory, epochs=1, evaluations=evaluations, checkpoints=0, batch_size=20)


@pytest.mark.parametrize(
    ("name", "words"),
    [("loss", "loss"), ("train_loss", "train loss"), ("eval_validation_loss", "eval validation loss")],
)
def test_every_loss_is_looked_at(name, words):
    state = SimpleNamespace(global_step=7)
    LossWatch().on_log(None, state, None, logs={name: 0.5, "accuracy": float("nan"), "step": 7})
    with pytest.raises(TrainingError, match=f"step 7: the {words} is inf"):
        LossWatch().on_log(None, state, None, logs={name: float("inf")})


def test_a_measurement_of_a_split_that_is_not_said_is_left_out():
    history = [{"step": 3, "eval_validation_loss": 0.5, "eval_entropy": 2.0}, {"step": 3, "loss": 0.7, "entropy": 1.0}]
    assert [(split, metric, value) for *_, split, metric, value in tidy(history)] == [
        ("validation", "loss", 0.5),
        ("batch", "loss", 0.7),
        ("batch", "entropy", 1.0),
    ]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_loss_that_diverges_in_the_last_step_alone_leaves_no_model(
    name, tiny_backbone, toy_pairs, tmp_path, monkeypatch
):
    trainer, train = TRAININGS[name]
    step = trainer.training_step

    def diverge(self, *arguments, **options):
        loss = step(self, *arguments, **options)
        return loss * torch.nan if self.state.global_step == self.state.max_steps - 1 else loss

    monkeypatch.setattr(trainer, "training_step", diverge)
    job = five_steps(tiny_backbone, toy_pairs, tmp_path)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        train(job)
    assert not (job.out / "model").exists()


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(("evaluations", "steps"), [(2, [3, 5]), (1, [5])], ids=["a shorter window", "a whole one"])
def test_the_last_window_is_logged_once(name, evaluations, steps, tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    trainer, train = TRAININGS[name]
    log, logged = trainer.log, []
    monkeypatch.setattr(trainer, "log", lambda self, logs, *rest: logged.append(dict(logs)) or log(self, logs, *rest))
    job = five_steps(tiny_backbone, toy_pairs, tmp_path, evaluations)
    train(job)
    table = pd.read_csv(job.out / "training.csv")
    assert table[(table.split == "batch") & (table.metric == "loss")].step.tolist() == steps
    assert sum("loss" in logs for logs in logged) == len(steps)


# ---- what stops, and what is said of, a reward model's training


@pytest.fixture
def reward_job(tiny_backbone, toy_pairs, tmp_path):
    places = (tmp_path / "checkpoints", tmp_path / "out")
    return RewardJob(SCALAR, TRAINING, ASPECTS, 1, str(tiny_backbone), None, toy_pairs, *places)


def poison(monkeypatch, at, what):
    """Makes the loss, or a gradient alone, of one step a number that is not finite."""
    step = Trainer.training_step

    def training_step(self, model, inputs, *rest, **options):
        loss = step(self, model, inputs, *rest, **options)
        if self.state.global_step + 1 == at:  # counts finished steps
            if what == "loss":
                return loss * torch.nan
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        return loss

    monkeypatch.setattr(Trainer, "training_step", training_step)


@pytest.mark.parametrize("engine", ["shared", "padded"])
@pytest.mark.parametrize(("at", "what"), [(3, "loss"), (3, "gradient"), (18, "gradient")])
def test_a_number_that_is_not_finite_stops_the_training_with_its_batch_saved(reward_job, monkeypatch, engine, at, what):
    poison(monkeypatch, at, what)
    job = replace(reward_job, training=TRAINING.model_copy(update={"engine": engine}))
    with pytest.raises(TrainingError, match=f"step {at}: the {what}.*stopped_batch"):
        train_reward_model(job)
    assert not (job.out / "model").exists()
    record = json.loads((job.out / "stopped_batch.json").read_text())
    assert record["step"] == at
    number = record["loss" if what == "loss" else "gradient_norm"]
    assert not math.isfinite(float(number))
    prompts = {pair.prompt[0]["content"] for pair in read_pairs(job.pairs / "train.jsonl")}
    assert any(prompt in text for prompt in prompts for text in record["texts"])
    assert load_file(job.out / "stopped_batch.safetensors")["input_ids"].numel() > 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_preference_training_stops_and_saves_its_batch_too(tiny_backbone, toy_pairs, tmp_path, monkeypatch, method):
    poison(monkeypatch, 3, "gradient")
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    with pytest.raises(TrainingError, match=r"step 3: the gradient.*stopped_batch"):
        train_preference(job, PreferenceMethod(label=method, method=method))
    assert not (job.out / "model").exists()
    record = json.loads((job.out / "stopped_batch.json").read_text())
    responses = {pair.chosen for pair in read_pairs(toy_pairs / "train.jsonl")}
    assert any(response in text for response in responses for text in record["texts"])


def test_no_checkpoint_holds_what_came_of_it(reward_job, monkeypatch):
    """The step before the first checkpoint is looked at before that is saved; the next attempt starts clean."""
    with monkeypatch.context() as patched:
        poison(patched, 4, "gradient")  # measured, logged and perhaps saved after this step
        with pytest.raises(TrainingError, match="step 4"):
            train_reward_model(reward_job)
    assert not list(reward_job.checkpoints.glob("checkpoint-*"))
    train_reward_model(reward_job)
    assert not (reward_job.out / "stopped_batch.json").exists()
    assert (reward_job.out / "model").is_dir()


def test_what_kl_weights_that_allow_nothing_do_to_a_vrm_is_said(reward_job, capsys):
    """Posteriors at their priors: w the same for every prompt, no unit of z, constant scores and rewards."""
    nothing = Variant(label="VRM", latent_dim=4, beta_w=1e4, beta_z=1e4, beta_warmup=0.0, supervision_weight=0.0)
    slow = TRAINING.model_copy(update={"epochs": 12, "evaluations": 1, "checkpoints": 0})
    train_reward_model(replace(reward_job, variant=nothing, training=slow))
    said = capsys.readouterr().err
    log = pd.read_csv(reward_job.out / "training.csv")
    last = log[log.split == "validation"].groupby("metric")["value"].last()
    for symptom in SYMPTOMS:
        if symptom.measure != LENGTH_CORRELATION:
            assert symptom.shows(last[symptom.measure]), (symptom.measure, last[symptom.measure])
            assert f"warning: {symptom.fault}" in said


@pytest.mark.parametrize("terminal", [False, True])
def test_a_training_says_how_far_it_is_and_what_it_measures(terminal, reward_job, capsys, monkeypatch):
    """In a log by plain lines, without carriage returns and without dictionaries of every metric."""
    monkeypatch.setattr(watch, "EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    train_reward_model(replace(reward_job, training=TRAINING.model_copy(update={"epochs": 1, "checkpoints": 0})))
    said = capsys.readouterr()
    steps = 96 // TRAINING.batch_size
    losses = [line for line in (said.err + said.out).splitlines() if "loss" in line]
    assert all(re.search(rf"step \d+ of {steps}: .*loss [\d.]+ \(\w+\)", line) for line in losses)
    assert len(losses) > TRAINING.evaluations
    if terminal:
        assert "training: 100%" in said.err
    else:
        assert f"training: {steps} of {steps} steps, " in said.err
        assert "measuring: " in said.err
        ours = [line for line in said.err.splitlines(keepends=True) if re.match("training|measuring|step", line)]
        assert not any("\r" in line for line in ours)


def test_nothing_is_said_of_a_model_that_has_learned(reward_job, capsys):
    train_reward_model(reward_job)
    assert "warning: " not in capsys.readouterr().err
