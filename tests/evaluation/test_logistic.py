"""The penalised fit: its optimality condition, known truths, and scikit-learn where it is installed."""

import numpy as np
import pytest
from arena_answers import sigmoid

from vrm.evaluation.logistic import fit_logistic


@pytest.mark.parametrize("l2", [0.0, 1.0, 30.0])
def test_newton_s_method_ends_where_the_gradient_vanishes(l2):
    rng = np.random.default_rng(0)
    design = rng.normal(size=(200, 5)) * [1, 2, 0.1, 1, 1]
    wins, losses = rng.integers(0, 4, (2, 200)).astype(float)
    w = fit_logistic(design, wins, losses, l2=l2)
    p = sigmoid(design @ w)
    gradient = l2 * w + design.T @ (losses * p - wins * (1 - p))
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    elsewhere = fit_logistic(design, wins, losses, l2=l2, start=np.full(5, 3.0))
    np.testing.assert_allclose(elsewhere, w, atol=1e-7)


def test_newton_s_method_recovers_the_truth_from_exact_probabilities():
    rng = np.random.default_rng(1)
    design, truth = rng.normal(size=(50, 4)), np.array([2.0, -1.0, 0.0, 0.5])
    p = sigmoid(design @ truth)
    np.testing.assert_allclose(fit_logistic(design, 10 * p, 10 * (1 - p), l2=0.0), truth, atol=1e-8)


def test_separable_outcomes_have_a_penalised_minimum():
    design = np.array([[1.0], [2.0]])
    w = fit_logistic(design, np.array([1e6, 1e6]), np.zeros(2), l2=1.0)
    assert w[0] == pytest.approx(1e6 * (sigmoid(-w[0]) + 2 * sigmoid(-2 * w[0])), rel=1e-4)


def test_newton_s_method_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed by default")
    rng = np.random.default_rng(2)
    design, wins, losses = rng.normal(size=(60, 3)), *rng.integers(0, 3, (2, 60)).astype(float)
    theirs = linear_model.LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000)
    theirs.fit(np.vstack([design, design]), np.repeat([1, 0], 60), sample_weight=np.concatenate([wins, losses]))
    np.testing.assert_allclose(fit_logistic(design, wins, losses, l2=1.0), theirs.coef_[0], atol=1e-5)
