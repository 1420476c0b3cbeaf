"""Blocks of docs/findings.md; `tools/readme.py` fills them from the files of a finished demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from vrm.records import PreferencePair, read_jsonl, read_pairs
from vrm.statistics.intervals import student_interval
from vrm.statistics.logistic import fit_logistic
from vrm.world import gold
from vrm.world.responses import TASTE

GROUPS = 8
"""Into how many equal parts pairs are sorted by difficulty."""


def compared(run: Path) -> str:
    """What supervision, latents and anchoring did to accuracy, and what is left after Holm's correction."""
    rows = pd.read_csv(run / "tables" / "comparisons.csv")
    labels = _labels(run)
    columns = list(dict.fromkeys(rows.column))
    lines = ["| difference in points | " + " | ".join(columns) + " |", "|:--|" + "--:|" * len(columns)]
    for (first, second), part in rows.groupby(["first", "second"], sort=False):
        own = part.set_index("column")
        cells = [_bold(_interval(own.loc[c], signed=True), own.p_holm[c] < 0.05) for c in columns]
        lines.append(f"| {labels[first]} − {labels[second]} | " + " | ".join(cells) + " |")
    seeds, tests, left = int(rows.n_seeds.iloc[0]), int(rows.tests.iloc[0]), int((rows.p_holm < 0.05).sum())
    lines += [
        "",
        f"*`tables/comparisons.csv`: {seeds} seeds, 95 % intervals over seeds and prompts. Bold: p below 0.05 "
        f"after Holm's correction for {tests} tests; {left} of them.*",
    ]
    return "\n".join(lines)


