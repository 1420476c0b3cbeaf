"""How long a training is: every row of every whole epoch, as the trainer's own loader deals them out."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from vrm.config import ConfigError, RewardTraining
from vrm.training import trainer
from vrm.training.trainer import common_arguments, optimiser_steps


class Counting(torch.nn.Module):
    """Notes the rows that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, number):
        self.rows.append(number.tolist())
        return {"loss": (self.weight * number).mean()}


CASES = [
    *((20, 8, 1, 2), (20, 4, 2, 2), (20, 8, 2, 3), (40, 8, 1, 1), (7, 8, 1, 3), (9, 2, 4, 2)),
    *((20, 8, 1, 0.5), (20, 8, 1, 1.5), (20, 3, 2, 2.3), (10, 1, 1, 1.1), (96, 16, 1, 0.01)),
]


@pytest.mark.parametrize(("rows", "batch", "accumulation", "epochs"), CASES)
def test_the_trainer_sees_each_row_in_each_epoch(tmp_path, rows, batch, accumulation, epochs):
    steps = optimiser_steps(epochs, rows, batch * accumulation)
    model = Counting()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Dataset.from_dict({"number": range(rows)})).train()
    seen = [row for part in model.rows for row in part]
    whole = math.floor(epochs)
    for epoch in range(whole):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    rest = len(seen) - whole * rows
    wanted = (epochs - whole) * rows
    # a part of an epoch has its share of the rows, and less than a step more
    assert round(wanted, 9) <= rest < wanted + batch * accumulation or whole == 0


def test_a_training_has_a_step_at_least_and_no_step_by_rounding():
    assert optimiser_steps(0.001, 20, 8) == 1
    assert optimiser_steps(1.1, 80, 8) == 11  # floating point has 1.1 x 80 / 8 a little above 11
    assert optimiser_steps(2, 20, 8) == 6


def test_what_processes_share_is_one_step(tmp_path, monkeypatch):
    from vrm.config import Optimisation
    from vrm.training.trainer import common_arguments

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: 0, is_available=lambda: False))
    monkeypatch.setenv("WORLD_SIZE", "2")
    training = Optimisation(epochs=2, batch_size=4)
    assert common_arguments(training, 20, 1, tmp_path)["max_steps"] == 6


@pytest.mark.parametrize(("optimizer", "name"), [("adamw", "adamw_torch_fused"), ("adamw_8bit", "adamw_torch_8bit")])
def test_the_optimiser_is_passed_on(tmp_path, monkeypatch, optimizer, name):
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda package: package)
    arguments = common_arguments(RewardTraining(optimizer=optimizer), 10, 0, tmp_path)
    assert TrainingArguments(**arguments).optim == name


def test_a_missing_package_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="torchao"):
        common_arguments(RewardTraining(optimizer="adamw_8bit"), 10, 0, tmp_path)
    common_arguments(RewardTraining(), 10, 0, tmp_path)


class Regression(torch.nn.Module):
    """Two layers, whose larger one has enough numbers to be kept in 8 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = torch.nn.Linear(128, 64), torch.nn.Linear(64, 1)

    def forward(self, x, labels):
        return {"loss": (self.out(torch.relu(self.hidden(x))).squeeze(-1) - labels).square().mean()}


def test_eight_bit_moments_train_like_whole_ones_and_a_killed_training_continues(tmp_path, monkeypatch):
    pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # torchao's step: a minute of C++ on a CPU
    torch.manual_seed(1)
    x = torch.randn(64, 128)
    rows = Dataset.from_dict({"x": x.tolist(), "labels": (2 * x[:, 0]).tolist()})

    def trained(optimizer, resume=None):
        training = RewardTraining(
            optimizer=optimizer, learning_rate=1e-2, batch_size=16, epochs=6, evaluations=6, checkpoints=2
        )
        arguments = common_arguments(training, 64, 0, tmp_path / optimizer)
        arguments |= {"eval_strategy": "no", "eval_on_start": False, "disable_tqdm": True}
        run = Trainer(Regression(), TrainingArguments(**arguments), train_dataset=rows)
        run.train(resume_from_checkpoint=resume)
        return run

    whole, eight = trained("adamw"), trained("adamw_8bit")
    moments = eight.optimizer.state[eight.model.hidden.weight]["exp_avg"]
    assert type(moments).__name__ == "OptimState8bit"
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, eight)]
    assert losses[0][-1] < losses[0][0] / 10
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    first = min((tmp_path / "adamw_8bit").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert int(first.name.split("-")[1]) < eight.state.max_steps
    continued = trained("adamw_8bit", str(first))
    for name, weight in eight.model.state_dict().items():
        torch.testing.assert_close(continued.model.state_dict()[name], weight)
