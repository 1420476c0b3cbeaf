"""The claims of the paper that are orders of two methods, and what a run says of each.

Asked are the orders that the paper's method stands in: of Table 1 VRM-PPO against every other method, of Table 2 VRM
and the plain RM against every other scorer, in every column; of the abstract and of Figure 6 those that their
sentences can be asked of. What a run can't be asked is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from vrm.config import Config, PpoMethod

from ..accuracies import Column, table_columns
from ..judged.measures import ALPACA_LC, ALPACA_WR, ARENA_SC, ARENA_WR, MAIN, MT_SCORE, Metric
from ..rendering import EMPTY
from .differences import Judged, Question, Scored, answers
from .published import published
from .verdicts import NOT_TESTABLE, PAGE, Finding, Run, ordered

METRICS: dict[str, Metric] = {metric.paper: metric for metric in (ALPACA_WR, ALPACA_LC, ARENA_WR, ARENA_SC, MT_SCORE)}
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


def decide(run: Run, orders: Sequence[Order]) -> list[Finding]:
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


def orders(run: Run) -> list[Order]:
    """Every order that is asked."""
    return [*_of_abstract(run), *_of_table1(run), *_of_table2(run), *_of_figure6(run)]


def reward_pair(config: Config) -> tuple[str, str]:
    """The paper's VRM and its plain RM, the first of their kinds in Figure 4, by name; "" for what is not trained."""
    variants, names = config.reward.variants, [name for name in config.report.figure4 if name in config.reward.run]
    found = {variants[name].kind: name for name in reversed(names)}
    return found.get("variational", ""), found.get("scalar", "")


def _of_abstract(run: Run) -> Iterator[Order]:
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


def _of_table1(run: Run) -> Iterator[Order]:
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
            question = None if why else Judged(base, first, second, metric)
            yield Order("Table 1", what, f"{claimed:+.2f}", claimed, question, why, digits=2)


def _of_table2(run: Run) -> Iterator[Order]:
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


def _of_figure6(run: Run) -> Iterator[Order]:
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
        question = Judged(base, supervised[0], second, MAIN[name])
        yield Order("Figure 6", f"Figure 6: {place}: {what}{against}", FIGURE, 1, question, digits=2)


def _by_supervision(config: Config) -> tuple[list[str], list[str]]:
    """The methods of Figure 6 whose reward model has supervision of w, and those whose has none at all."""
    methods = {name: config.policy.methods[name] for name in config.report.figure6 if name in config.policy.run}
    rewards = {
        name: config.reward.variants[method.reward] for name, method in methods.items() if isinstance(method, PpoMethod)
    }
    variational = {name: reward for name, reward in rewards.items() if reward.kind == "variational"}
    return (
        [name for name, reward in variational.items() if reward.supervision_weight > 0],
        [name for name, reward in variational.items() if not reward.needs_scores],
    )


def _no_scores(run: Run) -> str:
    """Why scores may not be there; they are made for the tables that read them."""
    return "" if {"table2", "comparisons"} & set(run.config.report.tables) else "report.tables has no table2"


def _side(claimed: float) -> str:
    return "above" if claimed > 0 else "below"
