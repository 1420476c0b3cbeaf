"""What a VRM's weights say: their mean and spread over prompts and, where the truth is known, how well they recover it.

A prompt counts once, however many pairs it has: w depends on the prompt alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.evaluation.accuracy import SetMetric
from vrm.runfiles import LEARNED_WEIGHT, TRUE_WEIGHT


def weight_recovery(scores: pd.DataFrame) -> list[SetMetric]:
    """Learned against true weights over the prompts whose true weights are known.

    Args:
        scores: one row a pair with prompt_id, weight_<aspect> and true_weight_<aspect> (empty where unknown).

    Returns:
        Nothing where no true weights are known or the model has none; else
        weight_correlation/<aspect>: Pearson correlation over prompts, NaN where either side does not vary;
        weight_correlation/mean: their mean, NaN if one of them is;
        weight_mae: mean absolute error over prompts and objectives;
        weight_mae_constant: the same of the best that ignores the prompt and knows the mean true weights: the baseline.
    """
    aspects = _aspects(scores)
    if not aspects or any(TRUE_WEIGHT + aspect not in scores for aspect in aspects):
        return []
    true_columns = [TRUE_WEIGHT + aspect for aspect in aspects]
    known = scores.dropna(subset=true_columns).drop_duplicates("prompt_id")
    if known.empty:
        return []
    learned = known[[LEARNED_WEIGHT + aspect for aspect in aspects]].to_numpy(dtype=float)  # (N, K)
    true = known[true_columns].to_numpy(dtype=float)  # (N, K)
    correlations = [_pearson(learned[:, k], true[:, k]) for k in range(len(aspects))]
    n = len(known)
    return [
        *(SetMetric(f"weight_correlation/{a}", r, n) for a, r in zip(aspects, correlations, strict=True)),
        SetMetric("weight_correlation/mean", float(np.mean(correlations)), n),
        SetMetric("weight_mae", float(np.abs(learned - true).mean()), n),
        SetMetric("weight_mae_constant", float(np.abs(true - true.mean(axis=0)).mean()), n),
    ]


def _aspects(scores: pd.DataFrame) -> list[str]:
    """Aspects with a learned weight, in the order of the columns; rows of other models leave none."""
    return [column.removeprefix(LEARNED_WEIGHT) for column in scores if column.startswith(LEARNED_WEIGHT)]


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def weights_spread(scores: pd.DataFrame) -> float | None:
    """Standard deviation of E[w] over prompts, mean over the objectives; None for a model without weights.

    Args:
        scores: as `weight_recovery` takes them.
    """
    columns = [LEARNED_WEIGHT + aspect for aspect in _aspects(scores)]
    if not columns or scores[columns].isna().any(axis=None):
        return None
    return float(scores.drop_duplicates("prompt_id")[columns].std(ddof=0).mean())
