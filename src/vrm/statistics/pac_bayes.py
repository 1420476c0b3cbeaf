"""The generalisation bound of the paper (Theorem 5.1) as a formula; docs/theory.md says what it does and does not show.

Everything takes and gives arrays as well as numbers. KLs are in nats and summed over the sample, as in the theorem.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mcallester_bound(
    empirical_risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike
) -> float | NDArray[np.float64]:
    """R_hat + sqrt((KL + ln(1/delta) + ln n + 2) / (2n - 1)); at 1 and above it says nothing.

    Args:
        empirical_risk: mean 0-1 loss on the sample under the posterior, in 0..1.
        kl: KL(posterior || prior) in nats, >= 0; for Theorem 5.1 the sum over the sample.
        n: size of the sample, >= 1.
        delta: chance that the bound may fail with, in (0, 1).

    Returns:
        A number where all arguments are numbers, else an array of their common shape.

    Raises:
        ValueError: an argument is outside its range, or NaN.

    Source: McAllester (1999), "PAC-Bayesian model averaging", Theorem 1; VRM, Theorem 5.1.
    """
    risk, kl, n, delta = _checked(empirical_risk, kl, n, delta)
    bound = risk + np.sqrt((kl + _price(n, delta)) / (2 * n - 1))
    return float(bound) if np.ndim(bound) == 0 else bound


def largest_kl(empirical_risk: ArrayLike, n: ArrayLike, delta: ArrayLike) -> float | NDArray[np.float64]:
    """The KL at which `mcallester_bound` reaches 1: the bound says something below it only.

    Returns:
        In nats, for the whole sample; negative where the bound says nothing even without any KL.

    Args and Raises: as `mcallester_bound`.
    """
    risk, _, n, delta = _checked(empirical_risk, 0.0, n, delta)
    kl = (1 - risk) ** 2 * (2 * n - 1) - _price(n, delta)
    return float(kl) if np.ndim(kl) == 0 else kl


def _price(n: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
    """What confidence costs, in nats, beside the KL."""
    return np.log(1 / delta) + np.log(n) + 2


def _checked(
    risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    risk, kl, n, delta = (np.asarray(value, dtype=np.float64) for value in (risk, kl, n, delta))
    for good, what in (
        ((risk >= 0) & (risk <= 1), "the empirical risk must lie in 0..1"),
        (kl >= 0, "a KL is never below 0"),
        (n >= 1, "the sample needs at least one pair"),
        ((delta > 0) & (delta < 1), "delta must lie between 0 and 1"),
    ):
        if not np.all(good):
            raise ValueError(what)
    return risk, kl, n, delta
