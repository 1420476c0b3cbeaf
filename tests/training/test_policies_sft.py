"""Supervised fine-tuning: responses alone are learnt, and the held-out loss falls."""

import pandas as pd
import pytest
import torch
from policy_jobs import policy_job
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vrm.config import SftTraining
from vrm.training.policies import train_sft


@pytest.fixture(scope="module")
def tuned(tiny_backbone, toy_pairs, tmp_path_factory):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path_factory.mktemp("sft"))
    train_sft(job, SftTraining(epochs=4, learning_rate=5e-3))
    return job


def test_the_held_out_loss_falls_for_every_pair(tuned):
    table = pd.read_csv(tuned.out / "held_out.csv")
    assert set(table.metric) == {"loss"}
    assert len(table) == 24
    assert (table.end < table.start).all()


def test_the_logged_loss_is_that_of_responses_alone(tuned):
    log = pd.read_csv(tuned.out / "training.csv")
    measured = log[(log.split == "validation") & (log.metric == "loss")].set_index("step").value
    table = pd.read_csv(tuned.out / "held_out.csv")
    # the log averages over tokens, the table over pairs of nearly equal length
    assert measured.iloc[0] == pytest.approx(table.start.mean(), rel=0.02)
    assert measured.iloc[-1] == pytest.approx(table.end.mean(), rel=0.05)


def test_it_leaves_an_ordinary_model(tuned):
    model = AutoModelForCausalLM.from_pretrained(tuned.out / "model")
    tokenizer = AutoTokenizer.from_pretrained(tuned.out / "model")
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template
    assert not tuned.checkpoints.exists()


def test_the_same_seed_gives_the_same_model(tiny_backbone, toy_pairs, tmp_path):
    results = []
    for number in range(2):
        job = policy_job(tiny_backbone, toy_pairs, tmp_path / str(number))
        train_sft(job, SftTraining(epochs=0.5))
        results.append(load_file(job.out / "model" / "model.safetensors"))
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())
