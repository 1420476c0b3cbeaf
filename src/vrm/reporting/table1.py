"""Table 1: every judged policy on every judged benchmark, the paper's value beside ours.

Rows are the policies of each base, from the start of training on. The notes say what the intervals cover, who judged,
what was compared with what, and what is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config, ConfigError, PpoMethod
from vrm.reporting import published
from vrm.reporting.judged import BenchmarkResults, JudgedModel
from vrm.reporting.judged_values import ALPACA_LC, ALPACA_PARTIAL_LC, SHRUNK, JudgedMetric, JudgedTable, measure_judged
from vrm.reporting.rendering import (
    EMPTY,
    Cell,
    Grid,
    Row,
    interval_cell,
    number,
    of_seeds,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import row_label, slug
from vrm.runfiles import SFT

_PAPER_NOTE = (
    "† The paper's value, on ANOTHER SCALE: its own policies of 7 and 8 billion parameters, trained on the real data, "
    "on the official sets, judged by GPT-4o. Printed for orientation, not comparable with ours."
)

_STYLES = {"token_len": "length", "header_count": "headers", "list_count": "lists", "bold_count": "bold"}


def notes(config: Config, table: JudgedTable, has_paper: bool) -> Iterator[str]:
    """All notes in order; `has_paper` says whether the table repeats values of the paper."""
    yield _interval_note(config)
    yield from _fit_notes(config, table)
    if has_paper:
        yield _PAPER_NOTE
    if any(model.ours for model in table.models):
        yield "(ours): not in the paper."
    yield from _outside_notes(config, table)
    yield from _judge_notes(config, table)
    for name, benchmark in table.benchmarks.items():
        yield from _BENCHMARK_NOTES[name](config, table, benchmark)
    yield from _missing_notes(config, table)
    yield from _shrunk_notes(config, table)
    yield from _reading_notes(config, table)


def span(values: Iterable[int]) -> str:
    """One number, or the lowest and the highest."""
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _interval_note(config: Config) -> str:
    seeds, level = config.policy.seeds, f"{100 * config.report.level:g} %"
    if len(seeds) > 1:
        return (
            f"Data: {config.data.label}. {of_seeds(seeds)}; in brackets the {level} interval; WR and MT-Bench: over "
            f"{over_seeds_and_prompts(seeds)}."
        )
    return (
        f"Data: {config.data.label}. {of_seeds(seeds)} of each policy; in brackets the {level} interval; WR and "
        "MT-Bench: over prompts (Student's t). It leaves out the variation between seeds: a policy trained again can "
        "differ by more."
    )


def _fit_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """How the intervals of LC and SC come about."""
    fits = {metric.title.removesuffix("*"): metric for metric in table.columns if metric.is_fit}
    alone = [
        name
        for name, metric in fits.items()
        if all(np.isnan(table.cell(model, metric).interval.low) for model in table.models)
    ]
    drawn = [name for name in fits if name not in alone]
    if drawn:
        yield (
            f"{_listed(drawn)}: fits; in brackets the interval of the scorer's joint bootstrap over prompts: a draw "
            "takes prompts with replacement, the same for all policies, and fits all again."
        )
    if "SC" in drawn:
        yield (
            "SC: the benchmark's own code draws single battles instead. That takes those of a prompt for independent, "
            "and its intervals are too narrow."
        )
    if drawn and len(config.policy.seeds) > 1:
        yield (
            "Fits of several seeds: a draw's value is the mean over seeds, which are not drawn themselves; what they "
            "add is estimated from their values and allowed for by Student's t, as for WR."
        )
    if alone:
        yield f"{_listed(alone)}: fits that were not resampled, hence without an interval."


def _outside_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """Which policies were paid by a reward model that others have trained."""
    methods, outside = config.policy.methods, config.reward.outside
    for method in dict.fromkeys(model.method for model in table.models):
        reward = getattr(methods.get(method), "reward", None)
        if reward in outside:
            yield f"{row_label(methods[method])}: its reward is {row_label(outside[reward])}."


def _judge_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """Who judged; once where all benchmarks had the same."""
    judges: dict[str, list[str]] = {}
    for name, benchmark in table.benchmarks.items():
        judge = benchmark.record.get("judge") or {}
        serve = f" ({judge['serve']})" if judge.get("serve") else ""
        where = f"at {judge['endpoint']}" if judge.get("endpoint") else f"served by the run itself{serve}"
        judges.setdefault(f"{judge.get('model') or 'unknown'}, {where}", []).append(_label(config, name))
    for judge, labels in judges.items():
        yield f"Judge{'' if len(judges) == 1 else f' of {_listed(labels)}'}: {judge}."


def _alpaca_notes(config: Config, table: JudgedTable, benchmark: BenchmarkResults) -> Iterator[str]:
    record, label = benchmark.record, _label(config, benchmark.name)
    yield (
        f"{label}: each answer against that of {_references(config, table, benchmark)}, {_questions(benchmark)} "
        f"instructions; prompt and parser of annotator "
        f"{record.get('annotator') or config.benchmarks.alpaca_eval.annotator}, {record.get('package', 'alpaca-eval')}."
    )
    yield _failures(label, "comparisons", benchmark.failed)
    if ALPACA_PARTIAL_LC in table.columns:
        yield (
            f"* {label}: a win rate controlled for length, without AlpacaEval's term for how difficult an instruction "
            f"is ({_reason(table, benchmark)}). It is not the official LC nor comparable with it; the paper's LC is "
            "not repeated beside it."
        )


def _references(config: Config, table: JudgedTable, benchmark: BenchmarkResults) -> str:
    """Who wrote the reference answers; by base where they differ."""
    found: dict[str, list[str]] = {}
    policies = benchmark.record.get("policies") or {}
    for policy in config.judged_policies:
        names = (policies.get(policy.name) or {}).get("reference") or []
        bases = found.setdefault(_listed(names) or "the reference outputs", [])
        bases += [] if policy.base in bases else [policy.base]
    if len(found) == 1:
        return next(iter(found))
    bases = config.policy.bases
    return _listed(f"{name} ({_listed(bases[base].label for base in own)})" for name, own in found.items())


def _arena_notes(config: Config, table: JudgedTable, benchmark: BenchmarkResults) -> Iterator[str]:
    record, label = benchmark.record, _label(config, benchmark.name)
    yield (
        f"{label}: two games a prompt against {record.get('baseline') or config.benchmarks.arena_hard.baseline}, "
        f"{_questions(benchmark)} prompts; WR is the mean over battles, a clear verdict (>>) being three."
    )
    yield _failures(label, "games", record.get("dropped", benchmark.failed))
    yield f"{label}, SC: {_joint_fit(config, record)}; another set of policies gives other values.{_styles(record)}"


def _joint_fit(config: Config, record: Mapping[str, Any]) -> str:
    """Whose answers the style-controlled fit is over."""
    if "models" not in record:
        return "one fit over all policies that were scored at once"
    models, judged = set(record["models"]), {policy.name for policy in config.judged_policies}
    others = [*(f"with {name}" for name in sorted(models - judged)), *(f"without {n}" for n in sorted(judged - models))]
    return f"one fit over {len(models)} policies, {', '.join(others) or 'those of this table'}"


def _styles(record: Mapping[str, Any]) -> str:
    coefficients = (record.get("style_coefficients") or {}).items()
    if not coefficients:
        return ""
    listed = ", ".join(f"{_STYLES.get(name, name)} {value:+.2f}" for name, value in coefficients)
    return f" Log-odds of a win by a standard deviation of the difference in style: {listed}."


def _mt_notes(config: Config, table: JudgedTable, benchmark: BenchmarkResults) -> Iterator[str]:
    record, label = benchmark.record, _label(config, benchmark.name)
    references = record.get("references") or config.benchmarks.mt_bench.references
    yield (
        f"{label}: {_questions(benchmark)} questions of two turns, each rated by itself; the score is the mean "
        f"over all rated turns. Where there is a right answer the judge sees that of {references}."
    )
    yield _failures(label, "turns", benchmark.failed)


_BENCHMARK_NOTES = {"alpaca_eval": _alpaca_notes, "arena_hard": _arena_notes, "mt_bench": _mt_notes}


def _failures(label: str, what: str, reasons: Mapping[str, int] | None) -> str:
    """What has no judgment, by reason."""
    if reasons is None:
        return f"{label}: {what} without a judgment are in no mean; their number is not recorded."
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items() if count)
    total = f"{sum(reasons.values()):,} ({named})" if named else "none"
    return f"{label}: {what} without a judgment, which are in no mean: {total}."


def _missing_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """Which cells are empty, and why."""
    for metric in table.columns:
        reasons: dict[str, list[JudgedModel]] = {}
        for model in table.models:
            cell = table.cell(model, metric)
            if cell.missing:
                reasons.setdefault(cell.note, []).append(model)
        for reason, models in reasons.items():
            yield f"No value, {_label(config, metric.benchmark)} {metric.title}, {_who(table, models)} ({reason})."


def _shrunk_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """Which values are a penalty's, and no measurement."""
    for metric in table.columns:
        models = [model for model in table.models if table.cell(model, metric).note == SHRUNK]
        if models:
            yield (
                f"No interval, {_label(config, metric.benchmark)} {metric.title}, {_who(table, models)}. Here the "
                "fit's penalty, which cross-validation chose, leaves nothing of the judgments: it gives the same value "
                "whichever prompts it is fitted to, so that this is no measurement."
            )


