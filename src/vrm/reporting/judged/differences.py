"""Differences of two policies on the judged benchmarks; the one place where they are computed.

* Means over items (win rates, MT-Bench's score) are paired by prompt: what hangs on one prompt, both games or both
  turns, is one value. Interval and p-value are those of `comparisons`.
* LC and SC are fits: the difference of the two policies in each of the scorer's joint draws, which are of the same
  prompts for both, has interval and p-value by `joint_draws`. A fit that was not resampled has a difference alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vrm.config import Config

from ..comparisons import FLIPS, PairedTest, paired_test
from ..stats import Interval
from ..variance_components import crossed_interval
from .joint_draws import from_draws
from .measures import Metric, is_shrunk, linearised
from .results import Benchmark, Model

Judged = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values and weights of one policy, each of shape (S, N); weight 0: not judged."""


def compare(config: Config, benchmark: Benchmark, first: Model, second: Model, metric: Metric) -> PairedTest:
    """First less second in one metric, in percentage points or rating points; NaN where one of them has no value."""
    if not metric.scale:
        return _of_two_fits(config, benchmark, first, second, metric)
    sides = [(metric.scale * values, weights) for values, weights in map(benchmark.values, (first, second))]
    key = f"{benchmark.name}/{metric.name}/{first.base}/{first.method}/{second.base}/{second.method}"
    rng = np.random.default_rng([config.report.seed, *key.encode()])
    return paired_means(*sides, benchmark.prompts, rng, config.report.level)


def paired_means(
    first: Judged,
    second: Judged,
    prompts: NDArray[np.str_],
    rng: np.random.Generator,
    level: float = 0.95,
    flips: int = FLIPS,
) -> PairedTest:
    """Difference of two weighted means over the same items, with interval and p-value.

    An item that was judged of one of the two alone moves that one's mean, so that the difference is that of the means
    which a table shows; an item that was judged of neither says nothing.

    Args:
        first, second: values and weights of each.
        prompts: the prompt of each item, shape (N,).
        rng: source of the sign flips; not used with several seeds.
        level: nominal coverage of the interval.
        flips: random sign flips.

    Returns:
        All NaN where a seed of one of them has no judgment.
    """
    judged = ((first[1] > 0) | (second[1] > 0)).any(axis=0)
    means = [linearised(values[:, judged], weights[:, judged]) for values, weights in (first, second)]
    if not judged.any() or np.isnan(means).any():
        return PairedTest(Interval(np.nan, np.nan, np.nan, level, "nothing"), np.nan, "none")
    return paired_test(*means, prompts[judged], rng, level, flips)


def half_width_alone(config: Config, benchmark: Benchmark, model: Model, metric: Metric) -> float:
    """Half-width over prompts of one policy's value by itself, of one seed: what a set of this size can tell.

    Returns:
        The mean over seeds; NaN where a seed has no judgment, and for a fit that was not resampled.
    """
    if not metric.scale:
        rows = benchmark.rows(model, metric.name)
        return float((rows["high"] - rows["low"]).mean(skipna=False)) / 2 if len(rows) == len(model.seeds) else np.nan
    values, weights = benchmark.values(model)
    judged = (weights > 0).any(axis=0)
    if not judged.any():
        return np.nan
    seeds = metric.scale * linearised(values[:, judged], weights[:, judged])
    intervals = [crossed_interval(seed, benchmark.prompts[judged], config.report.level) for seed in seeds]
    return float(np.mean([(interval.high - interval.low) / 2 for interval in intervals]))


def _of_two_fits(config: Config, benchmark: Benchmark, first: Model, second: Model, metric: Metric) -> PairedTest:
    rows = [benchmark.rows(model, metric.name)["value"].to_numpy() for model in (first, second)]
    draws = [benchmark.drawn(model, metric.name) for model in (first, second)]
    level, prompts = config.report.level, len(benchmark.judged(first) & benchmark.judged(second))
    if any(len(values) < len(model.seeds) for values, model in zip(rows, (first, second), strict=True)):
        return PairedTest(Interval(np.nan, np.nan, np.nan, level, "nothing"), np.nan, "none")
    measured = not any(is_shrunk(benchmark, model, metric) for model in (first, second))
    paired = min(map(len, draws)) if measured else 0  # all of them, or none where one was not resampled
    return from_draws(rows[0] - rows[1], draws[0][:paired] - draws[1][:paired], prompts, level)
