import numpy as np
import pandas as pd
import pytest

from vrm.reporting.latents import weight_recovery


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return rng.dirichlet([1.0, 2.0, 3.0], size=200), rng.dirichlet([1.0, 2.0, 3.0], size=200)


def table(learned, true=None, repeat=1):
    columns = {"prompt_id": [f"p{i}" for i in range(len(learned))]}
    for k, aspect in enumerate("abc"):
        columns[f"weight_{aspect}"] = learned[:, k]
        if true is not None:
            columns[f"true_weight_{aspect}"] = true[:, k]
    return pd.concat([pd.DataFrame(columns)] * repeat, ignore_index=True)


def values(metrics):
    return {m.metric: m.value for m in metrics}


def test_perfect_recovery(weights):
    out = values(weight_recovery(table(weights[0], weights[0])))
    assert out["weight_correlation/mean"] == pytest.approx(1.0)
    assert out["weight_mae"] == 0.0
    assert out["weight_mae_constant"] > 0.1


def test_numbers_equal_their_definitions(weights):
    learned, true = weights
    out = values(weight_recovery(table(learned, true)))
    pearson = [np.corrcoef(learned[:, k], true[:, k])[0, 1] for k in range(3)]
    assert [out[f"weight_correlation/{a}"] for a in "abc"] == pytest.approx(pearson)
    assert out["weight_correlation/mean"] == pytest.approx(np.mean(pearson))
    assert out["weight_mae"] == pytest.approx(np.abs(learned - true).mean())


def test_a_constant_learner_meets_the_baseline_and_has_no_correlation(weights):
    true = weights[1]
    out = values(weight_recovery(table(np.tile(true.mean(axis=0), (200, 1)), true)))
    assert out["weight_mae"] == pytest.approx(out["weight_mae_constant"])
    assert np.isnan(out["weight_correlation/a"])
    assert np.isnan(out["weight_correlation/mean"])


def test_a_prompt_counts_once_however_many_pairs_it_has(weights):
    once = weight_recovery(table(*weights))
    uneven = pd.concat([table(*weights), table(*weights).iloc[:50]], ignore_index=True)
    assert values(weight_recovery(uneven)) == pytest.approx(values(once))
    assert {m.n for m in weight_recovery(table(*weights, repeat=3))} == {200}


def test_only_prompts_with_known_truth_count(weights):
    scores = table(*weights)
    scores.loc[50:, [f"true_weight_{a}" for a in "abc"]] = np.nan
    assert {m.n for m in weight_recovery(scores)} == {50}
    assert weight_recovery(scores.iloc[50:]) == []


def test_models_without_weights_and_sets_without_truth_give_nothing(weights):
    assert weight_recovery(pd.DataFrame({"prompt_id": ["p"], "true_weight_a": [1.0]})) == []
    assert weight_recovery(table(weights[0])) == []
