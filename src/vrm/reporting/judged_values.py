"""What the policies got on the judged benchmarks, and what two of them differ by; numbers only, no layout.

* Win rates and MT-Bench's score are means over judged items, with an interval over seeds and prompts: what belongs to
  one prompt (both games, both turns) counts as one, and the difference of two policies is paired by prompt.
* LC and SC are fits, so that no item has a value. Their intervals come from the scorer's joint draws
  (`vrm.statistics.draws`), which are of the same prompts for every policy, and so do those of a difference. A fit that
  was not resampled has a value without an interval.
* The official LC is too dear to be drawn often enough for a p-value, so its scorer also takes it apart: two policies'
  terms are compared as two means of prompts are, interval and p-value alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrm.config import Config
from vrm.reporting.judged import BenchmarkResults, JudgedModel, judged_models, read_benchmarks
from vrm.statistics.draws import from_draws
from vrm.statistics.intervals import FLIPS, Interval, PairedTest, crossed_interval, paired_test


@dataclass(frozen=True)
class JudgedMetric:
    """One number of a benchmark.

    Args:
        benchmark: its name in the configuration.
        name: its name in the scores; MT-Bench's `score` is read from the items alone.
        title: what stands beside the benchmark's label.
        paper: its column in the paper's table; "" where the paper has no such number.
        is_fit: LC and SC are regressions over all items, so that no item has a value; all others are means of items.
        scale: from an item's value to the unit of the scores; of no use to a fit.
        digits: decimals for people.
        possible: lowest and highest value, in the unit of the scores; an interval ends there.
    """

    benchmark: str
    name: str
    title: str
    paper: str
    is_fit: bool = False
    scale: float = 100.0
    digits: int = 1
    possible: tuple[float, float] = (0.0, 100.0)


ALPACA_WR = JudgedMetric("alpaca_eval", "win_rate", "WR", "alpacaeval_wr")

ALPACA_LC = JudgedMetric("alpaca_eval", "lc_win_rate", "LC", "alpacaeval_lc", is_fit=True)

ALPACA_PARTIAL_LC = JudgedMetric("alpaca_eval", "lc_without_difficulty", "LC, no difficulty term*", "", is_fit=True)

ARENA_WR = JudgedMetric("arena_hard", "win_rate", "WR", "arena_hard_wr")

ARENA_SC = JudgedMetric("arena_hard", "sc_win_rate", "SC", "arena_hard_sc", is_fit=True)

MT_SCORE = JudgedMetric("mt_bench", "score", "score", "mt_bench", scale=1.0, digits=2, possible=(1.0, 10.0))

# A penalty that is chosen by cross-validation may be so strong that the fit is its prior, whatever was judged.
SHRUNK = "the fit's penalty leaves nothing of the judgments"

TERMS = "of a fit's terms"
"""In a test's words: the values are not judged wins but what each prompt adds to a fit."""

_NO_WIDTH = 0.01  # percentage points

# The mean over a benchmark's items.
MAIN = {"alpaca_eval": ALPACA_WR, "arena_hard": ARENA_WR, "mt_bench": MT_SCORE}


@dataclass(frozen=True)
class JudgedValue:
    """One metric of one model.

    Args:
        interval: in percent, or rating points; NaN where a seed has no value.
        prompts: different prompts with a judgment.
        judgments: judged items of all seeds: comparisons, prompts with a battle, or turns.
        note: why there is no value, or no interval although the scorer gives one; "" else.
    """

    interval: Interval
    prompts: int
    judgments: int
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no value."""
        return bool(np.isnan(self.interval.estimate))

    def row(self, model: JudgedModel, metric: JudgedMetric) -> dict[str, Any]:
        """What a CSV says of it, but what it was resampled over, which stands behind columns of the table's own."""
        return {
            "base": model.base,
            "method": model.method,
            "label": model.label,
            "benchmark": metric.benchmark,
            "metric": metric.name,
            "estimate": self.interval.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "level": self.interval.level,
            "n_prompts": self.prompts,
            "n_judgments": self.judgments,
            "n_seeds": len(model.seeds),
        }


