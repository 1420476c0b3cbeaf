"""The penalised fits: their optimality condition, known truths, and scikit-learn where it is installed."""

import numpy as np
import pytest
from arena_answers import sigmoid

from vrm.statistics.logistic import fit_logistic


def dense(x):
    """The design of one sample, written out: a column a group, then those of x of shape (G, N, K); (G N, G + K)."""
    groups, n, slopes = x.shape
    return np.hstack([np.repeat(np.eye(groups), n, axis=0), x.reshape(-1, slopes)])


def example(rng, samples=4, groups=3, n=60, slopes=2):
    x = rng.normal(size=(samples, groups, n, slopes)) * [1, 0.1][:slopes]
    return x, *rng.integers(0, 4, (2, samples, groups, n)).astype(float)


@pytest.mark.parametrize("l2", [0.0, 1.0, 30.0])
def test_newton_s_method_ends_where_every_gradient_vanishes(l2):
    x, wins, losses = example(np.random.default_rng(0))
    penalty = l2 * (np.eye(5) - 0.1)
    found = fit_logistic(x, wins, losses, penalty)
    assert found.shape == (4, 5)
    for w, own, won, lost in zip(found, x, wins.reshape(4, -1), losses.reshape(4, -1), strict=True):
        design = dense(own)
        p = sigmoid(design @ w)
        np.testing.assert_allclose(penalty @ w + design.T @ (lost * p - won * (1 - p)), 0, atol=1e-7)
    np.testing.assert_allclose(fit_logistic(x, wins, losses, penalty, np.full(5, 3.0)), found, atol=1e-7)


def test_many_samples_are_what_each_of_them_is_alone():
    x, wins, losses = example(np.random.default_rng(1))
    penalty = np.eye(5)
    together = fit_logistic(x, wins, losses, penalty)
    for i in range(4):
        np.testing.assert_allclose(together[[i]], fit_logistic(x[[i]], wins[[i]], losses[[i]], penalty), atol=1e-9)
    shared = fit_logistic(x[:1], wins, losses, penalty)
    np.testing.assert_allclose(shared, fit_logistic(x[[0] * 4], wins, losses, penalty), atol=1e-12)


def test_newton_s_method_recovers_the_truth_from_exact_probabilities():
    rng = np.random.default_rng(2)
    x, truth = rng.normal(size=(1, 2, 50, 2)), np.array([2.0, -1.0, 0.0, 0.5])
    p = sigmoid(dense(x[0]) @ truth).reshape(1, 2, 50)
    np.testing.assert_allclose(fit_logistic(x, 10 * p, 10 * (1 - p), np.zeros((4, 4)))[0], truth, atol=1e-8)


def test_without_slopes_an_intercept_is_its_group_s_log_odds():
    wins, losses = np.array([[[3.0, 0.0], [1.0, 1.0]]]), np.array([[[0.0, 1.0], [3.0, 1.0]]])
    found = fit_logistic(np.zeros((1, 2, 2, 0)), wins, losses, np.zeros((2, 2)))
    np.testing.assert_allclose(found, [[np.log(3), -np.log(2)]], atol=1e-8)


def test_separable_outcomes_have_a_penalised_minimum_and_no_other():
    x = np.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    wins, losses = np.full((1, 1, 2), 1e6), np.zeros((1, 1, 2))
    a, b = fit_logistic(x, wins, losses, np.eye(2))[0]
    p = sigmoid(-(a + b * x.ravel()))
    np.testing.assert_allclose([a, b], [1e6 * p.sum(), 1e6 * (p @ [1.0, 2.0])], rtol=1e-4)
    flat = np.ones((1, 1, 2, 1))  # the intercept's own column once more
    with pytest.raises(RuntimeError, match="no minimum of a logistic regression of 2 coefficients"):
        fit_logistic(flat, wins, wins / 2, np.zeros((2, 2)))


def test_newton_s_method_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed by default")
    x, wins, losses = example(np.random.default_rng(3), samples=1, groups=1)
    design = np.hstack([np.ones((60, 1)), x[0, 0]])
    theirs = linear_model.LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000)
    weight = np.concatenate([wins.ravel(), losses.ravel()])
    theirs.fit(np.vstack([design, design]), np.repeat([1, 0], 60), sample_weight=weight)
    np.testing.assert_allclose(fit_logistic(x, wins, losses, np.eye(3))[0], theirs.coef_[0], atol=1e-5)
