"""The log's watch: a training that has diverged stops, whichever loss says so, and the last window is logged."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from policy_jobs import policy_job
from trl import SFTTrainer

from vrm.config import PreferenceMethod, SftTraining
from vrm.training.log import LossWatch, tidy
from vrm.training.preference import PreferenceTrainer, train_preference
from vrm.training.sft import train_sft
from vrm.training.watchdog import TrainingError

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