def _reading_notes(config: Config, table: JudgedTable) -> Iterator[str]:
    """How wide the intervals are, and how many there are."""
    widths, count = [], 0
    for metric in table.columns:
        intervals = [table.cell(model, metric).interval for model in table.models]
        halves = [(i.high - i.low) / 2 for i in intervals if not np.isnan(i.low)]
        count += len(halves)
        if halves:
            low, high = (f"{half:.{metric.digits}f}" for half in (min(halves), max(halves)))
            ends = low if low == high else f"{low} to {high}"
            widths.append(f"{_label(config, metric.benchmark)} {metric.title} {ends}")
    if widths:
        yield f"Half-widths of the intervals: {', '.join(widths)}."
    if "comparisons_judged" in config.report.tables:
        yield (
            "Whether two policies differ is asked in the table comparisons_judged, on the same prompts; whether their "
            "intervals here overlap is no answer."
        )
    if count > 1:
        missed = count * (1 - config.report.level)
        yield (
            f"{count} intervals stand here, each by itself: about {max(round(missed), 1)} of them miss their value by "
            "chance, and the best of a column owes part of its place to luck. Nothing is marked as best."
        )


def _reason(table: JudgedTable, benchmark: BenchmarkResults) -> str:
    """Why there is no official LC, in the scorer's words."""
    found: dict[str, None] = {}
    for model in table.models:
        rows = benchmark.rows(model, ALPACA_LC.name)
        found |= dict.fromkeys(note for note in rows.loc[rows["value"].isna(), "note"] if note)
    return "; ".join(found) or "the scores have none"


