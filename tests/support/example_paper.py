"""A whole run with the tables and figures that the page of the paper's claims reads (test data only)."""

from pathlib import Path

import pandas as pd
from example_judged import make_judged, write_judged
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.reporting.registry import TABLES

TABLES_READ = ["table1", "table2", "comparisons", "comparisons_judged", "bound"]
FIGURES_READ = ["figure4", "figure5", "figure6", "overoptimisation"]


def make_paper(**report):
    """Three of the paper's six preference methods, both PPOs, one policy seed and two of the reward models."""
    raw = make_judged().model_dump(mode="json")
    names = ["rm", "vrm", "vrm_lambda_0", "vrm_mse", "vrm_strict"]
    sets = make_raw(sets=("reward_bench", "uf_c"))["evaluation"]
    figures = {"figure3": ["vrm", "vrm_mse"], "figure4": ["rm", "vrm"], "figure5": ["vrm_lambda_0", "vrm"]}
    changes = {
        "reward": {"seeds": [1, 2], "run": names, "variants": {name: VARIANTS[name] for name in names}},
        "policy": {"scorers_from": "qwen2_5", "run": [m for m in raw["policy"]["run"] if m != "ppo_vrm_anchored"]},
        "evaluation": sets,
        "report": {"tables": TABLES_READ, "figures": FIGURES_READ, **figures, **report},
    }
    return configuration.parse(configuration.merge(raw, changes))


def write_paper(config, root: Path) -> Path:
    """Scores and judgments, the tables that are made of them, and the figures' data."""
    write_results(config, root)
    write_judged(config, root)
    (root / "figures").mkdir()
    for name in TABLES_READ:
        TABLES[name](config, root, root / "tables")
    for name in ("figure4", "figure5"):
        curves(getattr(config.report, name)).to_csv(root / "figures" / f"{name}.csv", index=False)
    gold({"ppo_vrm": (1.0, 0.3), "ppo": (0.4, 0.4)}).to_csv(root / "figures" / "overoptimisation.csv", index=False)
    pd.DataFrame({"base": []}).to_csv(root / "figures" / "figure6.csv", index=False)
    return root


def curves(variants, ends=None, half=4.0):
    """The data of Figures 4 and 5; the last step of each variant is `ends`, 70 where it is not named."""
    quantities = [("train", "accuracy"), ("validation", "accuracy"), ("train", "supervision_kl"), ("train", "kl_total")]
    rows = [
        {"variant": name, "label": name, "split": split, "metric": metric, "step": step, "mean": mean}
        | {"low": mean - half, "high": mean + half, "n_seeds": 2, "resampled": "seeds (Student's t)"}
        for name in variants
        for split, metric in quantities
        for step, mean in ((0, 50.0), (10, (ends or {}).get(name, 70.0)))
    ]
    return pd.DataFrame(rows)


def gold(ends, bases=("qwen2_5", "qwen3")):
    """The data of the over-optimisation figure; gain and half-width at the end, by method."""
    names = {"optimiser": "ppo", "n_seeds": 1, "resampled": "prompts (one seed, Student's t)"}
    rows = [
        {"base": base, "method": method, "step": step, "gold": mean, "gold_low": mean - half, "gold_high": mean + half}
        | names
        for base in bases
        for method, (end, half) in ends.items()
        for step, mean in ((0, 0.0), (10, end))
    ]
    return pd.DataFrame(rows)
