"""Faults of trainings, each made to happen in a run's files, and what the table says of them."""

import json

import numpy as np
import pandas as pd
import pytest
from example_policies import make_policies
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.records import RecordError
from vrm.reporting.trainings import HEALTHY, health_table
from vrm.training.symptoms import FEWEST_ANSWERS, LENGTH_CORRELATION, OFFLINE_SYMPTOMS, SYMPTOMS, ppo_symptoms, symptoms

MEASURES = {"loss": 0.6, "reward_sd": 0.8, "weights_sd": 0.05, "active_units": 5, "decoder_sd": 0.4}


@pytest.fixture
def run(tmp_path):
    config = configuration.parse(make_raw({name: VARIANTS[name] for name in ("rm", "vrm")}, policy={}, sets=("uf_c",)))
    results = write_results(config, tmp_path / "run")
    for variant in ("rm", "vrm"):
        for path in (results / "reward" / variant).glob("*/training.csv"):
            end(path, **(MEASURES if variant == "vrm" else {"loss": 0.6, "reward_sd": 0.8}))
    return config, results


def end(path, **measures):
    """What a training measured last on its validation pairs."""
    log = pd.read_csv(path)
    rows = [(log["step"].max() + 1, 9.9, "validation", name, value) for name, value in measures.items()]
    pd.concat([log, pd.DataFrame(rows, columns=log.columns)]).to_csv(path, index=False)


def found(run, out):
    config, results = run
    health_table(config, results, out)
    table = pd.read_csv(out / "health.csv", keep_default_na=False, dtype={"fault": str})
    keys = [(*([r.base] if r.base else []), r.variant, r.seed, r.measure) for r in table.itertuples()]
    return {key: fault for key, fault in zip(keys, table["fault"], strict=True) if fault}


def test_a_healthy_run_has_nothing_to_say(run, tmp_path):
    assert found(run, tmp_path) == {}
    assert (tmp_path / "health.md").read_text().count(HEALTHY) == 2


@pytest.mark.parametrize(
    ("measure", "value"), [("reward_sd", 0.001), ("weights_sd", 0.004), ("active_units", 0), ("decoder_sd", 0.0)]
)
def test_each_fault_is_found_in_its_seed(run, tmp_path, measure, value):
    end(run[1] / "reward" / "vrm" / "seed2" / "training.csv", **{**MEASURES, measure: value})
    (symptom,) = (symptom for symptom in SYMPTOMS if symptom.measure == measure)
    assert found(run, tmp_path) == {("vrm", 2, measure): symptom.fault}
    assert f"{symptom.fault} (seed 2)" in (tmp_path / "health.md").read_text()


def test_a_reward_that_is_only_length_is_found(run, tmp_path):
    path = run[1] / "reward" / "rm" / "seed3" / "validation.csv"
    scores = pd.read_csv(path)
    for side in ("chosen", "rejected"):
        scores[f"reward_{side}"] = 0.01 * scores[f"length_{side}"]
    scores.to_csv(path, index=False)
    assert list(found(run, tmp_path)) == [("rm", 3, LENGTH_CORRELATION)]


def test_a_training_without_a_measured_loss_is_refused(run, tmp_path):
    path = run[1] / "reward" / "rm" / "seed1" / "training.csv"
    log = pd.read_csv(path)
    log[log["metric"] != "loss"].to_csv(path, index=False)
    with pytest.raises(RecordError, match="lacks the loss"):
        health_table(*run, tmp_path)


def test_a_part_that_a_model_does_not_have_shows_nothing():
    assert symptoms({}) == []
    assert symptoms({"weights_sd": np.nan, "reward_sd": 1.0}) == []


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def policies(tmp_path):
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    policy = make_policies(seeds=(1, 2), variants=variants, scorers_from=None)
    config = configuration.parse(make_raw(variants, policy=policy, sets=("uf_c",)))
    results = write_results(config, tmp_path / "run")
    for path in (results / "reward").glob("*/*/training.csv"):
        end(path, **(MEASURES if path.parts[-3] == "vrm" else {"loss": 0.6, "reward_sd": 0.8}))
    for path in (results / "policy").glob("*/*/*/held_out.csv"):
        if path.parts[-3] not in ("sft", "ppo", "ppo_vrm"):
            change(path, "loss", lambda start: start - 0.1)
            change(path, "margin", lambda start: start + np.linspace(0.1, 0.5, len(start)))
            change(path, "chosen_logratio", lambda start: start + 0.5)
    return config, results


def change(path, metric, of_start):
    """Set the ends of one metric of a held_out.csv."""
    table = pd.read_csv(path)
    inside = table["metric"] == metric
    table.loc[inside, "end"] = of_start(table.loc[inside, "start"].to_numpy())
    table.to_csv(path, index=False)