def _questions(benchmark: BenchmarkResults) -> int:
    """How many were judged of any policy."""
    return benchmark.items["item_id"].nunique()


def _label(config: Config, name: str) -> str:
    return getattr(config.benchmarks, name).label


def _who(table: JudgedTable, models: Sequence[JudgedModel]) -> str:
    if len(models) == len(table.models):
        return "all rows"
    bases = dict.fromkeys(model.base_label for model in models)
    return "; ".join(f"{base}: {', '.join(m.label for m in models if m.base_label == base)}" for base in bases)


def _listed(names: Iterable[str]) -> str:
    *others, last = [*names] or [""]
    return f"{', '.join(others)} and {last}" if others else last


Paper = dict[tuple[str, str, JudgedMetric], float]

# The reward model that the paper's PPO rows train against: another kind under the same name is not the paper's row.
_REWARD_KINDS = {"ppo": "scalar", "vrm_ppo": "variational"}


def table1(config: Config, results: Path, out: Path) -> list[Path]:
    """Write table1.{csv,md,tex,html}: one row a judged policy, the columns those of `benchmarks.run`.

    Args:
        config: names bases, methods, seeds, benchmarks and the level; `policy.bases.<base>.paper` names the policy of
            the paper whose values stand beside a base's.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a cell, in percent or rating points; `paper_method`
            is the paper's name of the row, whether or not the base stands for one of the paper's policies.

    Raises:
        ConfigError: the paper has no policy of such a name.
        RecordError: as `measure_judged`.
    """
    table = measure_judged(config, results)
    paper = _paper_values(config, table)
    grid = Grid(
        name="table1",
        caption=(
            "Judged benchmarks: win rates (WR, LC, SC) in percent, MT-Bench's score in rating points from 1 to 10. "
            f"Data: {config.data.label}."
        ),
        header=[Cell("Base"), Cell("Method"), *_header(config, table)],
        rows=list(_rows(config, table, paper)),
        notes=list(notes(config, table, has_paper=bool(paper))),
        text_columns=2,
    )
    return write_table(out, [grid], _tidy(config, table, paper))


