"""Table 2: accuracy of every scorer on every evaluation set, the paper's value beside ours.

Rows are policies read as reward models, then the paper's reward models, ours, and those of others. The notes say what
the intervals cover, what a policy is scored by, and what is missing, cut or tied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.evaluation.accuracy import missing_subsets
from vrm.reporting import published
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
from vrm.reporting.scores import (
    OUTSIDE,
    AccuracyTable,
    CellAccuracy,
    Column,
    Scorer,
    measure_accuracies,
    slug,
    starts_group,
)
from vrm.statistics.intervals import Interval

_PAPER_NOTE = (
    "† The paper's value, on ANOTHER SCALE: Qwen3-4B reward models{policies}, trained and measured on the real data. "
    "Printed for orientation, not comparable with ours."
)


def notes(config: Config, measured: AccuracyTable, has_paper: bool) -> Iterator[str]:
    """All notes in order; `has_paper` says whether the table repeats values of the paper."""
    policies, models = _trained(measured)
    yield from _interval_notes(config, policies, models)
    if policies:
        yield _reward_note(config, policies)
    if has_paper:
        yield _PAPER_NOTE.format(policies=" and the paper's own policies" if policies else "")
    if any(scorer.ours for scorer in measured.scorers):
        yield "(ours): not in the paper."
    if any(scorer.is_rated for scorer in measured.scorers):
        yield "rated: the rated-aspect reward alone, e^τ w . g(z), without the residual b(z) of the row above."
    yield (
        "Length alone: no model; whichever of the longer and the shorter response (characters) is right more often on "
        "the validation pairs; its interval is over prompts alone."
    )
    if any(scorer.group == OUTSIDE for scorer in measured.scorers):
        yield (
            f"({OUTSIDE}): trained by others, on data that are not known here and may hold these very pairs; 'in "
            "training too' is said of this run's training data alone. It reads a text by its own chat template and its "
            "own limits of length; its interval is over prompts alone."
        )
    if probes := config.evaluation.probes:
        yield f"{config.evaluation.sets[probes].label}: read one by one in the world table."
    yield from _section_notes(config, measured)
    yield from _count_notes(config, measured)


def _trained(measured: AccuracyTable) -> tuple[list[Scorer], list[Scorer]]:
    """The policies and the reward models of this run."""
    trained = [scorer for scorer in measured.scorers if scorer.is_trained]
    policies = [scorer for scorer in trained if scorer.group == "policy"]
    return policies, [scorer for scorer in trained if scorer.group != "policy"]


def clean_notes(config: Config, measured: AccuracyTable) -> Iterator[str]:
    """The notes below the table without leaked prompts: its intervals, and what may be missing from a section."""
    yield from _interval_notes(config, *_trained(measured))
    yield (
        "Of the sets that share a prompt with the training data; prompts are the same where they are equal in Unicode "
        "NFKC, whatever their case and white space. Sections are weighted as above, over the subsets that are left."
    )


def _interval_notes(config: Config, policies: Sequence[Scorer], models: Sequence[Scorer]) -> Iterator[str]:
    """Seeds and intervals; apart for policies where they have other seeds than the reward models."""
    same = not policies or list(policies[0].seeds) == list(models[0].seeds)
    whose = "" if same else "Reward models: "
    yield f"Data: {config.data.label}. {whose}{_interval(config, models[0].seeds, whose)}"
    if same:
        return
    several = len(policies[0].seeds) > 1 and len(models[0].seeds) > 1
    width = "" if several else " Compare the widths of both with that in mind."
    yield f"Policies: {_interval(config, policies[0].seeds, 'Policies: ')}{width}"


def _interval(config: Config, seeds: Sequence[int], inside_sentence: str) -> str:
    mean = of_seeds(seeds)
    mean = mean[0].lower() + mean[1:] if inside_sentence else mean
    level = f"{100 * config.report.level:g} %"
    return f"{mean}; in brackets the {level} interval over {over_seeds_and_prompts(seeds)}."


def _reward_note(config: Config, policies: Sequence[Scorer]) -> str:
    """What a policy is scored by, and from which base it was trained."""
    base = config.policy.bases[config.policy.scorers_from]
    methods = config.policy.methods
    free = [scorer.label for scorer in policies if not methods[scorer.name].needs_reference]
    note = f"Policies, trained from {base.label}: {'; '.join(scorer.label for scorer in policies)}."
    implicit = "the implicit reward, the sum over the response's tokens, end token included, of log π - log π_start"
    per_token = "the mean log-probability per token of the response, end token included"
    if not free:
        return f"{note} A policy scores by {implicit}."
    if len(free) == len(policies):
        return f"{note} A policy scores by {per_token}."
    verb = "score" if len(free) > 1 else "scores"
    return f"{note} A policy scores by {implicit}; {' and '.join(free)}, without a reference, {verb} by {per_token}."


def _section_notes(config: Config, measured: AccuracyTable) -> Iterator[str]:
    """What RewardBench's sections are, and which subsets they lack."""
    for name in dict.fromkeys(column.evaluation_set for column in measured.columns):
        evaluation_set = config.evaluation.sets[name]
        if evaluation_set.format != "reward_bench":
            continue
        missing = missing_subsets(set(measured.pairs_of(name).subsets.tolist()))
        yield (
            f"{evaluation_set.label}: a section is the mean of its subsets, weighted as RewardBench weighs them; "
            "in its interval prompts vary within subsets."
        )
        listed = "; ".join(f"{section}: {', '.join(subsets)}" for section, subsets in missing.items())
        if listed:
            yield (
                f"{evaluation_set.label} lacks these subsets, so that its sections are not RewardBench's own: {listed}."
            )


