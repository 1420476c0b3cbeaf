"""What the paper claims beside its numbers, each asked of the run's own tables and figures.

The paper's sentences are not at hand, only its numbers, its abstract and what its figures are about (as restated in the
project's reading of it). So a claim here is one of three kinds: an order that the paper's own numbers show, a statement
of the abstract, or what a figure is there to show. `source` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.records import RecordError

from .rendering import EMPTY, number

AGREES, DISAGREES, NOT_TESTABLE = "agrees", "disagrees", "not testable at this scale"


@dataclass(frozen=True)
class Finding:
    """One entry of the page.

    Args:
        where: table, figure or abstract of the paper.
        what: the number or the claim.
        paper: the paper's value; the kind of source for a claim.
        ours: what this run has, with its interval.
        verdict: one of `AGREES`, `DISAGREES`, `NOT_TESTABLE`.
        why: what the verdict rests on.
        made: the file below results/<run>/ that holds our value, which is what to ask Snakemake for.
    """

    where: str
    what: str
    paper: str
    ours: str
    verdict: str
    why: str
    made: str


@dataclass
class Run:
    """The tables and figures of a run, read when asked for."""

    config: Config
    results: Path
    _read: dict[str, pd.DataFrame] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A table's CSV; empty where the configuration doesn't make it."""
        return self._csv(f"tables/{name}.csv", name in self.config.report.tables)

    def figure(self, name: str) -> pd.DataFrame:
        """A figure's data; empty where the configuration doesn't draw it."""
        return self._csv(f"figures/{name}.csv", name in self.config.report.figures)

    def _csv(self, name: str, made: bool) -> pd.DataFrame:
        if name not in self._read:
            path = Path(self.results) / name
            if made and not path.is_file():
                raise RecordError(f"{path} is not there, and the page of the paper's claims reads it; make it first")
            self._read[name] = pd.read_csv(path) if made else pd.DataFrame()
        return self._read[name]


def claims(run: Run) -> Iterator[Finding]:
    """Every claim with its verdict, in the paper's order."""
    yield from _abstract(run)
    yield from _orders_of_table1(run)
    yield from _orders_of_table2(run)
    yield from _figures(run)


def ordered(difference: float, low: float, high: float, claimed: float, unit: str, digits: int = 1) -> tuple[str, ...]:
    """What an interval of a difference says of its claimed sign: our value, verdict, reason."""
    if any(np.isnan([difference, low, high])):
        return (EMPTY, NOT_TESTABLE, "no interval in this run")
    value = f"{difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {unit}".strip()
    if low <= 0 <= high:
        return (value, NOT_TESTABLE, "the interval of the difference holds 0")
    agrees = (difference > 0) == (claimed > 0)
    return (value, AGREES if agrees else DISAGREES, "the interval lies on one side of 0")


def _abstract(run: Run) -> Iterator[Finding]:
    where, source = "Abstract", "abstract"
    rows = _comparison(run)
    annotated = rows[rows.evaluation_set == _preference_set(run, rows)] if len(rows) else rows
    what = "VRM captures human preferences better than existing methods (here: than the plain RM, held-out preference)"
    yield Finding(where, what, source, *_first(annotated), "tables/comparisons.md")
    hard = rows[rows.column == "Chat Hard"] if len(rows) else rows
    what = "VRM resists reward hacking (here: RewardBench's Chat Hard, whose rejected responses look better)"
    yield Finding(where, what, source, *_first(hard), "tables/comparisons.md")
    yield _hacking(run, where, source)
    yield _bound(run, where, source)


