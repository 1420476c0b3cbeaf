"""Trackers: off by default; TensorBoard gets what the log gets, of PPO too."""

import pytest
from policy_jobs import policy_job
from ppo_settings import LENGTH, PPO, SHORT
from reward_jobs import ASPECTS, SCALAR, quick

from vrm.training.ppo import train_ppo
from vrm.training.reward import RewardJob, train_reward_model

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def tags(directory):
    """Names and numbers of values of all event files below a directory."""
    found = {}
    for folder in {path.parent for path in directory.rglob("events.out.tfevents.*")}:
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        found |= {name: len(events.Scalars(name)) for name in events.Tags()["scalars"]}
    return found


@pytest.fixture(autouse=True)
def no_place_of_its_own(monkeypatch):
    """What a training tells transformers through the environment ends with the test."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")


def reward_job(backbone, pairs, directory, report_to):
    return RewardJob(
        variant=SCALAR,
        training=quick().model_copy(update={"report_to": report_to}),
        aspects=ASPECTS,
        seed=1,
        backbone=str(backbone),
        revision=None,
        pairs=pairs,
        checkpoints=directory / "checkpoints",
        out=directory / "out",
    )


def test_a_reward_training_reports_and_leaves_nothing_among_checkpoints(tiny_backbone, toy_pairs, tmp_path):
    job = reward_job(tiny_backbone, toy_pairs, tmp_path, ["tensorboard"])
    train_reward_model(job)
    assert tags(job.out / "tensorboard")["eval/validation_accuracy"] >= 1
    assert not job.checkpoints.exists()


def test_nothing_is_tracked_unless_asked(tiny_backbone, toy_pairs, tmp_path):
    job = reward_job(tiny_backbone, toy_pairs, tmp_path, [])
    train_reward_model(job)
    assert not list(tmp_path.rglob("events.out.*"))


def test_ppo_reports_each_update(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, report_to=["tensorboard"])
    train_ppo(job, PPO, SHORT, LENGTH)
    found = tags(job.out / "tensorboard")
    assert found["batch/reward"] == PPO.updates
    assert found["validation/reward"] == PPO.evaluations + 1
