"""The paper against this run: every number that the paper reports, every claim that we know of, and a verdict.

* A number is compared only where this run had the paper's models, data and judge; anywhere else it is on another scale,
  and "not testable at this scale". Comparable: our interval holds the paper's value, or does not.
* A claim about an order can be asked of any run; `paper_claims` says which, and how an interval becomes a verdict.
* The paper's sentences are not at hand, only its numbers, its abstract and what its figures are about (as restated in
  the project's reading of it). So a claim is one of three kinds, and `paper` says which: an order that the paper's own
  numbers show, a statement of the abstract, or what a figure is there to show.
* Values are read from the tables and figures of the run, whose files stand beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.reporting import published
from vrm.reporting.comparisons import ppo_pair
from vrm.reporting.curves import EVAL_ACCURACY, TARGET_KL, TRAIN_ACCURACY, LoggedQuantity
from vrm.reporting.judged_values import ARENA_SC, JudgedMetric
from vrm.reporting.paper_claims import (
    ABSTRACT,
    AGREES,
    DISAGREES,
    FIGURE,
    METRICS,
    NOT_TESTABLE,
    PAGE,
    SCORES,
    VERDICTS,
    ClaimedDifference,
    Finding,
    PaperRun,
    decide,
    ordered,
    orders,
    reward_pair,
    stored_difference,
)
from vrm.reporting.rendering import EMPTY, Cell, Grid, Row, number, write_table
from vrm.reporting.scores import table_columns

PAPER_BACKBONE = "Qwen/Qwen3-4B-Instruct-2507"
PAPER_BASES = {"Qwen2.5-7B": "FuseAI/FuseChat-Qwen-2.5-7B-SFT", "Qwen3-8B": "Qwen/Qwen3-8B"}
PAPER_DATA = "openbmb/UltraFeedback"
PAPER_SETS = {"rewardbench": "allenai/reward-bench", "uf_c": "allenai/ultrafeedback_binarized_cleaned"}
PAPER_JUDGE = r"gpt-4o(-\d{4}-\d\d-\d\d)?"
"""GPT-4o by its alias or by a dated snapshot; gpt-4o-mini is another model."""
PAPER_REFERENCES = {"Qwen2.5-7B": "gpt-4o-2024-05-13", "Qwen3-8B": "gpt4_1106_preview"}
"""AlpacaEval's, by policy."""
PAPER_BASELINE = "gpt-4-1106-preview"
"""Arena-Hard's, which is not the benchmark's own."""

BENCHMARKS = {"alpaca_eval": "AlpacaEval 2", "arena_hard": "Arena-Hard", "mt_bench": "MT-Bench"}


def table1_numbers(run: PaperRun) -> Iterator[Finding]:
    """The 80 cells of Table 1."""
    for row in published("table1"):
        base, method, lacking = run.policy(row["policy"], row["method"])
        for column, metric in METRICS.items():
            what = f"{row['policy']}, {row['method']}: {BENCHMARKS[metric.benchmark]} {metric.title}"
            known = metric.benchmark in run.config.benchmarks.run
            why = lacking or ("" if known else f"{BENCHMARKS[metric.benchmark]} is not run")
            found = None if why else _cell(run, base, method, metric)
            if found is None:
                why = why or run.why_no_value(base, method, metric) or "no value in this run"
                yield _missing("table1", what, row[column], why)
            else:
                digits, unlike = len(row[column].partition(".")[2]), _unlike_policies(run, base, row, metric)
                yield _number("table1", what, row[column], found, digits, unlike)


def _cell(run: PaperRun, base: str, method: str, metric: JudgedMetric) -> pd.Series | None:
    """Our row of Table 1; None where it has no value."""
    cells = run.table("table1")
    same = (cells.base == base) & (cells.method == method)
    same &= (cells.benchmark == metric.benchmark) & (cells.metric == metric.name)
    found = cells[same & cells.estimate.notna()]
    return None if found.empty else found.iloc[0]


