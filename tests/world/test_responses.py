"""Annotators: ratings are free of the spurious bias, overall judgments are not."""

import numpy as np
import pytest

from vrm.config import WorldConfig
from vrm.world import prompts
from vrm.world.responses import TASTE, annotate, annotate_prompt, compose, on_ten_scale, render

QUIET = WorldConfig(rating_noise=0, preference_noise=0, spurious_bias=0.5)


def _response(spurious, rng):
    request = prompts.draw(rng, "facts")
    return prompts.true_weights(request), render(compose(request, (1, 5, 2, 4), rng, spurious), rng)


def test_without_noise_the_ratings_are_true_and_the_bias_is_exact():
    rng = np.random.default_rng(0)
    weights, response = _response((2, 0, 1), rng)
    said = annotate("", response, weights, QUIET, rng)
    assert said.ratings == (1, 5, 2, 4)
    assert said.reward == pytest.approx(float(weights @ [1, 5, 2, 4]))
    assert said.utility == said.overall == pytest.approx(said.reward + 0.5 * float(TASTE @ [2, 0, 1]))


def test_spurious_features_move_the_overall_judgment_alone():
    rng = np.random.default_rng(1)
    weights, plain = _response((0, 0, 0), rng)
    spurious = type(plain)(plain.text, plain.scores, (2, 2, 2), plain.refuses)
    config = WorldConfig(spurious_bias=0.5)
    a, b = (annotate("", y, weights, config, np.random.default_rng(5)) for y in (plain, spurious))
    assert a.ratings == b.ratings
    assert b.overall - a.overall == pytest.approx(0.5 * 2 * TASTE.sum())


def test_biased_ratings_share_the_taste_and_leave_the_judgment():
    rng = np.random.default_rng(1)
    weights, plain = _response((0, 0, 0), rng)
    flattering = type(plain)(plain.text, (2, 2, 2, 2), (0, 0, 1), plain.refuses)
    fair, biased = (QUIET.model_copy(update={"rating_bias": bias}) for bias in (0.0, 1.5))
    a, b = (annotate("", flattering, weights, config, np.random.default_rng(5)) for config in (fair, biased))
    assert (np.array(b.ratings) - np.array(a.ratings)).tolist() == [1.5 * TASTE[2]] * 4
    assert (a.overall, a.reward) == (b.overall, b.reward)


def test_ratings_are_half_points_within_range_and_unbiased_in_the_middle():
    rng = np.random.default_rng(2)
    request = prompts.draw(rng, "chat")
    response = render(compose(request, (3, 3, 3, 3), rng, (2, 2, 2)), rng)
    config = WorldConfig(rating_noise=0.7)
    weights = prompts.true_weights(request)
    ratings = np.array([annotate("", response, weights, config, rng).ratings for _ in range(500)])
    assert set(np.unique(ratings)) <= set(np.arange(1, 5.5, 0.5))
    assert ratings.mean() == pytest.approx(3, abs=0.06)


def test_the_ten_scale_keeps_the_order_and_its_bounds():
    scores = [on_ten_scale(x) for x in np.linspace(-1, 8, 400)]
    assert scores == sorted(set(scores))
    assert 1 < scores[0] < scores[-1] < 10


def test_responses_of_a_prompt_are_distinct():
    rng = np.random.default_rng(3)
    config = WorldConfig(responses_per_prompt=7)
    prompt = annotate_prompt(prompts.draw(rng), config, rng)
    assert len({y.response.text for y in prompt.responses}) == 7
    assert len({y.author for y in prompt.responses}) == 5
