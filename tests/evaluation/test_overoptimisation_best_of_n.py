"""The estimator against brute force, its two ends, and drawing."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from vrm.evaluation.overoptimisation import best_of_n, best_of_n_kl, doublings, rank_weights


def brute_force(proxy, gold, n):
    """Mean over all subsets of size n of the gold reward of the best, averaged over the best where several tie."""
    means = []
    for subset in map(list, combinations(range(len(proxy)), n)):
        best = proxy[subset] == proxy[subset].max()
        means.append(gold[subset][best].mean())
    return np.mean(means)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", range(1, 8))
def test_it_is_the_mean_over_all_subsets(n, tied):
    rng = np.random.default_rng(n)
    proxy = rng.integers(0, 3, (4, 7)).astype(float) if tied else rng.normal(size=(4, 7))
    gold = rng.normal(size=(4, 7))
    expected = [brute_force(p, g, n) for p, g in zip(proxy, gold, strict=True)]
    assert best_of_n(proxy, gold, n) == pytest.approx(expected)


def test_one_is_the_mean_and_all_is_the_best():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 5, 64))
    assert best_of_n(proxy, gold, 1) == pytest.approx(gold.mean(axis=1))
    assert best_of_n(proxy, proxy, 64) == pytest.approx(proxy.max(axis=1))
    assert best_of_n(proxy, gold, 64) == pytest.approx(gold[np.arange(5), proxy.argmax(axis=1)])


def test_equal_proxy_rewards_choose_nothing():
    gold = np.random.default_rng(1).normal(size=(3, 16))
    for n in (1, 5, 16):
        assert best_of_n(np.zeros((3, 16)), gold, n) == pytest.approx(gold.mean(axis=1))


def test_it_is_what_drawing_gives():
    rng = np.random.default_rng(2)
    proxy = rng.normal(size=16)
    gold = 0.5 * proxy + rng.normal(size=16)
    drawn = np.array([rng.permutation(16)[:4] for _ in range(20_000)])
    chosen = drawn[np.arange(20_000), proxy[drawn].argmax(axis=1)]
    assert best_of_n(proxy[None], gold[None], 4).item() == pytest.approx(gold[chosen].mean(), abs=0.03)


def test_it_is_unbiased_for_fresh_answers():
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(40_000, 8))
    assert best_of_n(samples, samples, 2).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)


@pytest.mark.parametrize(("total", "n"), [(10, 3), (64, 64), (1000, 500), (20_000, 4_000)])
def test_weights_are_binomials_and_sum_to_one(total, n):
    weights = rank_weights(total, n)
    assert weights.sum() == pytest.approx(1)
    for i in (n, total - 1, total):
        assert weights[i - 1] == pytest.approx(comb(i - 1, n - 1) / comb(total, n), rel=1e-8)
    assert not weights[: n - 1].any()


def test_kl_is_that_of_the_best_of_n_distribution():
    assert best_of_n_kl(1) == 0
    rank = (np.arange(1_000_000) + 0.5) / 1_000_000  # the best of n has density n u^(n-1) in the reward's quantile u
    for n in (2, 16, 64):
        log_density = np.log(n) + (n - 1) * np.log(rank)
        assert best_of_n_kl(n) == pytest.approx(np.mean(np.exp(log_density) * log_density), abs=1e-4)


def test_doublings_end_at_all_answers():
    assert doublings(64) == [1, 2, 4, 8, 16, 32, 64]
    assert doublings(48) == [1, 2, 4, 8, 16, 32, 48]
    assert doublings(1) == [1]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="best of 5 can't be had from 4"):
        best_of_n(np.zeros((2, 4)), np.zeros((2, 4)), 5)
    with pytest.raises(ValueError, match="best of 0"):
        rank_weights(4, 0)
    with pytest.raises(ValueError, match="one shape"):
        best_of_n(np.zeros((2, 4)), np.zeros((4, 2)), 1)
