"""The figure `overoptimisation`: what optimising a reward model does to its own reward, and to the gold reward.

* A point is the gain over the starting policy on the same prompts: PPO's first evaluation, best-of-n's n = 1. Both
  curves start at 0, whatever prompts they were measured on, and prompts that are easy or hard cancel.
* Proxy gains are in standard deviations of the starting policy's rewards by that reward model (all answers that were
  sampled for best-of-n, seed by seed), so that reward models compare. Gold gains are in the gold judge's own unit.
* PPO's KL is the mean of log pi - log pi_start over the sampled answers; best-of-n's is known.
* A column of panels a base, the proxy reward above the gold reward, over one KL axis: one reads down at a given KL how
  much of the proxy's gain is real. The axis is a square-root scale, on which both optimisers are nearly straight while
  the proxy can be trusted.
* One colour and marker a reward model: PPO thick and filled, each in its own dashes, so that a grey print works;
  best-of-n from the same start thin and hollow.

Source: Gao et al. 2023, "Scaling laws for reward model overoptimization", Figure 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.config.policy import RATED
from vrm.evaluation.overoptimisation import best_of_n, best_of_n_kl, doublings
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.scores import row_label
from vrm.runfiles import BEST_OF_N, BEST_OF_N_SAMPLES, policy_run, read_best_of_n_samples, read_ppo_samples
from vrm.statistics.intervals import crossed_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    table = read_best_of_n_samples(results, run, rewards, gold=config.policy.gold is not None)
    table = table.sort_values(["seed", "prompt_id"], kind="stable")
    prompts = np.unique(table["prompt_id"].to_numpy(dtype=str))
    shape = (len(run.seeds), len(prompts), -1)

    def cube(column: str) -> NDArray[np.float64]:
        return table[column].to_numpy(dtype=np.float64).reshape(shape)

    gold = cube("gold") if "gold" in table else None
    answers = _Answers(prompts, {name: cube(name) for name in rewards}, cube("length"), gold)
    constant = [name for name in rewards if not answers.spread(name).all()]
    if constant:
        path = run.file(results, run.seeds[0], BEST_OF_N_SAMPLES.name)
        raise RecordError(f"{path}: {', '.join(constant)} rewards every answer the same; train that reward model again")
    return answers


def _ppo(config: Config, results: Path, base: str, name: str, answers: _Answers) -> Iterator[dict[str, Any]]:
    """One point an evaluation."""
    method = config.policy.methods[name]
    samples = read_ppo_samples(results, policy_run(config, base, name), gold=answers.gold is not None)
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

    model = row_label(config.reward.model(reward.removesuffix(RATED)))
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


_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

_KL_TITLE = "KL from the starting policy (nats a response, square-root scale)"

_TITLES = {
    "proxy": "(a) proxy reward, gain\n(SD of rewards at start)",
    "gold": "(b) gold reward, gain\n(the judge's unit)",
}


def overoptimisation(config: Config, results: Path, out: Path) -> list[Path]:
    """Proxy and gold reward over the KL from the starting policy, of every PPO method and of best-of-n.

    Args:
        config: names bases, methods, reward models, the gold judge and the level.
        results: the run's directory.
        out: directory of overoptimisation.{pdf,png,csv}.

    Raises:
        RecordError: nothing is trained by PPO, or samples or their gold rewards are missing or broken.
    """
    policy = config.policy
    if not (policy.run_bases and policy.ppo_run):
        raise RecordError("overoptimisation: no policy is trained by PPO; leave it out of report.figures")
    data = overoptimisation_curves(config, results)
    measures = ["proxy", "gold"] if policy.gold else ["proxy"]
    with style.styled():
        figure, grid = _panels(config, data, measures)
        for column, base in enumerate(policy.run_bases):
            part = data[data["base"] == base]
            for panel, measure in zip(grid[:, column], measures, strict=True):
                _draw_panel(panel, config, part, measure)
            grid[0, column].set_title(policy.bases[base].label)
            _square_root_axis(grid[-1, column], part["kl"].max())
        for panel, measure in zip(grid[:, 0], measures, strict=True):
            panel.set_ylabel(_TITLES[measure])
        figure.align_ylabels(grid[:, 0])
        return style.save(figure, out, "overoptimisation", data)


def _panels(config: Config, data: pd.DataFrame, measures: list[str]) -> tuple[Figure, NDArray]:
    """The page with legend, footer and axis title; a row of axes a measure, a column a base."""
    bases = len(config.policy.run_bases)
    width = 4.6 if bases == 1 else max(style.FULL_WIDTH, 0.9 + 2.2 * bases)
    handles, labels = _legend(config, data)
    columns, statement = style.legend_columns(labels, width), _statement(config)
    lines = len(style.footer_lines(statement, config.data.label, width))
    top, bottom = 0.36 + 0.16 * -(-len(labels) // columns), 0.62 + style.FOOTER_LINE * lines
    height = top + bottom + 1.75 * len(measures)
    figure = style.new_figure(width, height)
    margins = {"left": 0.72 / width, "right": 1 - 0.1 / width, "bottom": bottom / height, "top": 1 - top / height}
    grid = figure.subplots(
        len(measures),
        bases,
        sharex="col",
        sharey="row",
        squeeze=False,
        gridspec_kw=margins | {"hspace": 0.17, "wspace": 0.08},
    )
    figure.legend(handles, labels, loc="upper center", ncols=columns)
    middle = (margins["left"] + margins["right"]) / 2
    figure.text(middle, (bottom - 0.28) / height, _KL_TITLE, ha="center", va="top", fontsize=8)
    style.footer(figure, statement, config.data.label)
    return figure, grid


def _draw_panel(panel: Axes, config: Config, data: pd.DataFrame, measure: str) -> None:
    """Every curve of one base; PPO and best-of-n of one reward model share a colour."""
    panel.axhline(0, color=style.MUTED, linewidth=0.6, zorder=1)
    drawn: set[str] = set()
    for index, name in enumerate(config.policy.ppo_run):
        reward = config.policy.methods[name].paid_by
        if reward not in drawn:
            curve = data[(data["optimiser"] == BEST_OF_N) & (data["reward_model"] == reward)]
            _draw(panel, curve.sort_values("n"), measure, **_best_of_n_look(style.look(index)))
        drawn.add(reward)
        _draw(panel, data[data["method"] == name].sort_values("step"), measure, **_ppo_look(index))
    if measure == "gold":
        drawn_once = data.loc[data["n"] == 1, "gold_mean"].iloc[0]
        ppo = data[data["optimiser"] == PPO]
        start = ppo.loc[ppo["step"] == ppo["step"].min(), "gold_mean"].iloc[0]
        title = f"gold reward at start: {start:.2f} (PPO), {drawn_once:.2f} (all best-of-n answers)"
        panel.set_title(title, loc="left", fontsize=7, color=style.MUTED, pad=3)


def _draw(panel: Axes, curve: pd.DataFrame, measure: str, **keywords: Any) -> None:
    kl = curve["kl"].clip(lower=0)  # an estimate from samples may fall below
    low, high = curve[f"{measure}_low"], curve[f"{measure}_high"]
    if low.notna().any():
        # bars, not a band: along a training the KL may fall again, and a band would fold over itself
        panel.vlines(kl, low, high, color=keywords["color"], alpha=0.35, linewidth=1.1, zorder=2)
    panel.plot(kl, curve[measure], zorder=3, **keywords)


def _ppo_look(index: int) -> dict[str, Any]:
    return style.look(index) | {"markeredgewidth": 0}


def _best_of_n_look(look: dict[str, Any]) -> dict[str, Any]:
    hollow = {"markerfacecolor": "white", "markeredgewidth": 0.6, "markersize": 2.6}
    return look | hollow | {"linestyle": "-", "linewidth": 0.6}


def _legend(config: Config, data: pd.DataFrame) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    names = config.policy.ppo_run
    handles: list[Any] = [Line2D([], [], **_ppo_look(index)) for index in range(len(names))]
    labels = [row_label(config.policy.methods[name]) for name in names]
    handles.append(Line2D([], [], **_best_of_n_look(style.look(0) | {"color": style.MUTED})))
    labels.append(f"best-of-n (thin, hollow; n ≤ {data['n'].max():.0f})")
    if data["proxy_low"].notna().any():
        handles.append(Line2D([], [], color=style.MUTED, alpha=0.5, linewidth=1.1))
        labels.append(f"{100 * config.report.level:g} % interval")
    return handles, labels


def _square_root_axis(panel: Axes, highest: float) -> None:
    panel.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    end = max(1.08 * highest, 0.1)
    panel.set_xlim(0, end)
    ticks = [0.0]
    for tick in _TICKS:
        if tick <= end and np.sqrt(tick) - np.sqrt(ticks[-1]) > 0.09 * np.sqrt(end):
            ticks.append(tick)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _statement(config: Config) -> str:
    over = counted_seeds_and_prompts(config.policy.seeds)
    gold = "" if config.policy.gold else " No gold judge (policy.gold): proxy alone."
    return (
        "Gain over the start on the same prompts. "
        f"Bars: {100 * config.report.level:g}\u00a0% interval over {over}.{gold}"
    )
