"""Coverage of nominal 95 % intervals: the formula of the tables against bootstraps, by simulation.

    .venv/bin/python tools/coverage.py

prints the tables of docs/decisions.md, "Statistics"; seeded, some seconds.

* Means over seeds and prompts: the three parts of the variance (seeds, prompts, the rest) in tenths, every mixture of
  them. A draw is the mean and its mean squares, which are independent for Gaussian values; no data are made. What the
  crossed ("pigeonhole") bootstrap estimates follows from the same mean squares (Owen 2007); its interval is taken to be
  normal. Satterthwaite's has one variance, own + prompts, with the degrees of freedom that match its first two moments.
* Levels of the test against 0, over the same mixtures: exact in the mean, averaged over draws of the mean squares.
* Accuracies of one seed: exact, as a sum over the binomial distribution; wins and losses of independent prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vrm.statistics.intervals import SUBTRACTED, crossed_interval, student_quantile

DRAWS, PROMPTS, TENTHS = 100_000, 100, 10
UPPER = 0.975  # quantile of a two-sided 95 % interval
LEVELS = (0.05, 0.01, 0.05 / 54)
"""Nominal levels; the last is Holm's first step on the demo's 54 comparisons."""
ACCURACIES = ((150, 0.98), (300, 0.97), (300, 0.98), (600, 0.98), (150, 0.9), (600, 0.7))


def mixtures() -> Iterator[tuple[float, float, float]]:
    """Shares of seeds, prompts and the rest in the variance of the mean, which is 1."""
    for seeds in range(TENTHS + 1):
        for prompts in range(TENTHS + 1 - seeds):
            yield seeds / TENTHS, prompts / TENTHS, (TENTHS - seeds - prompts) / TENTHS


def half_widths(
    seeds: int, mixture: tuple[float, float, float], rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Half-widths of `DRAWS` intervals, of each kind."""
    between, prompts, rest = mean_squares(seeds, mixture, rng)
    own = np.maximum(between - SUBTRACTED * rest, 0.0)
    squares = [student_quantile(UPPER, degrees) ** 2 for degrees in (seeds - 1, PROMPTS - 1)]
    drawn = bootstrap_variance(between, prompts, rest, seeds, PROMPTS)
    degrees = (own + prompts) ** 2 / (own**2 / (seeds - 1) + prompts**2 / (PROMPTS - 1))
    known = np.geomspace(seeds - 1, seeds + PROMPTS, 50)
    quantiles = np.interp(np.log(degrees), np.log(known), [student_quantile(UPPER, value) for value in known])
    return {
        "formula": np.sqrt(squares[0] * own + squares[1] * prompts),
        "crossed bootstrap": NormalDist().inv_cdf(UPPER) * np.sqrt(drawn),
        "Satterthwaite": quantiles * np.sqrt(own + prompts),
    }


