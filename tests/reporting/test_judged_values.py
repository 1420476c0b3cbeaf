"""Values and intervals of the judged benchmarks against their definitions."""

import numpy as np
import pytest
from example_judged import make_judged, rewrite, write_judged
from judged_model import model_of

from vrm.reporting.judged import judged_models, read_benchmark
from vrm.reporting.judged_values import (
    ALPACA_LC,
    ALPACA_PARTIAL_LC,
    ALPACA_WR,
    ARENA_SC,
    ARENA_WR,
    MT_SCORE,
    linearised,
    measure_judged,
    measure_policy,
)


@pytest.fixture
def three_seeds(tmp_path):
    config = make_judged(seeds=(1, 2, 3))
    return config, write_judged(config, tmp_path)


def test_every_interval_covers_its_value(judged_config, judged_results):
    cells = measure_judged(judged_config, judged_results).cells.values()
    assert len(cells) == 17 * 5
    assert all(c.interval.low < c.interval.estimate < c.interval.high for c in cells)


def test_means_are_those_of_the_scores_and_weigh_battles(judged_config, judged_results):
    for metric in (ALPACA_WR, ARENA_WR, MT_SCORE):
        benchmark = read_benchmark(judged_config, judged_results, metric.benchmark)
        for model in judged_models(judged_config):
            found = measure_policy(judged_config, benchmark, model, metric).interval.estimate
            assert found == pytest.approx(benchmark.rows(model, metric.name)["value"].item())
    arena = read_benchmark(judged_config, judged_results, "arena_hard")
    items = arena.by_policy["qwen3", "ppo", 1]
    assert 100 * items["value"].mean() != pytest.approx(100 * np.average(items["value"], weights=items["weight"]))


def test_counts_are_of_prompts_and_of_judgments(judged_config, judged_results):
    mt_bench = read_benchmark(judged_config, judged_results, "mt_bench")
    whole = measure_policy(judged_config, mt_bench, model_of(judged_config, "simpo"), MT_SCORE)
    assert (whole.prompts, whole.judgments) == (20, 40)
    assert whole.interval.resampled == "prompts (one seed, Student's t)"


def test_both_turns_of_a_question_count_as_one(judged_config, judged_results):
    """A question's ratings agree, so that 20 questions are not 40 independent turns."""
    benchmark = read_benchmark(judged_config, judged_results, "mt_bench")
    model = model_of(judged_config, "simpo")
    ratings = benchmark.by_policy[("qwen3", "simpo", 1)]["value"].to_numpy()
    interval = measure_policy(judged_config, benchmark, model, MT_SCORE).interval
    of_turns = 2 * 2.093 * ratings.std(ddof=1) / np.sqrt(len(ratings))
    of_questions = 2 * 2.093 * ratings.reshape(-1, 2).mean(axis=1).std(ddof=1) / np.sqrt(len(ratings) / 2)
    assert of_questions > 1.1 * of_turns
    assert interval.high - interval.low == pytest.approx(of_questions, rel=1e-3)  # t of 19 degrees of freedom


def test_linearised_means_vary_as_the_weighted_ones():
    rng = np.random.default_rng(0)
    values, weights = rng.uniform(0, 1, (2, 200)), rng.choice([0, 2, 4, 6], (2, 200)).astype(float)
    linear = linearised(np.where(weights > 0, values, np.nan), weights)
    exact = [np.average(v, weights=w) for v, w in zip(values, weights, strict=True)]
    assert linear.mean(axis=1) == pytest.approx(exact)
    draws = rng.multinomial(199, np.full(200, 1 / 200), 4000)
    ratios = (draws @ (weights * values).T) / (draws @ weights.T)
    assert (draws @ linear.T / 199).std(axis=0) == pytest.approx(ratios.std(axis=0), rel=0.03)


def test_equal_weights_change_nothing_and_no_weight_has_no_mean():
    values = np.random.default_rng(1).uniform(0, 1, (2, 9))
    assert linearised(values, np.full((2, 9), 3.0)) == pytest.approx(values)
    assert np.isnan(linearised(values, np.zeros((2, 9)))).all()


def test_an_interval_stays_within_what_is_possible(judged_config, tmp_path):
    """One short win among long losses: a symmetric interval would begin below 0."""
    folder = write_judged(judged_config, tmp_path) / "judged"

    def rarely_won(frame):
        won = frame["item_id"] == "q003"
        return frame.assign(value=won.astype(float), weight=np.where(won, 2, 6))

    rewrite(folder / "arena_hard.items.csv", rarely_won)
    rewrite(folder / "arena_hard.csv", lambda f: f[f["metric"] != "win_rate"])
    benchmark = read_benchmark(judged_config, tmp_path, "arena_hard")
    interval = measure_policy(judged_config, benchmark, model_of(judged_config, "simpo"), ARENA_WR).interval
    assert 0 == interval.low < interval.estimate < interval.high < 5


