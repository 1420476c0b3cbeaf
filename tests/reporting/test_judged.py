"""What the report reads of the judged benchmarks, and what it refuses."""

import json

import numpy as np
import pytest
from example_judged import make_judged, rewrite, write_judged

from vrm.records import RecordError
from vrm.reporting.judged import judged_models, read_benchmark, read_benchmarks


@pytest.fixture
def run(tmp_path):
    config = make_judged()
    return config, write_judged(config, tmp_path)


def test_models_are_the_start_where_there_is_one_then_the_methods_of_each_base():
    models = judged_models(make_judged())
    rows = [(model.base, model.label) for model in models]
    assert rows[:2] == [("qwen2_5", "SFT (start)"), ("qwen2_5", "DPO")]
    assert ("qwen3", "SFT (start)") not in rows  # this base is not fine-tuned
    assert rows[-1] == ("qwen3", "VRM-PPO (anchored) (ours)")
    assert [model.label for model in models if model.ours][:2] == ["DPO, β = 0.5 (ours)", "VRM-PPO (anchored) (ours)"]
    assert len(rows) == len(set(rows)) == 17


def test_failures_are_summed_over_policies_and_lengths_over_seeds(run):
    config, results = run
    alpaca = read_benchmark(config, results, "alpaca_eval")
    assert alpaca.failed == {"no reply": 3, "no verdict": 6}
    assert (alpaca.reference_length("qwen2_5"), alpaca.reference_length("qwen3")) == (310.0, 335.0)
    assert read_benchmark(config, results, "arena_hard").reference_length("qwen3") == 71.5
    assert read_benchmark(config, results, "mt_bench").reference_length("qwen3") is None
    model = judged_models(config)[0]
    assert alpaca.length(model) == alpaca.scores.loc[("qwen2_5", "sft", 1, "length"), "value"]


@pytest.mark.parametrize(
    "name", [f"alpaca_eval.{end}" for end in ("csv", "items.csv", "draws.csv", "terms.csv", "json")]
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(run, name):
    config, results = run
    (results / "judged" / name).unlink()
    says = rf"judged/{name}: missing; run `vrm judged-scores --name alpaca_eval` first"
    with pytest.raises(RecordError, match=says):
        read_benchmark(config, results, "alpaca_eval")


def test_a_missing_policy_is_named(run):
    config, results = run
    rewrite(results / "judged" / "arena_hard.csv", lambda f: f[(f["base"] != "qwen3") | (f["method"] != "ppo_vrm")])
    with pytest.raises(RecordError, match=r"arena_hard\.csv: no row of base qwen3, method ppo_vrm, seed 1; judge its"):
        read_benchmarks(config, results, "table1")


def test_draws_are_those_of_each_seed_and_a_fit_without_any_has_none(tmp_path):
    config = make_judged(seeds=(1, 2))
    benchmark = read_benchmark(config, write_judged(config, tmp_path), "alpaca_eval")
    model = judged_models(config)[-1]
    drawn = benchmark.drawn(model, "lc_without_difficulty")
    own = [benchmark.draws[f"qwen3.{model.method}.seed{seed}/lc_without_difficulty"] for seed in (1, 2)]
    np.testing.assert_array_equal(drawn, np.column_stack(own))
    assert drawn.shape == (1999, 2)
    assert benchmark.drawn(model, "lc_win_rate").shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("alpaca_eval.csv", lambda f: f.drop(columns="note"), r"alpaca_eval\.csv: lacks the column note"),
        ("alpaca_eval.csv", lambda f: f.assign(value="x"), r"alpaca_eval\.csv: text where a number belongs"),
        ("alpaca_eval.csv", lambda f: f.assign(high=np.inf), r"row 2: metric length .* is not a finite number"),
        ("alpaca_eval.csv", lambda f: f.iloc[[0, *range(len(f))]], r"row 3: metric length .* stands there twice"),
        ("alpaca_eval.items.csv", lambda f: f.iloc[[0, *range(len(f))]], r"row 3: item_id \d+ of .* twice"),
        (
            "alpaca_eval.items.csv",
            lambda f: f.assign(value=np.nan),
            r"row 2: item_id \d+ of qwen2_5, sft, seed 1 has no",
        ),
        ("alpaca_eval.items.csv", lambda f: f.assign(weight=0), r"has no positive weight"),
        ("alpaca_eval.items.csv", lambda f: f.assign(value=f["value"] / 2), r"win_rate of .* and its items say \d"),
        ("alpaca_eval.draws.csv", lambda f: f.drop(columns="draw"), r"alpaca_eval\.draws\.csv: lacks the column draw"),
        ("arena_hard.draws.csv", lambda f: f.assign(draw="x"), r"arena_hard\.draws\.csv: text where a number belongs"),
        ("arena_hard.draws.csv", lambda f: f / 2, r"sc_win_rate of .* has another interval than its draws; run"),
        ("arena_hard.items.csv", lambda f: f.assign(weight=1), r"win_rate of .* and its items say"),
        ("arena_hard.items.csv", lambda f: f[f["method"] != "ppo"], r"win_rate of qwen2_5, ppo, .* items say nan"),
        ("mt_bench.items.csv", lambda f: f[f["part"] == "turn_1"], r"score of .* and its items say"),
    ],
)
def test_broken_files_are_refused_by_name(run, name, change, says):
    config, results = run
    rewrite(results / "judged" / name, change)
    with pytest.raises(RecordError, match=says):
        read_benchmarks(config, results, "table1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"mt_bench\.json: not valid JSON"),
        ("[]", r"mt_bench\.json: expected a JSON object"),
        (json.dumps({"intervals": {"level": 0.9}}), r"its intervals have level 0\.9, the report's 0\.95"),
    ],
)
def test_a_broken_record_is_refused(run, text, says):
    config, results = run
    (results / "judged" / "mt_bench.json").write_text(text)
    with pytest.raises(RecordError, match=says):
        read_benchmark(config, results, "mt_bench")


def test_a_length_that_is_not_there_is_refused(run):
    config, results = run
    rewrite(results / "judged" / "arena_hard.csv", lambda f: f[f["metric"] != "length"])
    benchmark = read_benchmark(config, results, "arena_hard")
    with pytest.raises(RecordError, match=r"arena_hard\.csv: lacks the length of qwen2_5, sft"):
        benchmark.length(judged_models(config)[0])


def test_no_benchmark_is_a_clear_error(tmp_path):
    with pytest.raises(
        RecordError, match=r"table1: no benchmark is run; name some in benchmarks\.run, or leave table1"
    ):
        read_benchmarks(make_judged(run=()), tmp_path, "table1")
