"""Intervals that say what they are over.

* `Interval`: what every table shows; `variance_components` makes those over seeds and prompts.
* `student_interval`: Student's t over seeds, for curves and for statistics that are one number a seed.
* `half_width`: what a set of pairs can tell apart at all.
* Where nothing varies there are no ends: an interval without width would claim certainty, on however few items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from .student import student_quantile

ALL_ALIKE = "nothing (all alike)"
"""What an interval without ends is over, where several values were all the same."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Args:
        estimate: the statistic on the whole sample.
        low: lower end; NaN where nothing varies that it could be over.
        high: upper end.
        level: nominal coverage, in (0, 1).
        resampled: what a repetition would draw again, and how that is allowed for, in words.
    """

    estimate: float
    low: float
    high: float
    level: float
    resampled: str

    def within(self, lowest: float, highest: float) -> Interval:
        """Without what lies outside of the possible values, as beyond 0 and 1 for a rate."""
        low, high = (min(max(end, lowest), highest) for end in (self.low, self.high))  # NaN stays: it is never less
        return replace(self, low=low, high=high)


def student_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval.

    Args:
        values: one value a seed, shape (S,).
        level: nominal coverage.

    Returns:
        Its ends are NaN for one seed, and where all seeds have the same value.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, seeds = float(values.mean()), len(values)
    if seeds == 1 or np.ptp(values) == 0:
        return Interval(mean, np.nan, np.nan, level, "nothing (one seed)" if seeds == 1 else ALL_ALIKE)
    half = student_quantile((1 + level) / 2, seeds - 1) * float(values.std(ddof=1)) / math.sqrt(seeds)
    return Interval(mean, mean - half, mean + half, level, "seeds (Student's t)")


def half_width(n: float, rate: float, level: float = 0.95) -> float:
    """Half-width of Wilson's interval of a rate on n independent items: what a set of that size can tell apart at all.

    Args:
        n: number of items, or the effective number where they are weighted.
        rate: the rate, in 0..1.
        level: nominal coverage.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212; unlike the normal one it is not 0 at a rate of 0 or 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
