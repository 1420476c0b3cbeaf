"""Faults of trainings, each made to happen in a run's files, and what the table says of them."""

import numpy as np
import pandas as pd
import pytest
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.records import RecordError
from vrm.reporting.health import HEALTHY, health_table
from vrm.training.watchdog import LENGTH_CORRELATION, SYMPTOMS, symptoms

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
    return {(r.variant, r.seed, r.measure): r.fault for r in table.itertuples() if r.fault}


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
