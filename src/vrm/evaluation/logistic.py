"""Logistic regression with weighted outcomes and an L2 penalty: what Bradley-Terry with style control is fitted by.

Newton's method in forty lines, which a bootstrap's many fits can start from the whole sample's solution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fit_logistic(design: Array, wins: Array, losses: Array, *, l2: float, start: Array | None = None) -> Array:
    """Coefficients of a logistic regression without intercept, by Newton's method with step halving.

    They minimise l2 / 2 |w|^2 - sum_r (wins_r log p_r + losses_r log(1 - p_r)) with p = sigmoid(design w), which is
    scikit-learn's `LogisticRegression(C=1/l2, fit_intercept=False)`, or `penalty=None` for l2 = 0.

    Args:
        design: shape (R, P); for l2 = 0 of full column rank.
        wins: weight of outcome 1 in each row, shape (R,), >= 0.
        losses: weight of outcome 0 in each row, shape (R,), >= 0.
        l2: weight of the penalty, >= 0.
        start: where to begin, shape (P,); zeros by default. The minimum is the same.

    Returns:
        Shape (P,). The gradient there is below 1e-10 of the total weight.

    Raises:
        RuntimeError: no minimum was found. With l2 = 0, separable outcomes have none: then this, or coefficients so
            large that the gradient vanishes.
    """
    total = wins + losses
    tolerance = 1e-10 * max(1.0, float(total.sum()))

    def objective(w: Array) -> float:
        z = design @ w
        return float(wins @ np.logaddexp(0, -z) + losses @ np.logaddexp(0, z) + l2 / 2 * w @ w)

    w = np.zeros(design.shape[1]) if start is None else start.copy()
    value = objective(w)
    for _ in range(100):
        p = sigmoid(design @ w)
        gradient = design.T @ (total * p - wins) + l2 * w
        if np.abs(gradient).max() <= tolerance:
            return w
        hessian = (design.T * (total * p * (1 - p))) @ design + l2 * np.eye(len(w))
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            break
        for _ in range(40):
            trial = objective(w - step)
            if trial <= value + 1e-12 * abs(value):  # rounding near the minimum is no rise
                break
            step = step / 2
        w, value = w - step, trial
    raise RuntimeError(f"no minimum of a logistic regression with {len(w)} coefficients and l2 = {l2:g} was found")


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))
