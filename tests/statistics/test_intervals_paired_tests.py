import math

import numpy as np
import pytest

from vrm.statistics.intervals import (
    VarianceComponents,
    family_note,
    holm,
    p_text,
    paired_test,
    sign_flip,
    student_quantile,
)


def wins(rng, seeds, prompts, seed_sd=0.1, method_sd=0.5, rest_sd=1.0, gain=0.0):
    """0/1 outcomes of two methods on the same prompts, each of shape (S, N), from margins on the probit scale."""
    margin = (
        0.6
        + np.array([gain, 0.0])[:, None, None]
        + rng.normal(0, 1, (1, 1, prompts))
        + rng.normal(0, method_sd, (2, 1, prompts))
        + rng.normal(0, seed_sd, (2, seeds, 1))
        + rng.normal(0, rest_sd, (2, seeds, prompts))
    )
    return (margin > 0).astype(float)


def rejected(rng, times, seeds, prompts, **settings):
    """Share of simulated pairs of methods that a test at 5 % tells apart, in percent."""
    tests = (
        paired_test(*wins(rng, seeds, prompts, **settings), np.arange(prompts), rng, flips=199) for _ in range(times)
    )
    if seeds > 1:  # where the interval leaves 0 out; computing p as well would take longer, and agrees (tested below)
        return 100 * np.mean([test.difference.low > 0 or test.difference.high < 0 for test in tests])
    return 100 * np.mean([test.p_value <= 0.05 for test in tests])


@pytest.fixture(autouse=True)
def _no_p_value_of_several_seeds(request, monkeypatch):
    """p-values by table take most of a simulation's time."""
    if "simulated" in request.node.name:
        monkeypatch.setattr("vrm.statistics.intervals.VarianceComponents.p_value", lambda _: np.nan)


@pytest.mark.parametrize("settings", [{"seed_sd": 0.15}, {"seed_sd": 0.2, "rest_sd": 0.7}])
def test_simulated_level_holds_with_three_seeds(settings):
    assert 3.5 <= rejected(np.random.default_rng(0), 2000, 3, 150, **settings) <= 6.5


@pytest.mark.parametrize("settings", [{"seed_sd": 0.0, "method_sd": 0.0}, {"seed_sd": 0.2, "method_sd": 0.0}])
def test_simulated_level_where_seeds_or_the_rest_alone_vary(settings):
    assert 1 <= rejected(np.random.default_rng(1), 2000, 3, 150, **settings) <= 8


def test_simulated_level_holds_with_one_seed():
    # with one seed the null is that the two trained models agree
    assert 3.5 <= rejected(np.random.default_rng(2), 2000, 1, 150, seed_sd=0.0) <= 6.5


def test_simulated_power_grows_with_the_gain():
    rng = np.random.default_rng(3)
    small, large = (rejected(rng, 300, 3, 400, seed_sd=0.03, gain=gain) for gain in (0.1, 0.5))
    assert small < large
    assert large > 90
    assert rejected(rng, 300, 1, 400, seed_sd=0.0, gain=0.5) > 90


def test_flipping_prompts_would_take_trained_models_for_methods():
    """Why several seeds have another test: the null is true here."""
    rng = np.random.default_rng(4)
    draws = (wins(rng, 3, 150, seed_sd=0.4, rest_sd=0.7) for _ in range(200))
    assert np.mean([sign_flip((a - b).mean(axis=0), rng, 199) <= 0.05 for a, b in draws]) > 0.3


@pytest.mark.parametrize("gain", [0.0, 0.15, 0.6])
def test_a_p_value_is_more_careful_than_the_interval(gain):
    rng = np.random.default_rng(5)
    for _ in range(10):
        test = paired_test(*wins(rng, 3, 100, gain=gain), np.arange(100), rng)
        assert test.p_value >= 0.05 or test.difference.low > 0 or test.difference.high < 0


@pytest.mark.parametrize(("seeds", "rest"), [(0.9, 0.1), (0.7, 0.2), (0.3, 0.6), (0.0, 1.0)])
def test_the_level_of_a_p_value_holds_where_holms_first_step_asks(seeds, rest):
    """By the chance of the mean, exact, over draws of what is known of its variance; shares of seeds and the rest."""
    rng, prompts, alpha = np.random.default_rng(6), 100, 0.05 / 54
    between = (seeds + rest) * rng.chisquare(2, 20_000) / 2
    common = (1 - seeds) * rng.chisquare(prompts - 1, 20_000) / (prompts - 1)
    kept = [student_quantile(1 - alpha / 2, degrees) ** 2 for degrees in (2, prompts - 1)]
    beyond = np.sqrt(kept[0] * between + kept[1] * common)
    level = np.mean([math.erfc(value / math.sqrt(2)) for value in beyond])
    assert level <= 1.1 * alpha
    some = VarianceComponents(float(beyond[0]), 0.0, float(common[0]), 2, prompts - 1, float(between[0]))
    assert some.p_value() == pytest.approx(alpha, rel=0.01)  # the same formula


