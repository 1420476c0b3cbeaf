"""The explorer: one HTML file to read a run's pairs in, with weights, contributions and who is right.

* Self-contained: styles, script and data are inside, nothing is loaded, and the content policy forbids it.
* Texts are data: they stand in a compressed JSON block and reach the page as text nodes, so that no markup in them is
  ever run.
* Scores are whole multiples of a unit per model: four digits are enough for a reader, and the file stays small.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.records import PreferencePair, RecordError, read_pairs, write_whole

from .interpretation import (
    AGREEMENTS,
    SPREAD,
    compared_models,
    disagreements,
    known_truth,
    pair_table,
    weights_by_kind,
)
from .results import PROBES, read_scores
from .stats import Interval

LARGE = 1_500_000  # bytes: `snakemake --report` hands pages over as data URLs, and Chromium opens none above 2 MiB
WEIGHT_UNIT = 1e-4


def explorer(config: Config, results: Path, out: Path) -> list[Path]:
    """Write explorer.html and explorer.csv, the table behind it: one row a VRM and shown pair.

    Scores are those of the first seed; intervals of the difference in accuracy are over all seeds.

    Args:
        config: names models, sets, seeds; `report.explorer_pairs` limits the pairs shown of each set.
        results: the run's directory; read are `reward/*/seed*/scores.csv` and `evaluation/sets/*.jsonl`.
        out: directory of the two files.

    Returns:
        The two paths.

    Raises:
        ConfigError: `reward.run` has no plain RM or no VRM.
        RecordError: scores are missing or broken, or are of other pairs than the sets'.
    """
    results, out = Path(results), Path(out)
    sets = {name: read_pairs(results / "evaluation" / "sets" / f"{name}.jsonl") for name in config.evaluation.run}
    shown = {name: draw_pairs(pairs, config.report.explorer_pairs, config.report.seed) for name, pairs in sets.items()}
    truth = known_truth(sets)
    rm, vrms = compared_models(config)
    rm_scores = read_scores(results, rm)
    first = config.reward.seeds[0]
    tables, models = {}, []
    for model in vrms:
        scores = read_scores(results, model)
        one_seed = scores[scores["seed"] == first]
        table = pair_table(rm_scores[rm_scores["seed"] == first], one_seed, config.data.aspects, model.name)
        tables[model.name] = _only_shown(table, shown, truth, model.name)
        models.append(
            {
                "name": model.name,
                "label": model.label,
                **_model_columns(tables[model.name], config.data.aspects),
                "weights": _weights(weights_by_kind(one_seed, config.data.aspects), config.data.aspects),
                "summary": [_summary(row) for row in disagreements(config, rm_scores, scores, model.name)],
            }
        )
    table = tables[vrms[0].name]
    data = {
        **_run(config),
        "sets": [_set(config, name, sets[name], shown[name]) for name in sets],
        **_pairs([pair for pairs in shown.values() for pair in pairs], table),
        "rm": {"name": rm.name, "label": rm.label, **_margins(table["margin_rm"].to_numpy())},
        "vrms": models,
    }
    page = to_page(data)
    if len(page.encode()) > LARGE:
        size = len(page.encode()) / 1e6
        print(
            f"explorer.html has {size:.1f} MB: it opens by itself, but too large for the page of `snakemake --report`; "
            "lower report.explorer_pairs to show fewer pairs"
        )
    write_whole(out / "explorer.html", page)
    csv = pd.concat([frame.assign(variant=name) for name, frame in tables.items()], ignore_index=True)
    csv.insert(0, "variant", csv.pop("variant"))
    write_whole(out / "explorer.csv", csv.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return [out / "explorer.html", out / "explorer.csv"]


def draw_pairs(pairs: Sequence[PreferencePair], most: int, seed: int) -> list[PreferencePair]:
    """At most `most` pairs, in their order; prompts are drawn by a seeded hash.

    Sets that share prompts show the same ones, and a set that fits is shown whole.
    """
    ranks = [hashlib.sha256(f"{seed}/{pair.prompt_id}".encode()).digest() for pair in pairs]
    drawn = sorted(range(len(pairs)), key=lambda i: (ranks[i], i))[:most]
    return [pairs[i] for i in sorted(drawn)]


def to_page(data: Mapping[str, Any]) -> str:
    """The HTML file, everything inside. Only `data["run"]` and `data["label"]` appear outside the data block."""
    template, style, script = (
        files("vrm.reporting").joinpath(f"explorer{suffix}").read_text(encoding="utf-8")
        for suffix in ("_template.html", ".css", ".js")
    )
    return Template(template).substitute(
        run=html.escape(data["run"]),
        label=html.escape(data["label"]),
        style=style,
        style_hash=_sha256(style),
        script=script,
        script_hash=_sha256(script),
        data=pack(data),
    )


def pack(value: Any) -> str:
    """JSON, gzip, base64: a quarter of the size, letters that end no tag, and the same bytes every time."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    whole = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)  # lone surrogates
    return base64.b64encode(gzip.compress(whole.encode(), mtime=0)).decode()


