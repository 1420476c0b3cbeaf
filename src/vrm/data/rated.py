"""Rows that hold rated responses, in the shapes that public data have.

* UltraFeedback, one prompt a row:
      {"instruction": text or messages,
       "completions": [{"model", "response", "annotations": {aspect: {"Rating"}}, "overall_score"}],
       "true_weights": [K numbers]}                       # optional; only where the truth is known
  A rating may also stand under `rating`, alone, or as "4/5"; those of several annotators, in a list, are averaged.
* HelpSteer and HelpSteer2, and other tables with one response a row: the ratings are columns.
* PKU-SafeRLHF: two responses, and which is more helpful and which safer. Two aspects, 1 for the better and 0.
* distilabel: `generations` and their `ratings`. What was rated is not said, so it is the overall score, unless
  `data.aspects` has one name alone.
* Nectar: `answers` with ranks. There are no ratings; the overall score is the rank, negated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from vrm.data.sources import Unusable, parse_label, parse_number, parse_numbers, parse_row_prompt, parse_text
from vrm.records import Prompt, ScoredResponse

RATED_PROMPT = ("instruction", "prompt", "question", "input", "context", "conversations")
"""Columns that may hold the prompt of rated responses; the first that has a value counts."""
HELPSTEER_ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
PKU_ASPECTS = ("helpfulness", "harmlessness")
_FRACTION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


class Ratings(NamedTuple):
    """What is to be read of a response's ratings.

    Args:
        aspects: names of the K aspects.
        range: lowest and highest rating that is possible; None takes any.
        overall: whether a response needs an overall score.
    """

    aspects: Sequence[str]
    range: tuple[float, float] | None = None
    overall: bool = False


class OutsideRange(Unusable):
    """A rating is outside the range that was configured. `value` is the rating, or the scale's end in "8/10"."""

    def __init__(self, reason: str, aspect: str, value: float) -> None:
        super().__init__(reason)
        self.aspect, self.value = aspect, value


@dataclass(frozen=True)
class RatedRow:
    """What a row says of one prompt.

    Args:
        prompt: the conversation up to the response.
        responses: those that can be used.
        faults: the others as they stand, each with what is wrong.
        true_weights: the true objective weights, length K, where they are known.
        whole: whether the row holds all of the prompt's responses; if not, other rows have more.
    """

    prompt: Prompt
    responses: list[ScoredResponse]
    faults: list[tuple[Any, Unusable]] = field(default_factory=list)
    true_weights: list[float] | None = None
    whole: bool = True

    def require_two(self) -> None:
        """Raise Unusable where fewer than two responses can be used."""
        if len(self.responses) < 2:
            # the commonest reason alone: all of them together would make nearly every row a reason of its own
            common = Counter(str(fault) for _, fault in self.faults).most_common(1)
            raise Unusable("fewer than 2 usable responses" + (f", mostly: {common[0][0]}" if common else ""))


def read_ultrafeedback(row: Mapping[str, Any], ratings: Ratings) -> RatedRow:
    """A row of UltraFeedback's shape (openbmb, Argilla, and the project's own).

    Raises:
        Unusable: the prompt can't be used, or `completions` is no list.
    """
    prompt = parse_row_prompt(row, RATED_PROMPT)
    if not isinstance(row.get("completions"), list):
        raise Unusable("completions is not a list")
    responses, faults = _each(row["completions"], lambda completion: _ultrafeedback_response(completion, ratings))
    weights = parse_numbers(row.get("true_weights"), len(ratings.aspects), "true_weights")
    return RatedRow(prompt, responses, faults, weights)


def read_table(row: Mapping[str, Any], ratings: Ratings) -> RatedRow:
    """A row with one response and its ratings as columns; the overall score is HelpSteer's helpfulness, if any.

    Raises:
        Unusable: the prompt can't be used.
    """
    prompt = parse_row_prompt(row, ("prompt", *RATED_PROMPT))

    def response(row: Any) -> ScoredResponse:
        text = parse_text(row.get("response"), "response")
        scores = [parse_rating(row.get(aspect), aspect, ratings.range) for aspect in ratings.aspects]
        overall = _overall(row.get("overall_score", row.get("helpfulness")), ratings.overall)
        return ScoredResponse(parse_label(row.get("model"), "model"), text, scores, overall)

    responses, faults = _each([row], response)
    return RatedRow(prompt, responses, faults, whole=False)


def read_pku(row: Mapping[str, Any], ratings: Ratings) -> RatedRow:
    """A row of PKU-SafeRLHF; the overall score is 1 for `better_response_id` and 0 for the other response.

    Raises:
        Unusable: the prompt or one of the two answers can't be used.
    """
    prompt = parse_row_prompt(row, ("prompt", *RATED_PROMPT))
    better = dict(zip(PKU_ASPECTS, (row.get("better_response_id"), row.get("safer_response_id")), strict=True))
    for which in ("better_response_id", "safer_response_id"):
        if row.get(which) not in (0, 1):
            raise Unusable(f"{which} is neither 0 nor 1")
    responses, faults = _each(
        [0, 1],
        lambda i: ScoredResponse(
            model=parse_label(row.get(f"response_{i}_source"), f"response_{i}_source"),
            text=parse_text(row.get(f"response_{i}"), f"response_{i}"),
            scores=[float(better[aspect] == i) for aspect in ratings.aspects],
            overall=float(row["better_response_id"] == i),
        ),
    )
    return RatedRow(prompt, responses, faults)