def test_three_seeds_are_crossed_with_prompts(three_seeds):
    config, results = three_seeds
    benchmark = read_benchmark(config, results, "alpaca_eval")
    model = model_of(config, "ppo")
    found = measure_policy(config, benchmark, model, ALPACA_WR)
    assert found.interval.resampled == "seeds x prompts (Student's t)"
    assert found.interval.estimate == pytest.approx(benchmark.rows(model, "win_rate")["value"].mean())
    assert found.judgments > 2 * found.prompts


def test_a_fit_of_one_seed_keeps_the_scorers_interval(judged_config, judged_results):
    for metric in (ALPACA_PARTIAL_LC, ARENA_SC):
        benchmark = read_benchmark(judged_config, judged_results, metric.benchmark)
        model = model_of(judged_config, "ppo")
        (row,) = benchmark.rows(model, metric.name).itertuples()
        interval = measure_policy(judged_config, benchmark, model, metric).interval
        assert (interval.estimate, interval.low, interval.high) == pytest.approx((row.value, row.low, row.high))
        assert interval.resampled == "prompts (one seed, joint bootstrap)"


def test_a_fit_of_several_seeds_is_wider_than_each_of_them(three_seeds):
    config, results = three_seeds
    benchmark = read_benchmark(config, results, "arena_hard")
    model = model_of(config, "ppo_vrm")
    interval = measure_policy(config, benchmark, model, ARENA_SC).interval
    rows = benchmark.rows(model, "sc_win_rate")
    assert interval.estimate == pytest.approx(rows["value"].mean())
    assert interval.high - interval.low > (rows["high"] - rows["low"]).max()
    assert interval.resampled == "seeds x prompts (joint bootstrap, Student's t)"


def test_rows_do_not_change_each_others_intervals(judged_config, judged_results):
    alone = make_judged(bases={"qwen3": {"label": "Qwen3-shaped", "path": "models/b", "sft": False}})
    for metric in (ALPACA_WR, ARENA_WR, MT_SCORE):
        whole, part = (read_benchmark(c, judged_results, metric.benchmark) for c in (judged_config, alone))
        model = model_of(judged_config, "ppo")
        assert measure_policy(alone, part, model, metric) == measure_policy(judged_config, whole, model, metric)


def columns_of(config, results):
    return [m for m in measure_judged(config, results).columns if m in (ALPACA_LC, ALPACA_PARTIAL_LC)]


def test_lc_without_difficulty_never_stands_in_the_official_column(judged_config, judged_results, tmp_path):
    assert columns_of(judged_config, judged_results) == [ALPACA_PARTIAL_LC]
    write_judged(judged_config, tmp_path, official_lc=True)
    assert columns_of(judged_config, tmp_path) == [ALPACA_LC]
    path = tmp_path / "judged" / "alpaca_eval.csv"
    rewrite(path, lambda f: f.assign(value=f["value"].mask((f["metric"] == "lc_win_rate") & (f["method"] == "dpo"))))
    assert columns_of(judged_config, tmp_path) == [ALPACA_LC, ALPACA_PARTIAL_LC]
    table = measure_judged(judged_config, tmp_path)
    missing = [model.method for model in table.models if table.cell(model, ALPACA_LC).missing]
    assert missing == ["dpo", "dpo"]
    assert not any(table.cell(model, ALPACA_PARTIAL_LC).missing for model in table.models)
    rewrite(path, lambda f: f[~f["metric"].str.startswith("lc_")])
    assert columns_of(judged_config, tmp_path) == [ALPACA_LC]


def test_a_seed_without_a_value_leaves_the_row_without_one(three_seeds):
    config, results = three_seeds
    path = results / "judged" / "arena_hard.csv"

    def forget(frame):
        gone = (frame["metric"] == "sc_win_rate") & (frame["method"] == "ppo") & (frame["seed"] == 2)
        return frame.assign(value=frame["value"].mask(gone), note=frame["note"].mask(gone, "no battle"))

    rewrite(path, forget)
    found = measure_policy(config, read_benchmark(config, results, "arena_hard"), model_of(config, "ppo"), ARENA_SC)
    assert found.missing
    assert found.note == "no battle"
