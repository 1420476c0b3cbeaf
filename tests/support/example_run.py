"""A run's files as the trainings and scorings would leave them, drawn from a seeded generator (test data only)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from example_bounds import write_bounds
from example_policies import make_policies, write_policies

from vrm.data.preference_sets import SECTIONS
from vrm.reporting.scores import scorers

SEEDS = [1, 2, 3]
SPLIT_PAIRS = {"train": 2000, "validation": 240}
ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
VARIANTS = {
    "rm": {"label": "RM", "kind": "scalar"},
    "vrm": {"label": "VRM"},
    "vrm_mse": {"label": "VRM, MSE", "supervision": "mse"},
    "vrm_mae": {"label": "VRM, MAE", "supervision": "mae"},
    "vrm_rank": {"label": "VRM, rank", "supervision": "rank"},
    "vrm_lambda_0": {"label": "VRM, λ = 0", "supervision_weight": 0.0},
    "vrm_lambda_0_1": {"label": "VRM, λ = 0.1", "supervision_weight": 0.1},
    "vrm_lambda_1": {"label": "VRM, λ = 1", "supervision_weight": 1.0},
    "vrm_lambda_2": {"label": "VRM, λ = 2", "supervision_weight": 2.0},
    "vrm_strict": {"label": "VRM, strict ELBO", "beta_w": 1.0, "beta_z": 1.0, "ours": True},
    "vrm_anchored": {
        "label": "VRM (anchored)",
        "supervision_weight": 0.0,
        "score_anchor_weight": 0.5,
        "ours": True,
    },
}


def make_raw(
    variants=VARIANTS, seeds=SEEDS, aspects=ASPECTS, sets=("reward_bench", "uf_c", "noise_free", "probes"), policy=None
):
    """A configuration mapping with the given grid; sets are described by name. `policy` replaces the policies."""
    names = list(variants)
    vrms = [name for name in names if name != "rm"]
    labels = {"reward_bench": "RewardBench", "uf_c": "UF-C", "noise_free": "Noise-free", "probes": "Probes"}
    known = {
        name: {
            "label": labels.get(name, name),
            "path": f"{name}.jsonl",
            "format": "reward_bench" if name.startswith("reward_bench") else "pairs",
            "role": {"noise_free": "truth", "probes": "probes"}.get(name, "measured"),
        }
        for name in sets
    }
    curves = {
        "figure3": [n for n in ("vrm", "vrm_mse", "vrm_mae", "vrm_rank") if n in vrms],
        "figure4": [n for n in ("rm", "vrm") if n in names],
        "figure5": [n for n in ("vrm_lambda_0", "vrm_lambda_0_1", "vrm", "vrm_lambda_1", "vrm_lambda_2") if n in vrms],
    }
    return {
        "run": "test",
        "data": {"path": "x.jsonl", "label": "synthetic world", "aspects": list(aspects)},
        "backbone": {"create": {}},
        "reward": {"seeds": list(seeds), "run": names, "variants": variants},
        "policy": make_policies(variants=names) if policy is None else policy,
        "evaluation": {"run": list(sets), "sets": known},
        "report": {
            "bootstrap_samples": 200,
            "figures": ["figure1", "figure2", *(figure for figure, variants in curves.items() if variants)],
            **curves,
        },
    }


def write_results(config, root: Path, subset_pairs=12, pairs=120, skip_subsets=()) -> Path:
    """Write the files of every variant and policy and seed, and the world's statistics."""
    world = np.random.default_rng(7)
    frames = {name: _pairs_of(name, config, world, subset_pairs, pairs, skip_subsets) for name in config.evaluation.run}
    validation = _pairs_of("validation", config, np.random.default_rng(8), subset_pairs, pairs, skip_subsets)
    for scorer in scorers(config):
        if scorer.is_rated:  # columns of its model's file
            continue
        variant = config.reward.variants.get(scorer.name)
        runs = (config.reward.run, config.policy.run, config.reward.run_outside)
        index = next(names.index(scorer.name) for names in runs if scorer.name in names)
        for seed in scorer.seeds:
            folder = scorer.file(root, seed, "scores.csv").parent
            folder.mkdir(parents=True)
            rng = np.random.default_rng([index, seed])
            if variant:
                _training(variant, index, rng).to_csv(folder / "training.csv", index=False)
                (folder / "counts.json").write_text(json.dumps({s: {"pairs": n} for s, n in SPLIT_PAIRS.items()}))
            scores = pd.concat([_scored(f, variant, index, config, rng) for f in frames.values()], ignore_index=True)
            scores.to_csv(folder / "scores.csv", index=False)
            if variant:
                held_out = _scored(validation, variant, index, config, rng).drop(columns="evaluation_set")
                held_out.to_csv(folder / "validation.csv", index=False)
    write_policies(config, root)
    write_bounds(config, root)
    _statistics().to_csv(_made(root / "world" / "statistics.csv"), index=False)
    return root


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _pairs_of(name, config, rng, subset_pairs, pairs, skip_subsets):
    if name in config.evaluation.sets and config.evaluation.sets[name].format == "reward_bench":
        subsets = [s for section in SECTIONS.values() for s in section if s not in skip_subsets]
        subset = np.repeat(subsets, subset_pairs)
    elif name == "probes":
        names = [f"objective/{a}" for a in config.data.aspects] + ["spurious/padding", "spurious/repetition"]
        subset = np.repeat(names, 20)
    else:
        subset = np.repeat([""], pairs)
    n = len(subset)
    prompt = np.array([f"{name}-{i // 2:05d}" for i in range(n)])
    weights = rng.dirichlet(np.full(len(config.data.aspects), 2.0), size=n)
    weights[1::2] = weights[: n - n % 2 : 2] if n > 1 else weights[1::2]
    return pd.DataFrame(
        {
            "evaluation_set": name,
            "pair_id": [f"{name}-{i}" for i in range(n)],
            "prompt_id": prompt,
            "subset": subset,
            "leaked": (np.arange(n) < 6).astype(int) if name == "uf_c" else 0,
            "truncated": (np.arange(n) == 9).astype(int) if name == "uf_c" else 0,
            "difficulty": rng.normal(0, 1, n),
            "length_chosen": 30 + (np.arange(n) * 7) % 40,
            "length_rejected": 30 + (np.arange(n) * 11) % 37,
            **{f"true_weight_{a}": weights[:, k] for k, a in enumerate(config.data.aspects)},
        }
    )