@dataclass(frozen=True)
class JudgedTable:
    """Everything that Table 1 shows.

    Args:
        models: from top to bottom.
        columns: from left to right.
        cells: by (base, method, metric).
        benchmarks: by name, for the notes.
    """

    models: Sequence[JudgedModel]
    columns: Sequence[JudgedMetric]
    cells: dict[tuple[str, str, JudgedMetric], JudgedValue]
    benchmarks: dict[str, BenchmarkResults]

    def cell(self, model: JudgedModel, metric: JudgedMetric) -> JudgedValue:
        """One model in one column."""
        return self.cells[model.base, model.method, metric]


def measure_judged(config: Config, results: Path, made: str = "table1") -> JudgedTable:
    """Measure every judged model in every column of Table 1, for the table `made`.

    LC without the difficulty term never stands in LC's column: it has its own, which is there where a model has no LC.

    Raises:
        RecordError: as `results.read_benchmarks`.
    """
    benchmarks, models = read_benchmarks(config, results, made), judged_models(config)
    columns: list[JudgedMetric] = []
    for name, benchmark in benchmarks.items():
        columns.append(MAIN[name])
        if name == "arena_hard":
            columns.append(ARENA_SC)
        if name == "alpaca_eval":
            official, partial = (
                [_has_every_seed(benchmark, model, metric) for model in models]
                for metric in (ALPACA_LC, ALPACA_PARTIAL_LC)
            )
            replaced = any(partial) and not all(official)
            columns += [*([ALPACA_LC] if any(official) or not replaced else []), *([ALPACA_PARTIAL_LC] * replaced)]
    cells = {
        (model.base, model.method, metric): measure_policy(config, benchmarks[metric.benchmark], model, metric)
        for model in models
        for metric in columns
    }
    return JudgedTable(models, columns, cells, benchmarks)


def measure_policy(
    config: Config, benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric
) -> JudgedValue:
    """One metric of one model, with its interval."""
    parts = [benchmark.by_policy[key] for key in model.keys if key in benchmark.by_policy]
    interval = (_of_fits if metric.is_fit else _of_items)(config, benchmark, model, metric)
    note = _why_missing(benchmark, model, metric) if np.isnan(interval.estimate) else ""
    if metric.is_fit and not note and is_shrunk(benchmark, model, metric):
        interval, note = replace(interval, low=np.nan, high=np.nan, resampled="nothing"), SHRUNK
    return JudgedValue(interval, len(benchmark.judged(model)), sum(map(len, parts)), note)


