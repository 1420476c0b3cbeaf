"""Accuracy on preference pairs: a win is a strictly greater reward of the chosen response, a tie is a loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


class Metric(NamedTuple):
    """One number of a model on an evaluation set, and the number of pairs or prompts behind it."""

    metric: str
    value: float
    n: int


def wins(chosen: ArrayLike, rejected: ArrayLike) -> NDArray[np.bool_]:
    """Which pairs are won.

    Args:
        chosen: rewards of the chosen responses, shape (N,).
        rejected: rewards of the rejected responses, shape (N,).

    Returns:
        Shape (N,).

    Raises:
        ValueError: a reward is not finite: it would count as a loss and hide a broken model.
    """
    chosen, rejected = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    broken = int((~(np.isfinite(chosen) & np.isfinite(rejected))).sum())
    if broken:
        raise ValueError(
            f"{broken} of {chosen.size} pairs have a reward that is not finite; the model's training diverged, lower "
            "its learning rate"
        )
    return chosen > rejected


def preference_accuracy(scores: pd.DataFrame) -> list[Metric]:
    """Accuracy over all pairs, over those whose prompt is not in training, and by subset; with the counts behind them.

    Args:
        scores: one row a pair with reward_chosen, reward_rejected, subset, leaked (0/1), truncated (0/1).

    Returns:
        accuracy, accuracy_unleaked (NaN with n = 0 where every prompt leaks), leaked_pairs, ties, truncated_pairs, and
        subset/<name> for each named subset, in order of the name. Accuracies are in 0..1.

    Raises:
        ValueError: a reward is not finite.
    """
    won = pd.Series(wins(scores["reward_chosen"], scores["reward_rejected"]), index=scores.index)
    unleaked = won[scores["leaked"] == 0]
    n = len(won)
    by_subset = won.groupby(scores["subset"]).agg(["mean", "size"])
    return [
        Metric("accuracy", float(won.mean()), n),
        Metric("accuracy_unleaked", float(unleaked.mean()), len(unleaked)),
        Metric("leaked_pairs", n - len(unleaked), n),
        Metric("ties", int((scores["reward_chosen"] == scores["reward_rejected"]).sum()), n),
        Metric("truncated_pairs", int(scores["truncated"].sum()), n),
        *(Metric(f"subset/{name}", float(row["mean"]), int(row["size"])) for name, row in by_subset.iterrows() if name),
    ]
