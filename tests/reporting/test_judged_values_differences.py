"""Differences of two policies on the judged benchmarks against their definitions, and by simulation."""

import numpy as np
import pytest
from example_judged import make_judged, rewrite, write_judged
from judged_model import model_of

from vrm.reporting.judged import read_benchmark
from vrm.reporting.judged_values import (
    ALPACA_LC,
    ALPACA_PARTIAL_LC,
    ALPACA_WR,
    ARENA_SC,
    ARENA_WR,
    MT_SCORE,
    compare_policies,
    half_width_alone,
    measure_policy,
    paired_means,
)
from vrm.statistics.intervals import crossed_interval

T_19 = 2.093  # 97.5 % quantile of Student's t, 19 degrees of freedom


def battles(rng, seeds, prompts, gain=0.0, seed_sd=0.0):
    """Scores and weights of two policies on the same prompts, as Arena-Hard has them: clear verdicts weigh thrice.

    Returns:
        Two pairs of values and weights, each of shape (S, N).
    """
    margin = (
        np.array([gain, 0.0])[:, None, None]
        + rng.normal(0, 1, (1, 1, prompts))
        + rng.normal(0, 0.5, (2, 1, prompts))
        + rng.normal(0, seed_sd, (2, seeds, 1))
        - 0.7
    )
    games = margin[..., None] + rng.normal(0, 1, (2, seeds, prompts, 2))
    weight = np.where(np.abs(games) > 1.2, 3.0, 1.0)
    value = ((games > 0) * weight).sum(axis=-1) / weight.sum(axis=-1)
    return tuple(zip(value, weight.sum(axis=-1), strict=True))


def rejected(rng, times, seeds, prompts, missing=0.0, **settings):
    """Share of simulated pairs of policies that a test at 5 % tells apart, in percent."""
    found = 0
    for _ in range(times):
        sides = battles(rng, seeds, prompts, **settings)
        sides = [(value, weight * (rng.random(weight.shape) >= missing)) for value, weight in sides]
        test = paired_means(*sides, np.arange(prompts).astype(str), rng, flips=199)
        found += test.p_value <= 0.05 if seeds == 1 else test.difference.low > 0 or test.difference.high < 0
    return 100 * found / times


@pytest.fixture
def no_p_value_of_several_seeds(monkeypatch):
    """p-values by table take most of a simulation's time; that they agree with the interval is tested elsewhere."""
    monkeypatch.setattr("vrm.statistics.intervals.VarianceComponents.p_value", lambda _: np.nan)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_simulated_level_holds_with_one_seed(missing):
    assert 3.5 <= rejected(np.random.default_rng(0), 2000, 1, 120, missing) <= 6.5


def test_simulated_level_holds_with_three_seeds(no_p_value_of_several_seeds):
    assert 2.5 <= rejected(np.random.default_rng(1), 2000, 3, 120, seed_sd=0.3) <= 6.5


def test_a_known_difference_is_found_and_its_interval_holds_it():
    rng = np.random.default_rng(2)
    first, second = (np.average(values, weights=weights) for values, weights in battles(rng, 1, 400_000, gain=0.4))
    truth = first - second
    assert truth > 0.05
    tests = [
        paired_means(*battles(rng, 1, 500, gain=0.4), np.arange(500).astype(str), rng, flips=199) for _ in range(300)
    ]
    assert np.mean([test.p_value <= 0.05 for test in tests]) > 0.9
    held = np.mean([test.difference.low <= truth <= test.difference.high for test in tests])
    assert 0.92 <= held <= 0.98


def test_pairing_is_worth_what_the_policies_share():
    """Where one policy's values are another's and a little noise, the difference is far surer than either."""
    rng = np.random.default_rng(5)
    values, weights = rng.normal(5, 2, (1, 60)), np.ones((1, 60))
    near = (values + rng.normal(0.3, 0.2, values.shape), weights)
    change = paired_means(near, (values, weights), np.arange(60).astype(str), rng)
    alone = crossed_interval(values, np.arange(60))
    assert 0.2 < change.difference.low < change.difference.high < 0.4
    assert change.difference.high - change.difference.low < (alone.high - alone.low) / 5
    assert change.p_value < 0.001


def test_the_difference_is_that_of_the_means_and_turns_with_the_sides(judged_config, judged_results):
    for metric in (ALPACA_WR, ARENA_WR, MT_SCORE, ALPACA_PARTIAL_LC, ARENA_SC):
        benchmark = read_benchmark(judged_config, judged_results, metric.benchmark)
        first, second = (model_of(judged_config, method) for method in ("ppo_vrm", "dpo"))
        there, back = (
            compare_policies(judged_config, benchmark, *pair, metric) for pair in ((first, second), (second, first))
        )
        means = [measure_policy(judged_config, benchmark, model, metric).interval.estimate for model in (first, second)]
        assert there.difference.estimate == pytest.approx(means[0] - means[1])
        ends = (there.difference.low, there.difference.high)
        assert ends == pytest.approx((-back.difference.high, -back.difference.low), nan_ok=True)


def test_a_policy_does_not_differ_from_itself(judged_config, judged_results):
    benchmark, model = read_benchmark(judged_config, judged_results, "arena_hard"), model_of(judged_config, "ppo")
    test = compare_policies(judged_config, benchmark, model, model, ARENA_WR)
    assert (test.difference.estimate, test.p_value) == (0, 1)
    assert np.isnan([test.difference.low, test.difference.high]).all()  # nothing varies


