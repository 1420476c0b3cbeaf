import gzip
import json

import numpy as np
import pandas as pd
import pytest
from alpaca_judgments import accept, gamed, judgments, place, random_judgments
from paths import ROOT, SHARED

from vrm.config import ConfigError, load
from vrm.judged.alpaca_eval import alpaca_eval_scores, package
from vrm.records import RecordError, write_json

OFFICIAL = SHARED / "data" / "benchmarks" / "alpaca_eval"
METRICS = ["win_rate", "lc_win_rate", "lc_without_difficulty", "standard_error", "length"]
needs_shared = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no shared data here")


@pytest.fixture(scope="module")
def config():
    """Of the default experiment, with one policy."""
    config = load([ROOT / "config.yaml"])
    policy = config.policy.model_copy(update={"run_bases": ["qwen3"], "run": ["ppo_vrm"], "seeds": [1]})
    bases = {name: base.model_copy(update={"sft": None}) for name, base in policy.bases.items()}
    report = config.report.model_copy(update={"bootstrap_samples": 20})
    policy = policy.model_copy(update={"bases": bases})
    return config.model_copy(update={"policy": policy, "report": report})


def by_metric(table):
    return table.set_index("metric")


def published():
    with gzip.open(OFFICIAL / "alpaca-7b" / "annotations.json.gz") as file:
        return [{**row, "generator_2": "qwen3.ppo_vrm.seed1", "failure": None} for row in json.load(file)]


@needs_shared
def test_published_numbers_of_alpaca_7b(config, tmp_path):
    rows = published()
    table, items, *_, record = alpaca_eval_scores(config, place(tmp_path, rows))
    table = by_metric(table)
    assert table.value["win_rate"] == pytest.approx(2.591451, abs=1e-6)
    assert table.n["win_rate"] == 805
    with package():
        from alpaca_eval.metrics import pairwise_to_winrate

        theirs = pairwise_to_winrate([row["preference"] for row in rows])
    assert table.value["standard_error"] == theirs["standard_error"]
    (details,) = record["policies"].values()
    assert details["discrete_win_rate"] == theirs["discrete_win_rate"]
    assert details["n_wins"] == theirs["n_wins"]
    assert int(table.value["length"]) == 396  # avg_length of the published leaderboard
    assert np.isnan(table.value["lc_win_rate"])
    assert table.note["lc_win_rate"] == "df_gamed.csv is not there"
    assert len(items) == 805
    assert 100 * items["value"].mean() == pytest.approx(table.value["win_rate"])


@needs_shared
def test_the_official_set_is_recognised(config, tmp_path):
    rows = published()
    rows[0], rows[1] = rows[1], rows[0]
    table = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0])
    assert table.note["lc_win_rate"] == "LC is defined for the official 805 instructions"


def test_a_file_that_is_not_df_gamed_gives_no_lc(config, tmp_path, monkeypatch):
    rows = random_judgments()
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    place(tmp_path, rows, gamed(rows, seed=1))
    table = by_metric(alpaca_eval_scores(config, tmp_path)[0])
    assert np.isnan(table.value["lc_win_rate"])
    assert table.note["lc_win_rate"] == "df_gamed.csv is not the official file"


@pytest.mark.parametrize("failed", [[], [0, 7, 8, 30, 59]])
def test_length_controlled_win_rate_is_the_packages_without_the_hub(config, tmp_path, monkeypatch, failed):
    rows = random_judgments()
    for i in failed:
        rows[i] |= {"preference": None, "failure": "timed out"}
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    measured = by_metric(alpaca_eval_scores(config, tmp_path)[0]).loc["lc_win_rate"]
    with package():
        from alpaca_eval.metrics import glm_winrate

        file = str(tmp_path / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv")
        assert glm_winrate.hf_hub_download.__module__.startswith("huggingface_hub")
        monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: file)
        theirs = glm_winrate.get_length_controlled_winrate(pd.DataFrame(rows), save_weights_dir=None)
    assert measured["value"] == theirs["length_controlled_winrate"]
    assert measured["n"] == 60 - len(failed)
    assert measured["note"] == (f"{len(failed)} of 60 without a judgment" if failed else "")


def test_another_reference_is_noted_beside_lc(config, tmp_path, monkeypatch):
    rows = [{**row, "generator_1": "gpt-4o-2024-05-13"} for row in random_judgments()]
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    table = by_metric(alpaca_eval_scores(config, tmp_path)[0])
    assert "against gpt4_1106_preview, not gpt-4o-2024-05-13" in table.note["lc_win_rate"]


