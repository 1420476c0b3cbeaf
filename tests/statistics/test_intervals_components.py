from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from strata_layout import layout

from vrm.data.preference_sets import SECTIONS
from vrm.evaluation.accuracy import section_scores
from vrm.statistics.intervals import (
    ALL_ALIKE,
    crossed_interval,
    resampled_intervals,
    stratify,
    variance_components,
)


def outcomes(rng, seeds, prompts, per_prompt=1, seed_sd=0.0):
    """Wins and losses with prompt effects and seed effects on the probit scale, shape (S, N); prompt ids; the truth."""
    margin = (
        0.6
        + rng.normal(0, seed_sd, (seeds, 1))
        + np.repeat(rng.normal(0, 1, (1, prompts)), per_prompt, axis=1)
        + rng.normal(0, 1, (seeds, prompts * per_prompt))
    )
    truth = NormalDist().cdf(0.6 / np.sqrt(2 + seed_sd**2))
    return (margin > 0).astype(float), np.repeat(np.arange(prompts), per_prompt), truth


def coverage(make, times, truth=0.0):
    """Share of intervals of `make()` that hold the truth, in percent."""
    intervals = [make() for _ in range(times)]
    return 100 * np.mean([interval.low <= truth <= interval.high for interval in intervals])


# (seeds, prompts, rest) of the variance; the second line is what the demo's tables and differences have
MIXTURES = [(0, 1, 0), (0, 0.5, 0.5), (0.5, 0.4, 0.1), (1, 0, 0)]
MIXTURES += [(0.1, 0.8, 0.1), (0.3, 0.2, 0.5), (0.7, 0.15, 0.15)]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_nominal_95_percent_cover_93_to_98_with_three_seeds(mixture):
    rng = np.random.default_rng(0)
    covered = coverage(lambda: crossed_interval(layout(rng, 3, 200, *mixture), np.arange(200)), 2000)
    assert 93 - 1 <= covered <= 98 + 0.7  # two standard errors of the simulation


@pytest.mark.parametrize(("seeds", "lowest", "highest"), [(2, 88, 99), (5, 94, 98)])
def test_coverage_with_other_numbers_of_seeds(seeds, lowest, highest):
    rng = np.random.default_rng(1)
    covered = [
        coverage(lambda m=m: crossed_interval(layout(rng, seeds, 100, *m), np.arange(100)), 1000) for m in MIXTURES
    ]
    assert lowest - 1 <= min(covered)
    assert max(covered) <= highest + 1


# a seed's standard deviation of 0.1 is 3 points of accuracy, 0.35 are 10
@pytest.mark.parametrize(
    ("seeds", "per_prompt", "seed_sd"), [(1, 1, 0.0), (1, 3, 0.0), (3, 1, 0.1), (3, 2, 0.1), (3, 1, 0.35)]
)
def test_nominal_95_percent_cover_93_to_97_of_wins_and_losses(seeds, per_prompt, seed_sd):
    """The tables' case: one or three seeds, hundreds of prompts, several pairs of one prompt."""
    rng = np.random.default_rng(3)

    def inside():
        values, prompts, truth = outcomes(rng, seeds, 300, per_prompt, seed_sd)
        interval = crossed_interval(values, prompts)
        return interval.low <= truth <= interval.high

    assert 93 <= 100 * np.mean([inside() for _ in range(2000)]) <= 97


def test_ninety_percent_of_accuracy_is_covered_with_one_seed():
    """Wins and losses far from one half are skewed, and the interval is symmetric."""
    rng = np.random.default_rng(2)
    intervals = (crossed_interval((rng.random((1, 300)) < 0.9).astype(float), np.arange(300)) for _ in range(2000))
    assert 93 <= 100 * np.mean([interval.low <= 0.9 <= interval.high for interval in intervals]) <= 97


def test_parts_are_those_of_the_analysis_of_variance():
    values = layout(np.random.default_rng(4), 4, 30, 0.3, 0.3, 0.4)
    seeds, prompts = values.shape
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    rest = (residual**2).sum() / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)
    found = variance_components(values, np.arange(prompts))
    assert found.estimate == pytest.approx(values.mean())
    assert found.prompts == pytest.approx(values.mean(0).var(ddof=1) / prompts)
    assert found.seeds == pytest.approx(values.mean(1).var(ddof=1) / seeds - 0.6 * rest)
    assert (found.seed_degrees, found.prompt_degrees) == (3, pytest.approx(29))


