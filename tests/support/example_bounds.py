"""The terms of the bound as `vrm pac-bayes` would leave them, drawn from a seeded generator (test data only)."""

from pathlib import Path

import numpy as np
import pandas as pd

from vrm.reporting.scores import reward_models
from vrm.runfiles import BOUND_TERMS
from vrm.statistics.pac_bayes import largest_kl, mcallester_bound

PAIRS, DELTA = 400, 0.05


def write_bounds(config, root: Path) -> None:
    """Write pac_bayes.csv of every VRM and seed; one that pays for its KL in full has hardly any, and guesses."""
    for index, model in enumerate(reward_models(config)):
        variant = config.reward.variants[model.name]
        if variant.kind == "scalar":
            continue
        for seed in model.seeds:
            path = model.file(root, seed, "pac_bayes.csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            terms = _terms(variant.beta_z == 1, np.random.default_rng([index, seed]))
            pd.DataFrame({"term": list(terms), "value": list(terms.values())}).to_csv(path, index=False)


def _terms(collapsed, rng):
    risk = 0.5 if collapsed else 0.25 + rng.normal(0, 0.01)
    kl_w, kl_z = (0.02, 0.3) if collapsed else (20 * rng.random(), PAIRS * (12 + rng.normal()))
    bound = mcallester_bound(risk, kl_w + kl_z, PAIRS, DELTA)
    terms = {
        "pairs": PAIRS,
        "samples": 64,
        "delta": DELTA,
        "empirical_risk": risk,
        "kl_w": kl_w,
        "kl_z": kl_z,
        "kl_total": kl_w + kl_z,
        "kl_w_per_pair": kl_w / PAIRS,
        "kl_z_per_pair": kl_z / PAIRS,
        "kl_per_pair": (kl_w + kl_z) / PAIRS,
        "bound": bound,
        "vacuous": int(bound >= 1),
        "largest_kl_per_pair": largest_kl(risk, PAIRS, DELTA) / PAIRS,
        "held_out_pairs": 60,
        "held_out_risk": risk + 0.04,
    }
    assert tuple(terms) == BOUND_TERMS
    return terms
