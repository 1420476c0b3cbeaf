"""What each policy training did to its own objective on held-out data; numbers only, no layout.

* A number is a mean over seeds with an interval over seeds and held-out prompts, the change's items being paired.
* A training moved as expected where the interval of its objective's change lies on the right side of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vrm.config import Config, Method, PpoMethod

from .policy_results import SFT, Change, PolicyRun, policy_run, read_held_out, read_samples
from .results import row_label
from .stats import Interval
from .variance_components import crossed_interval

FALLS, RISES = "falls", "rises"
_PREFERENCE = ("loss", "margin", "chosen_logratio", "rejected_logratio")
_PPO = ("reward", "kl", "entropy", "length")
_NEVER_NEGATIVE = ("kl", "entropy", "length")


@dataclass(frozen=True)
class Training:
    """One row of the table.

    Args:
        run: where its files are, and its seeds.
        base: label of the base.
        label: what the row is called.
        method: its entry in the configuration; None for supervised fine-tuning.
    """

    run: PolicyRun
    base: str
    label: str
    method: Method | None

    @property
    def is_ppo(self) -> bool:
        """Whether it was trained by PPO."""
        return isinstance(self.method, PpoMethod)

    @property
    def objective(self) -> str:
        """The metric that it optimises."""
        return "reward" if self.is_ppo else "loss"


@dataclass(frozen=True)
class Outcome:
    """One metric of one training.

    Args:
        start: mean before the training; NaN where it has no meaning there.
        end: mean after it.
        change: of the paired differences; NaN where `start` is.
        items: number of held-out items.
        expected: `falls` or `rises` for the training's own objective, "" for what is only watched.
    """

    start: float
    end: Interval
    change: Interval
    items: int
    expected: str = ""

    @property
    def verdict(self) -> str:
        """Whether the objective moved as expected: yes, no, or not distinguishable; "" for what is only watched."""
        if not self.expected:
            return ""
        down, up = self.change.high < 0, self.change.low > 0
        if not (down or up):
            return "not distinguishable"
        return "yes" if (down if self.expected == FALLS else up) else "no"


def trainings(config: Config) -> list[Training]:
    """Of each base: supervised fine-tuning, where it has that, then the methods of `policy.run`."""
    policy = config.policy
    found = []
    for base in policy.run_bases:
        label = policy.bases[base].label
        if policy.bases[base].sft:
            found.append(Training(policy_run(config, base, SFT), label, "SFT", None))
        for name in policy.run:
            method = policy.methods[name]
            found.append(Training(policy_run(config, base, name), label, row_label(method), method))
    return found


def outcomes(config: Config, results: Path, training: Training) -> dict[str, Outcome]:
    """By metric: those of `held_out.csv`, `accuracy` in points, and `gold` where there is a gold judge.

    Raises:
        RecordError: a file is missing or broken.
    """
    if training.is_ppo:
        changes = read_held_out(results, training.run, _PPO)
        if config.policy.gold:
            changes["gold"] = _gold(results, training.run)
    else:
        changes = read_held_out(results, training.run, ("loss",) if training.method is None else _PREFERENCE)
    found = {metric: _outcome(config, training, metric, change) for metric, change in changes.items()}
    if "margin" in changes:
        found["accuracy"] = _accuracy(config, training, changes["margin"])
    return found


def _outcome(config: Config, training: Training, metric: str, change: Change) -> Outcome:
    expected = RISES if training.is_ppo else FALLS
    lowest = 0.0 if metric in _NEVER_NEGATIVE else -np.inf
    return Outcome(
        start=float(change.start.mean()),
        end=crossed_interval(change.end, change.prompts, config.report.level).within(lowest, np.inf),
        change=crossed_interval(change.end - change.start, change.prompts, config.report.level),
        items=len(change.prompts),
        expected=expected if metric == training.objective else "",
    )


def _accuracy(config: Config, training: Training, margin: Change) -> Outcome:
    """Share of pairs with a positive margin, in points.

    At the start the implicit reward of a method with a reference is 0 for every response: there is no accuracy then.
    """
    right = Change(100.0 * (margin.start > 0), 100.0 * (margin.end > 0), margin.prompts)
    outcome = _outcome(config, training, "accuracy", right)
    outcome = replace(outcome, end=outcome.end.within(0, 100))
    if not training.method.needs_reference:
        return outcome
    level = config.report.level
    return Outcome(np.nan, outcome.end, Interval(np.nan, np.nan, np.nan, level, "nothing (no start)"), outcome.items)


def _gold(results: Path, run: PolicyRun) -> Change:
    """Gold reward of the answers at the first and the last step."""
    samples = read_samples(results, run, gold=True)
    ends = [samples[samples["step"] == step] for step in (samples["step"].min(), samples["step"].max())]
    start, end = (part.pivot(index="seed", columns="prompt_id", values="gold") for part in ends)
    return Change(start.to_numpy(), end.to_numpy(), start.columns.to_numpy(dtype=str))
