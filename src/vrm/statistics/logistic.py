"""Logistic regressions with weighted outcomes and a penalty: Bradley-Terry with style control, LC without difficulty.

Newton's method, for many samples of one table at once: a bootstrap is one call, started from the whole sample's fit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fit_logistic(x: Array, wins: Array, losses: Array, penalty: Array, start: Array | None = None) -> Array:
    """Coefficients of B regressions, each with an intercept for every group and slopes that its groups share.

    They minimise w' penalty w / 2 - sum (wins log p + losses log(1 - p)) with p = sigmoid(intercept + x slopes), by
    Newton's method with step halving. With one group and `penalty` = c I that is scikit-learn's
    `LogisticRegression(C=1/c, fit_intercept=False)` on x and a column of ones.

    Args:
        x: shape (B, G, N, K); B may be 1 where all share it, K may be 0.
        wins: weight of outcome 1, shape (B, G, N), >= 0.
        losses: weight of outcome 0, shape (B, G, N), >= 0.
        penalty: shape (G + K, G + K), symmetric, no negative eigenvalue; zeros ask for columns of full rank.
        start: where all begin, shape (G + K,); zeros by default. The minimum is the same.

    Returns:
        Intercepts, then slopes, shape (B, G + K). The gradient there is below 1e-10 of a sample's total weight.

    Raises:
        RuntimeError: no minimum was found. Without a penalty, separable outcomes have none: then this, or coefficients
            so large that the gradient vanishes.
    """
    total, groups = wins + losses, wins.shape[1]
    tolerance = 1e-10 * np.maximum(1.0, total.sum(axis=(1, 2)))[:, None]
    w = np.zeros((len(wins), len(penalty))) if start is None else np.tile(start, (len(wins), 1))

    def objective(w: Array) -> tuple[Array, Array]:
        z = w[:, :groups, None] + (x @ w[:, None, groups:, None])[..., 0]  # (B, G, N)
        loss = (total * np.logaddexp(0, z) - wins * z).sum(axis=(1, 2))
        return z, loss + ((w @ penalty) * w).sum(axis=1) / 2

    z, value = objective(w)
    for _ in range(100):
        p = sigmoid(z)
        gradient = _gather(x, total * p - wins) + w @ penalty
        if (np.abs(gradient) <= tolerance).all():
            return w
        try:
            step = np.linalg.solve(_hessian(x, total * p * (1 - p)) + penalty, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        for _ in range(40):
            z, trial = objective(w - step)
            worse = ~(trial <= value + 1e-12 * np.abs(value))  # rounding near the minimum is no rise
            if not worse.any():
                break
            step[worse] /= 2
        w, value = w - step, trial
    size, least = w.shape[1], np.linalg.eigvalsh(penalty)[0]
    raise RuntimeError(f"no minimum of a logistic regression of {size} coefficients, penalty {least:g}, was found")


def _gather(x: Array, values: Array) -> Array:
    """The columns' sums over a sample, weighted by `values` of shape (B, G, N): shape (B, G + K)."""
    slopes = np.einsum("bgn,bgnk->bk", values, np.broadcast_to(x, (len(values), *x.shape[1:])))
    return np.concatenate([values.sum(axis=2), slopes], axis=1)


def _hessian(x: Array, curvature: Array) -> Array:
    """Sums of products of two columns, weighted by `curvature` of shape (B, G, N): shape (B, G + K, G + K).

    An intercept is 1 in its own group and 0 elsewhere, so that among intercepts only the diagonal is not 0.
    """
    samples, groups, n = curvature.shape
    slopes = x.shape[-1]
    found = np.zeros((samples, groups + slopes, groups + slopes))
    weighted = curvature[..., None] * x  # (B, G, N, K)
    found[:, np.arange(groups), np.arange(groups)] = curvature.sum(axis=2)
    found[:, :groups, groups:] = weighted.sum(axis=2)
    found[:, groups:, :groups] = np.swapaxes(found[:, :groups, groups:], 1, 2)
    rows, weighted = (part.reshape(len(part), groups * n, slopes) for part in (x, weighted))
    found[:, groups:, groups:] = np.swapaxes(weighted, 1, 2) @ rows
    return found


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))