def table2_numbers(run: PaperRun) -> Iterator[Finding]:
    """The 40 cells of Table 2."""
    cells = run.table("table2")
    columns = {column.paper: column for column in reversed(table_columns(run.config))}
    for row in published("table2"):
        scorer, lacking = run.scorer(row["method"])
        for name, title in SCORES.items():
            what, column = f"{row['method']}: {title}", columns.get(name)
            if lacking or column is None:
                yield _missing("table2", what, row[name], lacking or "this set is not evaluated")
                continue
            same = (cells.variant == scorer) & (cells.evaluation_set == column.evaluation_set)
            found = cells[same & (cells.column == column.title)]
            if found.empty:
                yield _missing("table2", what, row[name], "no pair of this column was scored")
            else:
                unlike = _unlike_scorers(run.config, column.evaluation_set, name, found.iloc[0].group)
                yield _number("table2", what, row[name], found.iloc[0], 1, unlike)


def _missing(table: str, what: str, paper: str, why: str) -> Finding:
    return Finding(f"Table {table[-1]}", what, paper, EMPTY, "", NOT_TESTABLE, why, f"tables/{table}.md")


def _number(table: str, what: str, paper: str, found: pd.Series, digits: int, unlike: list[str]) -> Finding:
    """One published number beside ours; `unlike`: what was not the paper's."""
    head, made = (f"Table {table[-1]}", what, paper), f"tables/{table}.md"
    value, over, bare = number(found.estimate, digits), "", np.isnan(found.low) or np.isnan(found.high)
    if not bare:
        value += f" [{number(found.low, digits)}, {number(found.high, digits)}]"
        over = found.resampled
    if unlike:
        return Finding(*head, value, over, NOT_TESTABLE, f"not the paper's {', '.join(unlike)}", made)
    if bare:
        return Finding(*head, value, over, NOT_TESTABLE, "no interval in this run", made)
    holds = found.low <= float(paper) <= found.high
    why = f"the interval {'holds' if holds else 'does not hold'} the paper's value"
    return Finding(*head, value, over, AGREES if holds else DISAGREES, why, made)


def _unlike_policies(run: PaperRun, base: str, row: dict[str, str], metric: JudgedMetric) -> list[str]:
    """What a cell of Table 1 depends on and is not the paper's."""
    config, policy, official = run.config, row["policy"], _official(run.results, metric.benchmark)
    # without an entry: those of reference_outputs.json, of which the official file has gpt4_1106_preview's
    references = config.benchmarks.alpaca_eval.references.get(base, "gpt4_1106_preview" if official else "")
    alike = {
        "base policy": config.policy.bases[base].path == PAPER_BASES[policy],
        "training data": _paper_data(config),
        "reward model's backbone": "PPO" not in row["method"] or config.backbone.path == PAPER_BACKBONE,
        "judge": config.judge is not None and bool(re.fullmatch(PAPER_JUDGE, config.judge.model)),
        "questions": official,
        "references": metric.benchmark != "alpaca_eval" or references == PAPER_REFERENCES[policy],
        "baseline": metric.benchmark != "arena_hard" or config.benchmarks.arena_hard.baseline == PAPER_BASELINE,
        "set of policies": metric != ARENA_SC or _paper_set(run),
    }
    return [what for what, same in alike.items() if not same]


def _unlike_scorers(config: Config, evaluation_set: str, column: str, group: str) -> list[str]:
    """What a cell of Table 2 depends on and is not the paper's."""
    hub = config.evaluation.sets[evaluation_set].hub
    alike = {
        "training data": _paper_data(config),
        "evaluation set": hub is not None and hub.dataset == PAPER_SETS["uf_c" if column == "uf_c" else "rewardbench"],
    }
    if group == "policy":
        alike["base policy"] = config.policy.bases[config.policy.scorers_from].path in PAPER_BASES.values()
    else:
        alike["backbone"] = config.backbone.path == PAPER_BACKBONE
    return [what for what, same in alike.items() if not same]