def test_lc_without_difficulty_is_scikit_learns_fit_without_a_penalty(config, tmp_path):
    from sklearn.linear_model import LogisticRegression

    rows = random_judgments()
    measured = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0]).loc["lc_without_difficulty"]
    wins = np.array([row["preference"] - 1 for row in rows])
    difference = np.array([len(row["output_1"]) - len(row["output_2"]) for row in rows], dtype=float)
    length = np.tanh(difference / difference.std(ddof=1))
    outcomes = np.repeat([1, 0], len(rows))
    weights = np.concatenate([wins, 1 - wins])
    model = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000)
    model.fit(np.tile(length, 2)[:, None], outcomes, sample_weight=weights)
    assert measured["value"] == pytest.approx(100 * model.predict_proba([[0.0]])[0, 1], abs=0.01)
    assert measured["note"].startswith("not the official LC")
    assert measured["low"] < measured["value"] < measured["high"]


def test_length_control_takes_away_what_length_has_bought(config, tmp_path):
    """Ours are longer throughout, and a judge that sees nothing but length likes them for that alone."""
    rng = np.random.default_rng(0)
    reference, ours = rng.integers(100, 300, 400), rng.integers(150, 400, 400)
    liked = 1 / (1 + np.exp(-1.5 * np.tanh((ours - reference) / 100)))
    rows = judgments((1 + liked).tolist(), *(["x" * int(n) for n in lengths] for lengths in (ours, reference)))
    table = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0])
    assert table.value["win_rate"] > 60
    assert table.value["lc_without_difficulty"] == pytest.approx(50, abs=2)


def test_failures_are_named_and_in_no_mean(config, tmp_path):
    rows = random_judgments()
    kept = [row["preference"] - 1 for row in rows[5:]]
    for row in rows[:5]:
        row |= {"preference": None, "failure": "timed out" if row["instruction"] < "instruction 3" else "refused"}
    table, items, *_, record = alpaca_eval_scores(config, place(tmp_path, rows))
    table = by_metric(table)
    assert table.value["win_rate"] == pytest.approx(100 * np.mean(kept))
    assert table.value["standard_error"] == pytest.approx(100 * np.std(kept, ddof=1) / np.sqrt(55))
    assert table.n["win_rate"] == table.n["lc_without_difficulty"] == 55
    assert "5 of 60 without a judgment" in table.note["win_rate"]
    assert "5 of 60 without a judgment" in table.note["lc_without_difficulty"]
    assert items["item_id"].tolist() == list(range(6, 61))
    assert items["value"].tolist() == pytest.approx(kept)
    assert record["policies"]["qwen3.ppo_vrm.seed1"]["failed"] == {"refused": 2, "timed out": 3}


@pytest.mark.parametrize("number", [1, 4])
def test_few_judgments_give_what_they_can(config, tmp_path, number):
    table = by_metric(alpaca_eval_scores(config, place(tmp_path, random_judgments(number)))[0])
    assert table.value["win_rate"] > 0
    assert np.isnan(table.value["lc_without_difficulty"])
    assert table.note["lc_without_difficulty"] == "fewer than 5 judgments"
    assert np.isnan(table.value["standard_error"]) == (number == 1)


def test_nothing_judged_gives_no_number(config, tmp_path):
    rows = judgments([None] * 6, ["a"] * 6, ["b"] * 6)
    table, items, *_ = alpaca_eval_scores(config, place(tmp_path, rows))
    assert table["metric"].tolist() == METRICS
    assert table["value"].notna().tolist() == [False, False, False, False, True]
    assert table["note"].tolist()[0] == "6 of 6 without a judgment"
    assert items.empty


@pytest.mark.parametrize("longer", [0, 3])
def test_equal_length_differences_leave_no_length_effect_to_fit(config, tmp_path, longer):
    rows = judgments([1.2, 1.9] * 10, ["x" * 9] * 20, ["y" * (9 - longer)] * 20)
    table = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0])
    assert table.value["win_rate"] == pytest.approx(55)
    assert table.note["lc_without_difficulty"] == "all length differences are equal"


@pytest.mark.parametrize("preference", [1.0, 1.5, 2.0])
def test_unanimous_judges_break_nothing(config, tmp_path, preference):
    rows = [{**row, "preference": preference} for row in random_judgments(30)]
    table = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0])
    assert table.value["win_rate"] == 100 * (preference - 1)
    assert table.low["win_rate"] == table.high["win_rate"] == table.value["win_rate"]
    assert abs(table.value["lc_without_difficulty"] - 100 * (preference - 1)) < 5


