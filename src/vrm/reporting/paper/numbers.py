"""Every number of the paper's Tables 1 and 2 beside ours; compared only where all that it depends on is the paper's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.reporting.judged_values import ARENA_SC, JudgedMetric
from vrm.reporting.paper.orders import METRICS, SCORES
from vrm.reporting.paper.verdicts import AGREES, DISAGREES, NOT_TESTABLE, Finding, PaperRun
from vrm.reporting.published import published
from vrm.reporting.rendering import EMPTY, number
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