def _paper_data(config: Config) -> bool:
    return config.data.hub is not None and config.data.hub.dataset == PAPER_DATA


def _official(results: Path, benchmark: str) -> bool:
    """Whether the benchmark's files are the official ones, wherever they came from.

    The answers that the paper compares with have no known hash and must be the user's own files, so that those which
    can't be told are let pass; their names are asked for apart.
    """
    path = Path(results) / "judged" / "sets" / benchmark / "files.json"
    if not path.is_file():
        return False
    known = [file["official"] for file in json.loads(path.read_text(encoding="utf-8"))["files"]]
    return True in known and False not in known


def _paper_set(run: PaperRun) -> bool:
    """Whether style control was fitted over the paper's policies and no other: its values depend on that."""
    cells = run.table("table1").drop_duplicates(["base", "method"]).set_index(["base", "method"])
    bases = run.config.policy.bases
    names = {
        entry.name: (bases[entry.base].paper, cells.paper_method.get((entry.base, entry.method)))
        for entry in run.config.judged_policies
    }
    fitted = [names.get(model) for model in run.benchmarks[ARENA_SC.benchmark].record.get("models", [])]
    wanted = [(row["policy"], row["method"]) for row in published("table1")]
    return len(fitted) == len(wanted) and set(fitted) == set(wanted)


# The page.

PLACES = ("Abstract", "Table 1", "Table 2", "Figure 3", "Figure 4", "Figure 5", "Figure 6")
"""Where a claim stands, in the order of the page."""


def claims(run: PaperRun) -> list[Finding]:
    """Every claim with its verdict, in the paper's order."""
    found = [*decide(run, orders(run)), _hacking(run), _bound(run), _figure3(run), _figure4(run), *_figure5(run)]
    return sorted(found, key=lambda finding: PLACES.index(finding.where))


def _hacking(run: PaperRun) -> Finding:
    """Gold reward at the end of PPO, with the VRM and with the plain RM."""
    what = "VRM resists reward hacking (here: gold reward gained by VRM-PPO less that by PPO, mean over bases)"
    head, made = ("Abstract", what, ABSTRACT), "figures/overoptimisation.pdf"
    curves, methods = run.figure("overoptimisation"), list(ppo_pair(run.config))
    if curves.empty or not all(methods) or curves.gold.isna().all():
        return Finding(*head, EMPTY, "", NOT_TESTABLE, "no PPO with both reward models, or no gold reward", made)
    ends = _ends(curves[(curves.optimiser == "ppo") & curves.method.isin(methods)], ["base", "method"])
    ends = ends.assign(half=(ends.gold_high - ends.gold_low) / 2)
    table = ends.set_index(["base", "method"])[["gold", "half"]].unstack("method")
    table = table[table["gold"].notna().all(axis=1)]
    difference = float((table["gold"][methods[0]] - table["gold"][methods[1]]).mean())
    # A base's two policies as if independent, and bases as if they moved together, for all share reward models and
    # prompts: wider than an interval of the mean, so that the verdict errs on the side of none.
    half = float(np.hypot(table["half"][methods[0]], table["half"][methods[1]]).mean(skipna=False))
    change = ClaimedDifference(
        *(difference, difference - half, difference + half),
        f"{ends.resampled.iloc[0]}, the two as if independent, bases as if alike",
        made,
        few_seeds="one seed" if (ends.n_seeds == 1).any() else "",
    )
    return Finding(*head, *ordered(change, 1, run.config.report.level, "points of gold reward", 2), made)


def _bound(run: PaperRun) -> Finding:
    """The bound of the paper's own VRM; ablations of ours don't speak for it."""
    what, made = "VRM has a tighter generalisation bound than the plain reward model (Theorem 5.1)", "tables/bound.md"
    head, terms = ("Abstract", what, ABSTRACT), run.table("bound")
    why = "no run can settle it: the theorem bounds a VRM, and the plain RM has no such bound to compare with"
    if terms.empty:
        return Finding(*head, EMPTY, "", NOT_TESTABLE, f"report.tables has no bound; {why}", made)
    rows = terms[(terms.term == "bound") & terms.variant.isin(run.config.report.figure4)]
    values = [number(row.estimate, 2) + (", vacuous" if row.estimate >= 1 else "") for row in rows.itertuples()]
    value = "; ".join(f"{label}: {value}" for label, value in zip(rows.label, values, strict=True))
    return Finding(*head, value or EMPTY, "", NOT_TESTABLE, why, made)


