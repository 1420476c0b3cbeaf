from statistics import NormalDist

import numpy as np
import pytest

from vrm.statistics.intervals import ALL_ALIKE, Interval, half_width, student_interval


def test_an_interval_ends_where_values_end():
    assert Interval(0.9, -0.1, 1.2, 0.95, "prompts").within(0, 1) == Interval(0.9, 0, 1, 0.95, "prompts")
    inside = Interval(0.5, 0.25, 0.75, 0.95, "prompts")
    assert inside.within(0, 1) == inside
    assert np.isnan(
        [getattr(Interval(0.5, np.nan, np.nan, 0.95, "nothing").within(0, 1), end) for end in ("low", "high")]
    ).all()


def test_student_interval_over_seeds():
    interval = student_interval([1.0, 2.0, 3.0])
    assert (interval.estimate, interval.level, interval.resampled) == (2.0, 0.95, "seeds (Student's t)")
    assert interval.high - 2 == pytest.approx(4.30265 / np.sqrt(3), abs=1e-3)
    assert interval.high - 2 == pytest.approx(2 - interval.low)


@pytest.mark.parametrize(
    ("values", "over"), [([0.1], "nothing (one seed)"), ([0.1] * 3, ALL_ALIKE), ([16.0] * 2, ALL_ALIKE)]
)
def test_one_seed_and_seeds_that_agree_have_no_student_interval(values, over):
    interval = student_interval(values)
    assert interval.estimate == pytest.approx(values[0])
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.resampled == over


@pytest.mark.parametrize(
    ("n", "rate", "points"), [(358, 0.97, 1.8), (456, 0.7, 4.2), (740, 0.9, 2.2), (1431, 0.88, 1.7), (805, 0.5, 3.4)]
)
def test_half_widths_are_those_of_the_benchmarks(n, rate, points):
    assert 100 * half_width(n, rate) == pytest.approx(points, abs=0.06)


def test_half_width_is_half_of_wilsons_interval_and_never_0():
    # Wilson's ends solve |p - rate| = z sqrt(p (1 - p) / n)
    n, rate, z = 50, 0.9, NormalDist().inv_cdf(0.95)
    a, b, c = 1 + z**2 / n, -(2 * rate + z**2 / n), rate**2
    assert 2 * half_width(n, rate, level=0.9) == pytest.approx(np.sqrt(b**2 - 4 * a * c) / a)
    assert half_width(50, 1.0) > 0.03
