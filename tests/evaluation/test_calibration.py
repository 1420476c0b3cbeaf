"""Calibration metrics against brute force and known values; temperature and ensembles at their edges."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from vrm.evaluation import calibration


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_probabilities_agree_with_scipys(rng):
    difference, variance = rng.normal(0, 3, 20), rng.uniform(0.01, 9, 20)
    assert calibration.thurstone_probability(difference, variance) == pytest.approx(
        stats.norm.cdf(difference / np.sqrt(variance))
    )
    expected = [
        integrate.quad(lambda x, m=m, v=v: stats.norm.pdf(x) / (1 + math.exp(-m - v**0.5 * x)), -12, 12)[0]
        for m, v in zip(difference, variance, strict=True)
    ]
    assert calibration.marginal_probability(difference, variance) == pytest.approx(expected, abs=2e-4)
    assert calibration.marginal_probability(difference, np.zeros(20)) == pytest.approx(
        calibration.preference_probability(difference)
    )


@pytest.mark.parametrize("spread", [1.9, 2.1, 5.0, 20.0, 200.0])
def test_a_wide_reward_has_its_probability(spread):
    """Where the sigmoid is a step to the nodes of a quadrature."""
    for difference in (0.5, 5.0, -5.0):
        x = np.linspace(-12, 12, 400_001)
        expected = integrate.trapezoid(stats.norm.pdf(x) * special.expit(difference + spread * x), x)
        found = calibration.marginal_probability([difference], [spread**2])
        assert found == pytest.approx([expected], abs=3e-4)


def test_probabilities_of_a_pair_and_of_its_flip_add_up_to_one(rng):
    difference, variance = rng.normal(0, 3, 50), rng.uniform(0.1, 4, 50)
    for probability in (
        calibration.preference_probability(difference) + calibration.preference_probability(-difference),
        *(f(difference, variance) + f(-difference, variance)
          for f in (calibration.thurstone_probability, calibration.marginal_probability)),
    ):  # fmt: skip
        assert probability == pytest.approx(1)
    assert calibration.preference_probability([-1000.0, 1000.0]).tolist() == [0, 1]
    assert calibration.preference_probability([3.0], math.inf).tolist() == [0.5]


def test_losses_by_hand():
    q = [0.8, 0.5, 0.1]
    assert calibration.negative_log_likelihood(q) == pytest.approx(-np.log(0.8 * 0.5 * 0.1) / 3)
    assert calibration.brier(q) == pytest.approx((0.04 + 0.25 + 0.81) / 3)
    assert calibration.brier(q, truth=[0.8, 0.6, 0.0]) == pytest.approx((0.01 + 0.01) / 3)
    assert math.isfinite(calibration.negative_log_likelihood([0.0]))


def brute_ece(q, edges):
    confidence, won = np.maximum(q, 1 - q), q > 0.5
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == edges[-1]))
        if inside.any():
            total += inside.mean() * abs(won[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_equals_brute_force(rng):
    q = rng.beta(2, 1, 400)
    assert calibration.expected_calibration_error(q) == pytest.approx(brute_ece(q, np.linspace(0.5, 1, 16)))
    confidence = np.sort(np.maximum(q, 1 - q))
    edges = np.quantile(confidence, np.linspace(0, 1, 11))
    edges[0], edges[-1] = 0.5, 1
    found = calibration.expected_calibration_error(q, bins=10, equal_mass=True)
    assert found == pytest.approx(brute_ece(q, edges))


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_error_at_known_values(equal_mass):
    def ece(q):
        return calibration.expected_calibration_error(q, equal_mass=equal_mass)

    assert ece([1.0] * 10) == 0
    assert ece([0.0] * 10) == pytest.approx(1)  # sure, and always wrong
    assert ece([0.75] * 3 + [0.25]) == pytest.approx(0)  # confidence 3/4, three of four won
    assert ece([0.5] * 4) == pytest.approx(0.5)  # ties are lost
    honest = np.random.default_rng(1)
    confidence = honest.uniform(0.5, 1, 200_000)
    q = np.where(honest.random(200_000) < confidence, confidence, 1 - confidence)
    assert ece(q) < 0.005


def brute_aurc(q):
    """A mean over all orders that respect confidence."""
    q = np.asarray(q)
    confidence, lost = np.maximum(q, 1 - q), q <= 0.5
    found = []
    for order in itertools.permutations(range(len(q))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            found.append(np.mean([lost[list(order[:j])].mean() for j in range(1, len(q) + 1)]))
    return np.mean(found)


@pytest.mark.parametrize(
    "q",
    [
        [0.9, 0.2, 0.6, 0.55],
        [0.75, 0.25, 0.75, 0.25, 0.75],
        [0.5, 0.5, 1.0],
        [0.25] * 3,
        [1.0] * 3,
        [0.9, 0.1, 0.6, 0.4],
    ],
)
def test_aurc_is_the_mean_over_all_orders_of_ties(q):
    assert calibration.area_under_risk_coverage(q) == pytest.approx(brute_aurc(q))
    # the oracle: the same errors, all of them last
    lost = sum(value <= 0.5 for value in q)
    best = [0.9 - 0.01 * i for i in range(len(q) - lost)] + [0.45 + 0.001 * i for i in range(lost)]
    excess = calibration.excess_area_under_risk_coverage(q)
    assert excess == pytest.approx(brute_aurc(q) - brute_aurc(best))
    assert excess >= -1e-12
    assert calibration.excess_area_under_risk_coverage(best) == pytest.approx(0, abs=1e-12)


def test_confidence_without_information_has_the_error_rate_as_aurc(rng):
    assert calibration.area_under_risk_coverage([0.7] * 3 + [0.3]) == pytest.approx(0.25)


def test_selective_accuracy_is_that_of_the_most_confident(rng):
    q = [0.95, 0.1, 0.8, 0.3, 0.6]  # confidence .95, .9 (lost), .8, .7 (lost), .6
    assert calibration.selective_accuracy(q, 0.2) == 1
    assert calibration.selective_accuracy(q, 0.4) == pytest.approx(1 / 2)
    assert calibration.selective_accuracy(q, 0.5) == pytest.approx(2 / 3)  # rounded up to 3 pairs
    assert calibration.selective_accuracy(q, 0.8) == pytest.approx(2 / 4)
    assert calibration.selective_accuracy(q, 1.0) == pytest.approx(3 / 5)
    assert calibration.selective_accuracy([0.7] * 3 + [0.3], 0.5) == pytest.approx(0.75)  # ties: any two of the four
    q = rng.random(15)
    assert calibration.selective_accuracy(q, 0.8) == pytest.approx(
        (q[np.argsort(-np.maximum(q, 1 - q))[:12]] > 0.5).mean()
    )
    for coverage in (0.0, 1.1):
        with pytest.raises(ValueError, match="coverage"):
            calibration.selective_accuracy(q, coverage)


def test_order_changes_nothing(rng):
    q = np.round(rng.random(60), 1)
    shuffled = rng.permutation(q)
    assert calibration.calibration_metrics(q) == pytest.approx(calibration.calibration_metrics(shuffled))


@pytest.mark.parametrize("q", [[], [0.5, 1.2], [float("nan")], [-0.1]])
def test_what_is_no_probability_is_an_error(q):
    with pytest.raises(ValueError, match=r"no pair|not in \[0, 1\]"):
        calibration.calibration_metrics(q)


def test_temperature_is_the_minimum(rng):
    difference = 5 * (rng.normal(0.5, 1, 300))
    found = calibration.fit_temperature(difference)
    expected = optimize.minimize_scalar(
        lambda log_t: np.logaddexp(0, -difference / np.exp(log_t)).mean(), bounds=(-5, 5), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(np.exp(expected.x), rel=1e-5)
    assert calibration.fit_temperature(10 * difference) == pytest.approx(10 * found)


def test_temperature_recovers_the_noise_of_labels(rng):
    reward = rng.normal(0, 2, 100_000)
    sign = np.where(rng.random(100_000) < 1 / (1 + np.exp(-reward)), 1, -1)
    assert calibration.fit_temperature(3 * reward * sign) == pytest.approx(3, rel=0.03)


def test_temperature_at_its_edges():
    assert calibration.fit_temperature([0.0, 0.0]) == 1
    assert calibration.fit_temperature([1.0, -1.0]) == math.inf
    assert calibration.fit_temperature([-1.0, -2.0]) == math.inf
    with pytest.raises(ValueError, match="no validation pair is lost"):
        calibration.fit_temperature([0.0, 1.0])


def test_members_are_standardised_before_they_are_compared(rng):
    truth = rng.normal(size=200)
    members = np.stack([truth, 100 + 50 * truth, np.full(200, 7.3)])  # offsets and scales are arbitrary
    found = calibration.standardised(members, members)
    assert found[0] == pytest.approx(found[1])
    assert found[0].mean() == pytest.approx(0, abs=1e-12)
    assert found[0].std() == pytest.approx(1)
    assert not found[2].any()  # one that says nothing
    held_out = calibration.standardised(members[:, :10], members)
    assert held_out == pytest.approx(found[:, :10])
    assert calibration.ensemble_mean(found[:2]) == pytest.approx(found[0])
    assert calibration.ensemble_worst([[1.0, -2.0], [0.5, 3.0]]).tolist() == [0.5, -2.0]
