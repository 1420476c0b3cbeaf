"""Trainings that go wrong say so in their log, each fault being made to happen; a PPO run beyond its limits stops."""

import math
from dataclasses import replace

import pytest
from policy_jobs import policy_job
from ppo_settings import NEVER, PPO, SHORT, FunctionReward

from vrm.config import PpoLimits, PreferenceMethod
from vrm.records import read_pairs, write_jsonl
from vrm.training.ppo import train_ppo
from vrm.training.preference import train_preference
from vrm.training.symptoms import (
    OFFLINE_SYMPTOMS,
    REMEDIES,
    TrainingError,
    Watchdog,
    offline_measures,
    ppo_measures,
    ppo_symptoms,
    symptoms,
)


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
    # some updates: a single estimate of a small KL can be below 0
    settings = PPO.model_copy(update={"updates": 6, "limits": NEVER.model_copy(update=limits)})
    train_ppo(job, settings, SHORT, reward)
    known = ppo_symptoms(settings.limits)
    found = shown(ppo_measures(job.out), known)
    assert expected <= found
    assert said(capsys, known) == found


# The watchdog: it waits a while, says which measure it was, and never lets a number that is none pass.

HEALTHY = {
    "reward": 1.0,
    "kl": 5.0,
    "entropy": 1.0,
    "missing_end": 0.1,
    "explained_variance": 0.3,
    "length": 30.0,
    "policy_loss": 0.0,
}
SICK = {"kl": 1e4, "entropy": 0.0, "missing_end": 1.0, "explained_variance": -99.0, "length": 0.5}


def test_a_healthy_run_is_left_alone():
    dog = Watchdog(PpoLimits())
    for update in range(20):
        dog.check(update, HEALTHY)


@pytest.mark.parametrize("name", SICK)
def test_each_limit_is_tolerated_for_a_while_and_then_named_with_its_remedy(name):
    dog = Watchdog(PpoLimits(patience=3))
    sick = HEALTHY | {name: SICK[name]}
    dog.check(0, sick)
    dog.check(1, sick)
    with pytest.raises(TrainingError, match=f"update 2: {name} is") as error:
        dog.check(2, sick)
    assert REMEDIES[name] in str(error.value)


def test_a_recovery_starts_the_count_anew():
    dog = Watchdog(PpoLimits(patience=2))
    for update in range(10):
        dog.check(update, HEALTHY | ({"kl": 1e4} if update % 2 else {}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["policy_loss", "reward", "kl"])
def test_what_is_not_finite_stops_at_once(name, value):
    with pytest.raises(TrainingError, match=name):
        Watchdog(PpoLimits()).check(0, HEALTHY | {name: value})


def test_the_critic_is_left_alone_while_it_warms_up_and_where_returns_do_not_vary():
    dog = Watchdog(PpoLimits(patience=1), critic_warmup=3)
    for update in range(3):
        dog.check(update, HEALTHY | {"explained_variance": -99.0})
    dog.check(3, HEALTHY | {"explained_variance": math.nan})
    with pytest.raises(TrainingError, match="explained_variance"):
        dog.check(4, HEALTHY | {"explained_variance": -99.0})
