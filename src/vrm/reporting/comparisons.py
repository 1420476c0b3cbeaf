"""Whether methods differ: paired tests on the same pairs or prompts, adjusted for their number, in two tables.

* `comparisons`, of reward models: VRM against RM; each score-anchored VRM against RM and against the multi-task RM,
  which is given the same ratings; the rated-aspect reward of each against both, and against its own whole reward; each
  supervision loss against the first of Figure 3. One row a question and column of Table 2.
* `comparisons_judged`, of the policies of each base: VRM-PPO against PPO, the first method of Figure 6 against the
  others, each score-anchored VRM-PPO against PPO, and VRM-PPO against DPO. One row a question and column of Table 1. LC
  and SC are fits, whose tests are of the scorer's joint draws; without enough of them there is no test
  (`vrm.statistics.draws`). The official LC is tested by its terms. What a run has no policy for is named in the notes.
* The configuration decides what is asked; nothing is chosen by its result. All tests of a table are one family for
  Holm's adjustment.
* What a set of that size can tell apart at all stands beside each difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.data.preference_sets import SECTIONS
from vrm.records import RecordError
from vrm.reporting.judged import JudgedModel
from vrm.reporting.judged_values import (
    TERMS,
    JudgedMetric,
    JudgedTable,
    compare_policies,
    half_width_alone,
    measure_judged,
)
from vrm.reporting.rendering import EMPTY, Cell, Grid, Row, interval_cell, number, write_table
from vrm.reporting.scores import (
    RATED,
    Column,
    PairScores,
    Scorer,
    members,
    pair_scores,
    read_scores,
    refused_pairs,
    reward_model,
    table_columns,
)
from vrm.statistics.draws import FEWEST_DRAWS
from vrm.statistics.intervals import FLIPS, PairedTest, family_note, half_width, holm, p_text, paired_test, stratify

# Reward models.


@dataclass(frozen=True)
class _Compared:
    """One row: two reward models in one column; accuracies in 0..1.

    Args:
        first, second: the difference is that of the first less the second.
        column: the column of Table 2.
        test: the paired test of the two.
        half_width: of the second's accuracy, were it of independent prompts of a fixed model.
        pairs, prompts: how many are behind it.
    """

    first: Scorer
    second: Scorer
    column: Column
    test: PairedTest
    half_width: float
    pairs: int
    prompts: int


def comparisons_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write comparisons.{csv,md,tex}: one row a question and column of Table 2.

    Args:
        config: names variants, columns, seeds and the level.
        results: the run's directory.
        out: directory of the three files. The CSV has one row a test, in points.

    Raises:
        RecordError: there is nothing to compare, scores are missing or broken, or two models scored different pairs.
    """
    asked = reward_questions(config)
    if not asked:
        raise RecordError(
            "comparisons: there is no RM beside a VRM, and report.figure3 has no two losses; leave `comparisons` out "
            "of report.tables"
        )
    rows = list(_compare(config, results, asked))
    adjusted = holm([row.test.p_value for row in rows])
    grid = Grid(
        name="comparisons",
        caption=f"Differences in pairwise accuracy, in points. Data: {config.data.label}.",
        header=[Cell(title) for title in ("Compared", "Column", "Pairs", "Difference", "Half-width", "p", "p, Holm")],
        rows=list(_rows(rows, adjusted)),
        notes=list(_notes(config, rows, adjusted)),
        text_columns=2,
    )
    return write_table(out, [grid], _tidy(config, rows, adjusted))


def reward_questions(config: Config) -> list[tuple[str, str]]:
    """Which variants are compared: (first, second), by name."""
    variants, run = config.reward.variants, config.reward.run
    scalar = [name for name in (*config.report.figure4, *run) if variants[name].kind == "scalar"]
    asked = []
    ours = [name for name in run if variants[name].score_anchor_weight > 0]
    plain = [*scalar[:1], *(name for name in run if variants[name].kind == "multitask")]
    if scalar:
        vrms = (name for name in config.report.figure4 if variants[name].kind == "variational")
        asked += [(name, scalar[0]) for name in vrms]
    for name in ours:
        parts = [name, name + RATED] if variants[name].residual else [name]
        asked += [(part, other) for part in parts for other in plain]
        asked += [(part, name) for part in parts[1:]]
    asked += [(name, config.report.figure3[0]) for name in config.report.figure3[1:]]
    return list(dict.fromkeys(asked))