def test_sign_flip_is_mcnemars_exact_test():
    # 9 of 10 prompts that differ favour one method: 2 (C(10, 9) + C(10, 10)) / 2^10
    values = np.array([1.0] * 9 + [-1.0] + [0.0] * 50)
    assert sign_flip(values, np.random.default_rng(0), 200_000) == pytest.approx(22 / 1024, abs=1e-3)


def test_sign_flip_is_never_below_one_in_its_flips_and_1_where_nothing_differs():
    assert sign_flip(np.ones(100), np.random.default_rng(0), 999) == 1 / 1000
    assert sign_flip(np.zeros(100), np.random.default_rng(0), 999) == 1.0


def test_chunks_of_signs_change_nothing(monkeypatch):
    values = np.random.default_rng(6).normal(0.1, 1, 50)
    whole = sign_flip(values, np.random.default_rng(7), 999)
    monkeypatch.setattr("vrm.statistics.intervals._SIGNS_AT_ONCE", 50 * 64)
    assert sign_flip(values, np.random.default_rng(7), 999) == whole


def test_methods_swapped_swap_the_difference_alone():
    rng = np.random.default_rng(8)
    first, second = wins(rng, 3, 80, gain=0.3)
    one, other = (paired_test(*pair, np.arange(80), rng) for pair in ((first, second), (second, first)))
    assert one.difference.estimate == pytest.approx(-other.difference.estimate)
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.p_value == pytest.approx(other.p_value)


def test_equal_methods_do_not_differ_and_a_constant_difference_is_not_certain():
    values = np.ones((3, 6))
    assert paired_test(values, values, np.arange(6), np.random.default_rng(0)).p_value == 1.0
    constant = paired_test(values, 0 * values, np.arange(6), np.random.default_rng(0))
    assert constant.p_value == pytest.approx(2 / 2**6, rel=0.2)
    assert "sign flips" in constant.test


def test_clusters_are_flipped_whole():
    values = np.repeat(np.array([1.0, 1.0, 1.0, 1.0, -1.0]), 40)  # five prompts, not 200 pairs
    test = paired_test(values, 0 * values, np.repeat(np.arange(5), 40), np.random.default_rng(0))
    assert test.p_value == pytest.approx(12 / 32, abs=0.02)


def test_weights_decide_which_items_speak():
    first = np.array([1.0] * 20 + [0.0] * 20)
    arguments = (first, 1 - first, np.arange(40))
    weights = np.array([5.0] * 20 + [1.0] * 20)
    weighted = paired_test(*arguments, np.random.default_rng(0), item_weights=weights)
    assert paired_test(*arguments, np.random.default_rng(0)).difference.estimate == 0
    assert weighted.difference.estimate == pytest.approx((5 - 1) / (5 + 1))


def test_other_shapes_and_gaps_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a paired test needs the same"):
        paired_test(np.zeros((3, 4)), np.zeros((1, 4)), np.arange(4), rng)
    with pytest.raises(ValueError, match="not finite"):
        paired_test([0.0, np.nan], [0.0, 1.0], np.arange(2), rng)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_leaves_gaps_out():
    np.testing.assert_allclose(holm([0.02, np.nan, 0.04]), [0.04, np.nan, 0.04])
    # 0.01 times 3, 0.03 times 2, 0.04 raised to it: a fit among three tests is in no family
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])


def test_holm_keeps_order_and_never_makes_p_smaller():
    p = np.random.default_rng(9).random(30)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted[np.argsort(p)] == np.sort(adjusted)).all()
    assert (adjusted <= np.minimum(p * 30, 1)).all()  # no stricter than Bonferroni


def test_holm_keeps_the_level_over_many_true_nulls():
    rng = np.random.default_rng(10)
    false = np.mean([holm(rng.random(20)).min() <= 0.05 for _ in range(4000)])
    assert 0.035 <= false <= 0.065


def test_what_is_said_of_a_family_counts_tests_alone():
    note = family_note(["A on x", "B on x", "A on y"], [0.03, np.nan, 0.2], 0.95)
    assert note.startswith("2 tests, ")
    assert "adjusted for all 2 together" in note
    assert note.endswith("Below 0.05 remain: A on x.")
    assert family_note(["A"], [0.06], 0.95).endswith("Below 0.05 remain: none.")
    assert family_note(["A"], [0.06], 0.9).endswith("Below 0.1 remain: A.")
    assert [p_text(value) for value in (0.0004, 0.0126, 1.0)] == ["<0.001", "0.013", "1.000"]
