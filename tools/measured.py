"""Blocks of docs/findings.md, real_text.md and benchmarks.md; `tools/readme.py` fills them from docs/results/."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
ACCURACIES = {
    "rewardbench_chat_hard": "Chat Hard",
    "uf_c": "annotators' labels",
    "noise_free": "true preference",
}
ROWS = {  # of the table of worlds: what is compared with the plain RM, and on what
    ("vrm_concept_residual", "full", "uf_c"): "whole reward, annotators' labels",
    ("vrm_concept_residual", "rated", "uf_c"): "rated aspects, annotators' labels",
    ("vrm_concept_residual", "rated", "noise_free"): "rated aspects, true preference",
    ("vrm_concept_residual", "rated", "rewardbench_chat_hard"): "rated aspects, Chat Hard",
    ("multitask", "full", "noise_free"): "multi-task RM, true preference",
    ("multitask", "full", "rewardbench_chat_hard"): "multi-task RM, Chat Hard",
}
DATA = {"summeval": "SummEval", "xstest": "XSTest", "cragc": "CRAGC-25"}
CARRIED = {
    "hhh_alignment": "HHH alignment",
    "rb_hep": "HumanEvalPack",
    "reward_bench_shape/llmbar": "LLMBar",
    "reward_bench_shape/xstest": "to refuse or not",
    "reward_bench_shape/refusals": "to refuse",
    "reward_bench_shape/alpacaeval": "AlpacaEval hard",
}
AUC = "auc/caution_of_unsafe_prompts"


def warm_log(path: Path) -> pd.DataFrame:
    """A row a job of a run, and a row each fork that a job had of its own (`child`): command, seconds, memory."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = pd.DataFrame([json.loads(line) for line in lines if line.startswith(('{"job"', '{"child"'))])
    found["is_job"] = found.job.notna()
    commands = found.job.str[0]
    found["command"] = commands.fillna(found.child) if "child" in found else commands
    return found


def against_rm() -> str:
    """The study's differences to the plain RM on the same pairs, at its largest number of them."""
    cells = _power()
    cells = cells[cells.at_pairs == cells.at_pairs.max()]
    rows = {
        label: [_difference(values.loc[metric]) for metric in ACCURACIES]
        for label, values in _models(cells[cells.difference.notna()])
    }
    note = _note(cells)
    return _table("difference to RM in points", ACCURACIES.values(), rows, note)


def worlds() -> str:
    """The same differences by how biased annotators are, and where their ratings are biased as well."""
    cells = _power()
    pairs = cells.pairs[cells.at_pairs.isna()].iloc[0]
    cells = cells[cells.pairs == pairs]
    places = cells.groupby("world")[["at_spurious_bias", "at_rating_bias"]].first()
    own = places.loc["base", "at_spurious_bias"]  # what a world does not change has no place of its own in the figure
    places = places.fillna({"at_spurious_bias": own, "at_rating_bias": 0.0})
    order = places.sort_values(["at_rating_bias", "at_spurious_bias"]).index
    head = [_world(places.loc[name]) for name in order]
    rows = {}
    for (variant, part, metric), title in ROWS.items():
        own = cells[(cells.variant == variant) & (cells.part == part) & (cells.metric == metric)].set_index("world")
        rows[title] = [_difference(own.loc[name]) for name in order]
    return _table("difference to RM in points", head, rows, _note(cells))


def _world(place: pd.Series) -> str:
    own = f"bias {place.at_spurious_bias:g}"
    return own if not place.at_rating_bias else f"{own}, of ratings {place.at_rating_bias:g}"


def ablation() -> str:
    """What each single change of the concept-residual VRM and of the VRM does."""
    cells = pd.read_csv(RESULTS / "ablation.csv")
    columns = {**ACCURACIES, "weight_correlation": "r(w)"}
    rows = {}
    for label, values in _models(cells):
        known = [metric for metric in columns if metric in values.index]
        shown = {metric: _cell(values.loc[metric], 1 if metric == "weight_correlation" else 100) for metric in known}
        rows[label] = [shown.get(metric, "") for metric in columns]
    first = cells.iloc[0]
    note = f"*`docs/results/ablation.csv`: {first.pairs:,} training pairs, means of {first.n_seeds} seeds.*"
    return _table("model", columns.values(), rows, note)


