"""The explorer: one HTML file to read a run's pairs in, with weights by prompt kind, contributions and who is right.

* A pair is right for a model that scores the chosen response strictly higher; a tie is wrong, as everywhere. What
  "chosen" means is the evaluation set's business: annotators in one, the known truth in another.
* Single pairs are read with one seed; only the difference in accuracy is taken over all seeds.
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.config import Config, ConfigError
from vrm.evaluation.accuracy import wins
from vrm.records import PreferencePair, RecordError, read_jsonl, read_pairs, write_whole
from vrm.reporting.scores import PairScores, Scorer, pair_scores, read_scores, refused_pairs, reward_models
from vrm.runfiles import REFUSED_PAIRS
from vrm.statistics.intervals import Interval, crossed_interval

AGREEMENTS = ("both_right", "only_vrm", "only_rm", "both_wrong")

# The spread of a weight: the middle 80 % of prompts.
SPREAD = (0.1, 0.9)

_KEY = ["evaluation_set", "pair_id"]

RESIDUAL = ["residual_chosen", "residual_rejected"]


def compared_models(config: Config) -> tuple[Scorer, list[Scorer]]:
    """The plain RM, the first of `reward.run`, and every VRM that it is compared with.

    Raises:
        ConfigError: `reward.run` lacks one or the other.
    """
    kinds = {name: config.reward.variants[name].kind for name in config.reward.run}
    models = reward_models(config)
    plain = [model for model in models if kinds[model.name] == "scalar"]
    variational = [model for model in models if kinds[model.name] == "variational"]
    if not plain or not variational:
        raise ConfigError("reward.run: RM and VRM are compared pair by pair; name one `scalar` and one `variational`")
    return plain[0], variational


def agreement(rm_won: ArrayLike, vrm_won: ArrayLike) -> NDArray[np.str_]:
    """Who is right: one of `AGREEMENTS` for each pair, shape (N,).

    Args:
        rm_won, vrm_won: whether each model scores the chosen response strictly higher, shape (N,).
    """
    rm_won, vrm_won = np.asarray(rm_won, dtype=bool), np.asarray(vrm_won, dtype=bool)
    return np.select([rm_won & vrm_won, vrm_won, rm_won], AGREEMENTS[:3], AGREEMENTS[3])


def contributions(scores: pd.DataFrame, aspects: Sequence[str], source: str) -> NDArray[np.float64] | None:
    """w_k (g_k(chosen) - g_k(rejected)): what each objective adds to the margin, shape (N, K).

    Of a model with a residual, to the margin of its rated-aspect reward.

    Args:
        scores: rows of a VRM's `scores.csv`.
        aspects: the K objectives.
        source: what to call the scores in an error.

    Returns:
        None for a decoder whose reward is no sum over objectives (MLP): it leaves no per-objective scores.

    Raises:
        RecordError: the contributions of a pair do not sum to its margin.

    Source: VRM's mixture decoder, r(x, y) = w(x) . g(z(x, y)).
    """
    columns = {part: [f"{part}_{aspect}" for aspect in aspects] for part in ("weight", "chosen", "rejected")}
    if any(column not in scores for column in (*columns["chosen"], *columns["rejected"])):
        return None
    weight, chosen, rejected = (scores[names].to_numpy(dtype=np.float64) for names in columns.values())  # (N, K)
    parts = weight * (chosen - rejected)
    of = "rated" if "rated_chosen" in scores else "reward"
    margin = (scores[f"{of}_chosen"] - scores[f"{of}_rejected"]).to_numpy(dtype=np.float64)
    size = (weight * (np.abs(chosen) + np.abs(rejected))).sum(axis=1)
    wrong = ~(
        np.abs(parts.sum(axis=1) - margin) <= 0.01 * size + 1e-6
    )  # bfloat16 keeps 2 to 3 digits; NaN is wrong too
    if wrong.any():
        row = scores.iloc[int(np.argmax(wrong))]
        raise RecordError(
            f"scores of {source}: the contributions of pair {row['pair_id']} of {row['evaluation_set']} do not sum to "
            f"its margin; score the variant again"
        )
    return parts


def explained_pairs(rm: pd.DataFrame, vrm: pd.DataFrame, aspects: Sequence[str], source: str) -> pd.DataFrame:
    """One row a pair, in the order of `vrm`: both margins, who is right, weights, per-objective scores, contributions.

    Args:
        rm, vrm: `scores.csv` of the plain RM and of a VRM, of one seed each.
        aspects: the K objectives.
        source: what to call the VRM in an error.

    Returns:
        Columns evaluation_set, pair_id, prompt_id, subset, leaked, truncated, margin_rm, margin_vrm, agreement,
        weight_<aspect>, then, with a mixture decoder, chosen_<aspect>, rejected_<aspect> and contribution_<aspect>,
        and, with a residual, margin_rated, residual_chosen and residual_rejected.

    Raises:
        RecordError: the models scored different pairs, a weight is missing, or contributions do not sum up.
    """
    rm = rm.set_index(_KEY)
    index = pd.MultiIndex.from_frame(vrm[_KEY])
    if len(rm) != len(index) or not rm.index.is_unique or set(rm.index) != set(index):
        raise RecordError(f"scores of {source} and of the plain RM are of different pairs; score both again")
    weights = [f"weight_{aspect}" for aspect in aspects]
    if any(column not in vrm or vrm[column].isna().any() for column in weights):
        raise RecordError(f"scores of {source}: a weight is missing or has gaps; score the variant again")
    rm = rm.loc[index].reset_index()
    table = vrm[[*_KEY, "prompt_id", "subset", "leaked"]].reset_index(drop=True)
    table["truncated"] = np.maximum(rm["truncated"].to_numpy(), vrm["truncated"].to_numpy())
    for name, scores in (("rm", rm), ("vrm", vrm)):
        table[f"margin_{name}"] = (scores["reward_chosen"] - scores["reward_rejected"]).to_numpy()
    table["agreement"] = agreement(*(wins(scores["reward_chosen"], scores["reward_rejected"]) for scores in (rm, vrm)))
    table[weights] = vrm[weights].to_numpy()
    parts = contributions(vrm, aspects, source)
    if parts is not None:
        scored = [f"{side}_{aspect}" for side in ("chosen", "rejected") for aspect in aspects]
        table[scored] = vrm[scored].to_numpy()
        table[[f"contribution_{aspect}" for aspect in aspects]] = parts
        if "residual_chosen" in vrm:
            table["margin_rated"] = (vrm["rated_chosen"] - vrm["rated_rejected"]).to_numpy()
            table[RESIDUAL] = vrm[RESIDUAL].to_numpy()
    return table


def weights_by_kind(scores: pd.DataFrame, aspects: Sequence[str]) -> pd.DataFrame:
    """Learned and true weights by evaluation set and kind of prompt (the subset). A prompt counts once a kind.

    Args:
        scores: `scores.csv` of one VRM and seed.
        aspects: the K objectives.

    Returns:
        Columns evaluation_set, subset, aspect, prompts, mean, low, high (`SPREAD` over prompts) and true_mean, NaN
        where the truth is not known for every prompt.
    """
    rows = []
    prompts = scores.drop_duplicates(["evaluation_set", "subset", "prompt_id"])
    for (evaluation_set, subset), part in prompts.groupby(["evaluation_set", "subset"], sort=False):
        for aspect in aspects:
            learned = part[f"weight_{aspect}"].to_numpy(dtype=np.float64)
            low, high = np.quantile(learned, SPREAD)
            true = part.get(f"true_weight_{aspect}", pd.Series([np.nan])).to_numpy(dtype=np.float64)
            rows.append((evaluation_set, subset, aspect, len(part), learned.mean(), low, high, true.mean()))
    columns = ["evaluation_set", "subset", "aspect", "prompts", "mean", "low", "high", "true_mean"]
    return pd.DataFrame(rows, columns=columns)


def disagreements(config: Config, rm: pd.DataFrame, vrm: pd.DataFrame, source: str) -> list[dict[str, Any]]:
    """How often RM and VRM disagree and who is right, by evaluation set and by subset.

    Args:
        config: names sets, seeds and level.
        rm, vrm: what `read_scores` returned of the plain RM and of a VRM: all seeds.
        source: what to call the VRM in an error.

    Returns:
        A mapping for each set (subset ""; none for the probes, whose overall accuracy has no meaning) and each named
        subset: counts of `AGREEMENTS` with the first seed; `vrm_right`, the VRM's share of the disagreements, an
        interval over prompts; `difference`, accuracy of the VRM less that of the RM, an interval over seeds and
        prompts. An interval has no ends where all pairs are alike. Pairs count alike, also in RewardBench's sets.

    Raises:
        RecordError: as `pair_scores`, or the models scored different pairs.
    """
    rows = []
    for name in config.evaluation.run:
        both = pair_scores(rm, name, "the plain RM"), pair_scores(vrm, name, source)
        if not np.array_equal(both[0].prompts, both[1].prompts):
            raise RecordError(
                f"evaluation set {name}: {source} and the plain RM scored different pairs; score both again"
            )
        rows += _disagreements_of(config, name, *both)
    return rows


def _disagreements_of(config: Config, name: str, rm: PairScores, vrm: PairScores) -> Iterator[dict[str, Any]]:
    if name != config.evaluation.probes:
        yield _counted(config, name, "", rm, vrm)
    for subset in sorted(set(rm.subsets.tolist()) - {""}):
        inside = rm.subsets == subset
        yield _counted(config, name, subset, rm.select(inside), vrm.select(inside))


def _counted(config: Config, name: str, subset: str, rm: PairScores, vrm: PairScores) -> dict[str, Any]:
    first = sorted(config.reward.seeds).index(config.reward.seeds[0])  # pair_scores sorts the seeds
    found = agreement(rm.wins[first], vrm.wins[first])
    apart = np.isin(found, ("only_vrm", "only_rm"))
    level, right = config.report.level, None
    if apart.any():
        right = crossed_interval(found[apart] == "only_vrm", rm.prompts[apart], level).within(0, 1)
    return {
        "evaluation_set": name,
        "subset": subset,
        "pairs": len(found),
        **{kind: int((found == kind).sum()) for kind in AGREEMENTS},
        "vrm_right": right,
        "difference": crossed_interval(vrm.wins - rm.wins, rm.prompts, level),
    }


def known_truth(sets: Mapping[str, Sequence[PreferencePair]], truths: Collection[str]) -> dict[tuple[str, str], str]:
    """Which response is the better one by the known truth: `chosen` or `rejected`, by (evaluation set, pair id).

    Args:
        sets: the pairs of each evaluation set.
        truths: names of the sets whose labels are the truth. A pair of another set is found in them by its prompt and
            its two texts, whichever of them was chosen; what is not found, or is there with both labels, has no entry.
    """
    better = {(pair.prompt_id, pair.chosen, pair.rejected) for name in truths for pair in sets[name]}
    truth = {}
    for name, pairs in sets.items():
        for pair in pairs:
            as_labelled = (pair.prompt_id, pair.chosen, pair.rejected) in better
            reversed_ = (pair.prompt_id, pair.rejected, pair.chosen) in better
            if as_labelled != reversed_:
                truth[name, pair.pair_id] = "chosen" if as_labelled else "rejected"
    return truth


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
    rm, vrms = compared_models(config)
    refused = _refused(results, [rm, *vrms], config.reward.seeds[0])
    sets = {name: [pair for pair in pairs if (name, pair.pair_id) not in refused] for name, pairs in sets.items()}
    shown = {name: draw_pairs(pairs, config.report.explorer_pairs, config.report.seed) for name, pairs in sets.items()}
    truth = known_truth(sets, config.evaluation.of_role("truth"))
    without = refused_pairs(results, [rm, *vrms])
    rm_scores = read_scores(results, rm, without)
    first = config.reward.seeds[0]
    tables, models = {}, []
    for model in vrms:
        scores = read_scores(results, model, without)
        one_seed = scores[scores["seed"] == first]
        table = explained_pairs(rm_scores[rm_scores["seed"] == first], one_seed, config.data.aspects, model.name)
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


def _refused(results: Path, models: Sequence[Scorer], seed: int) -> set[tuple[str, str]]:
    """Evaluation set and id of the pairs that a model could not score."""
    files = [model.file(results, seed, REFUSED_PAIRS) for model in models]
    rows = [row for path in files if path.is_file() for _, row in read_jsonl(path)]
    return {(row["evaluation_set"], row["pair_id"]) for row in rows}


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
        files("vrm.reporting").joinpath(name).read_text(encoding="utf-8")
        for name in ("explorer.html", "explorer.css", "explorer.js")
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
        "kinds": entry.format == "pairs" and entry.role != "probes" and any(pair.subset for pair in pairs),
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
    """One VRM's numbers: margins, who is right, w; and of both responses g, where the reward is a sum of it, and b."""
    margins = _margins(table["margin_vrm"].to_numpy())
    columns = {
        **margins,
        "agreement": [AGREEMENTS.index(name) for name in table["agreement"]],
        "w": [_whole(table[f"weight_{aspect}"], WEIGHT_UNIT) for aspect in aspects],
    }
    if f"contribution_{aspects[0]}" in table:
        for side in ("chosen", "rejected"):
            columns[side] = [_whole(table[f"{side}_{aspect}"], margins["unit"]) for aspect in aspects]
    if RESIDUAL[0] in table:
        columns["b"] = [_whole(table[name], margins["unit"]) for name in RESIDUAL]
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
