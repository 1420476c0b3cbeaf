"""Reward models on real text and human ratings, with SmolLM2 frozen below them: runs them, and writes docs/results/.

    python tools/real_text.py --data DIRECTORY [--cores 2] [summeval] [xstest] [cragc]

Each data set is a run of the workflow with `workflow/presets/laptop.yaml` and two overlays of `tools/real_text/`; its
results are read from `results/<name>/`. `docs/results/<name>.csv` has one row a model and metric, and
`<name>.provenance.json` says what it was made from. The data are public and not part of this repository: `SETS` says
which file of DIRECTORY each run reads, and docs/results/README.md where it comes from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured import warm_log

from vrm.config import Config, dump, load
from vrm.evaluation.accuracy import wins
from vrm.provenance import provenance
from vrm.records import PreferencePair, prompt_id, read_jsonl, read_pairs, write_json, write_whole
from vrm.statistics.intervals import Interval, crossed_interval, student_interval

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "summeval": "summeval/train.jsonl",
    "xstest": "aspects/xstest_train.jsonl",
    "cragc": "aspects/cragc25_train.jsonl",
}
CARRIED_OVER = {
    "hhh_alignment": "pairs/hhh_alignment.jsonl",
    "reward_bench_shape": "reward_bench_shape/pairs.jsonl",
    "rb_hep": "pairs/rb_hep.jsonl",
}
"""Sets that every model is scored on, and nobody trained for: their files in DIRECTORY."""
PARTS = {"reward_bench_shape": ("llmbar", "refusals", "xstest", "alpacaeval")}
"""How the subsets begin whose accuracies are rows of their own."""
PRESETS = ("config.yaml", "workflow/presets/own_data.yaml", "workflow/presets/laptop.yaml", "tools/real_text/all.yaml")
COLUMNS = ["model", "metric", "estimate", "low", "high", "interval_over", "seeds", "prompts", "n"]
DRAWS = 2000
"""Of prompts, for the interval of an AUC."""

Row = tuple[str, str, Interval, int, int, int]


def main() -> None:
    """Run and collect what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *SETS], default=[], metavar="|".join(SETS))
    parser.add_argument("--data", type=Path, required=True, help="directory of the data")
    parser.add_argument("--cores", type=int, default=2, help="cores (default: 2)")
    parser.add_argument("--collect", action="store_true", help="the runs are finished: only read them")
    parser.add_argument("--note", help="what else the provenance has to say of this run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="default: docs/results")
    options = parser.parse_args()
    for name in options.names or SETS:
        source = (options.data / SETS[name]).resolve()
        command = _snakemake(name, source, options.data.resolve(), options.cores)
        if not options.collect:
            subprocess.run(command, cwd=ROOT, check=True)
        rows = list(collect(name, source))
        table = pd.DataFrame([_cells(*row) for row in rows], columns=COLUMNS)
        write_whole(options.out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
        record = _provenance(name, source, command[3:])
        write_json(options.out / f"{name}.provenance.json", record | ({"note": options.note} if options.note else {}))
        print(table[table.metric == "accuracy"].to_string(index=False))


def collect(name: str, source: Path) -> Iterator[Row]:
    """Every row of a finished run's CSV."""
    run = ROOT / "results" / name
    config = load([run / "config.yaml"])
    train, held_out = (read_pairs(run / "data" / "pairs" / f"{split}.jsonl") for split in ("train", "test"))
    yield _length_alone(train, held_out)
    for carried in CARRIED_OVER:
        yield from _shorter(carried, _scores(run, "rm", config.reward.seeds[0], carried))
    plain = [_scores(run, "rm", seed) for seed in config.reward.seeds]
    for variant in config.reward.run:
        scores = [_scores(run, variant, seed) for seed in config.reward.seeds]
        yield from _of_model(config, config.reward.variants[variant].label, scores, held_out)
        if variant != "rm":
            yield from _accuracies(config.reward.variants[variant].label, "accuracy_minus_rm", scores, plain)
        for carried in CARRIED_OVER:
            tables = [_scores(run, variant, seed, carried) for seed in config.reward.seeds]
            yield from _carried_over(config.reward.variants[variant].label, carried, tables)
        if name == "xstest" and "weight_caution" in scores[0]:
            yield _knows_the_unsafe(config.reward.variants[variant].label, scores, _unsafe(source))


def _of_model(config: Config, label: str, scores: list[pd.DataFrame], held_out: list[PreferencePair]) -> Iterator[Row]:
    """Accuracy on held-out pairs; how g follows the ratings, and how E[w] differs between prompts."""
    first, seeds = scores[0], len(scores)
    prompts = first.prompt_id.nunique()
    responses = len({(pair.prompt_id, text) for pair in held_out for text in (pair.chosen, pair.rejected)})
    yield from _accuracies(label, "accuracy", scores)
    for k, aspect in enumerate(config.data.aspects):
        if f"chosen_{aspect}" in first:
            values = [_follows(table, aspect, k, held_out) for table in scores]
            yield label, f"score_correlation/{aspect}", student_interval(values), seeds, prompts, responses
    for aspect in config.data.aspects:
        if f"weight_{aspect}" in first:
            columns = [table.drop_duplicates("prompt_id")[f"weight_{aspect}"] for table in scores]
            yield label, f"weight_mean/{aspect}", student_interval([c.mean() for c in columns]), seeds, prompts, prompts
            spread = student_interval([c.std(ddof=0) for c in columns])
            yield label, f"weight_std/{aspect}", spread, seeds, prompts, prompts


def _accuracies(
    label: str, metric: str, scores: list[pd.DataFrame], less: list[pd.DataFrame] | None = None
) -> Iterator[Row]:
    """Of a model's whole reward, and of its rated-aspect reward where that is another one; or what `less` has less."""
    first = scores[0]
    for part, name in (("reward", label), ("rated", f"{label}, rated")):
        if f"{part}_chosen" in first:
            won, bounds = _won(scores, part), (0, 1)
            if less is not None:
                won, bounds = won - _won(less, "reward"), (-1, 1)
            accuracy = crossed_interval(won, first.prompt_id.to_numpy()).within(*bounds)
            yield name, metric, accuracy, len(scores), first.prompt_id.nunique(), len(first)


def _carried_over(label: str, name: str, scores: list[pd.DataFrame]) -> Iterator[Row]:
    """Accuracy on a set, and on parts of it, without the pairs whose prompts a model has been trained on."""
    for metric, tables in _parts_of(name, scores):
        yield from _accuracies(label, metric, tables)


def _parts_of(name: str, scores: list[pd.DataFrame]) -> Iterator[tuple[str, list[pd.DataFrame]]]:
    new = [table[table.leaked == 0] for table in scores]
    yield f"accuracy/{name}", new
    for part in PARTS.get(name, ()):
        yield f"accuracy/{name}/{part}", [table[table.subset.str.startswith(part)] for table in new]


def _shorter(name: str, scores: pd.DataFrame) -> Iterator[Row]:
    """What preferring the shorter response is worth on a set: a model may have learned no more than that."""
    for metric, (table,) in _parts_of(name, [scores]):
        won = (table.length_chosen < table.length_rejected).to_numpy(dtype=float)
        prompts = table.prompt_id.to_numpy()
        interval = crossed_interval(won[None], prompts).within(0, 1)
        yield "length alone (shorter is better)", metric, interval, 1, len(set(prompts)), len(won)


def _won(scores: list[pd.DataFrame], part: str) -> np.ndarray:
    """1 where the chosen response is the higher one, shape (seeds, pairs)."""
    return np.array([wins(table[f"{part}_chosen"], table[f"{part}_rejected"]) for table in scores], dtype=float)


def _length_alone(train: list[PreferencePair], held_out: list[PreferencePair]) -> Row:
    """The longer response, or the shorter one where that is right more often on the training pairs."""

    def longer(pairs: list[PreferencePair]) -> np.ndarray:
        return np.array([len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs])

    sign = 1 if (longer(train) > 0).mean() >= (longer(train) < 0).mean() else -1
    won = (sign * longer(held_out) > 0).astype(float)
    prompts = np.array([pair.prompt_id for pair in held_out])
    label = f"length alone ({'longer' if sign > 0 else 'shorter'} is better)"
    return label, "accuracy", crossed_interval(won[None], prompts).within(0, 1), 1, len(set(prompts)), len(won)


def _follows(table: pd.DataFrame, aspect: str, k: int, held_out: list[PreferencePair]) -> float:
    """Correlation of g with the aspect's ratings over held-out responses, each counted once."""
    rated = {}
    for row, pair in zip(table.itertuples(), held_out, strict=True):
        for side, text, ratings in (
            ("chosen", pair.chosen, pair.chosen_scores),
            ("rejected", pair.rejected, pair.rejected_scores),
        ):
            rated[pair.prompt_id, text] = (getattr(row, f"{side}_{aspect}"), ratings[k])
    found = np.array(list(rated.values()))
    return float(np.corrcoef(found.T)[0, 1])


def _unsafe(source: Path) -> dict[str, bool]:
    """XSTest's kind of each prompt, which no model has seen: its contrasts are the unsafe ones."""
    kinds = {}
    for _, row in read_jsonl(source):
        key = prompt_id([{"role": "user", "content": row["instruction"]}])
        kinds[key] = row["source"].partition("/")[2].startswith("contrast_")
    return kinds


def _knows_the_unsafe(label: str, scores: list[pd.DataFrame], unsafe: dict[str, bool]) -> Row:
    """AUC of the weight of caution, unsafe against safe held-out prompts; interval by drawing prompts of each kind."""
    weights = np.array([table.drop_duplicates("prompt_id").weight_caution for table in scores])  # (S, P)
    positive = scores[0].drop_duplicates("prompt_id").prompt_id.map(unsafe).to_numpy(dtype=bool)
    higher, lower = weights[:, positive], weights[:, ~positive]
    # (S, positives, negatives): how often an unsafe prompt has the higher weight, ties half
    above = (higher[:, :, None] > lower[:, None, :]) + 0.5 * (higher[:, :, None] == lower[:, None, :])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        seeds = rng.integers(len(scores), size=len(scores))
        rows, columns = (rng.integers(n, size=n) for n in above.shape[1:])
        draws.append(above[np.ix_(seeds, rows, columns)].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    interval = Interval(float(above.mean()), low, high, 0.95, "seeds x prompts (bootstrap)")
    return label, "auc/caution_of_unsafe_prompts", interval, len(scores), len(positive), int(positive.sum())


def _scores(run: Path, variant: str, seed: int, name: str = "held_out") -> pd.DataFrame:
    table = pd.read_csv(run / "reward" / variant / f"seed{seed}" / "scores.csv", dtype={"prompt_id": str})
    return table[table.evaluation_set == name].reset_index(drop=True)


def _cells(label: str, metric: str, interval: Interval, seeds: int, prompts: int, n: int) -> tuple[Any, ...]:
    return label, metric, interval.estimate, interval.low, interval.high, interval.resampled, seeds, prompts, n


def _snakemake(name: str, source: Path, data: Path, cores: int) -> list[str]:
    files = [*PRESETS, f"tools/real_text/{name}.yaml"]
    sets = ", ".join(f"{carried}: {{path: {data / file}}}" for carried, file in CARRIED_OVER.items())
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--configfile", *files]
    return [*command, "--config", f"data={{path: {source}}}", f"evaluation={{sets: {{{sets}}}}}"]


def _provenance(name: str, source: Path, command: list[str]) -> dict[str, Any]:
    """Commit, date, command, machine, data, and the processor time of each kind of job."""
    run = ROOT / "results" / name
    config = load([run / "config.yaml"])
    features = sorted((run / "features").rglob("features.json"))
    extra = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["snakemake", *command]),
        "collected_by": f"python tools/real_text.py --data DIRECTORY {name}",
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "data": {"file": SETS[name], "pairs": json.loads((run / "data" / "pair_counts.json").read_text())},
        "backbone": (Path(config.backbone.path) / "ORIGIN.txt").read_text().strip(),
        "features": {str(p.parent.relative_to(run / "features")): json.loads(p.read_text()) for p in features},
        "jobs": _jobs(run),
        "config": config.model_dump(mode="json"),
    }
    return provenance(dump(config), ROOT, extra)


def _jobs(run: Path) -> dict[str, dict[str, float]]:
    """Seconds and processor seconds of each command, by the warm interpreter whose forks the jobs were."""
    found = warm_log(run / "logs" / "warm.log")
    found = found[found.is_job]
    each = found.groupby("command").agg(
        jobs=("seconds", "size"), seconds=("seconds", "sum"), processor_seconds=("processor_seconds", "sum")
    )
    return each.round(1).to_dict("index")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