def _compare(config: Config, results: Path, asked: Sequence[tuple[str, str]]) -> Iterator[_Compared]:
    models = {name: reward_model(config, name) for name in dict.fromkeys(name for names in asked for name in names)}
    refused = refused_pairs(results, list(models.values()))
    scores = {name: read_scores(results, model, refused) for name, model in models.items()}
    columns = table_columns(config)
    for first, second in asked:
        for column in columns:
            sides = [_select(scores[name], column, name) for name in (first, second)]
            if not all(len(side.prompts) for side in sides):
                continue  # no subset of the section, or all pairs refused
            if not np.array_equal(sides[0].prompts, sides[1].prompts):
                raise RecordError(
                    f"evaluation set {column.evaluation_set}: {first} and {second} scored different pairs; score them "
                    "again on the same files"
                )
            yield _test(config, models[first], models[second], column, *sides)


def _select(scores: pd.DataFrame, column: Column, name: str) -> PairScores:
    """The pairs of a column; none where RewardBench's section has no subset in the set."""
    pairs = pair_scores(scores, column.evaluation_set, name)
    return pairs.select(members(column, pairs))


def _test(
    config: Config, first: Scorer, second: Scorer, column: Column, of_first: PairScores, of_second: PairScores
) -> _Compared:
    weights = SECTIONS.get(column.section)
    strata = of_first.subsets if weights else None
    key = f"comparisons/{first.name}/{second.name}/{column.evaluation_set}/{column.section}"
    test = paired_test(
        of_first.wins,
        of_second.wins,
        of_first.prompts,
        np.random.default_rng([config.report.seed, *key.encode()]),
        level=config.report.level,
        strata=strata,
        weights=weights,
    )
    parts = stratify(of_second.wins, of_second.prompts, strata, weights)
    rate = float(np.mean(sum(part.share * part.means for part in parts)))
    # prompts of equal weight that would say as much (Kish)
    effective = 1 / sum(part.share**2 * ((part.sizes / part.sizes.sum()) ** 2).sum() for part in parts)
    prompts = len(set(of_first.prompts.tolist()))
    half = half_width(effective, rate, config.report.level)
    return _Compared(first, second, column, test, half, len(of_first.prompts), prompts)


