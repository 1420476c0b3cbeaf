"""Responses: text written so that it says exactly what was intended, the systems that answer, and who rates them.

* A `Draft` holds the phrases of a response by what they are for. Two drafts that share all phrases but one objective's
  are what a probe of that objective needs.
* Each system has its own strengths and vices.
* rating = true score + rating_bias * (TASTE . spurious counts) + noise, rounded to half points within 1-5: noisy, but
  unbiased where rating_bias is 0, as it is by default;
* overall = w*.s + spurious_bias * (TASTE . spurious counts) + noise, in rating points, squashed to 1-10: biased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vrm.config import WorldConfig
from vrm.world import lexicon
from vrm.world.gold import LOWEST, SPURIOUS
from vrm.world.lexicon import ATTRIBUTES, BAD, FACT_PHRASES, GOOD, HERBS, LEXICAL
from vrm.world.prompts import ASPECTS, Request, true_weights

EVIDENCE: dict[int, tuple[tuple[tuple[int, int], float], ...]] = {
    1: (((0, 2), 1.0),),
    2: (((0, 1), 0.75), ((1, 2), 0.25)),
    3: (((1, 1), 1.0),),
    4: (((1, 0), 0.75), ((2, 1), 0.25)),
    5: (((2, 0), 1.0),),
}
"""How many (good, bad) pieces make a score, and how often. Symmetric about 3, so that a response's length says nothing
about its quality."""

LEXICAL_FIRST = 0.6
"""How often the evidence that needs neither prompt nor facts comes first, where an objective has both sorts."""

_OPENINGS = {phrase for phrases in lexicon.FORM_OPENINGS.values() for phrase in phrases}
_JOINTS = (". ", ". ", ", ", "; ", " and ")


@dataclass(frozen=True)
class Response:
    """A written response with what it was meant to say.

    Args:
        text: the response.
        scores: intended true score of each of `ASPECTS`, 1-5.
        spurious: intended count of each of `SPURIOUS`.
        refuses: whether it declines the request.
    """

    text: str
    scores: tuple[int, ...]
    spurious: tuple[int, ...]
    refuses: bool


@dataclass(frozen=True)
class Draft:
    """The phrases of a response, before they are ordered and joined.

    Args:
        scores: intended scores; where the stance is wrong, those that count are lower (`effective_scores`).
        evidence: phrases of each of `ASPECTS`.
        stance: a refusal, an assent, or "".
        refuses: whether `stance` is a refusal.
        right_stance: whether that is what the prompt needs.
        spurious: count of each of `SPURIOUS`.
    """

    scores: tuple[int, ...]
    evidence: tuple[tuple[str, ...], ...]
    stance: str
    refuses: bool
    right_stance: bool
    spurious: tuple[int, ...]

    @property
    def effective_scores(self) -> tuple[int, ...]:
        """The true scores: a wrong stance leaves nothing of following and helping."""
        capped = () if self.right_stance else ("instruction_following", "helpfulness")
        return tuple(LOWEST if a in capped else s for a, s in zip(ASPECTS, self.scores, strict=True))


def compose(
    request: Request,
    scores: Sequence[int],
    rng: np.random.Generator,
    spurious: Sequence[int] = (0, 0, 0),
    right_stance: bool = True,
) -> Draft:
    """Choose the phrases for intended scores (1-5 each) and spurious counts (0-2 each).

    Raises:
        ValueError: a wrong stance is asked for where refusing is no question.
    """
    if not right_stance and not request.refusable:
        raise ValueError(f"a prompt of kind {request.kind!r} has no stance to get wrong")
    refuses = (request.kind == "harmful") == right_stance
    stance = ""
    if request.refusable:
        stance = _some(rng, LEXICAL["refusal" if refuses else "assent"][GOOD], 1)[0]
    evidence = tuple(_evidence(request, k, s, rng) for k, s in enumerate(scores))
    return Draft(tuple(scores), evidence, stance, bool(stance) and refuses, right_stance, tuple(spurious))


def with_score(draft: Draft, request: Request, aspect: int, score: int, rng: np.random.Generator) -> Draft:
    """The same draft with new evidence for one objective alone."""
    scores, evidence = list(draft.scores), list(draft.evidence)
    scores[aspect], evidence[aspect] = score, _evidence(request, aspect, score, rng)
    return replace(draft, scores=tuple(scores), evidence=tuple(evidence))


def with_spurious(draft: Draft, spurious: Sequence[int]) -> Draft:
    """The same draft with other spurious counts."""
    return replace(draft, spurious=tuple(spurious))


def render(draft: Draft, rng: np.random.Generator) -> Response:
    """Order and join the phrases: a form's opening first, then the stance, the rest shuffled."""
    evidence = [phrase for phrases in draft.evidence for phrase in phrases]
    opening = [p for p in evidence if p in _OPENINGS]
    rest = [p for p in evidence if p not in _OPENINGS]
    padding, repetition, flattery = (draft.spurious[SPURIOUS.index(s)] for s in ("padding", "repetition", "flattery"))
    rest += _some(rng, LEXICAL["padding"][GOOD], padding) + _some(rng, LEXICAL["flattery"][GOOD], flattery)
    rng.shuffle(rest)
    body = [*opening, *([draft.stance] if draft.stance else []), *rest]
    for _ in range(repetition):
        phrase = evidence[int(rng.integers(len(evidence)))]
        at = int(rng.integers(body.index(phrase) + 1, len(body) + 1))
        body.insert(at, f"{_some(rng, lexicon.REPEATERS, 1)[0]} {phrase}")
    text = body[0] + "".join(_joint(rng) + phrase for phrase in body[1:]) + "."
    return Response(text, draft.effective_scores, draft.spurious, draft.refuses)


