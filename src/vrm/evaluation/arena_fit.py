"""Arena-Hard's win rates from its battles, plain and style-controlled, of many resamples of one table at once.

* A table is a grid of M models and Q questions, and how many battles the baseline won, tied and lost in each: counts of
  shape (M, Q, 3), zeros where nothing was judged. B resamples of it have shape (B, M, Q, 3).
* Upstream gives the baseline and every model a rating and penalises them all. Only differences of a model's rating to
  the baseline's matter: with r the ratings and u = r_model - r_baseline, the least |r|^2 for a given u is
  u' (I - 11' / (M + 1)) u. So one intercept a model and that penalty give upstream's minimum.

Source: lmarena/arena-hard-auto, `utils_math.py` at commit 561534a (`fit_bt`, `construct_style_matrices`,
`bootstrap_result` and its style-controlled twin).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vrm.evaluation.judged_draws import chunks, question_draws
from vrm.evaluation.logistic import fit_logistic, sigmoid

Array = NDArray[np.float64]
Resample = Literal["prompts", "battles"]
Rates = Callable[[Array], Array]
"""Win rates in percent, shape (B, M), of resamples of a table, shape (B, M, Q, 3)."""

L2 = 1.0
"""Penalty of the style-controlled fit: half of this times the squared norm of all coefficients (scikit-learn's C=1)."""

COPIES = 2
"""Upstream writes every battle twice (a tie once as a win and once as a loss), which halves the penalty's share."""

SCALE = math.log(10)
"""Entry of a model's column in upstream's design, for ratings on Elo's scale; it sets how hard L2 pulls on them."""


def resamples(counts: Array, number: int, rng: np.random.Generator, resample: Resample) -> Iterator[Array]:
    """Resamples of a table, a few at a time, each of shape (B, M, Q, 3).

    Args:
        counts: the table, shape (M, Q, 3).
        number: of resamples, in all.
        rng: source of the draws.
        resample: `prompts` draws questions with replacement, each with all its battles of all models; `battles` draws
            single battles, as upstream does.
    """
    total = int(counts.sum())
    for size in chunks(number, counts[..., 0].size):
        if resample == "prompts":
            yield question_draws(counts.shape[1], size, rng)[:, None, :, None] * counts
        else:
            drawn = rng.multinomial(total, counts.ravel() / total, size)
            yield drawn.reshape(size, *counts.shape).astype(np.float64)


def plain_rates(sample: Array) -> Array:
    """WR in percent, shape (B, M): the mean score of each model over its battles; NaN for a model without any."""
    won, tied, lost = np.moveaxis(sample.sum(axis=2), -1, 0)  # by the baseline
    total = won + tied + lost
    return 100 * np.divide(lost + tied / 2, total, out=np.full_like(total, np.nan), where=total > 0)


def controlled(differences: Array, counts: Array, again: bool) -> tuple[Rates, Array]:
    """What computes SC of resamples of a table, and the style's coefficients in the whole of it.

    Args:
        differences: of style, shape (M, Q, K).
        counts: the table, shape (M, Q, 3).
        again: a resample centres and scales the style by its own battles, and not by all.

    Returns:
        Win rates by resamples, and coefficients in log-odds of the baseline's win a standard deviation, shape (K,).
    """
    flat = differences.reshape(-1, differences.shape[-1])

    def standardised(sample: Array) -> Array:
        weights = sample.sum(axis=-1).reshape(len(sample), -1)
        return standardise(flat, weights).reshape(len(sample), *differences.shape)

    whole = standardised(counts[None])
    (fitted,) = controlled_fit(whole, counts[None])

    def rates(sample: Array) -> Array:
        return controlled_rates(controlled_fit(standardised(sample) if again else whole, sample, fitted), sample)

    return rates, fitted[len(counts) :]


def controlled_fit(standardised: Array, sample: Array, start: Array | None = None) -> Array:
    """Upstream's `fit_bt` of B resamples at once.

    Args:
        standardised: style differences, shape (B, M, Q, K) or (1, M, Q, K) if all share them.
        sample: shape (B, M, Q, 3).
        start: where Newton's method begins, shape (M + K,).

    Returns:
        Log-odds that the baseline wins, at a style difference of 0, by model; then the coefficients of the style, in
        log-odds a standard deviation; shape (B, M + K).
    """
    models, style = standardised.shape[1], standardised.shape[-1]
    penalty = L2 * np.eye(models + style)
    penalty[:models, :models] = L2 / SCALE**2 * (np.eye(models) - 1 / (models + 1))
    won, tied, lost = np.moveaxis(sample, -1, 0)
    return fit_logistic(standardised, COPIES * (won + tied / 2), COPIES * (lost + tied / 2), penalty, start)


def controlled_rates(fitted: Array, sample: Array) -> Array:
    """SC in percent, shape (B, M): win rates at the mean style difference; NaN for a model without a battle."""
    fought = sample.sum(axis=(2, 3)) > 0
    return np.where(fought, 100 * sigmoid(-fitted[:, : sample.shape[1]]), np.nan)


def standardise(values: ArrayLike, weights: ArrayLike) -> Array:
    """Columns with weighted mean 0 and standard deviation 1 (not Bessel's), by each of many weightings.

    A column that never varies becomes 0, so that its coefficient is 0; upstream divides by zero there.

    Args:
        values: shape (R, K).
        weights: shape (..., R), >= 0.

    Returns:
        Shape (..., R, K).
    """
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    share = weights / weights.sum(axis=-1, keepdims=True)
    centred = values - (share @ values)[..., None, :]
    deviation = np.sqrt(share[..., None, :] @ centred**2)  # (..., 1, K)
    varies = deviation > 1e-12
    return np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)