def change_answers(path, **fields):
    """Set fields of the last answers of a samples.jsonl: a value, or a function of the answer's number."""
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    last = max(answer["step"] for answer in answers)
    for number, answer in enumerate(answer for answer in answers if answer["step"] == last):
        answer |= {name: value(number) if callable(value) else value for name, value in fields.items()}
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def folder(run, method, seed=1):
    return run[1] / "policy" / "qwen2_5" / method / f"seed{seed}"


def test_healthy_policies_have_nothing_to_say(policies, tmp_path):
    assert found(policies, tmp_path) == {}
    trainings = 1 + 2 * len(policies[0].policy.run)  # one base has an SFT
    assert (tmp_path / "health.md").read_text().count(HEALTHY) == 2 + trainings


OFFLINE = {
    "loss_change": ("loss", lambda start: start + 0.01),
    "margin_change": ("margin", lambda start: start - np.linspace(0.1, 0.5, len(start))),
    "margin_sd": ("margin", lambda start: start + 0.1),
    "chosen_logratio": ("chosen_logratio", lambda start: start - 3.0),
}


@pytest.mark.parametrize("measure", OFFLINE)
def test_each_fault_of_a_preference_training_is_found(policies, tmp_path, measure):
    change(folder(policies, "dpo", 2) / "held_out.csv", *OFFLINE[measure])
    (symptom,) = (symptom for symptom in OFFLINE_SYMPTOMS if symptom.measure == measure)
    assert found(policies, tmp_path) == {("qwen2_5", "dpo", 2, measure): symptom.fault}
    assert f"{symptom.fault} (seed 2)" in (tmp_path / "health.md").read_text()


def test_a_change_that_may_be_chance_is_no_fault(policies, tmp_path):
    path = folder(policies, "dpo") / "held_out.csv"
    change(path, "loss", lambda start: start + np.where(np.arange(len(start)) % 2, -1.0, 1.1))
    change(path, "margin", lambda start: start - np.where(np.arange(len(start)) % 2, -1.0, 1.1))
    assert found(policies, tmp_path) == {}


def test_a_loss_of_sft_that_has_risen_is_found(policies, tmp_path):
    change(folder(policies, "sft") / "held_out.csv", "loss", lambda start: start + 0.5)
    assert list(found(policies, tmp_path)) == [("qwen2_5", "sft", 1, "loss_change")]


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_numbers_that_are_not_finite_are_found(policies, tmp_path, method):
    end(folder(policies, method) / "training.csv", margin=np.inf, score=np.nan, explained_variance=np.nan)
    expected = 3 if method == "dpo" else 2  # explained_variance may be missing in PPO alone
    table = found(policies, tmp_path)
    assert list(table) == [("qwen2_5", method, 1, "not_finite")]
    csv = pd.read_csv(tmp_path / "health.csv").set_index(["base", "variant", "seed", "measure"])
    assert csv.loc[("qwen2_5", method, 1, "not_finite"), "value"] == expected


PPO_FAULTS = {
    "missing_end": {"ended": False},
    "entropy": {"entropy": 0.001},
    "reward_sd": {"reward": 1.5},
    LENGTH_CORRELATION: {"length": lambda number: 20 + number, "reward": lambda number: -0.1 * number},
}


@pytest.mark.parametrize("measure", PPO_FAULTS)
def test_each_fault_of_ppo_is_found_in_its_last_answers(policies, tmp_path, measure):
    change_answers(folder(policies, "ppo") / "samples.jsonl", **PPO_FAULTS[measure])
    (symptom,) = (s for s in ppo_symptoms(policies[0].policy.ppo.limits) if s.measure == measure)
    assert found(policies, tmp_path) == {("qwen2_5", "ppo", 1, measure): symptom.fault}


def test_a_kl_that_blew_up_for_an_update_is_found(policies, tmp_path):
    """Shorter than the patience after which the run would have stopped; the bound is the configuration's."""
    path = folder(policies, "ppo") / "training.csv"
    log = pd.read_csv(path)
    log.loc[log.index[log["metric"] == "kl"][2], "value"] = policies[0].policy.ppo.limits.kl + 1
    log.to_csv(path, index=False)
    assert list(found(policies, tmp_path)) == [("qwen2_5", "ppo", 1, "kl")]


def test_few_answers_have_no_correlation(policies, tmp_path):
    path = folder(policies, "ppo") / "samples.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    prompts = sorted({answer["prompt_id"] for answer in answers})[: FEWEST_ANSWERS - 1]
    path.write_text("".join(json.dumps(a) + "\n" for a in answers if a["prompt_id"] in prompts))
    change_answers(path, **PPO_FAULTS[LENGTH_CORRELATION])
    assert found(policies, tmp_path) == {}


def test_a_policy_without_its_files_is_refused(policies, tmp_path):
    (folder(policies, "dpo") / "training.csv").unlink()
    with pytest.raises(RecordError, match="missing"):
        health_table(*policies, tmp_path)