def read_distilabel(row: Mapping[str, Any], ratings: Ratings) -> RatedRow:
    """A row of distilabel's UltraFeedback task.

    Raises:
        Unusable: the prompt can't be used, or there are not as many ratings as generations.
    """
    prompt = parse_row_prompt(row, RATED_PROMPT)
    rated = row.get("ratings") if row.get("ratings") is not None else row.get("rating")
    if not isinstance(row.get("generations"), list) or not isinstance(rated, list):
        raise Unusable("generations and ratings are not lists")
    if len(rated) != len(row["generations"]):
        raise Unusable("generations and ratings are not of one length")
    names = next((row[name] for name in ("generation_models", "model_names") if isinstance(row.get(name), list)), [])
    names = names if len(names) == len(rated) else [None] * len(rated)

    def response(entry: tuple[Any, Any, Any]) -> ScoredResponse:
        model, text, rating = entry
        text = parse_text(text, "a generation")
        if len(ratings.aspects) == 1:
            rating = parse_rating(rating, ratings.aspects[0], ratings.range)
            return ScoredResponse(parse_label(model, "model"), text, [rating], rating)
        return ScoredResponse(parse_label(model, "model"), text, [], parse_rating(rating, "a generation", None))

    responses, faults = _each(list(zip(names, row["generations"], rated, strict=True)), response)
    return RatedRow(prompt, responses, faults)


def read_nectar(row: Mapping[str, Any], ratings: Ratings) -> RatedRow:
    """A row of Nectar: answers with ranks, 1 the best.

    Raises:
        Unusable: the prompt can't be used, or `answers` is no list.
    """
    prompt = parse_row_prompt(row, ("prompt", *RATED_PROMPT))
    if not isinstance(row.get("answers"), list):
        raise Unusable("answers is not a list")

    def response(answer: Any) -> ScoredResponse:
        if not isinstance(answer, dict):
            raise Unusable("an answer is not an object")
        text = parse_text(answer.get("answer"), "answer")
        rank = parse_number(answer.get("rank"), "rank")
        return ScoredResponse(parse_label(answer.get("model"), "model"), text, [], -rank)

    responses, faults = _each(row["answers"], response)
    return RatedRow(prompt, responses, faults)


def parse_rating(annotation: Any, aspect: str, rating_range: tuple[float, float] | None) -> float:
    """One aspect's rating, in rating points: a number, "4", "4/5", an object with `Rating`, or a list of these.

    Raises:
        Unusable: missing or no number; names what stands there instead.
        OutsideRange: outside `rating_range`, or "a/b" whose b is not the end of that range.
    """
    what = f"rating of {aspect}"
    value = annotation.get("Rating", annotation) if isinstance(annotation, dict) else annotation
    if isinstance(value, dict):
        key = next((key for key in value if isinstance(key, str) and key.lower() in ("rating", "score")), None)
        if key is None and value:
            raise Unusable(f"{what} is missing: expected the key Rating, found {', '.join(map(str, value))}")
        value = value.get(key)
    if isinstance(value, list):
        if not value:
            raise Unusable(f"{what} is missing: its list of annotators is empty")
        return fmean(parse_rating(each, aspect, rating_range) for each in value)
    end = None
    if isinstance(value, str) and "/" in value and (fraction := _FRACTION.fullmatch(value)):
        value, end = fraction[1], float(fraction[2])
    rating = parse_number(value, what)
    if rating_range is not None:
        low, high = rating_range
        if not low <= rating <= high:
            raise OutsideRange(f"{what} is outside {low:g}..{high:g}", aspect, rating)
        if end is not None and end != high:
            raise OutsideRange(f"{what} is out of {end:g}, which is not the end of {low:g}..{high:g}", aspect, end)
    return rating


def _ultrafeedback_response(completion: Any, ratings: Ratings) -> ScoredResponse:
    if not isinstance(completion, dict):
        raise Unusable("a completion is not an object")
    text = parse_text(completion.get("response"), "response")
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        raise Unusable("annotations is missing" if annotations is None else "annotations is not an object")
    scores = [parse_rating(annotations.get(aspect), aspect, ratings.range) for aspect in ratings.aspects]
    overall = _overall(completion.get("overall_score"), ratings.overall)
    return ScoredResponse(parse_label(completion.get("model"), "model"), text, scores, overall)


def _overall(value: Any, needed: bool) -> float | None:
    try:
        return parse_number(value, "overall_score")
    except Unusable:
        if needed:
            raise
        return None


def _each(
    entries: Sequence[Any], parse: Callable[[Any], ScoredResponse]
) -> tuple[list[ScoredResponse], list[tuple[Any, Unusable]]]:
    """Each entry as a response, and those that can't be, with what is wrong."""
    responses, faults = [], []
    for entry in entries:
        try:
            responses.append(parse(entry))
        except Unusable as error:
            faults.append((entry, error))
    return responses, faults
