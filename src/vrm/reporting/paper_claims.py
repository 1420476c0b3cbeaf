"""The orders of two methods that the paper claims, what a run says of each, and how an interval becomes a verdict.

* Four verdicts. Three are those that the page "paper against this run" is for; "undecided" is ours, so that what was
  tested without a result is told from what could not be tested.
* Asked are the orders that the paper's method stands in: of Table 1 VRM-PPO against every other method, of Table 2 VRM
  and the plain RM against every other scorer, in every column; of the abstract and of Figure 6 those that their
  sentences can be asked of. What a run can't be asked is listed with the reason.
* A difference that is one of several is decided by its interval and by its p-value after Holm's correction, so that
  many questions at once do not make findings of chance. One that stands in `comparisons` or `comparisons_judged` keeps
  that table's p-value, so that none has two. One that stands in neither is tested here by the same functions; all such
  tests are one more family for the correction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config, PpoMethod
from vrm.data.preference_sets import SECTIONS
from vrm.records import RecordError, require_columns
from vrm.reporting import published
from vrm.reporting.judged import BenchmarkResults, JudgedModel, judged_models, read_benchmarks
from vrm.reporting.judged_values import (
    ALPACA_LC,
    ALPACA_WR,
    ARENA_SC,
    ARENA_WR,
    MAIN,
    MT_SCORE,
    JudgedMetric,
    compare_policies,
    measure_policy,
)
from vrm.reporting.rendering import EMPTY
from vrm.reporting.scores import (
    Column,
    PairScores,
    Refused,
    Scorer,
    members,
    pair_scores,
    read_scores,
    refused_pairs,
    scorers,
    table_columns,
)
from vrm.statistics.intervals import Interval, PairedTest, holm, p_text, paired_test

# Verdicts.

AGREES, DISAGREES, UNDECIDED, NOT_TESTABLE = VERDICTS = (
    "agrees",
    "disagrees",
    "undecided",
    "not testable at this scale",
)

PAGE = "tables/paper.md"
"""The page itself, below results/<run>/: what holds the differences that no other table has."""


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


# The run that is read.

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
        """The judged benchmarks by name. Raises as `read_benchmarks`."""
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


# What is asked.


@dataclass(frozen=True)
class JudgedOrders:
    """Two policies of one base in a column of Table 1, by name: the first less the second."""

    base: str
    first: str
    second: str
    metric: JudgedMetric


@dataclass(frozen=True)
class Scored:
    """Two scorers in a column of Table 2, by name: the first less the second, in points."""

    first: str
    second: str
    column: Column


Question = JudgedOrders | Scored

METRICS: dict[str, JudgedMetric] = {
    metric.paper: metric for metric in (ALPACA_WR, ALPACA_LC, ARENA_WR, ARENA_SC, MT_SCORE)
}
"""By column of the paper's Table 1."""

SCORES = {
    "rewardbench_chat": "RewardBench Chat",
    "rewardbench_chat_hard": "RewardBench Chat Hard",
    "rewardbench_safety": "RewardBench Safety",
    "rewardbench_reasoning": "RewardBench Reasoning",
    "uf_c": "UF-C",
}
"""Columns of the paper's Table 2, with what we call them."""

ABSTRACT, FIGURE = "abstract", "what the figure is about"
"""What stands for the paper's value where it gives none."""


@dataclass(frozen=True)
class Order:
    """A claim that one value is above another.

    Args:
        where, what, paper: as in `Finding`.
        claimed: a number of the claimed sign.
        question: the difference that decides it; None where the run can't be asked.
        lacking: why it can't.
        unit: behind our value.
        digits: decimals of our value.
    """

    where: str
    what: str
    paper: str
    claimed: float
    question: Question | None
    lacking: str = ""
    unit: str = ""
    digits: int = 1


def orders(run: PaperRun) -> list[Order]:
    """Every order that is asked."""
    return [*_of_abstract(run), *_of_table1(run), *_of_table2(run), *_of_figure6(run)]


def reward_pair(config: Config) -> tuple[str, str]:
    """The paper's VRM and its plain RM, the first of their kinds in Figure 4, by name; "" for what is not trained."""
    variants, names = config.reward.variants, [name for name in config.report.figure4 if name in config.reward.run]
    found = {variants[name].kind: name for name in reversed(names)}
    return found.get("variational", ""), found.get("scalar", "")


def _of_abstract(run: PaperRun) -> Iterator[Order]:
    columns = table_columns(run.config)
    plain = [c for c in columns if run.config.evaluation.sets[c.evaluation_set].format == "pairs"]
    hard = [c for c in columns if c.paper == "rewardbench_chat_hard"]
    pair = reward_pair(run.config)
    for what, found in (
        ("VRM captures human preferences better than existing methods (here: than the plain RM, held out)", plain),
        ("VRM resists reward hacking (here: RewardBench's Chat Hard, whose rejected responses look better)", hard),
    ):
        lacking = _no_scores(run) or ("" if found else "no such set is evaluated")
        if not lacking and not all(pair):
            lacking = "report.figure4 has no plain and no variational reward model of this run"
        question = None if lacking else Scored(*pair, found[0])
        yield Order("Abstract", what, ABSTRACT, 1, question, lacking, "points")