def _hacking(run: Run, where: str, source: str) -> Finding:
    """Gold reward at the end of PPO, with the VRM and with the plain RM."""
    what = "VRM resists reward hacking (here: gold reward gained by VRM-PPO less that by PPO, mean over bases)"
    made = "figures/overoptimisation.pdf"
    curves = run.figure("overoptimisation")
    methods = _ppo_pair(run)
    if curves.empty or methods is None or curves.gold.isna().all():
        return Finding(where, what, source, EMPTY, NOT_TESTABLE, "no PPO with both reward models, or no gold", made)
    ends = curves[curves.optimiser == "ppo"].sort_values("step").groupby(["base", "method"]).last()
    gains = ends.gold.unstack("method")[list(methods)].dropna()
    halves = ((ends.gold_high - ends.gold_low) / 2).unstack("method")[list(methods)].dropna()
    difference = float((gains[methods[0]] - gains[methods[1]]).mean())
    # as if both were independent: wider than a paired interval, so the verdict errs on the side of none
    half = float(np.sqrt((halves**2).sum(axis=1).mean() / len(halves)))
    low, high = difference - half, difference + half
    return Finding(where, what, source, *ordered(difference, low, high, 1, "points of gold reward", 2), made)


def _bound(run: Run, where: str, source: str) -> Finding:
    what, made = "VRM has a tighter generalisation bound than the plain reward model (Theorem 5.1)", "tables/bound.md"
    terms = run.table("bound")
    if terms.empty:
        return Finding(where, what, source, EMPTY, NOT_TESTABLE, "report.tables has no bound", made)
    smallest = float(terms[terms.term == "bound"].estimate.min())
    value = f"smallest bound of a VRM: {number(smallest, 2)}, on a risk"
    why = "it is 1 or more: it says nothing" if smallest >= 1 else "the plain RM has no such bound to compare with"
    return Finding(where, what, source, value, NOT_TESTABLE, why, made)


def _orders_of_table1(run: Run) -> Iterator[Finding]:
    """VRM-PPO against PPO, benchmark by benchmark: the order that the paper's own numbers have."""
    cells, methods = run.table("table1"), _ppo_pair(run)
    if cells.empty or methods is None:
        return
    index = cells.set_index(["base", "method", "benchmark", "metric"]).sort_index()
    for base, settings in run.config.policy.bases.items():
        for benchmark, metric in cells[["benchmark", "metric"]].drop_duplicates().itertuples(index=False):
            keys = [(base, method, benchmark, metric) for method in methods]
            if not all(key in index.index for key in keys):
                continue
            vrm, rm = (index.loc[key] for key in keys)
            claimed = vrm.paper - rm.paper
            if np.isnan(claimed):
                continue
            half = _half_width(vrm, rm)
            difference = vrm.estimate - rm.estimate
            name = getattr(run.config.benchmarks, benchmark).label
            what = f"{settings.label}, {name}, {metric}: VRM-PPO {'above' if claimed > 0 else 'below'} PPO"
            found = ordered(difference, difference - half, difference + half, claimed, "", 2)
            yield Finding("Table 1", what, f"{claimed:+.2f}", *found, "tables/table1.md")


def _orders_of_table2(run: Run) -> Iterator[Finding]:
    """VRM against RM, column by column: the order that the paper's own numbers have."""
    rows, cells = _comparison(run), run.table("table2")
    if rows.empty or cells.empty:
        return
    paper = cells.set_index(["variant", "evaluation_set", "column"]).paper
    for _, row in rows.iterrows():
        first, second = (paper.get((name, row.evaluation_set, row.column), np.nan) for name in (row.first_, row.second))
        claimed = first - second
        if not np.isnan(claimed):
            what = f"{row.column}: VRM {'above' if claimed > 0 else 'below'} the plain RM"
            found = ordered(row.difference, row.low, row.high, claimed, "points")
            yield Finding("Table 2", what, f"{claimed:+.1f}", *found, "tables/comparisons.md")


def _figures(run: Run) -> Iterator[Finding]:
    source = "what the figure is about"
    what = "Figure 3: the form of the supervision matters for eval accuracy"
    yield _curves(run, "figure3", what, source, _spread)
    what = "Figure 4: VRM ends with a higher eval accuracy than the plain RM"
    yield _curves(run, "figure4", what, source, _last_against_first)
    for part, split, metric in (
        ("a", "train", "accuracy"),
        ("b", "validation", "accuracy"),
        ("c", "train", "kl_total"),
    ):
        what = f"Figure 5({part}): the weight of the supervision matters for {split} {metric.replace('_', ' ')}"
        yield _curves(run, "figure5", what, source, _spread, split, metric)
    bars = run.figure("figure6")
    if not bars.empty:
        for _, row in bars.dropna(subset=["difference"]).iterrows():
            base, name = run.config.policy.bases[row.base], getattr(run.config.benchmarks, row.benchmark).label
            what = f"Figure 6: {base.label}, {name}: supervision improves alignment"
            found = ordered(row.difference, row.difference_low, row.difference_high, 1, "", 2)
            yield Finding("Figure 6", what, source, *found, "figures/figure6.pdf")


