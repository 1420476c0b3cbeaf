"""Policy trainings that go wrong say so in their log; each fault is made to happen in a training of a second."""

from dataclasses import replace

import pytest
from policy_jobs import policy_job
from ppo_settings import NEVER, PPO, SHORT, FunctionReward

from vrm.config import PreferenceMethod
from vrm.records import read_pairs, write_jsonl
from vrm.training.ppo import train_ppo
from vrm.training.preference import train_preference
from vrm.training.symptoms import OFFLINE_SYMPTOMS, offline_measures, ppo_measures, ppo_symptoms, symptoms


def shown(measures, known):
    return {symptom.measure for symptom in symptoms(measures, known)}


def said(capsys, known):
    """Measures of which the log has a warning."""
    words = capsys.readouterr().err
    return {symptom.measure for symptom in known if f"warning: {symptom.fault} (" in words}


def preference(backbone, pairs, folder, **changes):
    job = policy_job(backbone, pairs, folder, **changes)
    train_preference(job, PreferenceMethod(label="DPO", method="dpo"))
    return shown(offline_measures(job.out), OFFLINE_SYMPTOMS)


def test_pairs_the_wrong_way_round(tiny_backbone, toy_pairs, tmp_path, capsys):
    """What is trained on prefers what is measured on rejects."""
    swapped = tmp_path / "pairs"
    for split in ("train", "validation"):
        pairs = read_pairs(toy_pairs / f"{split}.jsonl")
        if split == "train":
            pairs = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
        write_jsonl(swapped / f"{split}.jsonl", pairs)
    found = preference(tiny_backbone, swapped, tmp_path)
    assert found == {"loss_change", "margin_change", "chosen_logratio"}
    assert said(capsys, OFFLINE_SYMPTOMS) == found


def test_a_policy_that_does_not_move(tiny_backbone, toy_pairs, tmp_path, capsys):
    found = preference(tiny_backbone, toy_pairs, tmp_path, learning_rate=1e-9, epochs=1)
    assert "margin_sd" in found
    assert said(capsys, OFFLINE_SYMPTOMS) == found


@pytest.mark.parametrize(
    ("reward", "limits", "expected"),
    [
        (FunctionReward(lambda response: 1.0), {}, {"reward_sd"}),
        (
            FunctionReward(len),
            {"kl": 1e-6, "missing_end": 1e-6, "entropy": 1e6, "patience": 1000},
            {"kl", "entropy", "missing_end"},
        ),
    ],
    ids=["constant reward", "beyond its limits for less than their patience"],
)
def test_ppo(tiny_backbone, toy_pairs, tmp_path, capsys, reward, limits, expected):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    settings = PPO.model_copy(update={"updates": 3, "limits": NEVER.model_copy(update=limits)})
    train_ppo(job, settings, SHORT, reward)
    known = ppo_symptoms(settings.limits)
    found = shown(ppo_measures(job.out), known)
    assert expected <= found
    assert said(capsys, known) == found
