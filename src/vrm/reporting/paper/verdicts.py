"""What an entry of the page "paper against this run" is, how an interval becomes a verdict, and the run that is read.

* Four verdicts. Three are those that the page is for; "undecided" is ours, so that what was tested without a result is
  told from what could not be tested.
* A difference that is one of several is decided by its interval and by its p-value after Holm's correction, so that
  many questions at once do not make findings of chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.records import RecordError, require_columns
from vrm.reporting.judged import BenchmarkResults, JudgedModel, judged_models, read_benchmarks
from vrm.reporting.judged_values import JudgedMetric, measure_policy
from vrm.reporting.rendering import EMPTY
from vrm.statistics.paired_tests import p_text

AGREES, DISAGREES, UNDECIDED, NOT_TESTABLE = VERDICTS = (
    "agrees",
    "disagrees",
    "undecided",
    "not testable at this scale",
)

PAGE = "tables/paper.md"
"""The page itself, below results/<run>/: what holds the differences that no other table has."""

_COLUMNS = {
    "table1": ("paper_method",),
    "table2": ("paper_method",),
    "comparisons": ("p_holm", "tests", "resampled"),
    "comparisons_judged": ("p_holm", "tests", "resampled"),
    "bound": ("variant", "term"),
    "figure4": ("resampled",),
    "overoptimisation": ("resampled",),
}
"""What an older version of a table or figure may lack."""


@dataclass(frozen=True)
class Finding:
    """One entry of the page.

    Args:
        where: table, figure or abstract of the paper.
        what: the number or the claim.
        paper: the paper's value; the kind of source for a claim.
        ours: what this run has, with its interval.
        resampled: what the interval is over; "" without one.
        verdict: one of `VERDICTS`.
        why: what the verdict rests on.
        made: the file below results/<run>/ that holds our value, which is what to ask Snakemake for.
        p_holm: p-value after Holm's correction, NaN where there is none.
        tests: how many that correction is for; 0 where there is none.
    """

    where: str
    what: str
    paper: str
    ours: str
    resampled: str
    verdict: str
    why: str
    made: str
    p_holm: float = np.nan
    tests: int = 0


@dataclass(frozen=True)
class ClaimedDifference:
    """One value less another, as the run has it.

    Args:
        estimate, low, high: in the unit of its table; NaN where there is none.
        resampled: what the interval is over.
        made: as `Finding.made`.
        few_seeds: why the interval leaves the variation between seeds out, e.g. `one seed`; "" where it does not.
        p_holm: p-value after Holm's correction; NaN: one of several, without a p-value; None: asked by itself.
        tests: how many that correction is for.
        note: why there is no estimate; "" else.
    """

    estimate: float
    low: float
    high: float
    resampled: str
    made: str
    few_seeds: str = ""
    p_holm: float | None = None
    tests: int = 0
    note: str = ""


def ordered(
    change: ClaimedDifference, claimed: float, level: float, unit: str = "", digits: int = 1
) -> tuple[str, str, str, str]:
    """What a difference says of its claimed sign.

    Args:
        change: the difference.
        claimed: any number of the claimed sign.
        level: of the interval; 1 less this is the level of the test.
        unit: behind our value.
        digits: decimals of our value.

    Returns:
        Our value, what its interval is over, verdict, reason.
    """
    if np.isnan(change.estimate):
        return (EMPTY, "", NOT_TESTABLE, change.note or "no value in this run")
    value = f"{change.estimate:+.{digits}f}"
    if np.isnan(change.low) or np.isnan(change.high):
        return (f"{value} {unit}".strip(), "", NOT_TESTABLE, "no interval in this run")
    value = f"{value} [{change.low:+.{digits}f}, {change.high:+.{digits}f}] {unit}".strip()
    verdict, why = UNDECIDED, "the interval holds 0"
    if not change.low <= 0 <= change.high:
        agrees = AGREES if (change.estimate > 0) == (claimed > 0) else DISAGREES
        verdict, why = _corrected(agrees, change, 1 - level)
    if change.few_seeds:
        why += f"; {change.few_seeds}: it speaks of the trained models, not of the methods"
    return (value, change.resampled, verdict, why)


def _corrected(verdict: str, change: ClaimedDifference, alpha: float) -> tuple[str, str]:
    """What is left of a verdict by an interval alone, with the reason."""
    if change.p_holm is None:
        return verdict, "the interval excludes 0"
    if np.isnan(change.p_holm):
        return UNDECIDED, "excludes 0 alone; it has no p-value that could be corrected for the number of tests"
    p = f"p {p_text(change.p_holm)}, {change.tests} tests"
    if change.p_holm >= alpha:
        return UNDECIDED, f"excludes 0 alone, not after Holm's correction ({p})"
    return verdict, f"excludes 0, after Holm's correction too ({p})"


@dataclass
class PaperRun:
    """What a run has, read when asked for."""

    config: Config
    results: Path
    _read: dict[str, pd.DataFrame] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A table's CSV; empty where the configuration doesn't make it.

        Raises:
            RecordError: it is not there, or lacks a column.
        """
        return self._csv("tables", name, name in self.config.report.tables)

    def figure(self, name: str) -> pd.DataFrame:
        """A figure's data; empty where the configuration doesn't draw it. Raises as `table`."""
        return self._csv("figures", name, name in self.config.report.figures)

    def _csv(self, folder: str, name: str, made: bool) -> pd.DataFrame:
        key = f"{folder}/{name}"
        if key not in self._read:
            path = Path(self.results) / folder / f"{name}.csv"
            if made and not path.is_file():
                raise RecordError(f"{path} is not there, and the page of the paper's claims reads it; make it first")
            frame = pd.read_csv(path) if made else pd.DataFrame()
            require_columns(path, frame, _COLUMNS.get(name, ()) if made else (), "make it again")
            self._read[key] = frame
        return self._read[key]

    @cached_property
    def benchmarks(self) -> dict[str, BenchmarkResults]:
        """The judged benchmarks by name. Raises as `judged.results.read_benchmarks`."""
        return read_benchmarks(self.config, self.results, "paper")

    @cached_property
    def models(self) -> dict[tuple[str, str], JudgedModel]:
        """The judged policies by base and method."""
        return {(model.base, model.method): model for model in judged_models(self.config)}

    def policy(self, policy: str, method: str) -> tuple[str, str, str]:
        """Which of our policies stands for one of the paper's, by Table 1's `paper_method`.

        Returns:
            Base and method by name, "" where there is none, and then what is lacking.
        """
        bases = self.config.policy.bases
        base = next((name for name in self.config.policy.run_bases if bases[name].paper == policy), "")
        cells = self.table("table1")
        if cells.empty:
            return base, "", "report.tables has no table1"
        if not base:
            return "", "", f"no base of this run stands for {policy}"
        names = cells[(cells.base == base) & (cells.paper_method == method)].method.unique().tolist()
        return base, *_only(names, method)

    def scorer(self, method: str) -> tuple[str, str]:
        """Which of our scorers stands for one of the paper's, by Table 2's `paper_method`; and what is lacking."""
        cells = self.table("table2")
        if cells.empty:
            return "", "report.tables has no table2"
        return _only(cells[cells.paper_method == method].variant.unique().tolist(), method)

    def why_no_value(self, base: str, method: str, metric: JudgedMetric) -> str:
        """Why one of our policies has no value in a metric of a benchmark that is run, as the scorer says."""
        return measure_policy(self.config, self.benchmarks[metric.benchmark], self.models[base, method], metric).note


def _only(names: list[str], method: str) -> tuple[str, str]:
    """The one name, or what is lacking: two rows of one name can't both be the paper's."""
    if len(names) == 1:
        return names[0], ""
    return "", f"{method} is not in this run" if not names else f"{', '.join(names)} are all called {method}"
