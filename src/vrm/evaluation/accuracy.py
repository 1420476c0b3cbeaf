"""Accuracy on preference pairs, and RewardBench's section scores as upstream defines them.

* A win is a strictly greater reward of the chosen response, a tie is a loss.
* A section's score is the mean of its subsets' accuracies, weighted as `vrm.data.preference_sets` has it.

Source: allenai/reward-bench, `calculate_scores_per_section`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.data.preference_sets import SECTIONS, SUBSETS
from vrm.evaluation import several_responses


class SetMetric(NamedTuple):
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


def length_correlation(scores: pd.DataFrame) -> float:
    """Pearson correlation, over pairs, of the reward's difference and the difference in length; NaN without either."""
    reward, length = (scores[f"{name}_chosen"] - scores[f"{name}_rejected"] for name in ("reward", "length"))
    return float(np.corrcoef(reward, length)[0, 1]) if len(scores) > 1 and reward.std() and length.std() else np.nan


def grouped(scores: pd.DataFrame) -> list[several_responses.Item]:
    """The rows with several responses that a table's pairs were made of."""
    columns = ("pair_id", "subset", "reward_chosen", "reward_rejected")
    return several_responses.group(*(scores[column].tolist() for column in columns)) if "pair_id" in scores else []


def section_scores(subset_accuracy: Mapping[str, float]) -> dict[str, float]:
    """Score of each section: the weighted mean of the accuracies of its subsets that are present.

    Args:
        subset_accuracy: accuracy by subset, in any unit.

    Returns:
        Score by section, in the same unit; a section without any subset is absent. Where subsets are missing, the
        score is that of the others alone: see `missing_subsets`.

    Raises:
        ValueError: a subset that RewardBench does not have; names it.
    """
    _require_known(subset_accuracy)
    scores = {}
    for section, weights in SECTIONS.items():
        present = [subset for subset in weights if subset in subset_accuracy]
        if present:
            total = sum(weights[subset] for subset in present)
            scores[section] = sum(subset_accuracy[subset] * weights[subset] for subset in present) / total
    return scores


def missing_subsets(present: Iterable[str]) -> dict[str, list[str]]:
    """The subsets of each section that are not in `present`; complete sections are absent.

    Raises:
        ValueError: a subset that RewardBench does not have; names it.
    """
    present = set(present)
    _require_known(present)
    missing = {
        section: [subset for subset in weights if subset not in present] for section, weights in SECTIONS.items()
    }
    return {section: subsets for section, subsets in missing.items() if subsets}


def _require_known(subsets: Iterable[str]) -> None:
    unknown = sorted(set(subsets) - SUBSETS)
    if unknown:
        raise ValueError(f"not a subset of RewardBench: {', '.join(unknown)}; known are: {', '.join(sorted(SUBSETS))}")
