"""Proxy and gold reward against the KL from the starting policy, of PPO and of best-of-n; numbers only, no drawing.

* A point is the gain over the starting policy on the same prompts: PPO's first evaluation, best-of-n's n = 1. Both
  curves start at 0, whatever prompts they were measured on, and prompts that are easy or hard cancel.
* Proxy gains are in standard deviations of the starting policy's rewards by that reward model (all answers that were
  sampled for best-of-n, seed by seed), so that reward models compare. Gold gains are in the gold judge's own unit.
* PPO's KL is the mean of log pi - log pi_start over the sampled answers; best-of-n's is known.

Source: Gao et al. 2023, "Scaling laws for reward model overoptimization", Figure 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.config.policy import RATED
from vrm.evaluation.best_of_n import best_of_n, best_of_n_kl, doublings
from vrm.records import RecordError

from .policy_results import BEST_OF_N, policy_run, read_best_of_n, read_samples
from .results import row_label
from .variance_components import crossed_interval

PPO = "ppo"
COLUMNS = (
    *("base", "method", "label", "reward_model", "optimiser", "step", "n", "kl"),
    *("proxy", "proxy_low", "proxy_high", "proxy_mean", "gold", "gold_low", "gold_high", "gold_mean"),
    *("length", "level", "n_prompts", "n_seeds", "resampled"),
)


@dataclass(frozen=True)
class _Answers:
    """Answers of the starting policy of one base: S seeds, P prompts, N answers a prompt.

    Args:
        prompts: prompt ids, shape (P,).
        rewards: by reward variant, shape (S, P, N).
        length: tokens, shape (S, P, N).
        gold: shape (S, P, N); None without a gold judge.
    """

    prompts: NDArray[np.str_]
    rewards: dict[str, NDArray[np.float64]]
    length: NDArray[np.float64]
    gold: NDArray[np.float64] | None

    def spread(self, reward: str) -> NDArray[np.float64]:
        """Standard deviation of all answers' rewards, shape (S, 1)."""
        return self.rewards[reward].std(axis=(1, 2))[:, None]


def overoptimisation_curves(config: Config, results: Path) -> pd.DataFrame:
    """One row a point, with `COLUMNS`; `optimiser` is `ppo`, which has a step, or `best_of_n`, which has an n.

    `proxy` and `gold` are gains with `_low` and `_high`, `proxy_mean` and `gold_mean` the rewards in their own units;
    `length` is a mean in tokens. The gold columns are empty without a gold judge; the start, which is 0 by
    definition, has no ends. `resampled` is of both intervals.

    Raises:
        RecordError: a file is missing or broken, or a reward model gives every answer the same reward.
    """
    rows: list[dict[str, Any]] = []
    rewards = list(dict.fromkeys(config.policy.methods[name].paid_by for name in config.policy.ppo_run))
    for base in config.policy.run_bases:
        answers = _read_answers(config, results, base, rewards)
        for name in config.policy.ppo_run:
            rows += _ppo(config, results, base, name, answers)
        for reward in rewards:
            rows += _best_of_n(config, base, reward, answers)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _read_answers(config: Config, results: Path, base: str, rewards: list[str]) -> _Answers:
    run = policy_run(config, base, BEST_OF_N)
    table = read_best_of_n(results, run, rewards, gold=config.policy.gold is not None)
    table = table.sort_values(["seed", "prompt_id"], kind="stable")
    prompts = np.unique(table["prompt_id"].to_numpy(dtype=str))
    shape = (len(run.seeds), len(prompts), -1)

    def cube(column: str) -> NDArray[np.float64]:
        return table[column].to_numpy(dtype=np.float64).reshape(shape)

    gold = cube("gold") if "gold" in table else None
    answers = _Answers(prompts, {name: cube(name) for name in rewards}, cube("length"), gold)
    constant = [name for name in rewards if not answers.spread(name).all()]
    if constant:
        path = run.file(results, run.seeds[0], "samples.jsonl")
        raise RecordError(f"{path}: {', '.join(constant)} rewards every answer the same; train that reward model again")
    return answers


def _ppo(config: Config, results: Path, base: str, name: str, answers: _Answers) -> Iterator[dict[str, Any]]:
    """One point an evaluation."""
    method = config.policy.methods[name]
    samples = read_samples(results, policy_run(config, base, name), gold=answers.gold is not None)
    steps = sorted(samples["step"].unique())
    prompts = np.unique(samples["prompt_id"].to_numpy(dtype=str))

    def grid(step: int, column: str) -> NDArray[np.float64]:
        """Shape (S, P)."""
        at = samples[samples["step"] == step]
        return at.pivot(index="seed", columns="prompt_id", values=column)[prompts].to_numpy(dtype=np.float64)

    for step in steps:
        rewards = grid(step, "reward")
        gain = (rewards - grid(steps[0], "reward")) / answers.spread(method.paid_by)
        point = {"step": step, "kl": float(grid(step, "kl").mean()), "length": float(grid(step, "length").mean())}
        point |= _gain(config, "proxy", prompts, gain, rewards)
        if answers.gold is not None:
            gold = grid(step, "gold")
            point |= _gain(config, "gold", prompts, gold - grid(steps[0], "gold"), gold)
        yield _names(config, base, name, row_label(method), method.paid_by, PPO) | point | {"n_prompts": len(prompts)}


def _best_of_n(config: Config, base: str, reward: str, answers: _Answers) -> Iterator[dict[str, Any]]:
    """One point an n: 1, 2, 4, ... and all answers."""
    by_seed = answers.rewards[reward]  # (S, P, N)

    def best(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        """Expected value of the best of n by this reward, shape (S, P)."""
        return np.stack([best_of_n(*seed, n) for seed in zip(by_seed, values, strict=True)])

    model = row_label(config.reward.variants[reward.removesuffix(RATED)])
    label = f"best-of-n, {model}" + (", rated aspects alone" if reward.endswith(RATED) else "")
    for n in doublings(by_seed.shape[2]):
        rewards = best(by_seed, n)
        gain = (rewards - best(by_seed, 1)) / answers.spread(reward)
        point = {"n": n, "kl": best_of_n_kl(n), "length": float(best(answers.length, n).mean())}
        point |= _gain(config, "proxy", answers.prompts, gain, rewards)
        if answers.gold is not None:
            gold = best(answers.gold, n)
            point |= _gain(config, "gold", answers.prompts, gold - best(answers.gold, 1), gold)
        names = _names(config, base, BEST_OF_N, label, reward, BEST_OF_N)
        yield names | point | {"n_prompts": len(answers.prompts)}


def _names(config: Config, base: str, method: str, label: str, reward: str, optimiser: str) -> dict[str, Any]:
    return {
        "base": base,
        "method": method,
        "label": label,
        "reward_model": reward,
        "optimiser": optimiser,
        "level": config.report.level,
        "n_seeds": len(config.policy.seeds),
    }


def _gain(config: Config, measure: str, prompts: NDArray, gain: NDArray, rewards: NDArray) -> dict[str, Any]:
    """Mean of the gain, (S, P), with its interval, and of the rewards in their own unit."""
    interval = crossed_interval(gain, prompts, config.report.level)
    return {
        measure: interval.estimate,
        f"{measure}_low": interval.low,
        f"{measure}_high": interval.high,
        f"{measure}_mean": float(rewards.mean()),
        **({"resampled": interval.resampled} if measure == "proxy" else {}),
    }
