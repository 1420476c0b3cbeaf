"""Whether two methods differ on the same prompts, and what many such questions at once are worth.

* Several seeds. The null: the two *methods* do equally well on average over trainings and prompts. Seeds are random
  too, so the test is that of `variance_components`, which rejects where its interval leaves 0 out. Flipping the signs
  of whole seeds would be exact, but three seeds have eight flips, so that p is never below 1/4. Flipping those of
  prompts takes the trained models for the methods: where the seeds' differences have a standard deviation of 8 points,
  150 prompts reject a true null in a quarter of the cases, 600 prompts in half of them.
* One seed. The null: the two *trained models* do equally well on average over prompts. Signs of whole prompts are
  flipped, which is exact where a prompt is as likely to favour one as the other by the same amount (McNemar's exact
  test, for wins and losses), and right for large sets where only the means are equal. It says nothing about another
  training.
* Level, simulated at a nominal 5 %: 2 to 7 % over all mixtures of variance for 3 seeds (low where only the rest
  varies), 5 % for one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vrm.statistics.intervals import Interval, stratify, variance_components

FLIPS = 9999
"""Random sign flips behind a p-value of one seed."""

_SIGNS_AT_ONCE = 4_000_000  # signs held in memory at once, 8 bytes each


@dataclass(frozen=True)
class PairedTest:
    """A difference of two methods on the same prompts.

    Args:
        difference: mean of the first less that of the second, with its interval.
        p_value: two-sided, against no difference.
        test: how it was had, in words.
    """

    difference: Interval
    p_value: float
    test: str


def paired_test(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike,
    rng: np.random.Generator,
    level: float = 0.95,
    flips: int = FLIPS,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> PairedTest:
    """Compare two methods on the same pairs; the module says what the null is.

    Args:
        first, second: one value a seed and pair, each of shape (S, N) or (N,). Row s of one is paired with row s of the
            other, which is as good as any pairing where the trainings are independent.
        clusters: the prompt of each pair, shape (N,).
        rng: source of the sign flips; not used with several seeds.
        level: nominal coverage of the interval.
        flips: random sign flips; no p-value is below 1 / (flips + 1).
        strata, weights, item_weights: as `strata.stratify`.

    Raises:
        ValueError: the two have other shapes, a value is not finite, or as `strata.stratify`.
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if first.shape != second.shape:
        raise ValueError(
            f"{first.shape} values of one method, {second.shape} of the other: a paired test needs the same"
        )
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("a value is not finite; leave such pairs out of both methods")
    components = variance_components(difference, clusters, strata, weights, item_weights)
    interval = components.interval(level)
    if len(difference) > 1 and not components.all_alike:
        return PairedTest(interval, components.p_value(), interval.resampled)
    parts = stratify(difference, clusters, strata, weights, item_weights)
    added = np.concatenate([part.share * part.sums.mean(axis=0) / part.sizes.sum() for part in parts])  # one a prompt
    return PairedTest(interval, sign_flip(added, rng, flips), f"{flips:,} sign flips over prompts")


def sign_flip(values: ArrayLike, rng: np.random.Generator, flips: int = FLIPS) -> float:
    """p-value of a sum against all its terms being as likely positive as negative.

    Args:
        values: the terms, shape (C,).
        rng: source of the flips.
        flips: random flips; the sum itself counts as one more, so that the test is never too small.

    Source: Phipson and Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9, 39, for counting the sum itself.
    """
    terms = np.asarray(values, dtype=np.float64)
    terms = terms[terms != 0]
    # sums that differ by rounding alone are equal
    observed = abs(terms.sum()) - 1e-9 * np.abs(terms).sum()
    rows = max(1, _SIGNS_AT_ONCE // max(terms.size, 1))
    reached = 0
    for start in range(0, flips, rows):
        signs = 2.0 * rng.integers(0, 2, (min(rows, flips - start), terms.size), dtype=np.int8) - 1.0
        reached += int((np.abs(signs @ terms) >= observed).sum())
    return (1 + reached) / (1 + flips)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted for their number, so that the chance of any false rejection keeps the level.

    Valid whatever the tests share. NaN stays NaN and does not count.

    Args:
        p_values: shape (M,).

    Returns:
        Shape (M,), in the same order.

    Source: Holm (1979), Scand. J. Stat. 6, 65-70.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def p_text(value: float) -> str:
    """A p-value for people."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def family_note(names: Sequence[str], adjusted: ArrayLike, level: float) -> str:
    """How many tests a table has, how their number is allowed for, and which are left.

    Args:
        names: what each test is about.
        adjusted: their p-values by `holm`, NaN for what is no test, shape (M,).
        level: of the table's intervals; 1 less this is the level of the tests.
    """
    p = np.asarray(adjusted, dtype=np.float64)
    tests, alpha = int(np.isfinite(p).sum()), 1 - level
    left = [name for name, value in zip(names, p, strict=True) if value < alpha]
    return (
        f"{tests} tests, so some of the plain p-values are small by chance alone; p, Holm: adjusted for all {tests} "
        f"together by Holm's step-down method. Below {alpha:.2g} remain: {'; '.join(left) if left else 'none'}."
    )