def test_one_odd_length_survives_the_resampling(config, tmp_path):
    """Most resamples of five rows have equal differences only."""
    rows = judgments([1.2, 1.9, 1.4, 1.1, 1.6], ["x"] * 4 + ["x" * 9], ["y"] * 5)
    measured = by_metric(alpaca_eval_scores(config, place(tmp_path, rows))[0]).loc["lc_without_difficulty"]
    assert 0 <= measured["low"] <= measured["high"] <= 100


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_intervals(config, tmp_path):
    place(tmp_path, random_judgments())
    first, again = alpaca_eval_scores(config, tmp_path)[0], alpaca_eval_scores(config, tmp_path)[0]
    pd.testing.assert_frame_equal(first, again)
    changed = config.model_copy(update={"report": config.report.model_copy(update={"seed": 1})})
    other = by_metric(alpaca_eval_scores(changed, tmp_path)[0])
    assert other.value["win_rate"] == by_metric(first).value["win_rate"]
    assert other.low["win_rate"] != by_metric(first).low["win_rate"]


def test_win_rate_interval_has_the_width_of_its_standard_error(config, tmp_path):
    many = config.model_copy(update={"report": config.report.model_copy(update={"bootstrap_samples": 2000})})
    table = by_metric(alpaca_eval_scores(many, place(tmp_path, random_judgments(300)))[0])
    half = (table.high["win_rate"] - table.low["win_rate"]) / 2
    assert half == pytest.approx(1.96 * table.value["standard_error"], rel=0.1)


def test_what_the_table_and_the_record_hold(config, tmp_path):
    rows = random_judgments()
    table, items, *_, record = alpaca_eval_scores(config, place(tmp_path, rows))
    assert table.columns.tolist() == ["base", "method", "seed", "metric", "value", "low", "high", "n", "note"]
    assert items.columns.tolist() == ["base", "method", "seed", "item_id", "part", "value", "weight"]
    assert table["metric"].tolist() == METRICS
    assert set(table["base"]) == {"qwen3"}
    assert record["reference_length"] == {"qwen3": np.mean([len(row["output_1"]) for row in rows])}
    assert record["policies"]["qwen3.ppo_vrm.seed1"]["reference"] == ["gpt4_1106_preview"]
    assert record["package"] == "alpaca-eval 0.6.6"
    assert "instruction_difficulty" in record["lc_win_rate"]["formula"]
    assert "instruction_difficulty" not in record["lc_without_difficulty"]["formula"]
    assert json.loads(json.dumps(record)) == record


def test_scikit_learns_settings_stay_as_they_were(config, tmp_path, monkeypatch):
    import sklearn

    rows = random_judgments()
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    with sklearn.config_context(enable_metadata_routing=False):
        assert alpaca_eval_scores(config, tmp_path)[0]["value"].notna().all()
        assert not sklearn.get_config()["enable_metadata_routing"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instruction": "another"}, "row 2: not the set's instruction"),
        ({"output_1": "another"}, "row 2: not the set's instruction"),
        ({"generator_2": "qwen3.dpo.seed1"}, "row 2: judges qwen3.dpo.seed1"),
        ({"preference": 2.5}, "row 2: preference 2.5"),
        ({"preference": None}, "row 2: neither"),
        ({"preference": "2"}, "row 2: preference 2 is not in"),
        ({"output_2": None}, "row 2: no `output_2`, `preference` or `failure`"),
        ({"generator_1": "another"}, "row 2: not the set's instruction and reference"),
        ({"annotator": "alpaca_eval_gpt4"}, "row 2: by alpaca_eval_gpt4, and benchmarks.alpaca_eval.annotator"),
    ],
)
def test_judgments_of_something_else_are_refused(config, tmp_path, change, said):
    rows = random_judgments(3)
    place(tmp_path, rows)
    rows[1] |= change
    path = tmp_path / "policy" / "qwen3" / "ppo_vrm" / "seed1" / "judgments" / "alpaca_eval.json"
    write_json(path, rows)
    with pytest.raises(RecordError, match=said):
        alpaca_eval_scores(config, tmp_path)
    write_json(path, rows[:2])
    with pytest.raises(RecordError, match="2 rows for 3 instructions; judge again"):
        alpaca_eval_scores(config, tmp_path)


def test_without_the_package_the_mend_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "alpaca_eval", None)
    with pytest.raises(ConfigError, match="install"):
        alpaca_eval_scores(config, tmp_path)