def _count_notes(config: Config, measured: AccuracyTable) -> Iterator[str]:
    """Leaked prompts, truncated pairs and ties of each evaluation set."""
    for name in dict.fromkeys(column.evaluation_set for column in measured.columns):
        scores = measured.pairs_of(name)
        prompts = len(set(scores.prompts[scores.leaked].tolist()))
        ties = {scorer.label: int(measured.sets[scorer.name, name].ties.sum()) for scorer in measured.scorers}
        tied = ", ".join(f"{label} {count}" for label, count in ties.items() if count)
        pairs = len(scores.prompts)
        if refused := len(measured.refused.get(name, ())):
            yield (
                f"{config.evaluation.sets[name].label}: {refused} pairs are left out of every row, as the chat "
                "template of at least one scorer refuses them (refused.jsonl beside its scores)."
            )
        unscored = [scorer.label for scorer in measured.scorers if not len(measured.sets[scorer.name, name].prompts)]
        if unscored:
            yield (
                f"{config.evaluation.sets[name].label}: no value for {'; '.join(unscored)}, whose chat template "
                "refuses every pair."
            )
        yield (
            f"{config.evaluation.sets[name].label}: {pairs} pairs of {len(set(scores.prompts.tolist()))} prompts; in "
            f"training too: {prompts} prompts ({int(scores.leaked.sum())} of the pairs); cut before scoring: "
            f"{_truncated(measured, name)}; ties, which count as losses: {tied or 'none'}."
        )


def _truncated(measured: AccuracyTable, set_name: str) -> str:
    """Cut pairs; by group where tokenizers and limits make them differ."""
    groups: dict[str, set[int]] = {}
    for scorer in measured.scorers:
        group = {"policy": "policies", OUTSIDE: "outside models"}.get(scorer.group, "reward models")
        groups.setdefault(group, set()).add(int(measured.sets[scorer.name, set_name].truncated.sum()))
    if len(set().union(*groups.values())) == 1:
        return f"{groups.popitem()[1].pop()} of the pairs"
    return ", ".join(f"{_span(counts)} of the pairs ({group})" for group, counts in groups.items())


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def table2(config: Config, results: Path, out: Path) -> list[Path]:
    """Write table2.{csv,md,tex,html}: one row a scorer, one column a set of `evaluation.run`.

    The scorers are the preference-trained policies of `policy.scorers_from`, if that names a base, the variants of
    `reward.run`, and the outside models of `reward.run_outside`. The probes are left out: the world table reads them
    one by one.

    Args:
        config: names rows, columns, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a cell, in points; `paper_method` is the paper's name of
            the row.

    Raises:
        RecordError: as `accuracies.measure`.
    """
    measured = measure_accuracies(config, results)
    paper = _paper_values(measured)
    policies = any(scorer.group == "policy" for scorer in measured.scorers)
    first, what = ("Scorer", "policies and reward models") if policies else ("Reward model", "the reward models")
    grid = Grid(
        name="table2",
        caption=f"Pairwise accuracy of {what}, in points. Data: {config.data.label}.",
        header=[Cell(first), *_header(measured)],
        rows=list(_rows(measured, paper)),
        notes=list(notes(config, measured, has_paper=bool(paper))),
    )
    grids = [grid, *_without_leaked(config, measured, first)]
    return write_table(out, grids, _tidy(measured, paper))


