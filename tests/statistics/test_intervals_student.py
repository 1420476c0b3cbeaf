import numpy as np
import pytest

from vrm.statistics.intervals import student_critical, student_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.95, 5, 2.01505), (0.975, 30, 2.04227), (0.5, 3, 0.0)],
)
def test_quantiles_are_those_of_the_printed_tables(probability, degrees, quantile):
    assert student_quantile(probability, degrees) == pytest.approx(quantile, abs=2e-4)


def test_one_degree_is_cauchy_and_many_are_normal():
    alpha = np.array([1.0, 0.5, 0.1, 1e-3, 1e-4])
    np.testing.assert_allclose(student_critical(alpha, 1), np.tan(np.pi / 2 * (1 - alpha)), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(student_critical(0.05, 1e5), 1.959964, rtol=1e-4)


def test_two_degrees_have_a_closed_form_far_into_the_tail():
    alpha = np.array([0.3, 1e-2, 1e-4, 1e-6])
    p = 1 - alpha
    np.testing.assert_allclose(student_critical(alpha, 2), p * np.sqrt(2 / (1 - p**2)), rtol=1e-3)


def test_degrees_need_not_be_whole():
    quantiles = [student_quantile(0.975, degrees) for degrees in (2, 2.5, 3)]
    assert quantiles[0] > quantiles[1] > quantiles[2]