def linearised(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values whose plain means are the weighted ones, and vary with the choice of items as those do, to first order.

    With R the weighted mean of a seed, u = R + w (v - R) / mean(w). An item that was not judged has weight 0, hence
    u = R: it moves nothing. Where all weights are equal, u = v.

    Args:
        values: shape (S, N); what stands where the weight is 0 is not read.
        weights: shape (S, N), >= 0.

    Returns:
        Shape (S, N); NaN for a seed whose weights are all 0.

    Source: the linearised ratio estimator, Woodruff 1971, "A simple method for approximating the variance".
    """
    judged = np.where(weights > 0, values, 0.0)
    with np.errstate(invalid="ignore"):
        share = weights / weights.mean(axis=1, keepdims=True)
        mean = (share * judged).mean(axis=1, keepdims=True)
    return mean + share * (judged - mean)


def _of_items(config: Config, benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> Interval:
    interval = _over_prompts(config, benchmark, linearised(*benchmark.values(model)))
    return _scaled(interval, metric.scale).within(*metric.possible)


def _of_fits(config: Config, benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> Interval:
    rows, level = benchmark.rows(model, metric.name), config.report.level
    if not _has_every_seed(benchmark, model, metric):
        return Interval(np.nan, np.nan, np.nan, level, "nothing")
    draws, prompts = benchmark.drawn(model, metric.name), len(benchmark.judged(model))
    return from_draws(rows["value"].to_numpy(), draws, prompts, level).difference.within(*metric.possible)


def is_shrunk(benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> bool:
    """Whether all draws of a fit, in any seed, give the same value: an interval without width is no precision."""
    rows = benchmark.rows(model, metric.name)
    return bool((rows["high"] - rows["low"] < _NO_WIDTH).any())


def _has_every_seed(benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> bool:
    return benchmark.rows(model, metric.name)["value"].notna().sum() == len(model.seeds)


def _over_prompts(config: Config, benchmark: BenchmarkResults, values: NDArray[np.float64]) -> Interval:
    if values.size == 0 or np.isnan(values).any():
        return Interval(np.nan, np.nan, np.nan, config.report.level, "nothing")
    return crossed_interval(values, benchmark.prompts, config.report.level)


def _scaled(interval: Interval, scale: float) -> Interval:
    ends = (scale * float(end) for end in (interval.estimate, interval.low, interval.high))
    return Interval(*ends, interval.level, interval.resampled)


def _why_missing(benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> str:
    if not metric.is_fit:
        return "a seed has no usable judgment"
    rows = benchmark.rows(model, metric.name)
    notes = dict.fromkeys(note for note in rows.loc[rows["value"].isna(), "note"] if note)
    return "; ".join(notes) or "not among the scores"


WeightedValues = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values and weights of one policy, each of shape (S, N); weight 0: not judged."""


def compare_policies(
    config: Config, benchmark: BenchmarkResults, first: JudgedModel, second: JudgedModel, metric: JudgedMetric
) -> PairedTest:
    """First less second in one metric, in percentage points or rating points; NaN where one of them has no value."""
    if metric.is_fit:
        return _of_two_fits(config, benchmark, first, second, metric)
    sides = [(metric.scale * values, weights) for values, weights in map(benchmark.values, (first, second))]
    rng = _own_rng(config, benchmark, first, second, metric)
    return paired_means(*sides, benchmark.prompts, rng, config.report.level)


def _own_rng(
    config: Config, benchmark: BenchmarkResults, first: JudgedModel, second: JudgedModel, metric: JudgedMetric
) -> np.random.Generator:
    """The source of one question's sign flips, whatever else a table asks."""
    key = f"{benchmark.name}/{metric.name}/{first.base}/{first.method}/{second.base}/{second.method}"
    return np.random.default_rng([config.report.seed, *key.encode()])


def paired_means(
    first: WeightedValues,
    second: WeightedValues,
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


def half_width_alone(config: Config, benchmark: BenchmarkResults, model: JudgedModel, metric: JudgedMetric) -> float:
    """Half-width over prompts of one policy's value by itself, of one seed: what a set of this size can tell.

    Returns:
        The mean over seeds; NaN where a seed has no judgment, and for a fit that was not resampled.
    """
    if metric.is_fit:
        rows = benchmark.rows(model, metric.name)
        return float((rows["high"] - rows["low"]).mean(skipna=False)) / 2 if len(rows) == len(model.seeds) else np.nan
    values, weights = benchmark.values(model)
    judged = (weights > 0).any(axis=0)
    if not judged.any():
        return np.nan
    seeds = metric.scale * linearised(values[:, judged], weights[:, judged])
    intervals = [crossed_interval(seed, benchmark.prompts[judged], config.report.level) for seed in seeds]
    return float(np.mean([(interval.high - interval.low) / 2 for interval in intervals]))


def _of_two_fits(
    config: Config, benchmark: BenchmarkResults, first: JudgedModel, second: JudgedModel, metric: JudgedMetric
) -> PairedTest:
    rows = [benchmark.rows(model, metric.name)["value"].to_numpy() for model in (first, second)]
    draws = [benchmark.drawn(model, metric.name) for model in (first, second)]
    level, prompts = config.report.level, len(benchmark.judged(first) & benchmark.judged(second))
    if any(len(values) < len(model.seeds) for values, model in zip(rows, (first, second), strict=True)):
        return PairedTest(Interval(np.nan, np.nan, np.nan, level, "nothing"), np.nan, "none")
    measured = not any(is_shrunk(benchmark, model, metric) for model in (first, second))
    terms = [benchmark.taken_apart(model, metric.name) for model in (first, second)]
    if measured and all(part is not None for part in terms):
        rng = _own_rng(config, benchmark, first, second, metric)
        test = paired_test(*terms, benchmark.terms["item_id"].to_numpy(dtype=str), rng, level)
        return replace(test, test=f"{test.test} ({TERMS})")
    paired = min(map(len, draws)) if measured else 0  # all of them, or none where one was not resampled
    return from_draws(rows[0] - rows[1], draws[0][:paired] - draws[1][:paired], prompts, level)
