"""The policies' files of a run, as docs/files.md has them, drawn from a seeded generator (test data only)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

BASES = {
    "qwen2_5": {"label": "Qwen2.5-shaped", "path": "models/a"},
    "qwen3": {"label": "Qwen3-shaped", "path": "models/b", "sft": False},
}
METHODS = {
    "dpo": {"label": "DPO", "method": "dpo"},
    "simpo": {"label": "SimPO", "method": "simpo", "beta": 2.0},
    "selective_dpo": {"label": "Selective DPO", "method": "selective_dpo"},
    "dpo_strong": {"label": "DPO, β = 0.5", "ours": True, "method": "dpo", "beta": 0.5},
    "ppo": {"label": "PPO", "method": "ppo", "reward": "rm"},
    "ppo_vrm": {"label": "VRM-PPO", "method": "ppo", "reward": "vrm"},
    "ppo_vrm_lambda_0": {"label": "VRM-PPO (λ = 0)", "method": "ppo", "reward": "vrm_lambda_0"},
    "ppo_vrm_anchored": {"label": "VRM-PPO (anchored)", "ours": True, "method": "ppo", "reward": "vrm_anchored"},
}
GOLD = "vrm.world.gold:gold_reward"
STEPS = [0, 8, 16, 24, 32, 40, 48, 56, 60]
PROMPTS, ANSWERS = 40, 16


def make_policies(seeds=(1,), bases=BASES, methods=METHODS, variants=None, scorers_from="qwen2_5", gold=GOLD):
    """The `policy` section, with the methods whose reward model is among `variants` (None: all)."""
    run = [
        name
        for name, method in methods.items()
        if variants is None or "reward" not in method or method["reward"] in variants
    ]
    return {
        "seeds": list(seeds),
        "bases": bases,
        "run_bases": list(bases),
        "methods": {name: methods[name] for name in run},
        "run": run,
        "scorers_from": scorers_from,
        "gold": gold,
    }


def write_policies(config, root: Path) -> None:
    """Write training.csv, held_out.csv, samples.jsonl and samples.gold.csv of every training of every base."""
    policy = config.policy
    for number, base in enumerate(policy.run_bases):
        for seed in policy.seeds:
            offline = [*(["sft"] if policy.bases[base].sft else []), *policy.preference_run]
            for name in offline:
                rng = np.random.default_rng([number, seed, len(name)])
                folder = _folder(root, base, name, seed)
                _write_csv(folder / "held_out.csv", _held_out(policy.methods.get(name), rng))
                _write_csv(folder / "training.csv", _log({"loss": 0.6}))
            for index, name in enumerate(policy.ppo_run):
                rng = np.random.default_rng([number, seed, index])
                folder = _folder(root, base, name, seed)
                samples = _ppo_samples(index, 1.0 + 0.3 * number, rng)
                _write_samples(folder, samples, policy.gold)
                _write_csv(folder / "held_out.csv", _ends(samples))
                _write_csv(folder / "training.csv", _log({"kl": 40.0, "entropy": 2.0, "explained_variance": np.nan}))
            rewards = list(dict.fromkeys(policy.methods[name].reward for name in policy.ppo_run))
            if rewards:
                rng = np.random.default_rng([number, seed, 99])
                _write_samples(_folder(root, base, "best_of_n", seed), _best_of_n(rewards, rng), policy.gold)


def _folder(root, base, method, seed):
    folder = root / "policy" / base / method / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_csv(path, frame):
    frame.to_csv(path, index=False)


def _log(measures):
    rows = [(step, step / 20, "batch", name, value) for step in STEPS[1:] for name, value in measures.items()]
    return pd.DataFrame(rows, columns=["step", "epoch", "split", "metric", "value"])


def _write_samples(folder, frame, gold):
    rows = frame.drop(columns="gold").to_dict("records")
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if gold:
        _write_csv(folder / "samples.gold.csv", frame[["gold"]])


def _held_out(method, rng, pairs=60):
    """SFT (method None) and DPO-like losses fall; Selective DPO's here hardly moves."""
    moves = 0.0 if method and method.method == "selective_dpo" else 1.0
    start = 0.69 + rng.normal(0, 0.01, pairs)
    values = {"loss": (start, start - 0.15 * moves + rng.normal(0, 0.2, pairs))}
    if method:
        margin = rng.normal(0.2, 0.5, pairs) if method.method == "simpo" else np.zeros(pairs)
        chosen = rng.normal(-3, 2, pairs)
        values["margin"] = margin, margin + rng.normal(0.4 * moves, 0.7, pairs)
        values["chosen_logratio"] = np.zeros(pairs), chosen
        values["rejected_logratio"] = np.zeros(pairs), chosen - rng.normal(6, 3, pairs)
    return pd.concat(
        pd.DataFrame(
            {
                "item_id": [f"p{i}-0" for i in range(pairs)],
                "prompt_id": [f"p{i // 2}" for i in range(pairs)],
                "metric": metric,
                "start": start,
                "end": end,
            }
        )
        for metric, (start, end) in values.items()
    )


def _ppo_samples(index, reach, rng):
    """Proxy rewards rise with the KL; the gold reward rises, then falls, the later the higher `index`."""
    prompt_effect = rng.normal(0, 0.6, PROMPTS)
    frames = []
    for step in STEPS:
        distance = np.sqrt(40 * reach * step / STEPS[-1])
        reward = 2.0 + index + (1 + index) * (0.35 * distance + prompt_effect + rng.normal(0, 0.7, PROMPTS))
        peak = 2.5 + index
        gold = 3.0 + prompt_effect * 0.5 + 0.12 * distance * (2 - distance / peak) + rng.normal(0, 0.3, PROMPTS)
        kl = distance**2 + (rng.normal(0, 2, PROMPTS) if step else 0.0)
        frames.append(_answers(rng, step=step, reward=reward, kl=kl, entropy=2.2 - 0.2 * distance, gold=gold))
    return pd.concat(frames, ignore_index=True)


def _answers(rng, **columns):
    return pd.DataFrame(
        {
            "prompt_id": [f"q{i:03d}" for i in range(PROMPTS)],
            "prompt": [[{"role": "user", "content": f"question {i}"}] for i in range(PROMPTS)],
            "response": "an answer",
            "length": rng.integers(20, 60, PROMPTS),
            "ended": True,
            **columns,
        }
    )


def _best_of_n(rewards, rng):
    frames = []
    for _ in range(ANSWERS):
        quality = rng.normal(0, 1, PROMPTS)
        proxies = {name: 2.0 + i + (1 + i) * (quality + rng.normal(0, 0.5, PROMPTS)) for i, name in enumerate(rewards)}
        rows = [dict(zip(proxies, map(float, values), strict=True)) for values in zip(*proxies.values(), strict=True)]
        frames.append(_answers(rng, rewards=rows, gold=3.0 + 0.3 * quality + rng.normal(0, 0.3, PROMPTS)))
    return pd.concat(frames, ignore_index=True)


def _ends(samples):
    first, last = (samples[samples["step"] == step] for step in (STEPS[0], STEPS[-1]))
    return pd.concat(
        pd.DataFrame(
            {
                "item_id": first["prompt_id"].to_numpy(),
                "prompt_id": first["prompt_id"].to_numpy(),
                "metric": metric,
                "start": first[metric].to_numpy(),
                "end": last[metric].to_numpy(),
            }
        )
        for metric in ("reward", "kl", "entropy", "length")
    )
