"""The judged benchmarks' files of a run, as docs/files.md has them, drawn from a seeded generator (test data only)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from example_policies import BASES, METHODS, make_policies
from example_run import VARIANTS, make_raw

from vrm import config as configuration
from vrm.judged.base import draws_table, terms_table
from vrm.runfiles import draw_column

QUESTIONS = {"alpaca_eval": 60, "arena_hard": 40, "mt_bench": 20}
DRAWS = {"alpaca_eval": 1999, "arena_hard": 199}  # as many as have 2.5 % and 97.5 % among them
FITS = {"lc_win_rate", "lc_without_difficulty", "sc_win_rate"}
JUDGING = {
    "benchmarks": {
        "run": list(QUESTIONS),
        "alpaca_eval": {"label": "AlpacaEval-shaped"},
        "arena_hard": {"label": "Arena-Hard-shaped", "baseline": "world-baseline", "token_counter": "words"},
        "mt_bench": {"label": "MT-Bench-shaped", "references": "world-reference"},
    },
    "judge": {"base_url": "http://127.0.0.1:1/v1", "model": "world-judge"},
}
PARTIAL = "LC is defined for the official 805 instructions"
STYLES = {"token_len": 0.31, "header_count": -0.02, "list_count": 0.05, "bold_count": 0.0}


def make_judged(
    seeds=(1,), papers=("Qwen2.5-7B", "Qwen3-8B"), run=tuple(QUESTIONS), bases=BASES, methods=METHODS, **report
):
    """A configuration with judged benchmarks; the bases stand for the given policies of the paper."""
    bases = {name: base | {"paper": paper} for (name, base), paper in zip(bases.items(), papers, strict=False)}
    variants = {name: VARIANTS[name] for name in ("rm", "vrm", "vrm_lambda_0", "vrm_anchored")}
    policy = make_policies(seeds, bases, methods, variants, scorers_from=None)
    raw = make_raw(variants, seeds=seeds, sets=("uf_c",), policy=policy) | JUDGING
    raw["benchmarks"] = JUDGING["benchmarks"] | {"run": list(run)}
    raw["report"] |= {"figure6": ["ppo_vrm", "ppo_vrm_lambda_0"]} | report
    return configuration.parse(raw)


def rewrite(path, change, **options):
    """Read a table of the run, change it, and write it back."""
    change(pd.read_csv(path, **options)).to_csv(path, index=False)


def write_judged(config, root: Path, official_lc=False) -> Path:
    """Write judged/<benchmark>.{csv,items.csv,draws.csv,terms.csv,json} of every benchmark of the configuration."""
    folder = root / "judged"
    folder.mkdir(parents=True, exist_ok=True)
    for name in config.benchmarks.run:
        scores, items, policies, draws, terms = [], [], {}, {}, {}
        for number, policy in enumerate(config.judged_policies):
            rng = np.random.default_rng([number, len(name)])
            judged = _items(name, number, rng)
            failed = {"no verdict": 1, "no reply": number % 2} if number % 3 == 0 else {}
            judged = judged.iloc[sum(failed.values()) :]
            items.append(judged.assign(**policy._asdict()))
            measures = _measures(name, judged, number, rng, official_lc)
            scores += [{**policy._asdict(), "metric": metric, **row} for metric, row in measures.items()]
            draws |= _draws(name, policy, measures)
            terms |= _terms(policy, measures, rng)
            policies[policy.name] = {"failed": failed, "reference": ["world-reference"]}
        pd.DataFrame(scores).to_csv(folder / f"{name}.csv", index=False)
        draws_table(draws).to_csv(folder / f"{name}.draws.csv", index=False)
        numbers = range(1, QUESTIONS[name] + 1)
        terms_table(numbers, terms).to_csv(folder / f"{name}.terms.csv", index=False)
        columns = ["base", "method", "seed", "item_id", "part", "value", "weight"]
        pd.concat(items)[columns].to_csv(folder / f"{name}.items.csv", index=False)
        record = _record(config, name, policies)
        (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    return root


def _items(name, number, rng):
    n, lift = QUESTIONS[name], 0.04 * (number % 11)
    if name == "mt_bench":
        ratings = np.clip(np.round(5 + 4 * lift + np.repeat(rng.normal(0, 1.5, n), 2) + rng.normal(0, 1, 2 * n)), 1, 10)
        ids, parts = np.repeat(np.arange(81, 81 + n), 2), ["turn_1", "turn_2"] * n
        return pd.DataFrame({"item_id": ids, "part": parts, "value": ratings, "weight": 1.0})
    wins = 1 / (1 + np.exp(-(rng.normal(0, 1.5, n) - 0.8 + 4 * lift)))
    if name == "alpaca_eval":
        return pd.DataFrame({"item_id": np.arange(1, n + 1), "part": "", "value": wins, "weight": 1.0})
    battles = rng.choice([2, 4, 6], n)
    score = np.round(wins * battles * 2) / (2 * battles)
    ids = [f"q{i:03d}" for i in range(n)]
    return pd.DataFrame({"item_id": ids, "part": "", "value": score, "weight": battles})


def _measures(name, items, number, rng, official_lc):
    """The scores of one policy, by metric."""
    mean, n = np.average(items["value"], weights=items["weight"]), len(items)
    length = {"alpaca_eval": 260, "arena_hard": 60, "mt_bench": 240}[name] * (
        1 + 0.05 * (number % 11) + rng.normal(0, 0.02)
    )
    found = {"length": _row(length, n=n)}
    if name == "mt_bench":
        turns = items.groupby("part")["value"].mean()
        return found | {"score": _row(mean, n=n)} | {turn: _row(value, n=n // 2) for turn, value in turns.items()}
    found["win_rate"] = _row(100 * mean, 100 * mean - 6, 100 * mean + 6, n)
    fit = 100 * mean - 3 + rng.normal(0, 1)
    if name == "arena_hard":
        return found | {"sc_win_rate": _row(fit, fit - 5, fit + 5.5, n)}
    found["standard_error"] = _row(100 * items["value"].sem(), n=n)
    found["lc_win_rate"] = _row(fit - 1, n=n) if official_lc else _row(note=PARTIAL)
    return found | {"lc_without_difficulty": _row(fit, fit - 7, fit + 6.5, n, "not the official LC")}


def _draws(name, policy, measures):
    """Draws of each fit, in part what the questions do to all policies alike; their percentiles are its ends."""
    drawn = {metric: row for metric, row in measures.items() if metric in FITS and row["low"] is not None}
    number = DRAWS.get(name, 0)
    alike, own = (np.random.default_rng(seed).normal(size=number) for seed in (0, list(policy.name.encode())))
    share = ((0.8 * alike + 0.6 * own).argsort().argsort() + 1) / (number + 1)
    found = {}
    for metric, row in drawn.items():
        below, above = row["value"] - row["low"], row["high"] - row["value"]
        knots = [-1.5 * below, -below, 0.0, above, 1.5 * above]
        found[draw_column(policy.name, metric)] = row["value"] + np.interp(share, [0, 0.025, 0.5, 0.975, 1], knots)
    return found


def _terms(policy, measures, rng):
    """What each question adds to an official LC, in part the same for all policies."""
    fit = measures.get("lc_win_rate")
    if fit is None or fit["value"] is None:
        return {}
    alike = np.random.default_rng(0).normal(0, 25, QUESTIONS["alpaca_eval"])
    parts = alike + rng.normal(0, 20, len(alike))
    return {draw_column(policy.name, "lc_win_rate"): fit["value"] + parts - parts.mean()}


def _row(value=None, low=None, high=None, n=0, note=""):
    return {"value": value, "low": low, "high": high, "n": n, "note": note}


def _record(config, name, policies):
    judge = {"model": config.judge.model, "endpoint": config.judge.base_url}
    record = {"benchmark": name, "judge": judge, "intervals": {"level": config.report.level}, "policies": policies}
    if name == "alpaca_eval":
        lengths = {base: 310.0 + 25 * i for i, base in enumerate(config.policy.run_bases)}
        record |= {"package": "alpaca-eval 0.6.6", "annotator": "weighted_alpaca_eval_gpt4_turbo"}
        record |= {"reference_length": lengths}
    if name == "arena_hard":
        models = sorted(policy.name for policy in config.judged_policies)
        record |= {"models": models, "baseline": config.benchmarks.arena_hard.baseline, "style_coefficients": STYLES}
        record |= {"dropped": {"no reply": 4, "no verdict": 8, "contradictory verdicts": 0, "unknown label": 0}}
        record |= {"reference_length": 71.5}
    return record