def _paper_values(measured: AccuracyTable) -> dict[tuple[str, Column], float]:
    """The paper's values by (scorer, column), for the scorers whose name or label is a method of the paper."""
    values = {}
    for scorer in measured.scorers:
        row = _paper_row(scorer)
        values |= {(scorer.name, c): float(row[c.paper]) for c in measured.columns if c.paper in row}
    return values


def _paper_row(scorer: Scorer) -> dict[str, str]:
    """The paper's row of a scorer; empty where it has none."""
    if scorer.ours or not scorer.is_trained:
        return {}
    methods = {slug(row["method"]): row for row in published("table2")}
    return methods.get(slug(scorer.name)) or methods.get(slug(scorer.label)) or {}


def _header(measured: AccuracyTable) -> Iterator[Cell]:
    for column in measured.columns:
        cell = measured.cells.get((measured.scorers[0].name, column))
        yield Cell(column.title, f"n = {cell.pairs if cell else 0}")


def _rows(measured: AccuracyTable, paper: dict[tuple[str, Column], float]) -> Iterator[Row]:
    """A row a scorer; below it the paper's own, where the paper has it."""
    for scorer, previous in zip(measured.scorers, [None, *measured.scorers], strict=False):
        cells = (measured.cells.get((scorer.name, column)) for column in measured.columns)
        ours = [interval_cell(cell.interval, scale=100) if cell else Cell(EMPTY) for cell in cells]
        yield Row([Cell(scorer.label), *ours], rule=starts_group(previous, scorer))
        beside = [paper.get((scorer.name, column)) for column in measured.columns]
        if any(value is not None for value in beside):
            cells = [Cell("" if value is None else number(value)) for value in beside]
            yield Row([Cell(f"{scorer.label}, in the paper†"), *cells])


def _without_leaked(config: Config, measured: AccuracyTable, first: str) -> Iterator[Grid]:
    """The same accuracies without the prompts that also occur in training; nothing where no prompt leaked."""
    leaky = {name for (_, name), scores in measured.sets.items() if scores.leaked.any()}
    columns = [column for column in measured.columns if column.evaluation_set in leaky]
    if not columns:
        return
    rows = []
    for scorer, previous in zip(measured.scorers, [None, *measured.scorers], strict=False):
        cells = [_clean(measured, scorer, column) for column in columns]
        values = [interval_cell(cell.interval, scale=100) if cell else Cell(EMPTY) for cell in cells]
        rows.append(Row([Cell(scorer.label), *values], rule=starts_group(previous, scorer)))
    counts = [_clean(measured, measured.scorers[0], column) for column in columns]
    titles = [Cell(c.title, f"n = {cell.pairs if cell else 0}") for c, cell in zip(columns, counts, strict=True)]
    caption = f"The same without the prompts that also occur in training. Data: {config.data.label}."
    yield Grid("table2-without-leaked", caption, [Cell(first), *titles], rows, list(clean_notes(config, measured)))


def _clean(measured: AccuracyTable, scorer: Scorer, column: Column) -> CellAccuracy | None:
    cell = measured.cells.get((scorer.name, column))
    return cell and cell.without_leaked


def _tidy(measured: AccuracyTable, paper: dict[tuple[str, Column], float]) -> pd.DataFrame:
    """One row a cell; numbers in points."""
    rows = []
    for scorer in measured.scorers:
        for column in measured.columns:
            cell = measured.cells.get((scorer.name, column))
            if cell is not None:
                rows.append(_tidy_row(scorer, column, cell, paper.get((scorer.name, column), np.nan)))
    return pd.DataFrame(rows)


def _tidy_row(scorer: Scorer, column: Column, cell: CellAccuracy, paper: float) -> dict[str, Any]:
    nothing = CellAccuracy(Interval(np.nan, np.nan, np.nan, cell.interval.level, "nothing (no pair)"), 0, 0)
    clean = cell.without_leaked or nothing
    return {
        "variant": scorer.name,
        "label": scorer.label,
        "group": scorer.group,
        "evaluation_set": column.evaluation_set,
        "column": column.title,
        "estimate": 100 * cell.interval.estimate,
        "low": 100 * cell.interval.low,
        "high": 100 * cell.interval.high,
        "level": cell.interval.level,
        "n_pairs": cell.pairs,
        "n_prompts": cell.prompts,
        "n_seeds": len(scorer.seeds) if scorer.is_trained else 0,
        "without_leaked": 100 * clean.interval.estimate,
        "without_leaked_low": 100 * clean.interval.low,
        "without_leaked_high": 100 * clean.interval.high,
        "n_pairs_without_leaked": clean.pairs,
        "paper_method": _paper_row(scorer).get("method", ""),
        "paper": paper,
        "resampled": cell.interval.resampled,
    }