def test_both_turns_of_a_question_are_one_pair(judged_config, judged_results):
    benchmark = read_benchmark(judged_config, judged_results, "mt_bench")
    first, second = (model_of(judged_config, method) for method in ("simpo", "ppo_vrm"))
    ratings = [benchmark.by_policy["qwen3", model.method, 1]["value"].unstack("part") for model in (first, second)]
    change = (ratings[0] - ratings[1]).mean(axis=1)
    assert len(change) == 20
    assert change.notna().all()
    found = compare_policies(judged_config, benchmark, first, second, MT_SCORE).difference
    assert found.estimate == pytest.approx(change.mean())
    assert (found.high - found.low) / 2 == pytest.approx(T_19 * change.sem(), rel=1e-3)


def test_what_others_alone_were_judged_on_changes_nothing():
    rng = np.random.default_rng(3)
    sides = battles(rng, 1, 60)
    more = [(np.pad(value, ((0, 0), (0, 40))), np.pad(weight, ((0, 0), (0, 40)))) for value, weight in sides]
    names = np.arange(100).astype(str)
    one = paired_means(*sides, names[:60], np.random.default_rng(0))
    assert paired_means(*more, names, np.random.default_rng(0)) == one


def test_a_side_without_a_judgment_has_no_difference():
    sides = battles(np.random.default_rng(4), 2, 30)
    second = sides[1][1].copy()
    second[0] = 0
    test = paired_means(sides[0], (sides[1][0], second), np.arange(30).astype(str), np.random.default_rng(0))
    assert np.isnan([test.difference.estimate, test.difference.low, test.difference.high, test.p_value]).all()


def test_fits_are_paired_by_draw(judged_config, judged_results):
    first, second = (model_of(judged_config, method) for method in ("ppo_vrm", "dpo"))
    alpaca, arena = (read_benchmark(judged_config, judged_results, name) for name in ("alpaca_eval", "arena_hard"))
    lc, sc = (
        compare_policies(judged_config, benchmark, first, second, metric)
        for benchmark, metric in ((alpaca, ALPACA_PARTIAL_LC), (arena, ARENA_SC))
    )
    draws = [alpaca.draws[f"qwen3.{method}.seed1/lc_without_difficulty"] for method in ("ppo_vrm", "dpo")]
    change = np.sort(draws[0] - draws[1])
    assert (lc.difference.low, lc.difference.high) == pytest.approx((change[49], change[1949]))  # of 1,999
    assert lc.p_value == pytest.approx(2 * (1 + min((change <= 0).sum(), (change >= 0).sum())) / 2000)
    assert lc.test == "1,999 joint draws of the prompts"
    assert sc.difference.low < sc.difference.estimate < sc.difference.high
    assert np.isnan(sc.p_value)  # 199 draws
    assert np.isnan(
        compare_policies(judged_config, alpaca, first, second, ALPACA_LC).difference.estimate
    )  # not in this run
    itself = compare_policies(judged_config, alpaca, first, first, ALPACA_PARTIAL_LC).difference
    assert itself.estimate == 0
    assert np.isnan([itself.low, itself.high]).all()  # every draw is exactly 0


def test_a_fit_that_its_penalty_decides_is_compared_without_an_interval(judged_config, tmp_path):
    folder = write_judged(judged_config, tmp_path) / "judged"

    def shrink(frame):
        shrunk = (frame["metric"] == "lc_without_difficulty") & (frame["method"] == "ppo")
        return frame.assign(**{end: frame[end].mask(shrunk, 50.0) for end in ("value", "low", "high")})

    rewrite(folder / "alpaca_eval.csv", shrink)
    columns = [f"{base}.ppo.seed1/lc_without_difficulty" for base in ("qwen2_5", "qwen3")]
    rewrite(folder / "alpaca_eval.draws.csv", lambda f: f.assign(**dict.fromkeys(columns, 50.0)))
    benchmark = read_benchmark(judged_config, tmp_path, "alpaca_eval")
    sides = (model_of(judged_config, method) for method in ("ppo_vrm", "ppo"))
    test = compare_policies(judged_config, benchmark, *sides, ALPACA_PARTIAL_LC)
    assert not np.isnan(test.difference.estimate)
    assert np.isnan([test.difference.low, test.difference.high, test.p_value]).all()


def test_half_width_is_one_seeds(judged_config, judged_results, tmp_path):
    benchmark = read_benchmark(judged_config, judged_results, "mt_bench")
    model = model_of(judged_config, "simpo")
    questions = benchmark.by_policy["qwen3", "simpo", 1]["value"].unstack("part").mean(axis=1)
    found = half_width_alone(judged_config, benchmark, model, MT_SCORE)
    assert found == pytest.approx(T_19 * questions.sem(), rel=1e-3)
    three = make_judged(seeds=(1, 2, 3))
    benchmark = read_benchmark(three, write_judged(three, tmp_path), "mt_bench")
    assert half_width_alone(three, benchmark, model_of(three, "simpo"), MT_SCORE) == pytest.approx(found, rel=0.4)
    arena = read_benchmark(judged_config, judged_results, "arena_hard")
    assert half_width_alone(judged_config, arena, model_of(judged_config, "simpo"), ARENA_SC) == pytest.approx(5.25)
    alpaca = read_benchmark(judged_config, judged_results, "alpaca_eval")
    assert np.isnan(half_width_alone(judged_config, alpaca, model_of(judged_config, "simpo"), ALPACA_LC))