def _evidence(request: Request, aspect: int, score: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Phrases that give one objective its score."""
    good, bad = _piece_counts(rng, score)
    name = ASPECTS[aspect]
    if name in ("honesty", "helpfulness"):
        return (*_some(rng, LEXICAL[name][GOOD], good), *_some(rng, LEXICAL[name][BAD], bad))
    slots = _slots(request, name, rng)
    verdicts = [True] * good + [False] * bad
    return tuple(_state(request, slot, verdict, rng) for slot, verdict in zip(slots, verdicts, strict=False))


def _slots(request: Request, aspect: str, rng: np.random.Generator) -> list[str]:
    """The three slots of an objective in the order in which evidence fills them, the lexical one often first."""
    if aspect == "instruction_following":
        lexical, others = "focus", ["form", "item"]
    else:
        lexical, others = "common", ["answer", "start"] if request.puzzle else _some(rng, tuple(ATTRIBUTES), 2)
    rng.shuffle(others)
    return [lexical, *others] if rng.random() < LEXICAL_FIRST else [*others, lexical]


def _state(request: Request, slot: str, right: bool, rng: np.random.Generator) -> str:
    """A phrase that fills a slot rightly or wrongly."""
    if slot in LEXICAL:
        return _some(rng, LEXICAL[slot][GOOD if right else BAD], 1)[0]
    if slot == "form":
        form = request.form if right else _other(rng, tuple(lexicon.FORM_OPENINGS), request.form)
        return _some(rng, lexicon.FORM_OPENINGS[form], 1)[0]
    if slot == "item":
        item = request.item if right else _other(rng, lexicon.ITEMS, request.item)
        return _some(rng, lexicon.ITEM_PHRASES, 1)[0].format(item)
    if slot in ("answer", "start"):
        value = getattr(request.puzzle, slot) if right else _some(rng, request.puzzle.wrong(slot), 1)[0]
        templates = lexicon.ANSWER_PHRASES if slot == "answer" else lexicon.START_PHRASES
        return _some(rng, templates, 1)[0].format(value)
    truth = HERBS[request.herb][slot]
    value = truth if right else _other(rng, ATTRIBUTES[slot], truth)
    subject = ("it", request.herb, f"the {request.herb}")[int(rng.integers(3))]
    return f"{subject} {_some(rng, FACT_PHRASES[slot], 1)[0].format(value)}"


def _some(rng: np.random.Generator, values: Sequence[str], count: int) -> list[str]:
    """`count` distinct values."""
    if count == 1:
        return [values[int(rng.integers(len(values)))]]
    return [values[int(i)] for i in rng.permutation(len(values))[:count]]


def _other(rng: np.random.Generator, values: Sequence[str], value: str) -> str:
    return _some(rng, [v for v in values if v != value], 1)[0]


def _piece_counts(rng: np.random.Generator, score: int) -> tuple[int, int]:
    options = EVIDENCE[score]
    at = np.searchsorted(np.cumsum([share for _, share in options]), rng.random(), side="right")
    return options[min(int(at), len(options) - 1)][0]


def _joint(rng: np.random.Generator) -> str:
    return _JOINTS[int(rng.integers(len(_JOINTS)))]


# The systems that answer.

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
        means: mean score of each aspect, in the order of `ASPECTS`.
        habits: probability that a spurious feature occurs, in the order of `SPURIOUS`.
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


# The annotators.

TASTE = np.array([0.6, 0.8, 1.0])
"""What one piece of each of `SPURIOUS` is worth, relative to flattery."""


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
