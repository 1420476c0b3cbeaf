"""Every training refuses directories with somebody's files in them, before it loads anything, and leaves them there."""

import dataclasses

import pytest
from policy_jobs import policy_job
from ppo_settings import LENGTH, PPO, SHORT

from vrm.config import ConfigError, CreatedBackbone, PreferenceMethod, RewardTraining, SftTraining, Variant
from vrm.training.backbones import pretrain_backbone
from vrm.training.policies import PolicyJob, train_sft
from vrm.training.ppo import train_ppo
from vrm.training.preference import train_preference
from vrm.training.reward import RewardJob, train_reward_model
from vrm.training.selective import train_difficulty_run

DPO = PreferenceMethod(label="DPO", method="dpo")


def reward(job: PolicyJob):
    variant, training = Variant(label="RM", kind="scalar"), RewardTraining()
    train_reward_model(RewardJob(variant, training, ["a"], 1, job.policy, None, job.pairs, job.checkpoints, job.out))


def pretrain(job: PolicyJob):
    pretrain_backbone(CreatedBackbone(), 64, 96, job.pairs / "train.jsonl", job.checkpoints, job.out / "model")


TRAININGS = {
    "reward": reward,
    "sft": lambda job: train_sft(job, SftTraining()),
    "dpo": lambda job: train_preference(job, DPO),
    "ppo": lambda job: train_ppo(job, PPO, SHORT, LENGTH),
    "pretraining": pretrain,
    "difficulty": lambda job: train_difficulty_run(job, DPO, 0, 0),
}


@pytest.mark.parametrize("place", ["checkpoints", "out/model"])
@pytest.mark.parametrize("training", TRAININGS)
def test_somebodys_files_stop_it_and_stay(tmp_path, toy_pairs, training, place):
    job = policy_job("no/such-model", toy_pairs, tmp_path)
    if training == "difficulty":
        job = dataclasses.replace(job, out=tmp_path / "out.csv")
        if place == "out/model":
            pytest.skip("it writes one file")
    theirs = tmp_path / place / "deep" / "thesis.tex"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ConfigError, match="vrm did not make"):
        TRAININGS[training](job)
    assert theirs.read_text() == "mine"
