"""Intervals that say what they are over, of a mean over few seeds and many prompts or over seeds alone; paired tests.

* `variance_components` (and `crossed_interval`, from values): seeds and prompts, from the variance that each adds.
* `resampled_intervals`: the same of statistics that are no means; prompts are drawn anew for their part.
* `student_interval`: Student's t over seeds, for curves and for statistics that are one number a seed.
* `half_width`: what a set of pairs can tell apart at all.
* `paired_test`: whether two methods differ on the same prompts; `holm`: what many such questions at once are worth.
* Where nothing varies there are no ends: an interval without width would claim certainty, on however few items.
* Student's t distribution is computed here, for real degrees of freedom: scipy would be a dependency for this alone.

How seeds and prompts are taken together:

* A value of a seed and a prompt is the mean, plus what the seed adds, plus what the prompt adds, plus the rest. Each
  part's share of the mean's variance is estimated apart and multiplied by the squared quantile of Student's t that its
  own degrees of freedom ask for: 4.3 for three seeds, 1.96 for hundreds of prompts.
* Seeds' means also differ by the rest, which the prompts' part holds already; 0.6 of it are subtracted. With the
  whole, a seeds' part estimated from two degrees of freedom is often 0 by chance, and coverage falls to 91 %.
* A p-value subtracts nothing. Where two degrees of freedom make a seeds' part of 0 by chance, what is left looks as
  sure as hundreds of prompts are: an interval of 95 % bears that, while a level of 0.05 / 54, which Holm's first step
  asks for, would be up to 19 times as large as it says where seeds differ (`tools/coverage.py`). With the whole it is
  kept over all mixtures; where only the rest varies the p-value is too large, and an interval that just excludes 0 may
  have one above 0.05.
* One seed: Student's t over prompts. All pairs right is no certainty.
* Why not the bootstrap: it takes every part for known. Simulated over all mixtures of the three parts, nominal 95 %:

  | seeds | this interval | crossed bootstrap | Satterthwaite's degrees of freedom |
  |--:|--:|--:|--:|
  | 2 | 88.9 to 98.7 % | 60.3 to 98.9 % | 84.0 to 96.8 % |
  | 3 | 93.3 to 97.7 % | 74.9 to 99.5 % | 90.4 to 97.0 % |
  | 5 | 94.7 to 97.6 % | 84.5 to 99.7 % | 93.4 to 97.2 % |

  (`tools/coverage.py`: 100,000 draws for each of 66 mixtures, 100 prompts.) The bootstrap is too narrow where seeds
  differ a lot, and too wide where only the rest varies, as it often does in a difference between two models.
  `tests/statistics/test_intervals_components.py` simulates some of the mixtures on whole data.
* It is symmetric, so that near 0 or 1 it may leave the range of a rate: callers cut it there (`Interval.within`). With
  fewer than five expected losses it is too narrow: 80 % for one seed's accuracy of 98 % on 150 pairs (same script).
* Of a mean it is a formula: no generator, the same numbers always.

Sources: Howe (1974), J. Am. Stat. Assoc. 69, 789-794, for quantiles part by part; Owen (2007), "The pigeonhole
bootstrap", for the parts of a mean over a crossed layout; Cochran (1977), "Sampling techniques", for ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

# With t = sqrt(degrees) tan(a) the density of |t| is that of cos(a)^(degrees - 1) over this finite range.
_ANGLES = np.linspace(0.0, np.pi / 2, 200_001)


@lru_cache(maxsize=1024)
def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t to six digits, for a probability of at least 1/2 and at least one degree of freedom."""
    return float(student_critical(2 * (1 - probability), degrees))


def student_critical(alpha: ArrayLike, degrees: float) -> NDArray[np.float64]:
    """The value that |t| exceeds with probability `alpha`.

    Args:
        alpha: two-sided probabilities in (0, 1], any shape.
        degrees: degrees of freedom, at least 1.

    Returns:
        The shape of `alpha`; 0 where it is 1.
    """
    density = np.cos(_ANGLES) ** (degrees - 1)
    steps = density[1:] + density[:-1]
    beyond = np.append(np.cumsum(steps[::-1])[::-1], 0.0)  # mass above each angle; summed from the tail, which is small
    angle = np.interp(alpha, beyond[::-1] / beyond[0], _ANGLES[::-1])
    return np.sqrt(degrees) * np.tan(angle)


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


