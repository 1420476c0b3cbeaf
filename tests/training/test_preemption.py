"""SIGTERM: every training checkpoints at that step, leaves, and goes on to the very same files."""

import os
import signal

import pytest
import torch
from policy_jobs import policy_job
from ppo_settings import LENGTH, PPO, SHORT
from reward_jobs import ASPECTS, SCALAR, TRAINING, VRM, weights
from transformers import Trainer

from vrm.config import CreatedBackbone, PreferenceMethod, SftTraining
from vrm.training.backbones import pretrain_backbone
from vrm.training.policies import train_sft
from vrm.training.ppo import PpoRun, train_ppo
from vrm.training.preemption import PreemptedError
from vrm.training.preference import train_preference
from vrm.training.reward import PairwiseRewardTrainer, RewardJob, train_reward_model


def term_at(monkeypatch, trainer, method, call):
    """Send SIGTERM to this process in the middle of one call of a trainer's method."""
    original, calls = getattr(trainer, method), []

    def with_term(self, *arguments, **options):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    monkeypatch.setattr(trainer, method, with_term)


def files(job):
    return {path.name: path.read_bytes() for path in job.out.iterdir() if path.is_file()}


def same(whole, again):
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again).items())
    assert files(again) == files(whole)
    assert not again.checkpoints.exists()


@pytest.mark.parametrize("step", [5, 8], ids=["inside a window", "at a measurement"])
@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["scalar", "with sampled latents"])
def test_a_reward_model(tiny_backbone, toy_pairs, tmp_path, monkeypatch, capsys, variant, step):
    def job(name):
        return RewardJob(
            variant=variant,
            training=TRAINING.model_copy(update={"epochs": 2, "evaluations": 3}),
            aspects=ASPECTS,
            seed=1,
            backbone=str(tiny_backbone),
            revision=None,
            pairs=toy_pairs,
            checkpoints=tmp_path / name / "checkpoints",
            out=tmp_path / name / "out",
        )

    train_reward_model(job("whole"))
    term_at(monkeypatch, PairwiseRewardTrainer, "training_step", step)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError):
        train_reward_model(job("again"))
    assert signal.getsignal(signal.SIGTERM) == before
    assert (job("again").checkpoints / f"checkpoint-{step}").is_dir()
    assert not (job("again").out / "model").exists()
    train_reward_model(job("again"))
    assert f"going on from checkpoint-{step}" in capsys.readouterr().out
    same(job("whole"), job("again"))


@pytest.mark.parametrize("kind", ["dpo", "kto", "sft"])
def test_a_policy(tiny_backbone, toy_pairs, tmp_path, monkeypatch, capsys, kind):
    def train(job):
        if kind == "sft":
            train_sft(job, SftTraining(epochs=1))
        else:
            train_preference(job, PreferenceMethod(label=kind, method=kind))

    whole, again = (policy_job(tiny_backbone, toy_pairs, tmp_path / name, epochs=1) for name in ("whole", "again"))
    train(whole)
    term_at(monkeypatch, Trainer, "training_step", 3)
    with pytest.raises(PreemptedError):
        train(again)
    train(again)
    assert "going on from checkpoint-3" in capsys.readouterr().out
    same(whole, again)


def test_ppo(tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    whole, again = (policy_job(tiny_backbone, toy_pairs, tmp_path / name) for name in ("whole", "again"))
    train_ppo(whole, PPO, SHORT, LENGTH)
    term_at(monkeypatch, PpoRun, "update", 4)
    with pytest.raises(PreemptedError):
        train_ppo(again, PPO, SHORT, LENGTH)
    assert (again.checkpoints / "checkpoint-4").is_dir()
    train_ppo(again, PPO, SHORT, LENGTH)
    same(whole, again)


def test_a_backbone(toy_pairs, tmp_path, monkeypatch, capsys):
    config = CreatedBackbone(
        hidden_size=32, layers=1, heads=2, key_value_heads=1, intermediate_size=64, vocabulary_size=320,
        pretraining_steps=8,
    )  # fmt: skip

    def make(name):
        pretrain_backbone(config, 64, 96, toy_pairs / "train.jsonl", tmp_path / f"{name}.checkpoints", tmp_path / name)

    make("whole")
    term_at(monkeypatch, Trainer, "training_step", 3)
    with pytest.raises(PreemptedError):
        make("again")
    make("again")
    assert "going on from checkpoint-3" in capsys.readouterr().out
    for name in ("model.safetensors", "pretraining.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