def _figure3(run: PaperRun) -> Finding:
    """The losses by the paired tests on the held-out sets: along training they are watched on a few pairs only."""
    what = "Figure 3: the form of the supervision matters for accuracy (here: each loss less the first, held out)"
    head, made = ("Figure 3", what, FIGURE), "tables/comparisons.md"
    rows, names = run.table("comparisons"), run.config.report.figure3
    if len(rows) and names:
        rows = rows[rows["first"].isin(names[1:]) & (rows["second"] == names[0])]
    if rows.empty:
        return Finding(*head, EMPTY, "", NOT_TESTABLE, "not compared in this run", made)
    row = rows.sort_values(["p_holm", "p"], kind="stable").iloc[0]
    labels = {name: run.config.reward.variants[name].label for name in names}
    # whichever sign it has: the claim is that there is a difference
    change = stored_difference(row, made)
    value, over, verdict, why = ordered(change, change.estimate, run.config.report.level, "points")
    others = f"of {len(rows)} differences the one with the smallest p"
    unlike = "that losses are alike can't be shown by such a test"
    why = f"{why}; {others}" if verdict == AGREES else f"{others}: {why}; {unlike}"
    name = f"{labels[row['first']]} − {labels[row['second']]} on {row['column']}"
    return Finding(*head, f"{name}: {value}", over, verdict, why, made, change.p_holm, change.tests)


def _figure4(run: PaperRun) -> Finding:
    """The ends of two curves, whatever order the figure has them in."""
    what, made = "Figure 4: VRM ends with a higher eval accuracy than the plain RM", "figures/figure4.pdf"
    head = ("Figure 4", what, FIGURE)
    curves, pair = run.figure("figure4"), reward_pair(run.config)
    ends = _last_of(curves, EVAL_ACCURACY)
    if not set(pair) <= set(ends.index):
        why = "report.figures has no figure4" if curves.empty else "not one curve of each kind"
        return Finding(*head, EMPTY, "", NOT_TESTABLE, why, made)
    vrm, plain = (ends.loc[name] for name in pair)
    difference = float(vrm["mean"] - plain["mean"])
    half = float(np.hypot(vrm.high - vrm.low, plain.high - plain.low)) / 2
    over = f"{vrm.resampled}, the two as if independent"
    change = ClaimedDifference(difference, difference - half, difference + half, over, made)
    return Finding(*head, *ordered(change, 1, run.config.report.level, "points"), made)


def _figure5(run: PaperRun) -> Iterator[Finding]:
    """What each lambda ends with; reported, not judged."""
    why = (
        "values only, no verdict: whether any two of several intervals lie apart could be found true and never be "
        "found false"
    )
    for part, measure in zip("abc", (TRAIN_ACCURACY, EVAL_ACCURACY, TARGET_KL), strict=True):
        quantity = measure.title.split(" (")[0]  # without the unit
        head = ("Figure 5", f"Figure 5({part}): the weight of the supervision matters for {quantity}", FIGURE)
        ends = _last_of(run.figure("figure5"), measure)
        value = "; ".join(f"{row.label} {number(row['mean'], 1)}" for _, row in ends.iterrows())
        lacking = "" if value else "report.figures has no figure5"
        yield Finding(*head, value or EMPTY, "", NOT_TESTABLE, lacking or why, "figures/figure5.pdf")


def _last_of(curves: pd.DataFrame, measure: LoggedQuantity) -> pd.DataFrame:
    """The last step of each curve of one quantity, by variant in the figure's order."""
    if curves.empty:
        return curves
    shown = curves[(curves.split == measure.split) & (curves.metric == measure.metric)]
    return _ends(shown, ["variant"]).set_index("variant").loc[list(dict.fromkeys(shown.variant))]