def test_one_seed_is_students_t_over_prompts_and_one_prompt_over_seeds():
    values = np.random.default_rng(5).normal(size=12)
    half = 2.20099 * values.std(ddof=1) / np.sqrt(12)
    over_prompts, over_seeds = crossed_interval(values, np.arange(12)), crossed_interval(values[:, None], [0])
    assert over_prompts.high - over_prompts.estimate == pytest.approx(half, rel=1e-4)
    assert over_seeds.estimate - over_seeds.low == pytest.approx(half, rel=1e-4)
    assert over_prompts.resampled == "prompts (one seed, Student's t)"
    assert over_seeds.resampled == "seeds (one prompt, Student's t)"
    assert crossed_interval(values.reshape(3, 4), np.arange(4)).resampled == "seeds x prompts (Student's t)"
    assert np.isnan(crossed_interval([[1.0]], [0]).low)


def test_pairs_of_a_prompt_that_agree_count_once():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(3, 40))
    once = crossed_interval(values, np.arange(40))
    copied = crossed_interval(np.repeat(values, 5, axis=1), np.repeat(np.arange(40), 5))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_a_pairs_weight_is_as_many_copies_of_it():
    rng = np.random.default_rng(7)
    values, prompts, times = rng.normal(size=(3, 60)), np.arange(60) // 2, rng.integers(1, 4, 60)
    weighted = variance_components(values, prompts, item_weights=times)
    copied = variance_components(np.repeat(values, times, axis=1), np.repeat(prompts, times))
    assert (weighted.estimate, weighted.seeds, weighted.prompts) == pytest.approx(
        (copied.estimate, copied.seeds, copied.prompts)
    )


def test_the_variance_of_weighted_strata_is_the_sum_of_theirs():
    rng = np.random.default_rng(8)
    strata, sizes = np.repeat(["a", "b"], [300, 100]), np.array([300, 100])
    values = np.where(strata == "a", 1.0, 3.0) + rng.normal(size=400) * np.where(strata == "a", 1.0, 4.0)
    found = variance_components(values, np.arange(400), strata, {"a": 1.0, "b": 2.0})
    means, variances = (
        np.array([f(values[strata == name]) for name in "ab"]) for f in (np.mean, lambda v: v.var(ddof=1))
    )
    terms = np.array([1 / 9, 4 / 9]) * variances / sizes
    assert found.estimate == pytest.approx(means @ [1 / 3, 2 / 3])
    assert found.prompts == pytest.approx(terms.sum())
    assert found.prompt_degrees == pytest.approx(terms.sum() ** 2 / (terms**2 / (sizes - 1)).sum())


def test_weighted_estimate_equals_reward_bench():
    rng = np.random.default_rng(13)
    weights = SECTIONS["Chat Hard"]
    subsets = np.repeat(list(weights), [3, 5, 7, 2, 4, 6])
    values = rng.integers(0, 2, (1, len(subsets))).astype(float)
    interval = crossed_interval(values, np.arange(len(subsets)), strata=subsets, weights=weights)
    accuracy = {subset: values[0, subsets == subset].mean() for subset in weights}
    assert interval.estimate == pytest.approx(section_scores(accuracy)["Chat Hard"])
    assert interval.low < interval.estimate < interval.high


