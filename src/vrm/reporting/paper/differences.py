"""The differences that the page "paper against this run" asks for: where a table has one, that one; else tested here.

* What stands in `comparisons` or `comparisons_judged` keeps that table's p-value, so that no difference has two.
* What stands in neither is tested by the same functions, and all such tests are one more family for Holm's correction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.evaluation.reward_bench import SECTIONS
from vrm.records import RecordError

from ..accuracies import Column, members
from ..comparisons import PairedTest, holm, paired_test
from ..judged.differences import compare
from ..judged.measures import Metric
from ..results import PairScores, Scorer, pair_scores, read_scores, scorers
from ..stats import Interval
from .verdicts import PAGE, Difference, Run


@dataclass(frozen=True)
class Judged:
    """Two policies of one base in a column of Table 1, by name: the first less the second."""

    base: str
    first: str
    second: str
    metric: Metric


@dataclass(frozen=True)
class Scored:
    """Two scorers in a column of Table 2, by name: the first less the second, in points."""

    first: str
    second: str
    column: Column


Question = Judged | Scored


def answers(run: Run, questions: Iterable[Question]) -> dict[Question, Difference]:
    """The difference that each question asks for; what is asked twice counts once.

    Args:
        run: has scores of every scorer that is asked of, and judgments of every policy.
        questions: those of the whole page, for they decide how many tests there are.

    Raises:
        RecordError: a file is missing or broken, or two scorers scored different pairs.
    """
    found = {question: _stored(run, question) for question in dict.fromkeys(questions)}
    asked = [question for question, stored in found.items() if stored is None]
    scores = _Scores(run)
    tests = [_judged_test(run, q) if isinstance(q, Judged) else scores.test(q) for q in asked]
    adjusted = holm([test.p_value for test in tests])
    for question, test, p in zip(asked, tests, adjusted, strict=True):
        change = test.difference
        found[question] = Difference(
            *(change.estimate, change.low, change.high, change.resampled),
            made=PAGE,
            few_seeds=_few_seeds(run.config, question),
            p_holm=float(p),
            tests=int(np.isfinite(adjusted).sum()),
            note=_why_none(run, question) if np.isnan(change.estimate) else "",
        )
    return found


def _stored(run: Run, question: Question) -> Difference | None:
    """The row of a table of comparisons, whichever way round it stands there; None where there is none."""
    name = "comparisons_judged" if isinstance(question, Judged) else "comparisons"
    rows = run.table(name)
    if rows.empty:
        return None
    for first, second, sign in ((question.first, question.second, 1), (question.second, question.first, -1)):
        same = (rows["first"] == first) & (rows["second"] == second)
        if isinstance(question, Judged):
            same &= (rows["base"] == question.base) & (rows["benchmark"] == question.metric.benchmark)
            same &= rows["metric"] == question.metric.name
        else:
            same &= rows["evaluation_set"] == question.column.evaluation_set
            same &= rows["column"] == question.column.title
        if same.any():
            return stored_difference(rows[same].iloc[0], f"tables/{name}.md", sign)
    return None


def stored_difference(row: pd.Series, made: str, sign: int = 1) -> Difference:
    """A row of a table of comparisons; with `sign` -1 the second less the first."""
    ends = (row["low"], row["high"]) if sign > 0 else (-row["high"], -row["low"])
    note = row.get("note", "")
    return Difference(
        *(sign * row["difference"], *ends, row["resampled"]),
        made=made,
        few_seeds="one seed" if row["n_seeds"] == 1 else "",
        p_holm=float(row["p_holm"]),
        tests=int(row["tests"]),
        note=note if isinstance(note, str) else "",  # an empty cell is read as NaN
    )


def _judged_test(run: Run, question: Judged) -> PairedTest:
    sides = (run.models[question.base, name] for name in (question.first, question.second))
    return compare(run.config, run.benchmarks[question.metric.benchmark], *sides, question.metric)


def _why_none(run: Run, question: Question) -> str:
    if isinstance(question, Scored):
        return "no pair of this column was scored"
    notes = [run.why_no_value(question.base, name, question.metric) for name in (question.first, question.second)]
    return "; ".join(dict.fromkeys(note for note in notes if note))


def _few_seeds(config: Config, question: Question) -> str:
    if isinstance(question, Judged):
        return "one seed" if len(config.policy.seeds) == 1 else ""
    sides = {scorer.name: len(scorer.seeds) for scorer in scorers(config)}
    first, second = sides[question.first], sides[question.second]
    if first == second:
        return "one seed" if first == 1 else ""
    return f"means of {first} and {second} seeds"


class _Scores:
    """Tests of scorers, each of which is read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.scorers = {scorer.name: scorer for scorer in scorers(run.config)}
        self.read: dict[str, pd.DataFrame] = {}

    def test(self, question: Scored) -> PairedTest:
        """In points; NaN where the column has no pair.

        Seeds are paired where both have as many. Else each side is its mean over its own seeds, which is what Table 2
        shows, and prompts alone vary.
        """
        sides = [self.scorers[name] for name in (question.first, question.second)]
        first, second = (self._pairs(scorer, question.column) for scorer in sides)
        if not np.array_equal(first.prompts, second.prompts):
            raise RecordError(
                f"evaluation set {question.column.evaluation_set}: {question.first} and {question.second} scored "
                "different pairs; score them again on the same files"
            )
        level = self.run.config.report.level
        if not len(first.prompts):
            return PairedTest(Interval(np.nan, np.nan, np.nan, level, "nothing"), np.nan, "none")
        counts = [len(scorer.seeds) for scorer in sides]
        wins = [side.wins if counts[0] == counts[1] else side.wins.mean(axis=0) for side in (first, second)]
        column, weights = question.column, SECTIONS.get(question.column.section)
        key = f"paper/{question.first}/{question.second}/{column.evaluation_set}/{column.section}"
        test = paired_test(
            *(wins[0], wins[1], first.prompts),
            np.random.default_rng([self.run.config.report.seed, *key.encode()]),
            level=level,
            strata=first.subsets if weights else None,
            weights=weights,
        )
        return replace(test, difference=_in_points(test.difference, counts))

    def _pairs(self, scorer: Scorer, column: Column) -> PairScores:
        if scorer.name not in self.read:
            self.read[scorer.name] = read_scores(self.run.results, scorer)
        pairs = pair_scores(self.read[scorer.name], column.evaluation_set, scorer.name)
        return pairs.select(members(column, pairs))


def _in_points(interval: Interval, counts: list[int]) -> Interval:
    over = interval.resampled
    if counts[0] != counts[1]:
        over = f"prompts (means of {counts[0]} and {counts[1]} seeds, Student's t)"
    return Interval(*(100 * end for end in (interval.estimate, interval.low, interval.high)), interval.level, over)
