"""Intervals and p-values from joint draws: against their definitions, and by simulation on a fit that is no mean."""

import numpy as np
import pytest

from vrm.statistics.draws import FEWEST_DRAWS, from_draws, question_draws, two_sided
from vrm.statistics.intervals import ALL_ALIKE, variance_components

T_2, T_59 = 4.303, 2.001  # 97.5 % quantiles of Student's t


def test_one_seed_has_percentiles_and_the_p_value_of_where_their_end_meets_zero():
    draws = np.arange(-20.0, 1979.0)[:, None]  # 1,999
    test = from_draws(np.array([900.0]), draws, 60)
    assert (test.difference.low, test.difference.high) == pytest.approx((29.0, 1929.0))  # the 50th of each end
    assert (test.p_value, test.test) == (2 * 22 / 2000, "1,999 joint draws of the prompts")
    at_zero = from_draws(np.array([900.0]), draws - 29.0, 60)
    assert at_zero.difference.low == pytest.approx(0.0, abs=1e-9)
    assert at_zero.p_value == pytest.approx(0.051)
    assert from_draws(np.array([900.0]), draws - 30.0, 60, 0.95).p_value > 0.05 > 2 * 49 / 2000


def test_few_draws_have_no_p_value_and_none_have_no_ends():
    draws = np.random.default_rng(0).normal(3, 1, (FEWEST_DRAWS, 1))
    assert from_draws(np.array([3.0]), draws, 60).p_value == pytest.approx(2 * (1 + (draws <= 0).sum()) / 1001)
    few = from_draws(np.array([3.0]), draws[1:], 60)
    assert np.isnan(few.p_value)
    assert few.difference.low < 3 < few.difference.high
    for nothing in (draws[:0], draws[:1], np.full((50, 1), np.nan)):
        test = from_draws(np.array([3.0]), nothing, 60)
        assert (test.difference.estimate, test.difference.resampled) == (3.0, "nothing")
        assert np.isnan([test.difference.low, test.difference.high, test.p_value]).all()


def test_draws_that_are_all_alike_have_no_ends():
    for seeds in (1, 3):
        test = from_draws(np.zeros(seeds), np.zeros((2000, seeds)), 60)
        assert (test.difference.estimate, test.difference.resampled) == (0.0, ALL_ALIKE)
        assert np.isnan([test.difference.low, test.difference.high, test.p_value]).all()


def test_a_draw_without_a_value_of_one_seed_is_left_out_of_all():
    draws = np.random.default_rng(1).normal(size=(300, 2))
    holes = np.vstack([draws, [[np.nan, 50.0], [50.0, np.nan]]])
    assert from_draws(np.zeros(2), holes, 60) == from_draws(np.zeros(2), draws, 60)


def test_a_mean_of_several_seeds_has_the_interval_of_its_variance_components():
    """Of means the draws are not needed: with many of them both ways agree."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=60) + 0.8 * rng.normal(size=(3, 60)) + rng.normal(0, 0.4, (3, 1))
    draws = question_draws(60, 20_000, rng) @ values.T / 60
    found = from_draws(values.mean(axis=1), draws, 60)
    components = variance_components(values, np.arange(60))
    expected = components.interval(0.95)
    assert found.difference.estimate == pytest.approx(expected.estimate)
    assert found.difference.high - found.difference.low == pytest.approx(expected.high - expected.low, rel=0.02)
    assert found.p_value == pytest.approx(components.p_value(), rel=0.1)
    assert found.difference.resampled == found.test == "seeds x prompts (joint bootstrap, Student's t)"


def test_what_seeds_add_is_there_although_they_are_not_drawn():
    draws = np.random.default_rng(3).normal(size=(4000, 1)) @ np.ones((1, 3))
    apart = from_draws(np.array([-3.0, 0.0, 3.0]), draws, 60)
    expected = np.hypot(T_59, T_2 * 3 / np.sqrt(3))
    assert apart.difference.high == pytest.approx(expected, rel=0.03)
    alike = from_draws(np.zeros(3), draws, 60)
    assert alike.difference.high == pytest.approx(T_59, rel=0.03)


def ratio(values, weights):
    """A statistic that is no mean: the log of a ratio of two means, for each weighting of the questions."""
    return np.log(weights @ values[0]) - np.log(weights @ values[1])


@pytest.mark.parametrize(("seeds", "low", "high"), [(1, 3.0, 8.0), (3, 0.5, 6.0)])
def test_simulated_level_holds_for_a_fit(seeds, low, high):
    """Two equal policies on the same 80 questions; a seed shifts each, and both depend on what is asked."""
    rng = np.random.default_rng(4)
    rejected = 0
    times = 1000 if seeds == 1 else 300
    for _ in range(times):
        asked = rng.normal(size=80)
        shift = rng.normal(0, 0.1, (2, seeds, 2, 1)) if seeds > 1 else 0.0
        values = np.exp(shift + 0.6 * asked + 0.6 * rng.normal(size=(2, seeds, 2, 80)))
        weights = question_draws(80, FEWEST_DRAWS if seeds == 1 else 150, rng)
        whole, drawn = (
            np.array([[ratio(part, taken) for part in policy] for policy in values])
            for taken in (np.ones((1, 80)), weights)
        )  # (2, S, 1), (2, S, B)
        test = from_draws((whole[0] - whole[1])[:, 0], (drawn[0] - drawn[1]).T, 80)
        rejected += test.p_value <= 0.05
    rate = 100 * rejected / times
    assert low <= rate <= high


def test_two_sided_counts_the_sample_itself_and_is_no_more_than_one():
    assert two_sided(np.full(999, 2.0)) == 2 / 1000
    assert two_sided(np.array([-1.0, 1.0])) == 1.0