def _sha256(text: str) -> str:
    """What the content policy allows: this very script, this very style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _run(config: Config) -> dict[str, Any]:
    return {
        "run": config.run,
        "label": config.data.label,
        "seed": config.reward.seeds[0],
        "seeds": list(config.reward.seeds),
        "level": config.report.level,
        "spread": SPREAD,
        "aspects": [aspect.replace("_", " ") for aspect in config.data.aspects],
        "agreements": AGREEMENTS,
        "weightUnit": WEIGHT_UNIT,
    }


def _set(config: Config, name: str, pairs: Sequence[PreferencePair], shown: Sequence[PreferencePair]) -> dict[str, Any]:
    entry = config.evaluation.sets[name]
    return {
        "name": name,
        "label": entry.label,
        # where kinds of prompts are compared first: neither benchmark subsets nor probes are such kinds
        "kinds": entry.format == "pairs" and name != PROBES and any(pair.subset for pair in pairs),
        "shown": len(shown),
        "total": len(pairs),
    }


def _pairs(pairs: Sequence[PreferencePair], table: pd.DataFrame) -> dict[str, Any]:
    """Texts and facts of the shown pairs, column by column; sets overlap, so each text is stored once."""
    texts: dict[str, int] = {}
    prompts: dict[str, int] = {}
    for pair in pairs:
        prompts.setdefault(json.dumps(pair.prompt), len(prompts))
        for text in (pair.chosen, pair.rejected):
            texts.setdefault(text, len(texts))
    columns = {
        "set": table["evaluation_set"].tolist(),
        "id": table["pair_id"].tolist(),
        "kind": table["subset"].tolist(),
        "leaked": table["leaked"].astype(int).tolist(),
        "truncated": table["truncated"].astype(int).tolist(),
        "truth": table["known_truth"].tolist(),
        "prompt": [prompts[json.dumps(pair.prompt)] for pair in pairs],
        "chosen": [texts[pair.chosen] for pair in pairs],
        "rejected": [texts[pair.rejected] for pair in pairs],
        "ratings": [[pair.chosen_scores, pair.rejected_scores] if pair.chosen_scores else None for pair in pairs],
        "trueWeights": [pair.true_weights for pair in pairs],
    }
    return {"texts": list(texts), "prompts": [json.loads(prompt) for prompt in prompts], "pairs": columns}


def _only_shown(
    table: pd.DataFrame,
    shown: Mapping[str, Sequence[PreferencePair]],
    truth: Mapping[tuple[str, str], str],
    source: str,
) -> pd.DataFrame:
    """The rows of the shown pairs, in their order, with `known_truth`: chosen, rejected, or empty."""
    keys = [(name, pair.pair_id) for name, pairs in shown.items() for pair in pairs]
    table = table.set_index(["evaluation_set", "pair_id"])
    lacking = [key for key in keys if key not in table.index]
    if lacking:
        raise RecordError(f"scores of {source}: pair {lacking[0][1]} of {lacking[0][0]} is missing; score it again")
    table = table.loc[keys].reset_index()
    table.insert(6, "known_truth", [truth.get(key, "") for key in keys])
    return table


def _model_columns(table: pd.DataFrame, aspects: Sequence[str]) -> dict[str, Any]:
    """One VRM's numbers: margins, who is right, w; and g of both responses where its reward is a sum of objectives."""
    margins = _margins(table["margin_vrm"].to_numpy())
    columns = {
        **margins,
        "agreement": [AGREEMENTS.index(name) for name in table["agreement"]],
        "w": [_whole(table[f"weight_{aspect}"], WEIGHT_UNIT) for aspect in aspects],
    }
    if f"contribution_{aspects[0]}" in table:
        for side in ("chosen", "rejected"):
            columns[side] = [_whole(table[f"{side}_{aspect}"], margins["unit"]) for aspect in aspects]
    return columns


def _margins(margins: NDArray[np.float64]) -> dict[str, Any]:
    """Margins to four digits, which never makes a tie of a win, and the unit in which the model's scores are stored."""
    sizes = np.abs(margins[margins != 0])
    exponent = math.floor(math.log10(np.median(sizes))) - 3 if sizes.size else -3
    digits = max(0, -exponent)
    return {"unit": 10.0**-digits, "digits": max(0, digits - 1), "margin": [float(f"{m:.4g}") for m in margins]}


def _whole(values: pd.Series, unit: float) -> list[int]:
    return np.rint(values.to_numpy(dtype=np.float64) / unit).astype(np.int64).tolist()


def _weights(table: pd.DataFrame, aspects: Sequence[str]) -> list[dict[str, Any]]:
    """By set and kind: number of prompts and, for each objective, [mean, low, high, true mean or null]."""
    entries = []
    for (name, kind), part in table.groupby(["evaluation_set", "subset"], sort=True):
        rows = part.set_index("aspect").loc[list(aspects), ["mean", "low", "high", "true_mean"]].to_numpy()
        values = [[_rounded(value) for value in row] for row in rows]
        entries.append({"set": name, "kind": kind, "prompts": int(part["prompts"].iloc[0]), "values": values})
    return entries


def _summary(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [_rounded(value.estimate), _rounded(value.low), _rounded(value.high)]
        if isinstance(value, Interval)
        else value
        for key, value in row.items()
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)