def _rows(rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> Iterator[Row]:
    """A rule where the next question begins."""
    starts = [False, *((a.first, a.second) != (b.first, b.second) for a, b in pairwise(rows))]
    for row, p, rule in zip(rows, adjusted, starts, strict=True):
        cells = [
            Cell(f"{row.first.label} − {row.second.label}"),
            Cell(row.column.title),
            Cell(str(row.pairs)),
            interval_cell(row.test.difference, scale=100),
            Cell(f"±{number(100 * row.half_width)}"),
            Cell(p_text(row.test.p_value)),
            Cell(p_text(p)),
        ]
        yield Row(cells, rule=rule)


def _notes(config: Config, rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> Iterator[str]:
    level = f"{100 * config.report.level:g} %"
    seeds = config.reward.seeds
    if len(seeds) > 1:
        yield (
            f"Data: {config.data.label}. Difference of means over {len(seeds)} seeds ({', '.join(map(str, seeds))}) on "
            f"the same pairs; in brackets its {level} interval over seeds and prompts (variance components, Student's "
            "t). p: against no difference between the methods, seeds being as random as prompts, so that a large "
            "difference that varies from seed to seed may not pass; more careful than the interval, as all that "
            "differs between seeds is taken for theirs: many tests need a level that holds."
        )
    else:
        yield (
            f"Data: {config.data.label}. Difference on the same pairs, one seed ({seeds[0]}); in brackets its {level} "
            f"interval over prompts (Student's t). p: {FLIPS:,} sign flips over prompts, against no difference "
            "between these two trained models; the variation between seeds is left out."
        )
    named = [f"{row.first.label} − {row.second.label} on {row.column.title}" for row in rows]
    yield family_note(named, adjusted, config.report.level)
    yield (
        f"Half-width: of the {level} interval (Wilson) of the second model's accuracy on that many prompts, subsets "
        "weighted as in Table 2: what a set of this size can tell apart at all, were there one model and no seeds."
    )


def _tidy(config: Config, rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> pd.DataFrame:
    """One row a test; differences and half-widths in points."""
    return pd.DataFrame(
        {
            "first": row.first.name,
            "second": row.second.name,
            "evaluation_set": row.column.evaluation_set,
            "column": row.column.title,
            "difference": 100 * row.test.difference.estimate,
            "low": 100 * row.test.difference.low,
            "high": 100 * row.test.difference.high,
            "level": row.test.difference.level,
            "p": row.test.p_value,
            "p_holm": p,
            "tests": len(rows),
            "half_width": 100 * row.half_width,
            "n_pairs": row.pairs,
            "n_prompts": row.prompts,
            "n_seeds": len(config.reward.seeds),
            "resampled": row.test.difference.resampled,
            "test": row.test.test,
        }
        for row, p in zip(rows, adjusted, strict=True)
    )


# Judged policies.

JUDGED = "comparisons_judged"

_OF_DRAWS = "Ends are percentiles of the draws' differences; p: where an end meets 0, at least 2 / (draws + 1)."

_OF_SEEDS = (
    "A draw's value is the mean over seeds, which are not drawn themselves; what they add is estimated from their "
    "values and allowed for by Student's t."
)


@dataclass(frozen=True)
class PolicyQuestions:
    """What is asked of every base.

    Args:
        pairs: methods by name, first less second.
        absent: in words, the policies that a question would need and the run doesn't have.
    """

    pairs: Sequence[tuple[str, str]]
    absent: Sequence[str]


@dataclass(frozen=True)
class _ComparedPolicies:
    """One row: two policies of one base in one column; in percentage points, or rating points.

    Args:
        first, second: the difference is that of the first less the second.
        metric: the column of Table 1.
        column: what it is called.
        test: the paired test of the two.
        half_width: of the second's value by itself, over prompts; NaN for a fit that was not resampled.
        prompts: judged of both.
        prompts_of_one: judged of one of them alone.
        note: why there is no difference; "" else.
    """

    first: JudgedModel
    second: JudgedModel
    metric: JudgedMetric
    column: str
    test: PairedTest
    half_width: float
    prompts: int
    prompts_of_one: int
    note: str

    @property
    def name(self) -> str:
        """What is compared, and where."""
        return f"{self.first.base_label}: {self.first.label} − {self.second.label} on {self.column}"


def comparisons_judged(config: Config, results: Path, out: Path) -> list[Path]:
    """Write comparisons_judged.{csv,md,tex,html}: one row a base, question and column of Table 1.

    Args:
        config: names bases, methods, seeds, benchmarks and the level.
        results: the run's directory.
        out: directory of the files. The CSV has one row a difference, in percentage points or rating points.

    Raises:
        RecordError: there is nothing to compare, or as `measure_judged`.
    """
    asked = policy_questions(config)
    table = measure_judged(config, results, JUDGED)
    rows = list(_compare_all_policies(config, table, asked.pairs))
    if not rows:
        raise RecordError(
            f"{JUDGED}: no two policies to compare; leave `{JUDGED}` out of report.tables. {_absent(asked)}"
        )
    adjusted = holm([row.test.p_value for row in rows])
    titles = ("Base", "Compared", "Column", "Prompts", "Difference", "Half-width", "p", "p, Holm")
    grid = Grid(
        name=JUDGED,
        caption=(
            "Differences between judged policies on the same prompts: win rates in percentage points, MT-Bench's score "
            f"in rating points. Data: {config.data.label}."
        ),
        header=[Cell(title) for title in titles],
        rows=list(_policy_rows(rows, adjusted)),
        notes=list(_policy_notes(config, rows, adjusted, asked)),
        text_columns=3,
    )
    return write_table(out, [grid], _tidy_policies(rows, adjusted))


def ppo_pair(config: Config) -> tuple[str, str]:
    """PPO with the paper's VRM and with its plain RM, the models of Figure 4, by name; "" for what is not run."""
    variants, methods = config.reward.variants, config.policy.methods
    by_reward = {methods[name].reward: name for name in reversed(config.policy.ppo_run)}
    found = {variants[name].kind: by_reward.get(name, "") for name in reversed(config.report.figure4)}
    return found.get("variational", ""), found.get("scalar", "")


def policy_questions(config: Config) -> PolicyQuestions:
    """Which methods are compared; decided by the configuration, before anything is judged."""
    policy, variants = config.policy, config.reward.variants
    methods, judged = policy.methods, {entry.method for entry in config.judged_policies}
    vrm, plain = ppo_pair(config)
    figure6 = [name for name in config.report.figure6 if name in judged]
    paid_by = {name: variants[methods[name].reward] for name in policy.ppo_run if methods[name].reward in variants}
    anchored = [name for name, variant in paid_by.items() if variant.score_anchor_weight > 0]
    dpo = [name for name in policy.run if methods[name].method == "dpo" and not methods[name].ours][:1]
    pairs = [(vrm, plain), *((figure6[0], name) for name in figure6[1:])]
    pairs += [*((name, plain) for name in anchored), *((vrm, name) for name in dpo)]
    absent = [f"{name} of report.figure6, which is not judged" for name in config.report.figure6 if name not in judged]
    lacking = {
        "PPO against the variational reward model of report.figure4": vrm,
        "PPO against the plain reward model of report.figure4": plain,
        "VRM-PPO without supervision (report.figure6 has no second method)": figure6[1:] or absent,
        "PPO against a score-anchored reward model": anchored,
        "DPO": dpo,
    }
    absent += [words for words, found in lacking.items() if not found]
    asked = list(dict.fromkeys(pair for pair in pairs if all(pair)))
    there = {(entry.base, entry.method) for entry in config.judged_policies}  # not every base has an SFT model
    for name in dict.fromkeys(name for pair in asked for name in pair):
        absent += [f"{name} of {policy.bases[base].label}" for base in policy.run_bases if (base, name) not in there]
    return PolicyQuestions(asked, absent)


def _compare_all_policies(
    config: Config, table: JudgedTable, pairs: Sequence[tuple[str, str]]
) -> Iterator[_ComparedPolicies]:
    models = {(model.base, model.method): model for model in table.models}
    for base in config.policy.run_bases:
        for names in pairs:
            sides = [models[base, name] for name in names if (base, name) in models]
            if len(sides) == 2:
                yield from (_test_policies(config, table, *sides, metric) for metric in table.columns)


def _test_policies(
    config: Config, table: JudgedTable, first: JudgedModel, second: JudgedModel, metric: JudgedMetric
) -> _ComparedPolicies:
    benchmark = table.benchmarks[metric.benchmark]
    prompts = [benchmark.judged(model) for model in (first, second)]
    missing = [model for model in (first, second) if table.cell(model, metric).missing]
    return _ComparedPolicies(
        first,
        second,
        metric,
        f"{getattr(config.benchmarks, metric.benchmark).label} {metric.title}",
        compare_policies(config, benchmark, first, second, metric),
        half_width_alone(config, benchmark, second, metric),
        len(prompts[0] & prompts[1]),
        len(prompts[0] ^ prompts[1]),
        "; ".join(f"{model.label}: {table.cell(model, metric).note}" for model in missing),
    )


def _policy_rows(rows: Sequence[_ComparedPolicies], adjusted: NDArray[np.float64]) -> Iterator[Row]:
    """A rule where the next question begins."""
    starts = [False, *((a.first, a.second) != (b.first, b.second) for a, b in pairwise(rows))]
    for row, p, rule in zip(rows, adjusted, starts, strict=True):
        digits = row.metric.digits
        half = EMPTY if np.isnan(row.half_width) else f"±{number(row.half_width, digits)}"
        cells = [
            Cell(row.first.base_label),
            Cell(f"{row.first.label} − {row.second.label}"),
            Cell(row.column),
            Cell(str(row.prompts)),
            interval_cell(row.test.difference, digits=digits),
            Cell(half),
            *(Cell(EMPTY if np.isnan(value) else p_text(value)) for value in (row.test.p_value, p)),
        ]
        yield Row(cells, rule=rule)


def _policy_notes(
    config: Config, rows: Sequence[_ComparedPolicies], adjusted: NDArray[np.float64], asked: PolicyQuestions
) -> Iterator[str]:
    level = f"{100 * config.report.level:g} %"
    yield _interval_note(config, level)
    yield family_note([row.name for row in rows], adjusted, config.report.level) + (
        " They are a family of their own, apart from the tests of the reward models."
    )
    yield (
        f"Half-width: of the {level} interval over prompts of the second policy's value by itself, one seed: what a "
        "set of this size can tell apart where nothing is paired."
    )
    yield from _fit_notes(rows, len(config.policy.seeds))
    if any(row.prompts_of_one for row in rows):
        most = max(row.prompts_of_one for row in rows)
        yield (
            f"Prompts: judged of both. Up to {most} more were judged of one of the two alone; they are in that one's "
            "mean, so that a difference is that of Table 1's values."
        )
    missing = [f"{row.name} ({row.note})" for row in rows if row.note]
    if missing:
        yield f"No difference, for want of a value: {'; '.join(missing)}."
    if asked.absent:
        yield _absent(asked)


def _interval_note(config: Config, level: str) -> str:
    seeds = config.policy.seeds
    if len(seeds) > 1:
        return (
            f"Data: {config.data.label}. Difference of means over {len(seeds)} seeds ({', '.join(map(str, seeds))}), "
            f"paired by prompt, a prompt's games or turns being one. In brackets its {level} interval over seeds and "
            "prompts (variance components, Student's t). p: against no difference between the methods, seeds being as "
            "random as prompts; more careful than the interval, as all that differs between seeds is taken for theirs."
        )
    return (
        f"Data: {config.data.label}. Difference paired by prompt, a prompt's games or turns being one; one seed "
        f"({seeds[0]}): a policy trained again can differ by more. WR and MT-Bench: in brackets the {level} interval "
        f"over prompts (Student's t). p: {FLIPS:,} sign flips over prompts, against no difference between these two "
        "trained policies."
    )


def _fit_notes(rows: Sequence[_ComparedPolicies], seeds: int) -> Iterator[str]:
    """Where interval and p-value of LC and SC come from, and which have none."""
    fits = [row for row in rows if row.metric.is_fit and not np.isnan(row.test.difference.estimate)]
    apart = dict.fromkeys(row.column for row in fits if TERMS in row.test.test)
    if apart:
        yield (
            f"{', '.join(apart)}: a fit, whose interval and p-value are those of a mean over prompts of its terms: "
            "what each prompt adds to it, by the derivative of the fit in its weight (infinitesimal jackknife)."
        )
    fits = [row for row in fits if TERMS not in row.test.test]
    drawn = dict.fromkeys(row.column for row in fits if not np.isnan(row.test.difference.low))
    if drawn:
        yield (
            f"{', '.join(drawn)}: fits, in which no prompt has a value of its own. In brackets the interval of the "
            "scorer's joint bootstrap: a draw takes prompts with replacement, the same for all policies, and fits all "
            f"again. {_OF_SEEDS if seeds > 1 else _OF_DRAWS}"
        )
    untested = dict.fromkeys(row.column for row in fits if row.column in drawn and np.isnan(row.test.p_value))
    if untested:
        yield (
            f"{', '.join(untested)}: no p-value, for on fewer than {FEWEST_DRAWS:,} draws none is small enough to "
            "stand up to the number of tests."
        )
    alone = dict.fromkeys(row.column for row in fits if row.column not in drawn)
    if alone:
        yield f"{', '.join(alone)}: fits that were not resampled: neither interval nor p-value."


def _absent(asked: PolicyQuestions) -> str:
    return f"Not compared, for this run has no policy of the kind: {'; '.join(asked.absent)}."


def _tidy_policies(rows: Sequence[_ComparedPolicies], adjusted: NDArray[np.float64]) -> pd.DataFrame:
    """One row a difference."""
    return pd.DataFrame(
        {
            "base": row.first.base,
            "first": row.first.method,
            "second": row.second.method,
            "benchmark": row.metric.benchmark,
            "metric": row.metric.name,
            "column": row.column,
            "difference": row.test.difference.estimate,
            "low": row.test.difference.low,
            "high": row.test.difference.high,
            "level": row.test.difference.level,
            "p": row.test.p_value,
            "p_holm": p,
            "tests": int(np.isfinite(adjusted).sum()),
            "half_width": row.half_width,
            "n_prompts": row.prompts,
            "n_prompts_of_one": row.prompts_of_one,
            "n_seeds": len(row.first.seeds),
            "resampled": row.test.difference.resampled,
            "test": row.test.test,
            "note": row.note,
        }
        for row, p in zip(rows, adjusted, strict=True)
    )