def _paper_values(config: Config, table: JudgedTable) -> Paper:
    """The paper's values of the bases that stand for a policy of the paper, for the paper's own methods."""
    theirs = {(row["policy"], slug(row["method"])): row for row in published("table1")}
    policies = dict.fromkeys(policy for policy, _ in theirs)
    values: Paper = {}
    for model in table.models:
        policy = config.policy.bases[model.base].paper
        if policy is not None and policy not in policies:
            raise ConfigError(f"policy.bases.{model.base}.paper: {policy!r} is none of {', '.join(policies)}")
        row = theirs.get((policy, _paper_method(config, model)))
        if row:
            shown = [metric for metric in table.columns if metric.paper]
            values |= {(model.base, model.method, metric): float(row[metric.paper]) for metric in shown}
    return values


def _paper_method(config: Config, model: JudgedModel) -> str:
    """What the paper's row of a method would be called; "" for what is not the paper's."""
    if model.method == SFT or model.ours:
        return ""
    entry = config.policy.methods[model.method]
    if not isinstance(entry, PpoMethod):
        return next((name for name in (slug(model.method), slug(model.label)) if name not in _REWARD_KINDS), "")
    if entry.reward in config.reward.outside:
        return ""
    kind = config.reward.variants[entry.reward].kind
    names = (slug(model.method), slug(model.label))
    return next((name for name in names if _REWARD_KINDS.get(name) == kind), "")


def _header(config: Config, table: JudgedTable) -> Iterator[Cell]:
    for metric in table.columns:
        prompts = span({table.cell(model, metric).prompts for model in table.models})
        yield Cell(getattr(config.benchmarks, metric.benchmark).label, f"{metric.title}, n = {prompts}")


def _rows(config: Config, table: JudgedTable, paper: Paper) -> Iterator[Row]:
    """A row a policy; below it the paper's own, where the paper has it."""
    previous = None
    for model in table.models:
        cells = [table.cell(model, metric) for metric in table.columns]
        ours = [
            interval_cell(cell.interval, digits=metric.digits) if not cell.missing else Cell(EMPTY)
            for cell, metric in zip(cells, table.columns, strict=True)
        ]
        starts_base = previous is not None and previous.base != model.base
        yield Row([Cell(model.base_label), Cell(model.label), *ours], rule=starts_base)
        previous = model
        beside = [paper.get((model.base, model.method, metric)) for metric in table.columns]
        if any(value is not None for value in beside):
            cells = [
                Cell("" if value is None else number(value, metric.digits))
                for value, metric in zip(beside, table.columns, strict=True)
            ]
            name = config.policy.bases[model.base].paper
            yield Row([Cell(str(name)), Cell(f"{model.label}, in the paper†"), *cells])


def _tidy(config: Config, table: JudgedTable, paper: Paper) -> pd.DataFrame:
    """One row a cell."""
    names = {slug(row["method"]): row["method"] for row in published("table1")}
    rows = []
    for model in table.models:
        paper_method = names.get(_paper_method(config, model), "")
        rows += [_tidy_row(table, paper, model, metric, paper_method) for metric in table.columns]
    return pd.DataFrame(rows)


def _tidy_row(
    table: JudgedTable, paper: Paper, model: JudgedModel, metric: JudgedMetric, paper_method: str
) -> dict[str, Any]:
    cell = table.cell(model, metric)
    return {
        **cell.row(model, metric),
        "paper_method": paper_method,
        "paper": paper.get((model.base, model.method, metric), np.nan),
        "resampled": cell.interval.resampled,
        "note": cell.note,
    }