@dataclass(frozen=True)
class Stratum:
    """Values of one stratum, summed within clusters; S seeds, C clusters.

    Args:
        share: weight of the stratum's mean in the statistic; shares sum to 1.
        sums: weighted sum of the values of each cluster, shape (S, C).
        sizes: sum of the weights of each cluster's values, shape (C,); their number where nothing is weighted.
    """

    share: float
    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each seed, shape (S,)."""
        return self.sums.sum(axis=1) / self.sizes.sum()


def stratify(
    values: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> list[Stratum]:
    """The strata of a mean, in the order of their names.

    Args:
        values: one value a seed and pair, shape (S, N) or (N,).
        clusters: the prompt of each pair, shape (N,).
        strata: name of each pair's stratum, shape (N,). None: one stratum.
        weights: weight of each stratum's mean. None: a stratum counts as much as its pairs.
        item_weights: weight of each pair within its stratum, shape (N,), > 0. None: every pair counts the same.

    Raises:
        ValueError: there is no pair, shapes disagree, a stratum has no weight, or a pair's weight is not above 0.
    """
    grid, clusters = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(clusters)
    pairs = grid.shape[1]
    if pairs == 0:
        raise ValueError("no pair to average over")
    names = np.full(pairs, "") if strata is None else np.asarray(strata)
    items = np.ones(pairs) if item_weights is None else np.asarray(item_weights, dtype=np.float64)
    if any(array.shape != (pairs,) for array in (clusters, names, items)):
        raise ValueError(f"clusters, strata and item weights need one entry for each of the {pairs} pairs")
    if not (np.isfinite(items) & (items > 0)).all():
        raise ValueError("the weight of a pair must be a number above 0; leave pairs that do not count out")
    found = sorted(set(names.tolist()))
    missing = [name for name in found if weights is not None and name not in weights]
    if missing:
        raise ValueError(f"no weight for stratum {', '.join(missing)}")
    members = [names == name for name in found]
    mass = np.array([items[m].sum() if weights is None else weights[n] for n, m in zip(found, members, strict=True)])
    return [
        _sum_clusters(grid[:, inside], clusters[inside], items[inside], float(share))
        for inside, share in zip(members, mass / mass.sum(), strict=True)
    ]


def _sum_clusters(grid: NDArray[np.float64], clusters: NDArray, items: NDArray[np.float64], share: float) -> Stratum:
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row * items) for row in grid])
    return Stratum(share, sums, np.bincount(index, weights=items))


SUBTRACTED = 0.6
"""Share of the rest that is taken off the variance between seeds; by simulation, see above."""

_ROUNDING = 1e-12
"""Standard error, as a share of the mean, that is rounding: a constant like 0.1 is not its own mean to the last bit."""

_ALPHAS = np.geomspace(1e-9, 1.0, 4001)
"""Where p-values are looked up; smaller ones are given as 1e-9."""


@dataclass(frozen=True)
class VarianceComponents:
    """What the variance of a mean over seeds and prompts is made of.

    Args:
        estimate: the mean.
        seeds: what the seeds add to its variance; 0 for one seed.
        prompts: what the prompts add, and the rest; 0 for one prompt.
        seed_degrees: degrees of freedom of `seeds`; 0 for one seed.
        prompt_degrees: degrees of freedom of `prompts`; 0 for one prompt.
        between: variance of the seeds' means, by their number, of which `seeds` is what the rest leaves.
    """

    estimate: float
    seeds: float
    prompts: float
    seed_degrees: float
    prompt_degrees: float
    between: float

    @property
    def varies(self) -> str:
        """What the interval covers, in words."""
        parts = ["seeds"] * (self.seed_degrees > 0) + ["prompts"] * (self.prompt_degrees > 0)
        one = "one seed" if not self.seed_degrees else "one prompt" if not self.prompt_degrees else ""
        return " x ".join(parts) + f" ({one + ', ' if one else ''}Student's t)" if parts else "nothing"

    @property
    def all_alike(self) -> bool:
        """Whether no part varies, but for rounding."""
        return float(np.sqrt(self.seeds + self.prompts)) <= _ROUNDING * abs(self.estimate)

    def interval(self, level: float = 0.95) -> Interval:
        """Its interval; the ends are NaN where there is one seed and one prompt, and where nothing varies."""
        if not self.seed_degrees and not self.prompt_degrees:
            return Interval(self.estimate, np.nan, np.nan, level, "nothing (one seed, one prompt)")
        if self.all_alike:
            return Interval(self.estimate, np.nan, np.nan, level, ALL_ALIKE)
        parts = self._parts(self.seeds)
        half = float(np.sqrt(sum(v * student_quantile((1 + level) / 2, d) ** 2 for v, d in parts)))
        return Interval(self.estimate, self.estimate - half, self.estimate + half, level, self.varies)

    def p_value(self) -> float:
        """Against 0, two-sided, with all that differs between seeds; NaN where nothing varies at all."""
        if self.all_alike:
            return np.nan
        parts = self._parts(self.between)
        squares = sum(v * student_critical(_ALPHAS, d) ** 2 for v, d in parts)  # falls from left to right
        return float(np.exp(np.interp(self.estimate**2, squares[::-1], np.log(_ALPHAS)[::-1])))

    def _parts(self, of_seeds: float) -> list[tuple[float, float]]:
        """Variance and degrees of freedom of each part that there is."""
        parts = ((of_seeds, self.seed_degrees), (self.prompts, self.prompt_degrees))
        return [(variance, degrees) for variance, degrees in parts if degrees]


def variance_components(
    values: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> VarianceComponents:
    """Split the variance of a (stratified, weighted) mean.

    Args and Raises: as `stratify`. A stratum of one prompt adds nothing to the prompts' part.
    """
    parts = stratify(values, clusters, strata, weights, item_weights)
    means = sum(part.share * part.means for part in parts)  # (S,)
    split = [_within(part) for part in parts if part.sizes.size > 1]
    prompts, rest = sum(p for p, _, _ in split), sum(r for _, r, _ in split)
    # Satterthwaite's degrees of freedom over the strata; all of them where nothing varies
    squares = sum(p**2 / degrees for p, _, degrees in split)
    prompt_degrees = prompts**2 / squares if squares > 0 else sum(degrees for *_, degrees in split)
    between = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    seeds = max(between - SUBTRACTED * rest, 0.0)
    return VarianceComponents(float(means.mean()), seeds, prompts, len(means) - 1, prompt_degrees, between)


def crossed_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    level: float = 0.95,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> Interval:
    """Mean over seeds of a (stratified, weighted) mean over pairs, with an interval over seeds and prompts.

    Args and Raises: as `stratify`; `level` is the nominal coverage.
    """
    return variance_components(values, clusters, strata, weights, item_weights).interval(level)


DRAWS = 200
"""Draws of the prompts behind a standard error, which is then known to 5 %."""


def resampled_intervals(
    measure: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    clusters: ArrayLike,
    level: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> list[Interval]:
    """Intervals over seeds and prompts of M statistics that need not be means (an area, a calibration error).

    The prompts' part of the variance, and the rest's, are those of statistics on prompts drawn anew; the parts are put
    together as those of a mean are.

    Args:
        measure: from the places of any number of pairs to the statistics of S seeds on them, shape (S, M).
        clusters: the prompt of each pair, shape (N,).
        level: nominal coverage.
        rng: draws prompts.
        draws: how many times.

    Source: Efron and Tibshirani (1993), "An introduction to the bootstrap", chapter 6, for standard errors.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    prompts = int(index.max()) + 1
    places = np.split(np.argsort(index, kind="stable"), np.bincount(index).cumsum()[:-1])
    whole = measure(np.arange(len(index)))  # (S, M)
    drawn = np.stack(  # (draws, S, M)
        [measure(np.concatenate([places[i] for i in rng.integers(prompts, size=prompts)])) for _ in range(draws)]
    )
    seeds, common = len(whole), drawn.mean(axis=1)
    by_prompts = common.var(axis=0, ddof=1) if prompts > 1 else np.zeros(whole.shape[1])
    between = by_seeds = np.zeros(whole.shape[1])
    if seeds > 1:
        rest = (drawn - common[:, None]).var(axis=0, ddof=1).sum(axis=0) / (seeds * (seeds - 1))
        between = whole.var(axis=0, ddof=1) / seeds
        by_seeds = np.maximum(between - SUBTRACTED * rest, 0.0)
    return [
        VarianceComponents(mean, of_seeds, of_prompts, seeds - 1, prompts - 1, whole_part).interval(level)
        for mean, of_seeds, of_prompts, whole_part in zip(
            whole.mean(axis=0).tolist(), by_seeds.tolist(), by_prompts.tolist(), between.tolist(), strict=True
        )
    ]