def _of_table1(run: PaperRun) -> Iterator[Order]:
    """VRM-PPO against every other method, base by base and column by column."""
    rows = {(row["policy"], row["method"]): row for row in published("table1")}
    for (policy, method), row in rows.items():
        if method == "VRM-PPO":
            continue
        base, first, lacking = run.policy(policy, "VRM-PPO")
        second = ""
        if not lacking:
            _, second, lacking = run.policy(policy, method)
        place = run.config.policy.bases[base].label if base else policy
        for column, metric in METRICS.items():
            claimed = float(rows[policy, "VRM-PPO"][column]) - float(row[column])
            label = getattr(run.config.benchmarks, metric.benchmark).label
            why = lacking or ("" if metric.benchmark in run.config.benchmarks.run else f"{label} is not run")
            what = f"{place}, {label} {metric.title}: VRM-PPO {_side(claimed)} {method}"
            question = None if why else JudgedOrders(base, first, second, metric)
            yield Order("Table 1", what, f"{claimed:+.2f}", claimed, question, why, digits=2)


def _of_table2(run: PaperRun) -> Iterator[Order]:
    """VRM against every other scorer, then the plain RM against every policy, column by column."""
    rows = {row["method"]: row for row in published("table2")}
    policies = [name for name in rows if name not in ("RM", "VRM")]
    columns = {column.paper: column for column in reversed(table_columns(run.config))}
    for first, second in [("VRM", "RM"), *(("VRM", name) for name in policies), *(("RM", name) for name in policies)]:
        (ours, lacking), (theirs, other) = run.scorer(first), run.scorer(second)
        for name, title in SCORES.items():
            claimed = float(rows[first][name]) - float(rows[second][name])
            column: Column | None = columns.get(name)
            why = lacking or other or ("" if column else f"{title} is not evaluated")
            what = f"{column.title if column else title}: {first} {_side(claimed)} {second}"
            question = Scored(ours, theirs, column) if column and not why else None
            yield Order("Table 2", what, f"{claimed:+.1f}", claimed, question, why, "points")


def _of_figure6(run: PaperRun) -> Iterator[Order]:
    """Policies of the reward model with supervision against those without, whatever order the figure has them in."""
    config, what = run.config, "supervision improves alignment"
    made = {"table1", "comparisons_judged", "figure6"} & {*config.report.tables, *config.report.figures}
    supervised, without = _by_supervision(config)
    if not made or not config.judged_policies or not (supervised and without):
        lacking = "report.figure6 has not one policy with supervision and one without"
        if not made or not config.judged_policies:
            lacking = "nothing judged is reported"
        yield Order("Figure 6", f"Figure 6: {what}", FIGURE, 1, None, lacking)
        return
    for base, second, name in product(config.policy.run_bases, without, config.benchmarks.run):
        place = f"{config.policy.bases[base].label}, {getattr(config.benchmarks, name).label} {MAIN[name].title}"
        against = f" (against {config.policy.methods[second].label})" if len(without) > 1 else ""
        question = JudgedOrders(base, supervised[0], second, MAIN[name])
        yield Order("Figure 6", f"Figure 6: {place}: {what}{against}", FIGURE, 1, question, digits=2)


def _by_supervision(config: Config) -> tuple[list[str], list[str]]:
    """The methods of Figure 6 whose reward model has supervision of w, and those whose has none at all."""
    methods = {name: config.policy.methods[name] for name in config.report.figure6 if name in config.policy.run}
    paid_by = {name: method.reward for name, method in methods.items() if isinstance(method, PpoMethod)}
    known = config.reward.variants
    rewards = {name: known[reward] for name, reward in paid_by.items() if reward in known}
    variational = {name: reward for name, reward in rewards.items() if reward.kind == "variational"}
    return (
        [name for name, reward in variational.items() if reward.supervision_weight > 0],
        [name for name, reward in variational.items() if not reward.needs_scores],
    )


def _no_scores(run: PaperRun) -> str:
    """Why scores may not be there; they are made for the tables that read them."""
    return "" if {"table2", "comparisons"} & set(run.config.report.tables) else "report.tables has no table2"


def _side(claimed: float) -> str:
    return "above" if claimed > 0 else "below"


# What a run answers.


def decide(run: PaperRun, orders: Sequence[Order]) -> list[Finding]:
    """The verdict of each. All of them at once: how many are tested is part of a verdict."""
    found = answers(run, [order.question for order in orders if order.question])
    findings = []
    for order in orders:
        head = (order.where, order.what, order.paper)
        if order.question is None:
            findings.append(Finding(*head, EMPTY, "", NOT_TESTABLE, order.lacking, PAGE))
            continue
        change = found[order.question]
        said = ordered(change, order.claimed, run.config.report.level, order.unit, order.digits)
        findings.append(Finding(*head, *said, change.made, change.p_holm, change.tests))
    return findings