def _ends(curves: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The row of the last step of each curve, whole: `last()` would fill what it lacks from an earlier step."""
    return curves.sort_values("step", kind="stable").groupby(by, sort=False).tail(1)


HEADER = ("Where", "What", "Paper", "This run", "Verdict", "Made anew by asking for")


def paper_page(config: Config, results: Path, out: Path) -> list[Path]:
    """Write paper.{csv,md,tex,html}: the claims, then the cells of Table 1, then those of Table 2.

    Args:
        config: names the run and what it was made of.
        results: the run's directory; its tables and figures are read, and the judgments and scores below its tables.
        out: directory of the files. The CSV has one row an entry.

    Raises:
        RecordError: a table or figure of the configuration is missing or older than this page.
    """
    run = PaperRun(config, results)
    asked, first, second = claims(run), list(table1_numbers(run)), list(table2_numbers(run))
    parts = {
        "paper": ("Claims of the paper, asked of this run.", asked, _claim_notes(asked)),
        "paper-table1": ("The numbers of the paper's Table 1.", first, []),
        "paper-table2": ("The numbers of the paper's Table 2.", second, []),
    }
    grids = [
        Grid(
            name=name,
            caption=f"{caption} Data: {config.data.label}.",
            header=[Cell(title) for title in HEADER],
            rows=[_row(config, finding) for finding in findings],
            notes=[*_notes(config, findings), *more],
            text_columns=len(HEADER),
        )
        for name, (caption, findings, more) in parts.items()
    ]
    return write_table(out, grids, pd.DataFrame([vars(finding) for finding in (*asked, *first, *second)]))


def _row(config: Config, finding: Finding) -> Row:
    cells = map(Cell, (finding.where, finding.what, finding.paper))
    over = f"over {finding.resampled}" if finding.resampled else ""
    made = Cell(f"results/{config.run}/{finding.made}")
    return Row([*cells, Cell(finding.ours, over), Cell(finding.verdict, finding.why), made])


def _notes(config: Config, findings: Sequence[Finding]) -> Iterator[str]:
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    seeds = len(config.policy.seeds)
    variation = "one seed, and the variation between seeds is left out" if seeds == 1 else f"{seeds} seeds"
    yield (
        f"{len(findings)} entries: {said}. Brackets: {100 * config.report.level:g} % intervals, each by itself, over "
        f"what the line below them says. Policies have {variation}."
    )
    yield (
        "A file of the last column is made anew by `snakemake --cores all --rerun-incomplete FILE`, with this run's "
        "--configfile."
    )


def _claim_notes(findings: Sequence[Finding]) -> Iterator[str]:
    yield (
        "agrees, disagrees: the interval excludes 0, and where it is one of several tests it does so after Holm's "
        "correction too. undecided: tested, and the interval holds 0 or excludes it before that correction only; this "
        "verdict is ours, the other three are those that were asked for. not testable at this scale: there was nothing "
        "to test, for the reason that stands below the verdict."
    )
    tested = [finding for finding in findings if np.isfinite(finding.p_holm)]
    if tested:
        own = max((finding.tests for finding in tested if finding.made == PAGE), default=0)
        yield (
            "Holm's correction is by family: a difference that stands in the table comparisons or comparisons_judged "
            f"has the p-value that it has there; the other tests ({own}) are one family of this page's own, by the "
            "same functions. Each family keeps the level by itself, the page as a whole does not."
        )
    numbers = {(f.ours, f.made) for f in findings if f.where == "Table 2" and f.ours != EMPTY}
    twice = [f.ours for f in findings if f.where == "Abstract" and (f.ours, f.made) in numbers]
    if twice:
        yield (
            f"One number in two entries, not two results: {'; '.join(twice)}, among the abstract's claims and among "
            "Table 2's orders of VRM and RM."
        )