def selection(run: Path) -> str:
    """How much longer the chosen response is than the rejected one, by difficulty."""
    pairs = {row["pair_id"]: row for _, row in read_jsonl(run / "data" / "pairs" / "train.jsonl")}
    lines = [
        f"| words that the chosen response is longer by, in eighths of equal size | {' | '.join(_ordinals())} |",
        "|:--|" + "--:|" * GROUPS,
    ]
    for path in sorted(run.glob("policy/*/difficulty/seed*/difficulty.csv")):
        table = pd.read_csv(path).sort_values(["difficulty", "pair_id"])
        longer = [_words(pairs[name]["chosen"]) - _words(pairs[name]["rejected"]) for name in table.pair_id]
        group = pd.Series([i * GROUPS // len(longer) for i in range(len(longer))])
        means = pd.Series(longer).groupby(group).mean()
        lines.append(f"| {_base(run, path.parts[-4])} | " + " | ".join(f"{value:+.1f}" for value in means) + " |")
    return "\n".join([*lines, "", "*`difficulty.csv` against `data/pairs/train.jsonl`.*"])


def judged(run: Path) -> str:
    """Differences between judged policies on the same prompts, and what is left after Holm's correction."""
    rows = pd.read_csv(run / "tables" / "comparisons_judged.csv")
    methods = {name: method["label"] for name, method in _config(run)["policy"]["methods"].items()}
    columns = list(dict.fromkeys(rows.column))
    lines = ["| Base | difference | " + " | ".join(columns) + " |", "|:--|:--|" + "--:|" * len(columns)]
    for (base, first, second), part in rows.groupby(["base", "first", "second"], sort=False):
        own = part.set_index("column")
        digits = {column: 2 if own.metric[column] == "score" else 1 for column in columns}
        cells = [_bold(_interval(own.loc[c], digits[c], signed=True), own.p_holm[c] < 0.05) for c in columns]
        lines.append("| " + " | ".join([_base(run, base), f"{methods[first]} − {methods[second]}", *cells]) + " |")
    seeds, tests, left = int(rows.n_seeds.iloc[0]), int(rows.tests.iloc[0]), int((rows.p_holm < 0.05).sum())
    note = (
        f"*`tables/comparisons_judged.csv`: {seeds} seed{'s' * (seeds > 1)} a policy, 95 % intervals over prompts. "
        f"Bold: p below 0.05 after Holm's correction for {tests} tests; {left} of them.*"
    )
    return "\n".join([*lines, "", note])


def length(run: Path) -> str:
    """Rank correlation of policies' win rates with the length of their answers."""
    rows = pd.read_csv(run / "figures" / "win_rate_length.csv")
    lines = ["| Base | Benchmark | policies | Spearman correlation of result and length |", "|:--|:--|--:|--:|"]
    for (base, benchmark), part in rows.groupby(["base", "benchmark"], sort=False):
        correlation = part.length.rank().corr(part.estimate.rank())
        lines.append(f"| {_base(run, base)} | {_benchmark(run, benchmark)} | {len(part)} | {correlation:+.2f} |")
    return "\n".join([*lines, "", "*`figures/win_rate_length.csv`; few policies, so no test.*"])


def limits(run: Path, model: str = "vrm_concept_residual", plain: str = "rm") -> str:
    """What decides annotators' labels: the model's parts, and the same parts beside what the world knows to be true.

    Two signals are mixed by a logistic regression on other pairs than it is asked about (five parts).
    """
    pairs = read_pairs(run / "evaluation" / "sets" / "uf_c.jsonl")
    aspects, taste = _true_differences(pairs)
    rows: dict[str, list[float]] = {}
    for seed in _config(run)["reward"]["seeds"]:
        scores, baseline = (_uf_c(run, name, seed, pairs) for name in (model, plain))
        whole, rated, residual = (_difference(scores, part) for part in ("reward", "rated", "residual"))
        rm = _difference(baseline, "reward")
        for name, signals in {
            "RM": [rm],
            "concept-residual, whole reward": [whole],
            "w · g and b, mixed at best": [rated, residual],
            "w · g and RM, mixed at best": [rated, rm],
            "w · g and a perfect residual: what spurious features are truly worth to annotators": [rated, taste],
            "RM and perfect aspects: the true w · s": [rm, aspects],
        }.items():
            rows.setdefault(name, []).append(100 * _mixed(np.stack(signals, axis=1)))
    lines = ["| told by | accuracy on annotators' labels |", "|:--|--:|"]
    for name, values in rows.items():
        found = student_interval(values)
        lines.append(f"| {name} | {found.estimate:.1f} [{found.low:.1f}, {found.high:.1f}] |")
    note = f"*{len(pairs):,} pairs of UF-C-like, {len(values)} seeds, 95 % intervals over seeds (`tools/findings.py`).*"
    return "\n".join([*lines, "", note])


def _true_differences(pairs: list[PreferencePair]) -> tuple[np.ndarray, np.ndarray]:
    """Chosen less rejected, shape (N,): w*.s, and what annotators pay beside it."""
    aspects, taste = [], []
    for pair in pairs:
        first, second = (gold.read(pair.prompt[-1]["content"], text) for text in (pair.chosen, pair.rejected))
        aspects.append(np.dot(pair.true_weights, np.subtract(first.scores, second.scores)))
        taste.append(np.dot(TASTE, np.subtract(first.spurious, second.spurious)))
    return np.array(aspects), np.array(taste)


def _uf_c(run: Path, model: str, seed: int, pairs: list[PreferencePair]) -> pd.DataFrame:
    scores = pd.read_csv(run / "reward" / model / f"seed{seed}" / "scores.csv")
    scores = scores[scores.evaluation_set == "uf_c"]
    return scores.set_index("pair_id").loc[[pair.pair_id for pair in pairs]]


def _difference(scores: pd.DataFrame, part: str) -> np.ndarray:
    return (scores[f"{part}_chosen"] - scores[f"{part}_rejected"]).to_numpy()


def _mixed(signals: np.ndarray, parts: int = 5) -> float:
    """Share of N pairs whose chosen response is preferred; of K signals, shape (N, K), the weights come from others."""
    if signals.shape[1] == 1:
        return float((signals > 0).mean())
    signals, right = signals / signals.std(axis=0), 0
    fold = np.random.default_rng(0).permutation(len(signals)) % parts
    for part in range(parts):
        known, asked = signals[fold != part], signals[fold == part]
        # a pair told the other way round, with the other outcome, is the same pair: no intercept is left
        x, wins = np.concatenate([known, -known]), np.concatenate([np.ones(len(known)), np.zeros(len(known))])
        found = fit_logistic(x[None, None], wins[None, None], 1 - wins[None, None], np.eye(1 + x.shape[1]))
        right += int((asked @ found[0, 1:] > 0).sum())
    return right / len(signals)


def _interval(row: pd.Series, digits: int = 1, signed: bool = False) -> str:
    value = row.difference if signed else row.estimate
    sign = "+" if signed else ""
    return f"{value:{sign}.{digits}f} [{row.low:{sign}.{digits}f}, {row.high:{sign}.{digits}f}]"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _words(text: str) -> int:
    return len(text.split())


def _ordinals() -> list[str]:
    return ["easiest", *(str(i) for i in range(2, GROUPS)), "hardest"]


def _labels(run: Path) -> dict[str, str]:
    rows = pd.read_csv(run / "tables" / "table2.csv")
    return dict(zip(rows.variant, rows.label, strict=True))


def _base(run: Path, name: str) -> str:
    return _config(run)["policy"]["bases"][name]["label"]


def _benchmark(run: Path, name: str) -> str:
    return _config(run)["benchmarks"][name]["label"]


def _config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