def test_prompts_vary_within_strata():
    values = np.array([[1.0] * 30 + [0.0] * 10])  # constant within strata: nothing varies within them
    strata = np.array(["a"] * 30 + ["b"] * 10)
    interval = crossed_interval(values, np.arange(40), strata=strata)
    assert interval.estimate == pytest.approx(0.75)
    assert np.isnan([interval.low, interval.high]).all()
    values[0, 0] = 0.0
    assert crossed_interval(values, np.arange(40), strata=strata).low < 0.725


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_all_values_are_alike_there_are_no_ends(value, seeds):
    """All pairs right is no certainty; and 0.1 is not the mean of many 0.1 to the last bit."""
    found = variance_components(np.full((seeds, 70), value), np.arange(70) // 2)
    assert found.estimate == pytest.approx(value)
    assert np.isnan([found.interval().low, found.interval().high, found.p_value()]).all()
    assert found.interval().resampled == ALL_ALIKE


def test_order_of_pairs_does_not_matter_and_the_same_input_gives_the_same_bits():
    values, prompts, _ = outcomes(np.random.default_rng(9), 3, 60, per_prompt=2)
    order = np.random.default_rng(10).permutation(values.shape[1])
    first, second = crossed_interval(values, prompts), crossed_interval(values[:, order], prompts[order])
    assert (first.low, first.high) == pytest.approx((second.low, second.high))
    assert crossed_interval(values.copy(), prompts) == first


def test_higher_level_is_wider():
    values, prompts, _ = outcomes(np.random.default_rng(12), 3, 60)
    narrow, wide = (crossed_interval(values, prompts, level) for level in (0.5, 0.99))
    assert (narrow.level, wide.level) == (0.5, 0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no pair"):
        crossed_interval(np.zeros((2, 0)), np.zeros(0))
    with pytest.raises(ValueError, match="one entry for each of the 3 pairs"):
        crossed_interval(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="no weight for stratum b"):
        crossed_interval(np.zeros((1, 2)), np.arange(2), strata=np.array(["a", "b"]), weights={"a": 1.0})


def test_p_value_is_one_less_the_level_whose_interval_meets_zero_with_all_that_differs_between_seeds():
    for mixture in MIXTURES:
        found = variance_components(0.8 + layout(np.random.default_rng(9), 3, 50, *mixture), np.arange(50))
        interval = replace(found, seeds=found.between).interval(1 - found.p_value())
        assert found.between >= found.seeds
        assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=2e-3)


def test_p_value_shrinks_as_the_mean_leaves_zero():
    values = layout(np.random.default_rng(10), 3, 50, 0.3, 0.3, 0.4)
    values -= values.mean()
    p = [variance_components(values + shift, np.arange(50)).p_value() for shift in (0.0, 0.5, 1.0, 2.0, 4.0, 1e6)]
    assert p[0] == pytest.approx(1)
    assert all(a > b for a, b in pairwise(p))
    assert p[-1] >= 1e-9
    assert np.isnan(variance_components(np.ones((3, 5)), np.arange(5)).p_value())


def test_strata_refuse_what_they_cannot_weigh():
    with pytest.raises(ValueError, match="above 0"):
        stratify([1.0, 2.0], [0, 1], item_weights=[1.0, 0.0])
    with pytest.raises(ValueError, match="above 0"):
        stratify([1.0, 2.0], [0, 1], item_weights=[1.0, np.nan])
    with pytest.raises(ValueError, match="one entry for each of the 2 pairs"):
        stratify([1.0, 2.0], [0, 1], item_weights=[1.0])


def test_without_stratum_weights_a_stratum_counts_as_its_pairs_weigh():
    parts = stratify([1.0, 1.0, 1.0], [0, 1, 2], strata=["a", "a", "b"], item_weights=[1.0, 1.0, 6.0])
    assert [part.share for part in parts] == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("seeds", [1, 3])
def test_drawing_prompts_anew_gives_a_mean_the_interval_that_its_formula_has(seeds):
    values, prompts, _ = outcomes(np.random.default_rng(2), seeds, 200, per_prompt=2, seed_sd=0.4)

    def measure(places):
        return np.stack([values[:, places].mean(axis=1), values[:, places].mean(axis=1) ** 2], axis=1)

    mean, square = resampled_intervals(measure, prompts, 0.95, np.random.default_rng(3), draws=4000)
    formula = crossed_interval(values, prompts)
    assert mean.estimate == pytest.approx(formula.estimate)
    assert (mean.low, mean.high) == pytest.approx((formula.low, formula.high), abs=0.03 * (formula.high - formula.low))
    assert square.low < square.estimate < square.high


def test_a_statistic_that_never_varies_has_no_ends():
    (interval,) = resampled_intervals(lambda places: np.ones((2, 1)), np.arange(9), 0.95, np.random.default_rng(0))
    assert interval.estimate == 1
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.resampled == ALL_ALIKE