def _scored(frame, variant, index, config, rng):
    n = len(frame)
    margin = 0.7 + 0.03 * index + frame["difficulty"] + rng.normal(0, 0.1) + rng.normal(0, 1, n)
    base = rng.normal(0, 1, n)
    out = frame.drop(columns="difficulty").assign(reward_chosen=base + margin, reward_rejected=base)
    if variant:
        out["probability"] = 1 / (1 + np.exp(-margin))
    if variant and variant.residual:
        out = out.assign(**_with_residual(out, config.data.aspects, rng))
    if variant and variant.kind == "variational":
        aspects = config.data.aspects
        true = out[[f"true_weight_{a}" for a in aspects]].to_numpy()
        noisy = 0.5 * true + 0.5 / len(aspects) + rng.normal(0, 0.02, true.shape)
        for k, aspect in enumerate(aspects):
            out[f"weight_{aspect}"] = noisy[:, k]
    return out


def _with_residual(out, aspects, rng):
    """Columns of a reward of which a part is a residual; g is noise, b what is left."""
    columns = {}
    for side in ("chosen", "rejected"):
        columns |= {f"{side}_{aspect}": rng.normal(0, 1, len(out)) for aspect in aspects}
        columns[f"residual_{side}"] = rng.normal(0.2 * (side == "chosen"), 0.5, len(out))
        columns[f"rated_{side}"] = out[f"reward_{side}"] - columns[f"residual_{side}"]
    columns["rated_probability"] = 1 / (1 + np.exp(columns["rated_rejected"] - columns["rated_chosen"]))
    return columns


def _training(variant, index, rng):
    rows = []
    strict = variant.beta_z == 1
    lift = 0.6 if strict else 21 + 1.5 * np.sin(index)
    shift = rng.normal(0, 0.9)
    for step in range(0, 401, 40):
        progress = 1 - np.exp(-step / 90)
        values = {
            "train": 50 + (lift + 8 * step / 400 * (not strict)) * progress + shift + rng.normal(0, 0.5),
            "validation": 50 + lift * progress + shift + rng.normal(0, 0.8),
        }
        for split, accuracy in values.items():
            metrics = {"accuracy": accuracy / 100, "preference_loss": 0.69 - 0.2 * progress}
            if variant.kind == "variational":
                kl_w = 0.001 if strict else 1.2 * progress / (1 + variant.supervision_weight)
                kl_z = 0.002 if strict else 14 * progress + rng.normal(0, 0.4)
                metrics |= {"kl_w": kl_w, "kl_z": abs(kl_z), "kl_total": kl_w + abs(kl_z)}
                of_target = 0.4 * (1 - progress) + 0.3 * progress / (1 + 4 * variant.supervision_weight)
                metrics |= {"supervision_loss": of_target, "supervision_kl": of_target}
                metrics |= {
                    "active_units": 0 if strict else 11,
                    "negative_elbo": metrics["preference_loss"] + abs(kl_z),
                }
            rows += [(step, step / 200, split, metric, value) for metric, value in metrics.items()]
        if variant.kind == "variational":
            rows.append((step, step / 200, "batch", "negative_elbo", 0.695 if strict else 12 * progress + 0.7))
    return pd.DataFrame(rows, columns=["step", "epoch", "split", "metric", "value"])


def _statistics():
    rows = [
        ("annotated_agrees_with_noise_free", 0.81, 0.79, 0.83, 1600, "Share of pairs where both preferences agree"),
        ("ceiling_annotated", 0.84, 0.82, 0.86, 1600, "Accuracy of the best possible scorer"),
        ("spurious_padding", 0.62, 0.58, 0.66, 600, "Share of pairs, equal but for padding, where padding wins"),
        ("prompts", 1600, "", "", "", "Prompts"),
        ("true_weight/chat/honesty", 0.2, 0.1, 0.3, 9, "Mean true weight of honesty in chat"),
        ("true_weight/chat/helpfulness", 0.8, 0.7, 0.9, 9, "Mean true weight of helpfulness in chat"),
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "explanation"])