def _within(part: Stratum) -> tuple[float, float, int]:
    """Variance of a stratum's share of the mean by its C prompts, the rest's part of that, and degrees of freedom."""
    seeds, prompts = part.sums.shape
    # what each prompt adds to each seed's mean: linear in the values, 0 in sum over the prompts
    added = part.share * (part.sums - part.means[:, None] * part.sizes) / part.sizes.sum()  # (S, C)
    common = added.mean(axis=0)
    correction = prompts / (prompts - 1)
    rest = correction * float(((added - common) ** 2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0
    return correction * float((common**2).sum()), rest, prompts - 1


# Paired tests: whether two methods differ on the same prompts, and what many such questions at once are worth.
#
# * Several seeds. The null: the two *methods* do equally well on average over trainings and prompts. Seeds are random
#   too, so the test is that of `variance_components`, with all that differs between seeds. Flipping the signs
#   of whole seeds would be exact, but three seeds have eight flips, so that p is never below 1/4. Flipping those of
#   prompts takes the trained models for the methods: where the seeds' differences have a standard deviation of 8
#   points, 150 prompts reject a true null in a quarter of the cases, 600 prompts in half of them.
# * One seed. The null: the two *trained models* do equally well on average over prompts. Signs of whole prompts are
#   flipped, which is exact where a prompt is as likely to favour one as the other by the same amount (McNemar's exact
#   test, for wins and losses), and right for large sets where only the means are equal. It says nothing about another
#   training.
# * Level at a nominal 5 %: at most that over all mixtures of variance for 3 seeds (`tools/coverage.py`; low where only
#   the rest varies), 5 % for one seed.

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
        strata, weights, item_weights: as `stratify`.

    Raises:
        ValueError: the two have other shapes, a value is not finite, or as `stratify`.
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