def answers(run: PaperRun, questions: Iterable[Question]) -> dict[Question, ClaimedDifference]:
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
    tests = [_judged_test(run, q) if isinstance(q, JudgedOrders) else scores.test(q) for q in asked]
    adjusted = holm([test.p_value for test in tests])
    for question, test, p in zip(asked, tests, adjusted, strict=True):
        change = test.difference
        found[question] = ClaimedDifference(
            *(change.estimate, change.low, change.high, change.resampled),
            made=PAGE,
            few_seeds=_few_seeds(run.config, question),
            p_holm=float(p),
            tests=int(np.isfinite(adjusted).sum()),
            note=_why_none(run, question) if np.isnan(change.estimate) else "",
        )
    return found


def _stored(run: PaperRun, question: Question) -> ClaimedDifference | None:
    """The row of a table of comparisons, whichever way round it stands there; None where there is none."""
    name = "comparisons_judged" if isinstance(question, JudgedOrders) else "comparisons"
    rows = run.table(name)
    if rows.empty:
        return None
    for first, second, sign in ((question.first, question.second, 1), (question.second, question.first, -1)):
        same = (rows["first"] == first) & (rows["second"] == second)
        if isinstance(question, JudgedOrders):
            same &= (rows["base"] == question.base) & (rows["benchmark"] == question.metric.benchmark)
            same &= rows["metric"] == question.metric.name
        else:
            same &= rows["evaluation_set"] == question.column.evaluation_set
            same &= rows["column"] == question.column.title
        if same.any():
            return stored_difference(rows[same].iloc[0], f"tables/{name}.md", sign)
    return None


def stored_difference(row: pd.Series, made: str, sign: int = 1) -> ClaimedDifference:
    """A row of a table of comparisons; with `sign` -1 the second less the first."""
    ends = (row["low"], row["high"]) if sign > 0 else (-row["high"], -row["low"])
    note = row.get("note", "")
    return ClaimedDifference(
        *(sign * row["difference"], *ends, row["resampled"]),
        made=made,
        few_seeds="one seed" if row["n_seeds"] == 1 else "",
        p_holm=float(row["p_holm"]),
        tests=int(row["tests"]),
        note=note if isinstance(note, str) else "",  # an empty cell is read as NaN
    )


def _judged_test(run: PaperRun, question: JudgedOrders) -> PairedTest:
    sides = (run.models[question.base, name] for name in (question.first, question.second))
    return compare_policies(run.config, run.benchmarks[question.metric.benchmark], *sides, question.metric)


def _why_none(run: PaperRun, question: Question) -> str:
    if isinstance(question, Scored):
        return "no pair of this column was scored"
    notes = [run.why_no_value(question.base, name, question.metric) for name in (question.first, question.second)]
    return "; ".join(dict.fromkeys(note for note in notes if note))


def _few_seeds(config: Config, question: Question) -> str:
    if isinstance(question, JudgedOrders):
        return "one seed" if len(config.policy.seeds) == 1 else ""
    sides = {scorer.name: len(scorer.seeds) for scorer in scorers(config)}
    first, second = sides[question.first], sides[question.second]
    if first == second:
        return "one seed" if first == 1 else ""
    return f"means of {first} and {second} seeds"


class _Scores:
    """Tests of scorers, each of which is read once."""

    def __init__(self, run: PaperRun) -> None:
        self.run = run
        self.scorers = {scorer.name: scorer for scorer in scorers(run.config)}
        self.read: dict[str, pd.DataFrame] = {}

    @cached_property
    def _refused(self) -> Refused:
        return refused_pairs(self.run.results, list(self.scorers.values()))

    def test(self, question: Scored) -> PairedTest:
        """In points; NaN where the column has no pair.

        Seeds are paired where both have as many. Else each side is its mean over its own seeds, which is what Table 2
        shows, and prompts alone vary.
        """
        sides = [self.scorers[name] for name in (question.first, question.second)]
        first, second = (self._pairs(scorer, question.column) for scorer in sides)
        level = self.run.config.report.level
        if not (len(first.prompts) and len(second.prompts)):
            return PairedTest(Interval(np.nan, np.nan, np.nan, level, "nothing"), np.nan, "none")
        if not np.array_equal(first.prompts, second.prompts):
            raise RecordError(
                f"evaluation set {question.column.evaluation_set}: {question.first} and {question.second} scored "
                "different pairs; score them again on the same files"
            )
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
            self.read[scorer.name] = read_scores(self.run.results, scorer, self._refused)
        pairs = pair_scores(self.read[scorer.name], column.evaluation_set, scorer.name)
        return pairs.select(members(column, pairs))


def _in_points(interval: Interval, counts: list[int]) -> Interval:
    over = interval.resampled
    if counts[0] != counts[1]:
        over = f"prompts (means of {counts[0]} and {counts[1]} seeds, Student's t)"
    return Interval(*(100 * end for end in (interval.estimate, interval.low, interval.high)), interval.level, over)
