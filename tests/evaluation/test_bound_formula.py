"""The bound by hand, its properties, and the two statements of docs/theory.md about what it can show."""

from math import erf, sqrt

import numpy as np
import pytest

from vrm.statistics.pac_bayes import largest_kl, mcallester_bound


@pytest.mark.parametrize(
    ("risk", "kl", "n", "delta", "bound"),
    [
        # ln(1/delta) + ln n + 2 = 3 + 7 + 2 = 12 under the root's numerator, with KL = 4: 0.1 + sqrt(16 / 2191.27)
        (0.1, 4.0, np.exp(7.0), np.exp(-3.0), 0.1 + sqrt(16 / (2 * np.exp(7.0) - 1))),
        # one pair, delta = e^-1, no KL: 1 + 0 + 2 = 3 over 1
        (0.25, 0.0, 1, np.exp(-1.0), 0.25 + sqrt(3.0)),
        # by pocket calculator: (100 + 2.99573 + 6.90776 + 2) / 1999 = 0.0559797, its root 0.236600
        (0.3, 100.0, 1000, 0.05, 0.536600),
    ],
)
def test_golden_values(risk, kl, n, delta, bound):
    assert mcallester_bound(risk, kl, n, delta) == pytest.approx(bound, abs=1e-6)


def test_bound_rises_with_kl_and_risk_and_falls_with_n_and_delta():
    def steps(**changed):
        return np.diff(mcallester_bound(**({"empirical_risk": 0.2, "kl": 50.0, "n": 500, "delta": 0.05} | changed)))

    assert (steps(kl=np.linspace(0, 1000, 50)) > 0).all()
    assert (steps(empirical_risk=np.linspace(0, 1, 50)) > 0).all()
    assert (steps(n=np.arange(1, 5000)) < 0).all()
    assert (steps(delta=np.linspace(0.01, 0.99, 50)) < 0).all()


def test_bound_is_above_the_empirical_risk_and_arrays_are_numbers_side_by_side():
    rng = np.random.default_rng(0)
    risk, kl, n, delta = (
        rng.random(200),
        rng.exponential(100, 200),
        rng.integers(1, 10_000, 200),
        rng.uniform(0.01, 1, 200),
    )
    bounds = mcallester_bound(risk, kl, n, delta)
    assert bounds.shape == (200,)
    assert (bounds > risk).all()
    assert bounds[7] == mcallester_bound(risk[7], kl[7], n[7], delta[7])
    assert isinstance(mcallester_bound(0.1, 1.0, 10, 0.05), float)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((-0.1, 1, 10, 0.05), "empirical risk"),
        ((1.1, 1, 10, 0.05), "empirical risk"),
        ((np.nan, 1, 10, 0.05), "empirical risk"),
        ((0.1, -1, 10, 0.05), "KL"),
        ((0.1, [1, -1], 10, 0.05), "KL"),
        ((0.1, 1, 0, 0.05), "at least one pair"),
        ((0.1, 1, 10, 0), "delta"),
        ((0.1, 1, 10, 1), "delta"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        mcallester_bound(*arguments)


def test_largest_kl_is_where_the_bound_reaches_1():
    for risk, n in ((0.0, 50), (0.3, 2028), (0.45, 10_000)):
        assert mcallester_bound(risk, largest_kl(risk, n, 0.05), n, 0.05) == pytest.approx(1)
    assert largest_kl(0.5, 5, 0.05) < 0
    assert mcallester_bound(0.5, 0.0, 5, 0.05) > 1
    assert largest_kl([0.1, 0.9], 100, 0.05).shape == (2,)


def phi(x):
    """Standard normal distribution function."""
    return 0.5 * (1 + erf(x / sqrt(2)))


def gaussian_pairs(means):
    """Mean risk and KL per pair of z_w ~ N(m, 1), z_l ~ N(-m, 1), r = z: closed form, m of any sign."""
    return np.mean([phi(-sqrt(2) * m) for m in means]), np.mean(np.square(means))


def test_the_bound_never_certifies_better_than_chance():
    """Each pair's risk is at least 1/2 - sqrt(KL / 2) (Pinsker), and the bound pays back more than that."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        n = int(rng.integers(1, 400))
        risk, kl = gaussian_pairs(rng.normal(0, rng.exponential(1.0), n))
        assert risk >= 0.5 - sqrt(kl / 2)
        assert mcallester_bound(risk, n * kl, n, 0.05) > 0.5
    # and it comes near: a posterior that is nearly the prior
    assert mcallester_bound(0.5, 0.0, 10**9, 0.05) == pytest.approx(0.5, abs=2e-4)


def test_with_the_kl_of_the_sample_alone_a_memorising_encoder_breaks_it():
    """Right by m on the training pairs, wrong by m everywhere else: no KL of the sample sees that."""
    risk, kl = gaussian_pairs([0.2])
    true_risk, _ = gaussian_pairs([-0.2])
    n = 10**6
    assert true_risk > mcallester_bound(risk, n * kl, n, 0.05) + 0.05
    # the same encoder on more pairs: the bound does not tighten beyond sqrt(kl / 2)
    assert mcallester_bound(risk, n * kl, n, 0.05) == pytest.approx(risk + sqrt(kl / 2), abs=1e-3)


def test_kl_per_pair_keeps_the_root_from_vanishing_and_kl_per_sample_does_not():
    n = np.array([10**3, 10**5, 10**7, 10**9])
    per_pair = mcallester_bound(0.3, 0.1 * n, n, 0.05)
    per_sample = mcallester_bound(0.3, 100.0, n, 0.05)
    assert per_pair[-1] == pytest.approx(0.3 + sqrt(0.05), abs=1e-5)
    assert per_sample[-1] == pytest.approx(0.3, abs=1e-3)
    assert per_pair[0] - per_sample[0] == pytest.approx(0)