Ends = pd.DataFrame
"""The last step of each curve: columns mean, low, high, by variant in the figure's order."""


def _curves(
    run: Run,
    name: str,
    what: str,
    source: str,
    judge: Callable[[Ends], tuple[str, ...]],
    split: str = "validation",
    metric: str = "accuracy",
) -> Finding:
    curves = run.figure(name)
    where, made = f"Figure {name[-1]}", f"figures/{name}.pdf"
    if len(curves):
        curves = curves[(curves.split == split) & (curves.metric == metric)]
    if curves.empty:
        return Finding(where, what, source, EMPTY, NOT_TESTABLE, "not in this run", made)
    ends = curves.sort_values("step").groupby("variant", sort=False).last()
    return Finding(where, what, source, *judge(ends.loc[list(dict.fromkeys(curves.variant))]), made)


def _spread(ends: Ends) -> tuple[str, ...]:
    """Whether any two curves end apart by more than their intervals."""
    value = "; ".join(f"{row.label} {number(row['mean'], 1)}" for _, row in ends.iterrows())
    if len(ends) < 2 or ends.low.isna().any():
        return (value, NOT_TESTABLE, "one curve, or no interval")
    apart = ends.low.max() > ends.high.min()
    return (value, AGREES, "two intervals are apart") if apart else (value, NOT_TESTABLE, "all intervals overlap")


def _last_against_first(ends: Ends) -> tuple[str, ...]:
    """The difference of two curves' ends, as if they were independent."""
    if len(ends) < 2:
        return (EMPTY, NOT_TESTABLE, "one curve")
    first, last = ends.iloc[0], ends.iloc[-1]
    half = _half_width(last, first)
    difference = float(last["mean"] - first["mean"])
    return ordered(difference, difference - half, difference + half, 1, "points")


def _half_width(first: pd.Series, second: pd.Series) -> float:
    """Of the difference of two values with intervals, as if they were independent."""
    return float(np.hypot(first.high - first.low, second.high - second.low)) / 2


def _comparison(run: Run) -> pd.DataFrame:
    """The rows of `comparisons` that set the paper's VRM against its plain RM."""
    rows = run.table("comparisons").rename(columns={"first": "first_"})  # `first` is a method of a Series
    if rows.empty:
        return rows
    names = list(run.config.report.figure4)
    scalar = [name for name in names if run.config.reward.variants[name].kind == "scalar"]
    return rows[rows.first_.isin(set(names) - set(scalar)) & rows.second.isin(scalar)]


def _preference_set(run: Run, rows: pd.DataFrame) -> str:
    """The first set that is one accuracy: the paper's UF-C, or what stands for it."""
    plain = [name for name in run.config.evaluation.run if run.config.evaluation.sets[name].format == "pairs"]
    return next((name for name in plain if name in set(rows.evaluation_set)), "")


def _first(rows: pd.DataFrame) -> tuple[str, ...]:
    """What the first of some comparisons says of "VRM is better"."""
    if rows.empty:
        return (EMPTY, NOT_TESTABLE, "not compared in this run")
    row = rows.iloc[0]
    return ordered(row.difference, row.low, row.high, 1, "points")


def _ppo_pair(run: Run) -> tuple[str, str] | None:
    """PPO with the paper's VRM and with its plain RM, by name."""
    by_reward = {run.config.policy.methods[name].reward: name for name in reversed(run.config.policy.ppo_run)}
    pair = [by_reward.get(name) for name in run.config.report.figure4]
    kinds = [run.config.reward.variants[name].kind for name in run.config.report.figure4]
    found = dict(zip(kinds, pair, strict=True))
    vrm, rm = found.get("variational"), found.get("scalar")
    return (vrm, rm) if vrm and rm else None
