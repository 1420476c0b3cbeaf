"""An interval for a mean over few seeds and many prompts, from the variance that each of them contributes.

* A value of a seed and a prompt is the mean, plus what the seed adds, plus what the prompt adds, plus the rest. Each
  part's share of the mean's variance is estimated apart and multiplied by the squared quantile of Student's t that its
  own degrees of freedom ask for: 4.3 for three seeds, 1.96 for hundreds of prompts.
* Seeds' means also differ by the rest, which the prompts' part holds already; 0.6 of it are subtracted. With the
  whole, a seeds' part estimated from two degrees of freedom is often 0 by chance, and coverage falls to 91 %.
* One seed: Student's t over prompts. Where no part varies there are no ends: all pairs right is no certainty.
* Why not the bootstrap: it takes every part for known. Simulated over all mixtures of the three parts, nominal 95 %:

  | seeds | this interval | crossed bootstrap | Satterthwaite's degrees of freedom |
  |--:|--:|--:|--:|
  | 2 | 88.9 to 98.7 % | 60.3 to 98.9 % | 84.0 to 96.8 % |
  | 3 | 93.3 to 97.7 % | 74.9 to 99.5 % | 90.4 to 97.0 % |
  | 5 | 94.7 to 97.6 % | 84.5 to 99.7 % | 93.4 to 97.2 % |

  (`tools/coverage.py`: 100,000 draws for each of 66 mixtures, 100 prompts.) The bootstrap is too narrow where seeds
  differ a lot, and too wide where only the rest varies, as it often does in a difference between two models.
  `tests/reporting/test_variance_components.py` simulates some of the mixtures on whole data.
* It is symmetric, so that near 0 or 1 it may leave the range of a rate: callers cut it there (`Interval.within`). With
  fewer than five expected losses it is too narrow: 80 % for one seed's accuracy of 98 % on 150 pairs (same script).
* It is a formula: no generator, the same numbers always.

Sources: Howe (1974), J. Am. Stat. Assoc. 69, 789-794, for quantiles part by part; Owen (2007), "The pigeonhole
bootstrap", for the parts of a mean over a crossed layout; Cochran (1977), "Sampling techniques", for ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .stats import ALL_ALIKE, Interval
from .strata import Stratum, stratify
from .student import student_critical, student_quantile

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
    """

    estimate: float
    seeds: float
    prompts: float
    seed_degrees: float
    prompt_degrees: float

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
        half = float(np.sqrt(sum(v * student_quantile((1 + level) / 2, d) ** 2 for v, d in self._parts)))
        return Interval(self.estimate, self.estimate - half, self.estimate + half, level, self.varies)

    def p_value(self) -> float:
        """One less the level at which the interval's end meets 0; NaN where nothing varies at all."""
        if self.all_alike:
            return np.nan
        squares = sum(v * student_critical(_ALPHAS, d) ** 2 for v, d in self._parts)  # falls from left to right
        return float(np.exp(np.interp(self.estimate**2, squares[::-1], np.log(_ALPHAS)[::-1])))

    @property
    def _parts(self) -> list[tuple[float, float]]:
        """Variance and degrees of freedom of each part that there is."""
        parts = ((self.seeds, self.seed_degrees), (self.prompts, self.prompt_degrees))
        return [(variance, degrees) for variance, degrees in parts if degrees]


def variance_components(
    values: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> VarianceComponents:
    """Split the variance of a (stratified, weighted) mean.

    Args and Raises: as `strata.stratify`. A stratum of one prompt adds nothing to the prompts' part.
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
    return VarianceComponents(float(means.mean()), seeds, prompts, len(means) - 1, prompt_degrees)


def crossed_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    level: float = 0.95,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> Interval:
    """Mean over seeds of a (stratified, weighted) mean over pairs, with an interval over seeds and prompts.

    Args and Raises: as `strata.stratify`; `level` is the nominal coverage.
    """
    return variance_components(values, clusters, strata, weights, item_weights).interval(level)


def _within(part: Stratum) -> tuple[float, float, int]:
    """Variance of a stratum's share of the mean by its C prompts, the rest's part of that, and degrees of freedom."""
    seeds, prompts = part.sums.shape
    # what each prompt adds to each seed's mean: linear in the values, 0 in sum over the prompts
    added = part.share * (part.sums - part.means[:, None] * part.sizes) / part.sizes.sum()  # (S, C)
    common = added.mean(axis=0)
    correction = prompts / (prompts - 1)
    rest = correction * float(((added - common) ** 2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0
    return correction * float((common**2).sum()), rest, prompts - 1
