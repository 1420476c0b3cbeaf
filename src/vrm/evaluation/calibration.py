"""How far a preference probability can be trusted, and two ways to better ones after training.

* q = P(chosen wins), shape (N,). Its confidence is c = max(q, 1 - q); the pair is won where q > 1/2, a tie is lost.
* Metrics read q alone, so any model that states a probability can be compared. A reward model's is the sigmoid of its
  reward's difference, a Gaussian reward's is that with the noise integrated out, or Thurstone's where it was trained
  on that, and a VRM's the mean of the sigmoid over draws of its posterior, w drawn once for both responses.
* Pairs of equal confidence have no order: what depends on one is the mean over all of their orders.
* Seed ensembles and temperature scaling are fitted on validation pairs, never on what is measured.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vrm.models.base import RewardOutput

Floats = NDArray[np.float64]
ECE_BINS = 15
QUADRATURE_NODES = 20
"""Gauss-Hermite nodes of E sigmoid(z)."""
WIDE = 2.0
"""Standard deviation from which the sigmoid is too steep for those nodes."""
LOGISTIC_NODES = 400
_TINY = np.finfo(float).tiny


# Probabilities


def preference_probability(difference: ArrayLike, temperature: float = 1.0) -> Floats:
    """sigmoid(difference / temperature), Bradley-Terry.

    Args:
        difference: reward of the chosen response less that of the rejected one, any shape.
        temperature: see `fit_temperature`; infinite gives 1/2.
    """
    return np.exp(_log_sigmoid(np.asarray(difference, dtype=float) / temperature))


def thurstone_probability(difference: ArrayLike, variance: ArrayLike) -> Floats:
    """Phi(difference / sqrt(variance)): P(chosen's reward is higher) where both are Gaussian and independent.

    Args:
        difference: of the mean rewards, shape (N,).
        variance: sum of both rewards' variances, shape (N,), > 0.
    """
    x = np.asarray(difference, dtype=float) / np.sqrt(np.asarray(variance, dtype=float))
    return 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2))


def marginal_probability(difference: ArrayLike, variance: ArrayLike) -> Floats:
    """E sigmoid(z), z ~ N(difference, variance): Bradley-Terry with the reward's noise integrated out.

    Args:
        difference: of the mean rewards, shape (N,).
        variance: of the difference, shape (N,); 0 gives `preference_probability`.
    """
    mean, spread = np.broadcast_arrays(np.asarray(difference, dtype=float), np.sqrt(np.asarray(variance, dtype=float)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    found = preference_probability(mean[..., None] + spread[..., None] * nodes) @ (weights / weights.sum())
    if not (wide := spread > WIDE).any():
        return found
    # sigmoid(z) is the chance that a logistic number is below z: of the two, the normal one is the smooth one now
    u = (np.arange(LOGISTIC_NODES) + 0.5) / LOGISTIC_NODES
    below = mean[wide][..., None] - np.log(u / (1 - u))
    found[wide] = thurstone_probability(below, np.square(spread[wide])[..., None]).mean(-1)
    return found


def pair_probability(
    output: RewardOutput, chosen: NDArray[np.intp], rejected: NDArray[np.intp], rated: bool = False
) -> Floats | None:
    """P(chosen wins) of N pairs as the model itself has it; None where its rewards say nothing of a chance.

    Args:
        output: of any number of texts.
        chosen, rejected: each pair's rows in `output`, shape (N,).
        rated: of the rated-aspect reward alone.
    """
    if output.link is None:
        return None
    samples = output.rated_samples if rated else output.samples
    if samples is not None:
        return preference_probability(samples[chosen] - samples[rejected]).mean(axis=1)
    means = output.rated if rated else output.mean
    difference = np.asarray(means[chosen], dtype=float) - means[rejected]
    if output.link == "means" or output.std is None:
        return preference_probability(difference)
    variance = np.square(output.std[chosen].astype(float)) + np.square(output.std[rejected])
    return (thurstone_probability if output.link == "thurstone" else marginal_probability)(difference, variance)


def _log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0.0, -x)


# Metrics


def negative_log_likelihood(q: ArrayLike) -> float:
    """Mean of -ln q, in nats."""
    return float(-np.log(np.maximum(_probabilities(q), _TINY)).mean())


def brier(q: ArrayLike, truth: ArrayLike | None = None) -> float:
    """Mean of (truth - q)^2.

    Args:
        q: P(chosen wins), shape (N,).
        truth: known probabilities, shape (N,); None: the chosen response wins, 1.
    """
    q = _probabilities(q)
    return float(np.square((1.0 if truth is None else np.asarray(truth, dtype=float)) - q).mean())


def expected_calibration_error(q: ArrayLike, bins: int = ECE_BINS, equal_mass: bool = False) -> float:
    """Sum over bins of N_m / N |share won - mean confidence|.

    Args:
        q: P(chosen wins), shape (N,).
        bins: bins of confidence on [1/2, 1].
        equal_mass: edges at quantiles of the confidence; otherwise at equal distances. Equal confidences share a bin.

    Source: Naeini et al. 2015; Guo et al. 2017, with bins on [1/2, 1], where confidence in one of two can be.
    """
    q = _probabilities(q)
    confidence, won = np.maximum(q, 1 - q), q > 0.5
    inner = np.arange(1, bins) / bins
    edges = np.quantile(confidence, inner) if equal_mass else 0.5 + 0.5 * inner
    place = np.searchsorted(edges, confidence, side="right")
    gap = np.bincount(place, won - confidence, minlength=bins)  # N_m (share won - mean confidence)
    return float(np.abs(gap).sum() / len(q))


def area_under_risk_coverage(q: ArrayLike) -> float:
    """AURC: the share of errors among the j most confident pairs, a mean over j = 1..N.

    Source: Geifman et al. 2019 (bias-reduced uncertainty estimation), section 2.
    """
    errors = _errors_by_confidence(q)
    return float((errors / np.arange(1, len(errors) + 1)).mean())


def excess_area_under_risk_coverage(q: ArrayLike) -> float:
    """AURC less that of an oracle with the same errors, which is least confident of exactly those; 0 at best."""
    errors = _errors_by_confidence(q)
    n, wrong = len(errors), round(errors[-1])
    covered = np.arange(1, n + 1)
    oracle = np.maximum(covered - (n - wrong), 0) / covered
    return float((errors / covered - oracle).mean())


def selective_accuracy(q: ArrayLike, coverage: float) -> float:
    """Share won among the most confident pairs.

    Args:
        q: P(chosen wins), shape (N,).
        coverage: share of the pairs that are answered, in (0, 1]; rounded up to a whole pair.

    Raises:
        ValueError: coverage is not in (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage:g}, and is a share of the pairs, above 0 and up to 1")
    errors = _errors_by_confidence(q)
    answered = math.ceil(round(coverage * len(errors), 9))  # 0.8 x 15 is 12.000000000000002
    return float(1 - errors[answered - 1] / answered)


def calibration_metrics(q: ArrayLike) -> dict[str, float]:
    """Every metric of this module that needs nothing but q, by the name that tables have for it."""
    return {
        "nll": negative_log_likelihood(q),
        "brier": brier(q),
        "ece": expected_calibration_error(q),
        "ece_equal_mass": expected_calibration_error(q, equal_mass=True),
        "aurc": area_under_risk_coverage(q),
        "excess_aurc": excess_area_under_risk_coverage(q),
        "accuracy_at_50": selective_accuracy(q, 0.5),
        "accuracy_at_80": selective_accuracy(q, 0.8),
    }


def _errors_by_confidence(q: ArrayLike) -> Floats:
    """Expected number of errors among the j most confident pairs, j = 1..N, over all orders of equal ones; (N,)."""
    q = _probabilities(q)
    lost = (q <= 0.5).astype(float)
    _, place, size = np.unique(-np.maximum(q, 1 - q), return_inverse=True, return_counts=True)
    rate = np.bincount(place, lost) / size  # any of a group's pairs is as likely to come next
    return np.repeat(rate, size).cumsum()


def _probabilities(q: ArrayLike) -> Floats:
    """q as an array.

    Raises:
        ValueError: there is none, or one is not in [0, 1].
    """
    q = np.asarray(q, dtype=float)
    if q.size == 0:
        raise ValueError("no pair to measure probabilities on")
    outside = int((~((q >= 0) & (q <= 1))).sum())  # NaN is outside too
    if outside:
        raise ValueError(f"{outside} of {q.size} probabilities are not in [0, 1]")
    return q


# After training


def fit_temperature(difference: ArrayLike) -> float:
    """The temperature that minimises the mean of -ln sigmoid(difference / T) over validation pairs.

    The loss is convex in 1/T, so its derivative is bisected. Where it falls all the way to 1/T = 0 the rewards say
    nothing, and T is infinite; where every difference is 0 any T is as good, and T is 1.

    Args:
        difference: reward of the chosen response less that of the rejected one, shape (N,).

    Raises:
        ValueError: no difference is negative and some are positive: no finite temperature is the best.

    Source: Guo et al. 2017 (On calibration of modern neural networks), section 4.2.
    """
    difference = np.asarray(difference, dtype=float)
    if not difference.any():
        return 1.0
    if difference.mean() <= 0:
        return math.inf
    if difference.min() >= 0:
        raise ValueError("no validation pair is lost, so no temperature is the best: fit it on more pairs")

    def slope(inverse: float) -> float:
        return float(-(difference * np.exp(_log_sigmoid(-inverse * difference))).mean())

    low, high = 0.0, 1.0 / np.abs(difference).max()
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1.0 / (0.5 * (low + high))


def standardised(rewards: ArrayLike, reference: ArrayLike) -> Floats:
    """Members' rewards in standard deviations of their own rewards on reference texts, shape (M, N).

    Bradley-Terry leaves every member's offset and prompt-wide scale open, so members have to share both before they are
    averaged or compared. A member that gives all reference texts one reward becomes 0.

    Args:
        rewards: of M members on N texts, shape (M, N).
        reference: of the same members on the texts of the validation split, shape (M, R).
    """
    rewards, reference = np.asarray(rewards, dtype=float), np.asarray(reference, dtype=float)
    constant = np.ptp(reference, axis=1, keepdims=True) == 0
    spread = np.where(constant, 1.0, reference.std(axis=1, keepdims=True))
    return np.where(constant, 0.0, (rewards - reference.mean(axis=1, keepdims=True)) / spread)


def ensemble_mean(members: ArrayLike) -> Floats:
    """Mean over standardised members, (M, N) to (N,)."""
    return np.asarray(members, dtype=float).mean(axis=0)


def ensemble_worst(members: ArrayLike) -> Floats:
    """Least of the standardised members of each text, (M, N) to (N,): worst-case optimisation.

    Source: Coste et al. 2023 (reward model ensembles, arXiv 2310.02743).
    """
    return np.asarray(members, dtype=float).min(axis=0)
