"""Whether the policies of Table 1 differ: paired tests on the same prompts, adjusted for their number.

* Asked of each base: VRM-PPO against PPO, the first method of Figure 6 against the others, each score-anchored
  VRM-PPO against PPO, and VRM-PPO against DPO. The configuration decides which these are; none is chosen by its result.
* One row a question and column of Table 1. All tests together are one family for Holm's adjustment. LC and SC are fits,
  whose tests are of the scorer's joint draws; without enough of them there is no test (`vrm.statistics.draws`). The
  official LC is tested by its terms.
* What a run has no policy for is named in the notes.
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
from vrm.statistics.draws import FEWEST_DRAWS
from vrm.statistics.paired_tests import FLIPS, PairedTest, family_note, holm, p_text

NAME = "comparisons_judged"

_OF_DRAWS = "Ends are percentiles of the draws' differences; p: where an end meets 0, at least 2 / (draws + 1)."

_OF_SEEDS = (
    "A draw's value is the mean over seeds, which are not drawn themselves; what they add is estimated from their "
    "values and allowed for by Student's t."
)


@dataclass(frozen=True)
class Questions:
    """What is asked of every base.

    Args:
        pairs: methods by name, first less second.
        absent: in words, the policies that a question would need and the run doesn't have.
    """

    pairs: Sequence[tuple[str, str]]
    absent: Sequence[str]


@dataclass(frozen=True)
class _Compared:
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
        RecordError: there is nothing to compare_policies, or as `measures.measure_table`.
    """
    asked = questions(config)
    table = measure_judged(config, results, NAME)
    rows = list(_compare(config, table, asked.pairs))
    if not rows:
        raise RecordError(f"{NAME}: no two policies to compare; leave `{NAME}` out of report.tables. {_absent(asked)}")
    adjusted = holm([row.test.p_value for row in rows])
    titles = ("Base", "Compared", "Column", "Prompts", "Difference", "Half-width", "p", "p, Holm")
    grid = Grid(
        name=NAME,
        caption=(
            "Differences between judged policies on the same prompts: win rates in percentage points, MT-Bench's score "
            f"in rating points. Data: {config.data.label}."
        ),
        header=[Cell(title) for title in titles],
        rows=list(_rows(rows, adjusted)),
        notes=list(_notes(config, rows, adjusted, asked)),
        text_columns=3,
    )
    return write_table(out, [grid], _tidy(rows, adjusted))


def ppo_pair(config: Config) -> tuple[str, str]:
    """PPO with the paper's VRM and with its plain RM, the models of Figure 4, by name; "" for what is not run."""
    variants, methods = config.reward.variants, config.policy.methods
    by_reward = {methods[name].reward: name for name in reversed(config.policy.ppo_run)}
    found = {variants[name].kind: by_reward.get(name, "") for name in reversed(config.report.figure4)}
    return found.get("variational", ""), found.get("scalar", "")


def questions(config: Config) -> Questions:
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
    return Questions(asked, absent)


def _compare(config: Config, table: JudgedTable, pairs: Sequence[tuple[str, str]]) -> Iterator[_Compared]:
    models = {(model.base, model.method): model for model in table.models}
    for base in config.policy.run_bases:
        for names in pairs:
            sides = [models[base, name] for name in names if (base, name) in models]
            if len(sides) == 2:
                yield from (_test(config, table, *sides, metric) for metric in table.columns)


def _test(
    config: Config, table: JudgedTable, first: JudgedModel, second: JudgedModel, metric: JudgedMetric
) -> _Compared:
    benchmark = table.benchmarks[metric.benchmark]
    prompts = [benchmark.judged(model) for model in (first, second)]
    missing = [model for model in (first, second) if table.cell(model, metric).missing]
    return _Compared(
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


def _rows(rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> Iterator[Row]:
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


def _notes(config: Config, rows: Sequence[_Compared], adjusted: NDArray[np.float64], asked: Questions) -> Iterator[str]:
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
            "prompts (variance components, Student's t). p: where that interval meets 0; against no difference between "
            "the methods, seeds being as random as prompts."
        )
    return (
        f"Data: {config.data.label}. Difference paired by prompt, a prompt's games or turns being one; one seed "
        f"({seeds[0]}): a policy trained again can differ by more. WR and MT-Bench: in brackets the {level} interval "
        f"over prompts (Student's t). p: {FLIPS:,} sign flips over prompts, against no difference between these two "
        "trained policies."
    )


def _fit_notes(rows: Sequence[_Compared], seeds: int) -> Iterator[str]:
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


def _absent(asked: Questions) -> str:
    return f"Not compared, for this run has no policy of the kind: {'; '.join(asked.absent)}."


def _tidy(rows: Sequence[_Compared], adjusted: NDArray[np.float64]) -> pd.DataFrame:
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
