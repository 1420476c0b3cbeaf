"""Joint draws of questions, and the ends of intervals from them."""

import numpy as np
import pandas as pd
import pytest

from vrm.judged.base import draws_table
from vrm.runfiles import draw_column
from vrm.statistics.draws import chunks, percentiles, question_draws


def test_every_draw_has_as_many_questions_as_there_are_and_each_is_as_likely():
    draws = question_draws(40, 5000, np.random.default_rng(0))
    assert draws.shape == (5000, 40)
    assert (draws.sum(axis=1) == 40).all()
    np.testing.assert_allclose(draws.mean(axis=0), 1.0, atol=0.08)
    np.testing.assert_allclose(draws.var(axis=0), 39 / 40, atol=0.12)


def test_chunks_do_not_change_the_draws():
    sizes = list(chunks(700, 1000))
    assert sum(sizes) == 700
    assert len(sizes) > 1
    rng = np.random.default_rng(1)
    parts = np.concatenate([question_draws(9, size, rng) for size in sizes])
    np.testing.assert_array_equal(parts, question_draws(9, 700, np.random.default_rng(1)))
    assert list(chunks(3, 10**9)) == [1, 1, 1]
    assert list(chunks(0, 5)) == []


def test_an_interval_of_few_draws_holds_what_it_says():
    """The next of 100 draws lies within 95 % of the time; between numpy's default quantiles it lies 93 % of it."""
    draws = np.random.default_rng(2).normal(size=(101, 20_000))
    low, high = percentiles(draws[:100], 0.95)
    assert np.mean((low <= draws[100]) & (draws[100] <= high)) == pytest.approx(0.95, abs=0.005)
    low, high = np.quantile(draws[:100], [0.025, 0.975], axis=0)
    assert np.mean((low <= draws[100]) & (draws[100] <= high)) < 0.94


def test_draws_without_a_value_are_left_out_and_none_have_no_ends():
    draws = np.array([[1.0, np.nan, 5.0], [2.0, np.nan, np.nan], [3.0, np.nan, 5.0]])
    low, high = percentiles(draws, 0.5)
    np.testing.assert_array_equal(low, [1.0, np.nan, 5.0])
    np.testing.assert_array_equal(high, [3.0, np.nan, 5.0])
    assert np.isnan(percentiles(np.empty((0, 2)), 0.95)).all()


def test_the_table_has_a_row_a_draw_and_only_a_header_without_fits():
    table = draws_table({draw_column("qwen3.ppo.seed1", "sc_win_rate"): np.array([1.0, np.nan])})
    expected = pd.DataFrame({"draw": [1, 2], "qwen3.ppo.seed1/sc_win_rate": [1.0, np.nan]})
    pd.testing.assert_frame_equal(table, expected)
    assert draws_table({}).to_csv(index=False) == "draw\n"
