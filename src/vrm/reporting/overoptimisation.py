"""The figure `overoptimisation`: what optimising a reward model does to its own reward, and to the gold reward.

* One column of panels a base: the proxy reward above, the gold reward below, over one KL axis, so that one reads down
  at a given KL how much of the proxy's gain is real.
* One colour and marker a reward model: PPO thick and filled, each in its own dashes, so that a grey print works;
  best-of-n from the same start thin and hollow.
* The KL axis is a square-root scale, on which best-of-n and PPO are nearly straight while the proxy can be trusted.

Source: Gao et al. 2023, "Scaling laws for reward model overoptimization", Figure 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.records import RecordError

from . import style
from .overoptimisation_curves import PPO, overoptimisation_curves
from .policy_results import BEST_OF_N
from .results import row_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    seeds = len(config.policy.seeds)
    over = f"{seeds} seeds and prompts" if seeds > 1 else "prompts (one seed)"
    gold = "" if config.policy.gold else " No gold judge (policy.gold): proxy alone."
    return (
        "Gain over the start on the same prompts. "
        f"Bars: {100 * config.report.level:g}\u00a0% interval over {over}.{gold}"
    )
