"""The systems whose responses are rated, each with its own strengths and vices, and the annotators who rate them.

* rating = true score + rating_bias * (TASTE . spurious counts) + noise, rounded to half points within 1-5: noisy, but
  unbiased where rating_bias is 0, as it is by default;
* overall = w*.s + spurious_bias * (TASTE . spurious counts) + noise, in rating points, squashed to 1-10: biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vrm.config import WorldConfig
from vrm.world.prompts import Request, true_weights
from vrm.world.responses import Response, compose, render

WRONG_STANCE = 0.5
"""How often a response complies where it should refuse, or refuses where it should not."""

SCORE_SPREAD = 1.8
"""Standard deviation of a score around its author's mean, before rounding to 1-5."""

COUNTS = (1, 1, 2)
"""How often a spurious feature occurs in a response that has it: one of these."""


@dataclass(frozen=True)
class Author:
    """A system that answers.

    Args:
        means: mean score of each aspect, in the order of `kinds.ASPECTS`.
        habits: probability that a spurious feature occurs, in the order of `gold.SPURIOUS`.
    """

    name: str
    means: tuple[float, float, float, float]
    habits: tuple[float, float, float]


AUTHORS = (
    Author("world/obedient", (3.7, 2.8, 3.0, 2.9), (0.25, 0.15, 0.25)),
    Author("world/scholar", (2.8, 3.7, 3.1, 2.7), (0.40, 0.15, 0.10)),
    Author("world/modest", (3.0, 2.9, 3.7, 2.8), (0.15, 0.25, 0.25)),
    Author("world/handy", (2.9, 3.0, 2.7, 3.7), (0.15, 0.35, 0.20)),
    Author("world/charmer", (2.8, 2.8, 2.6, 2.9), (0.30, 0.25, 0.50)),
)


def answer(request: Request, author: Author, rng: np.random.Generator) -> Response:
    """A response as this author writes them."""
    scores = np.clip(np.rint(rng.normal(author.means, SCORE_SPREAD)), 1, 5).astype(int)
    spurious = np.where(rng.random(3) < author.habits, rng.choice(COUNTS, 3), 0)
    right = not (request.refusable and rng.random() < WRONG_STANCE)
    return render(compose(request, scores.tolist(), rng, spurious.tolist(), right), rng)


def answers(request: Request, count: int, rng: np.random.Generator) -> list[tuple[Author, Response]]:
    """`count` responses with distinct texts; authors repeat only where `count` exceeds their number."""
    out: list[tuple[Author, Response]] = []
    turns = [int(i) for _ in range(-(-count // len(AUTHORS))) for i in rng.permutation(len(AUTHORS))]
    for turn in turns[:count]:
        response = answer(request, AUTHORS[turn], rng)
        while any(response.text == other.text for _, other in out):
            response = answer(request, AUTHORS[turn], rng)
        out.append((AUTHORS[turn], response))
    return out


TASTE = np.array([0.6, 0.8, 1.0])
"""What one piece of each of `gold.SPURIOUS` is worth, relative to flattery."""


@dataclass(frozen=True)
class Annotated:
    """A response with what its annotator said, and what is true.

    Args:
        author: name of the system that wrote it.
        ratings: of each aspect, 1-5 in half points.
        overall: annotated overall judgment, in rating points; bias and noise included.
        reward: w*.s, in rating points.
        utility: `reward` plus the bias, without the noise.
    """

    author: str
    response: Response
    ratings: tuple[float, ...]
    overall: float
    reward: float
    utility: float


@dataclass(frozen=True)
class AnnotatedPrompt:
    """A prompt with its true weights, shape (4,), and its annotated responses."""

    request: Request
    weights: np.ndarray
    responses: list[Annotated]


def annotate(
    author: str, response: Response, weights: np.ndarray, config: WorldConfig, rng: np.random.Generator
) -> Annotated:
    """Rate and judge one response."""
    scores, taste = np.array(response.scores, dtype=float), float(TASTE @ np.array(response.spurious))
    noisy = scores + config.rating_bias * taste + config.rating_noise * rng.standard_normal(len(scores))
    ratings = np.clip(np.rint(2 * noisy) / 2, 1, 5)
    reward = float(weights @ scores)
    utility = reward + config.spurious_bias * taste
    overall = utility + config.preference_noise * float(rng.standard_normal())
    return Annotated(author, response, tuple(ratings.tolist()), overall, reward, utility)


def annotate_prompt(request: Request, config: WorldConfig, rng: np.random.Generator) -> AnnotatedPrompt:
    """Answers to a prompt, each rated and judged."""
    weights = true_weights(request)
    rated = [annotate(a.name, y, weights, config, rng) for a, y in answers(request, config.responses_per_prompt, rng)]
    return AnnotatedPrompt(request, weights, rated)


def on_ten_scale(overall: float) -> float:
    """An overall judgment in rating points on UltraFeedback's 1-10 scale: monotone, and fine enough to rarely tie."""
    return round(1 + 9 / (1 + math.exp(-(overall - 3))), 4)