def mean_squares(
    seeds: int, mixture: tuple[float, float, float], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Of seeds' means, prompts' means and the rest, as their parts of the mean's variance, shape (DRAWS,) each."""
    of_seeds, of_prompts, of_rest = mixture
    parts = (
        (of_seeds + of_rest, seeds - 1),
        (of_prompts + of_rest, PROMPTS - 1),
        (of_rest, (seeds - 1) * (PROMPTS - 1)),
    )
    return [expected * rng.chisquare(degrees, DRAWS) / degrees for expected, degrees in parts]


def levels(seeds: int, subtracted: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Lowest and highest true level over all mixtures, for each of `LEVELS`."""
    found = []
    for mixture in mixtures():
        between, prompts, rest = mean_squares(seeds, mixture, rng)
        own, row = np.maximum(between - subtracted * rest, 0.0), []
        for alpha in LEVELS:
            squares = [student_quantile(1 - alpha / 2, degrees) ** 2 for degrees in (seeds - 1, PROMPTS - 1)]
            beyond = np.sqrt(squares[0] * own + squares[1] * prompts)
            row.append(float(np.mean([math.erfc(value / math.sqrt(2)) for value in beyond[:: DRAWS // 20_000]])))
        found.append(row)
    return [(min(column), max(column)) for column in zip(*found, strict=True)]


def bootstrap_variance(between: ArrayLike, common: ArrayLike, rest: ArrayLike, seeds: int, prompts: int) -> ArrayLike:
    """Variance of the mean over crossed resamples.

    Args:
        between: variance of the seeds' means, by their number.
        common: variance of the prompts' means, by theirs.
        rest: mean square of the interaction, by the number of values.
        seeds, prompts: how many there are; resampling few of them loses some of their variance.
    """
    kept_of_seeds, kept_of_prompts = 1 - 1 / seeds, 1 - 1 / prompts
    return kept_of_seeds * between + kept_of_prompts * common + kept_of_seeds * kept_of_prompts * rest


def over_mixtures(seeds: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Lowest and highest coverage in percent, of each kind."""
    covered: dict[str, list[float]] = {}
    for mixture in mixtures():
        mean = np.abs(rng.standard_normal(DRAWS))
        for kind, half in half_widths(seeds, mixture, rng).items():
            covered.setdefault(kind, []).append(100 * float((mean <= half).mean()))
    return {kind: (min(values), max(values)) for kind, values in covered.items()}


def of_accuracy(pairs: int, accuracy: float) -> dict[str, float]:
    """Coverage in percent of the intervals of one seed's accuracy on so many independent pairs."""
    chances, covered = binomial(pairs, accuracy), {"formula": 0.0, "bootstrap": 0.0}
    for wins in np.flatnonzero(chances > 1e-12).tolist():
        interval = crossed_interval(np.repeat([1.0, 0.0], [wins, pairs - wins]), np.arange(pairs)).within(0, 1)
        covered["formula"] += chances[wins] * (interval.low <= accuracy <= interval.high)  # without ends it misses
        below = np.cumsum(binomial(pairs, wins / pairs))
        low, high = (int(np.searchsorted(below, tail)) / pairs for tail in (1 - UPPER, UPPER))
        covered["bootstrap"] += chances[wins] * (low <= accuracy <= high)
    return {kind: 100 * float(share) for kind, share in covered.items()}


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """Chances of 0 to n successes."""
    if p in (0.0, 1.0):
        return np.eye(n + 1)[round(n * p)]
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    k = np.arange(n + 1)
    return np.exp(np.array(logs) + k * math.log(p) + (n - k) * math.log1p(-p))


def main() -> None:
    """Print the tables as Markdown."""
    rng = np.random.default_rng(0)
    print("| seeds | formula | crossed bootstrap | Satterthwaite's degrees of freedom |\n|--:|--:|--:|--:|")
    for seeds in (2, 3, 5):
        ranges = over_mixtures(seeds, rng).values()
        print(f"| {seeds} | " + " | ".join(f"{low:.1f} to {high:.1f} %" for low, high in ranges) + " |")
    heads = " | ".join(f"level {alpha:.2g}" for alpha in LEVELS)
    print(f"\n| seeds, taken off | {heads} |\n|--:|" + "--:|" * len(LEVELS))
    for seeds in (2, 3, 5):
        for subtracted in (SUBTRACTED, 0.0):
            cells = " | ".join(f"{low:.2g} to {high:.2g}" for low, high in levels(seeds, subtracted, rng))
            print(f"| {seeds}, {subtracted:g} of the rest | {cells} |")
    print("\n| pairs, one seed | accuracy | losses to expect | formula | bootstrap |\n|--:|--:|--:|--:|--:|")
    for pairs, accuracy in ACCURACIES:
        shares = " | ".join(f"{share:.1f} %" for share in of_accuracy(pairs, accuracy).values())
        print(f"| {pairs} | {100 * accuracy:g} % | {pairs * (1 - accuracy):g} | {shares} |")


if __name__ == "__main__":
    main()
