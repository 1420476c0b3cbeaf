"""How many passes over the pairs suit which reward model, by validation pairs, on the files of a finished demo.

    python tools/passes.py run            # trains and scores: about 15 minutes of two cores
    python tools/passes.py report         # writes docs/results/passes.csv and its provenance

`run` calls the workflow's own commands with other factors of `reward.training`, beside the demo's models:
results/demo/passes/<variant>.<passes>.<rate>/. What is there is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vrm.config import dump, load
from vrm.records import write_json, write_whole

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("results") / "demo"
OUT = ROOT / "docs" / "results"
SETS = {"uf_c": "annotated", "noise_free": "true"}


class Setting(NamedTuple):
    """A training: what `epochs` and `learning_rate` are multiplied with."""

    variant: str
    passes: float
    rate: float

    @property
    def place(self) -> Path:
        """Its directory."""
        return RUN / "passes" / f"{self.variant}.{self.passes:g}.{self.rate:g}"


SETTINGS = [
    *(Setting(name, passes, 1.0) for name in ("rm", "multitask", "gated") for passes in (1.0, 3.0)),
    *(Setting("vrm", passes, 0.5) for passes in (1.0, 3.0)),
    *(Setting("vrm_concept_residual", passes, rate) for rate in (0.5, 1.0) for passes in (1.0, 2.0, 3.0)),
]


def main() -> None:
    """Read the arguments and do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    if options.action == "report":
        return report()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: run(*job), [(setting, seed) for seed in options.seeds for setting in SETTINGS]))
    return None


def run(setting: Setting, seed: int) -> None:
    """Train and score one model."""
    out = setting.place / f"seed{seed}"
    if (out / "scores.csv").exists():
        return
    config = load([RUN / "config.yaml"])
    own = {
        "epochs_factors": {setting.variant: setting.passes},
        "learning_rate_factors": {setting.variant: setting.rate},
    }
    training = config.reward.training.model_copy(update=own)
    changed = config.model_copy(update={"reward": config.reward.model_copy(update={"training": training})})
    write_whole(setting.place / "config.yaml", dump(changed))
    given = ["--config", setting.place / "config.yaml"]
    data, sets = RUN / "data", [RUN / "evaluation" / "sets" / f"{name}.jsonl" for name in SETS]
    train = ["train-reward", *given, "--variant", setting.variant, "--seed", seed, "--backbone", RUN / "backbone"]
    train += [
        "--pairs",
        data / "pairs",
        "--tokens",
        data / "tokens",
        "--checkpoints",
        out / "checkpoints",
        "--out",
        out,
    ]
    score = ["score-reward", *given, "--model", out / "model", "--sets", *sets, "--pairs", data / "pairs"]
    for command in (train, [*score, "--seed", seed, "--out", out / "scores.csv"]):
        subprocess.run([sys.executable, "-m", "vrm", *map(str, command)], check=True)


def report() -> None:
    """One row a model and metric; accuracies in 0..1."""
    rows, trained = [], set()
    for setting in SETTINGS:
        for place in sorted(setting.place.glob("seed*")):
            if not (place / "scores.csv").is_file():
                continue
            record = json.loads((place / "train-reward.provenance.json").read_text(encoding="utf-8"))
            trained.add(record["commit"])
            for metric, value in _measured(place).items():
                cells = [setting.variant, f"{setting.passes:g}", f"{setting.rate:g}", place.name.removeprefix("seed")]
                rows.append([*cells, metric, f"{value:.4f}"])
    head = ["variant", "epochs_factor", "learning_rate_factor", "seed", "metric", "value"]
    if not rows:
        raise SystemExit(f"{RUN / 'passes'}: no model is there; `tools/passes.py run` trains them")
    with (OUT / "passes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    pairs = sum(1 for _ in (RUN / "data" / "pairs" / "train.jsonl").open(encoding="utf-8"))
    packages = record["packages"]
    write_json(OUT / "passes.provenance.json", {"trained_at": sorted(trained), "pairs": pairs, "packages": packages})


def _measured(place: Path) -> dict[str, float]:
    """Accuracy on validation pairs at the end of the training, and on the evaluation sets, whole and rated."""
    log = pd.read_csv(place / "training.csv")
    own = log[(log.split == "validation") & (log.metric == "accuracy")]
    found = {"validation": float(own.value.iloc[-1])}
    scores = pd.read_csv(place / "scores.csv")
    for name, title in SETS.items():
        part = scores[scores.evaluation_set == name]
        for kind in ("reward", "rated"):
            if f"{kind}_chosen" in part:
                wins = part[f"{kind}_chosen"] > part[f"{kind}_rejected"]
                found[title if kind == "reward" else f"{title}/rated"] = float(wins.mean())
    return found


if __name__ == "__main__":
    main()