def _models(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Label and cells, by metric, of each model and of its rated aspects alone."""
    for (_, part), own in cells.groupby(["variant", "part"], sort=False):
        yield own.label.iloc[0] + (", rated aspects alone" if part == "rated" else ""), own.set_index("metric")


def real_text() -> str:
    """Accuracy on held-out pairs of real text, and what the weight of caution knows."""
    columns = {**{(name, "accuracy"): title for name, title in DATA.items()}, ("xstest", AUC): "AUC of caution, XSTest"}
    return _real(columns)


def beside_rm() -> str:
    """The same as differences to the plain RM on the same pairs, in points."""
    return _real({(name, "accuracy_minus_rm"): title for name, title in DATA.items()}, signed=True)


def carried_over() -> str:
    """Accuracy on pairs about other things: a table for what was trained on, a column a set."""
    blocks = []
    for name, data in DATA.items():
        pairs = _tables()[name].loc["RM"]["n"]
        columns = {
            (name, f"accuracy/{metric}"): f"{title} ({pairs[f'accuracy/{metric}']:.0f} pairs)"
            for metric, title in CARRIED.items()
        }
        blocks += [f"Trained on {data}:", _real(columns)]
    return "\n\n".join(blocks)


def _tables() -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(RESULTS / f"{name}.csv").set_index(["model", "metric"]) for name in DATA}


def _real(columns: dict[tuple[str, str], str], signed: bool = False) -> str:
    tables = _tables()
    models = list(dict.fromkeys(model for table in tables.values() for model, _ in table.index))
    rows = {}
    for model in sorted(models, key=lambda name: not name.startswith("length alone")):
        found = [
            _cell(tables[name].loc[(model, metric)], 1 if metric == AUC else 100, signed)
            if (model, metric) in tables[name].index
            else ""
            for name, metric in columns
        ]
        if any(found):
            rows[model] = found
    records = [json.loads((RESULTS / f"{name}.provenance.json").read_text("utf-8")) for name in DATA]
    commits = " and ".join(dict.fromkeys(f"`{record['commit'][:10]}`" for record in records))
    seeds = max(int(table.seeds.max()) for table in tables.values())
    note = f"*`docs/results/`: means of {seeds} seeds, 95 % intervals over seeds and prompts. Commit {commits}.*"
    return _table("model", columns.values(), rows, note)


def training_speed() -> str:
    """Training a reward model beside TRL."""
    return _speed("reward_training", "pairs", "trl", "TRL's")


def vrm_speed() -> str:
    """Training a VRM beside our plain reward model, in more rounds."""
    return _speed("vrm_beside_rm", "pairs", "ours_rm", "our RM's")


def scoring_speed() -> str:
    """Scoring beside a scorer that pads."""
    return _speed("scoring", "records", "padded", "the padded scorer's")


def _speed(name: str, texts: str, peer: str, whose: str) -> str:
    rows = pd.read_csv(RESULTS / f"{name}.csv")
    lines = [f"| texts | | logical tokens a second | times {whose} | smallest and largest of the rounds |"]
    lines.append("|:--|:--|--:|--:|--:|")
    for row in rows.to_dict("records"):
        source = (
            "drawn, lengths like UltraFeedback's" if row[texts] == "drawn" else "real: " + Path(row[texts]).parent.name
        )
        ratio = f"{row[f'times_as_fast_as_{peer}']:.2f} | {row['smallest']:.2f} to {row['largest']:.2f}"
        lines.append(f"| {source} | `{row['contestant']}` | {row['tokens_per_second']:,.0f} | {ratio} |")
    first = rows.iloc[0]
    note = (
        f"*`docs/results/{name}.csv`: medians of {first.rounds} rounds, in which all took turns in one process; model "
        f"`{first.model}`, {first.precision}, {first.threads} thread of {first.cores} cores, {first.device}, "
        f"{first.date}, commit `{first.commit}`, torch {first.torch}, transformers {first.transformers}, trl "
        f"{first.trl}.*"
    )
    return "\n".join([*lines, "", note])


def _table(corner: str, head: Iterable[str], rows: Mapping[str, list[str]], note: str) -> str:
    head = list(head)
    lines = [f"| {corner} | " + " | ".join(head) + " |", "|:--|" + "--:|" * len(head)]
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items()]
    return "\n".join([*lines, "", note])


def _power() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "power.csv")


def _note(cells: pd.DataFrame, more: str = "") -> str:
    record = json.loads((RESULTS / "study.provenance.json").read_text(encoding="utf-8"))
    trained = " and ".join(f"`{commit[:10]}`" for commit in record["trained_at"])
    return (
        f"*`docs/results/power.csv`: {cells.pairs.iloc[0]:,} training pairs, means of {cells.n_seeds.iloc[0]} seeds, "
        f"95 % intervals over seeds and prompts{more}. Models trained at commit {trained}, torch "
        f"{record['packages']['torch']}.*"
    )


def _difference(cell: pd.Series) -> str:
    low, high = 100 * cell.difference_low, 100 * cell.difference_high
    return f"{100 * cell.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _cell(cell: pd.Series, factor: float, signed: bool = False) -> str:
    form = f"{'+' if signed else ''}.{1 if factor > 1 else 2}f"
    estimate, low, high = (factor * cell[name] for name in ("estimate", "low", "high"))
    return f"{estimate:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")
