"""Readers of public data's rows, by shape: of rated responses, and of responses of which one is better."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from vrm.data.fields import (
    Unusable,
    add_system,
    is_transcript,
    parse_label,
    parse_messages,
    parse_number,
    parse_numbers,
    parse_row_prompt,
    parse_text,
    parse_transcript,
    prompt_column,
    read_written_out,
)
from vrm.records import Message, Prompt, ScoredResponse

# Rows that hold rated responses, in the shapes that public data have.
#
# * UltraFeedback, one prompt a row:
#       {"instruction": text or messages,
#        "completions": [{"model", "response", "annotations": {aspect: {"Rating"}}, "overall_score"}],
#        "true_weights": [K numbers]}                       # optional; only where the truth is known
#   A rating may also stand under `rating`, alone, or as "4/5"; those of several annotators, in a list, are averaged.
# * HelpSteer and HelpSteer2, and other tables with one response a row: the ratings are columns.
# * PKU-SafeRLHF: two responses, and which is more helpful and which safer. Two aspects, 1 for the better and 0.
# * distilabel: `generations` and their `ratings`. What was rated is not said, so it is the overall score, unless
#   `data.aspects` has one name alone.
# * Nectar: `answers` with ranks. There are no ratings; the overall score is the rank, negated.

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


def is_rating(annotation: Any, aspect: str) -> bool:
    """Whether `parse_rating` can read it, whatever its range."""
    try:
        parse_rating(annotation, aspect, None)
    except Unusable:
        return False
    return True


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


# Rows that say which of two (or several) responses is better, in the shapes that public data have.
#
# * prompt, chosen and rejected; RewardBench's columns are these with `subset` and `id`.
# * The prompt may stand under another name, be a text, a conversation or an HH transcript up to `Assistant:`, and have
#   a column for its system text (orca_dpo_pairs) and one for earlier turns (LLaMA-Factory).
# * chosen and rejected may be texts, conversations, single messages, or transcripts (`Human: ... Assistant: ...`): what
#   comes before the last turn is the prompt, the last turn, the assistant's, is the response. With a prompt column as
#   well, both have to agree.
# * Both may be lists of texts: RewardBench 2 has one right answer (its Ties: several) against several wrong ones,
#   RM-Bench the same answer in three styles. Every chosen is compared with every rejected.
# * HelpSteer2's and HelpSteer3's preferences, JudgeBench: two responses and a verdict.

PAIR_PROMPT = ("prompt", "instruction", "question", "conversations", "context", "input", "query", "messages")
"""Columns that may hold the prompt of a pair; the first that has a value counts."""
SIDES = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred_output", "non_preferred_output"))
"""Columns of the better and the worse response."""
SCORES = ("chosen_scores", "rejected_scores", "true_weights")
JUDGEBENCH_CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""JudgeBench's four categories, by the beginning of `source`. Source: ScalerLab/JudgeBench, run_judge.py and paper."""


@dataclass(frozen=True)
class ComparedRow:
    """What a row says of one prompt: each of `chosen` is better than each of `rejected`.

    Args:
        prompt: the conversation up to the response.
        chosen: the better responses, at least one.
        rejected: the worse ones, at least one.
        subset: a name to report by; "" when there is none.
        chosen_scores: annotated scores, length K, in rating points; None when unknown.
        rejected_scores: likewise.
        true_weights: the true objective weights, length K, where they are known.
    """

    prompt: Prompt
    chosen: list[str]
    rejected: list[str]
    subset: str = ""
    chosen_scores: list[float] | None = None
    rejected_scores: list[float] | None = None
    true_weights: list[float] | None = None


def read_pair(row: Mapping[str, Any], aspects: Sequence[str], implicit: bool = False) -> ComparedRow:
    """A row with a better and a worse side.

    Args:
        row: the row.
        aspects: names of the K aspects; with none, scores and true weights are not read.
        implicit: take what two texts without a prompt begin with in common as the prompt, as TRL does.

    Raises:
        Unusable: a text is missing or empty, the two sides are of different kinds, they differ before their last
            message, or they disagree with the prompt column.
    """
    names = next((names for names in SIDES if any(row.get(name) is not None for name in names)), SIDES[0])
    prompt, chosen, rejected = _texts(row, names, implicit)
    numbers = [parse_numbers(row.get(name), len(aspects), name) if aspects else None for name in SCORES]
    subset = row.get("subset") if row.get("subset") is not None or len(chosen) == 1 else row.get("domain")
    return ComparedRow(prompt, chosen, rejected, parse_label(subset, "subset"), *numbers)


def read_verdict(
    row: Mapping[str, Any], responses: tuple[str, str], prompt: str, first_is_better: bool | None, subset: Any = None
) -> ComparedRow:
    """A row with two responses and a verdict.

    Args:
        row: the row.
        responses: columns of the two responses.
        prompt: column of the prompt.
        first_is_better: the verdict; None is a tie.
        subset: a name to report by.

    Raises:
        Unusable: a text is missing or empty, or the verdict is a tie.
    """
    asked = parse_row_prompt(row, (prompt, *PAIR_PROMPT))
    first, second = (parse_text(row.get(name), name) for name in responses)
    if first_is_better is None:
        raise Unusable("a tie: neither response is preferred")
    chosen, rejected = (first, second) if first_is_better else (second, first)
    return ComparedRow(asked, [chosen], [rejected], parse_label(subset, "subset"))


def read_helpsteer3(row: Mapping[str, Any], _: Sequence[str]) -> ComparedRow:
    """A row of HelpSteer3's preferences: -3 the first response is much better, 3 the second is."""
    return read_verdict(
        row, ("response1", "response2"), "context", _is_first(row, "overall_preference"), row.get("domain")
    )


def read_helpsteer2_preference(row: Mapping[str, Any], _: Sequence[str]) -> ComparedRow:
    """A row of HelpSteer2's preferences, on the same scale."""
    return read_verdict(row, ("response_1", "response_2"), "prompt", _is_first(row, "preference_strength"))


def read_judgebench(row: Mapping[str, Any], _: Sequence[str]) -> ComparedRow:
    """A row of JudgeBench, whose label is `A>B` or `B>A`; the subset is upstream's category."""
    label, source = row.get("label"), parse_label(row.get("source"), "source")
    if label not in ("A>B", "B>A", "A=B"):
        raise Unusable("label is none of A>B, B>A, A=B")
    subset = next((name for start, name in JUDGEBENCH_CATEGORIES.items() if source.startswith(start)), source)
    better = None if label == "A=B" else label == "A>B"
    return read_verdict(row, ("response_A", "response_B"), "question", better, subset)


def read_pku_single(row: Mapping[str, Any], _: Sequence[str]) -> ComparedRow:
    """A row of PKU-SafeRLHF's single-dimension set: two responses and the better one's number."""
    if row.get("better_response_id") not in (0, 1):
        raise Unusable("better_response_id is neither 0 nor 1")
    return read_verdict(row, ("response_0", "response_1"), "prompt", row["better_response_id"] == 0)


def _is_first(row: Mapping[str, Any], column: str) -> bool | None:
    strength = parse_number(row.get(column), column)
    return None if strength == 0 else strength < 0


def _texts(row: Mapping[str, Any], names: tuple[str, str], implicit: bool) -> tuple[Prompt, list[str], list[str]]:
    """Prompt, chosen and rejected texts of a row."""
    sides = [_side(row.get(name), name) for name in names]
    if not any(isinstance(side, list) for side in sides):
        if implicit and row.get(prompt_column(row, PAIR_PROMPT)) is None:
            return _common_beginning(*(parse_text(side, name) for side, name in zip(sides, names, strict=True)))
        prompt = parse_row_prompt(row, PAIR_PROMPT)
        return prompt, *([parse_text(side, name)] for side, name in zip(sides, names, strict=True))
    if all(isinstance(side, str) or _are_texts(side) for side in sides):
        sides = [[side] if isinstance(side, str) else side for side in sides]
        prompt = parse_row_prompt(row, PAIR_PROMPT)
        return prompt, *([parse_text(text, name) for text in side] for side, name in zip(sides, names, strict=True))
    histories, texts = [], []
    for side, name in zip(sides, names, strict=True):
        if not isinstance(side, list) or _are_texts(side):
            raise Unusable(f"one of {names[0]} and {names[1]} is a conversation, the other is not")
        *history, last = parse_messages(side, name)
        if last["role"] != "assistant":
            raise Unusable(f"{name} does not end with a message of the assistant")
        histories.append(history)
        texts.append(last["content"])
    if histories[0] != histories[1]:
        raise Unusable(f"{names[0]} and {names[1]} differ before their last message")
    return _joined_prompt(row, histories[0], names[0]), [texts[0]], [texts[1]]


def _side(value: Any, name: str) -> Any:
    """A side as text, as a list of texts or as a list of messages."""
    value = read_written_out(value, name)
    if is_transcript(value):
        return parse_transcript(value, name)
    return [value] if isinstance(value, dict) else value


def _are_texts(side: Any) -> bool:
    return isinstance(side, list) and bool(side) and all(isinstance(entry, str) for entry in side)


def _common_beginning(chosen: str, rejected: str) -> tuple[Prompt, list[str], list[str]]:
    """The longest common beginning of two texts as the prompt; a space before the difference is the responses'."""
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    length -= chosen[length - 1 : length] == " "
    texts = [parse_text(text[length:], "the response") for text in (chosen, rejected)]
    prompt = [Message(role="user", content=parse_text(chosen[:length], "the common beginning of chosen and rejected"))]
    return prompt, texts[:1], texts[1:]


def _joined_prompt(row: Mapping[str, Any], history: list[Message], name: str) -> Prompt:
    """The prompt of a conversation: what comes before its last message, and what the prompt column adds to it."""
    columns = PAIR_PROMPT[:-1] if history else PAIR_PROMPT  # `messages` repeats the chosen conversation
    if history and not row.get(prompt_column(row, columns)):
        prompt = add_system(row, history)
        if prompt[-1]["role"] != "user":
            raise Unusable("prompt does not end with a message of the user")
        return prompt
    prompt = parse_row_prompt(row, columns)
    if not history:
        return prompt
    systems = [[turn for turn in turns if turn["role"] == "system"] for turns in (prompt, history)]
    column, before = ([turn for turn in turns if turn["role"] != "system"] for turns in (prompt, history))
    said = _said(column), _said(before)
    if not before or before[0]["role"] == "assistant":
        turns = column + before
    elif said[1][: len(column)] == said[0] or said[1][-len(column) :] == said[0]:
        turns = before  # UltraFeedback binarized repeats the user's first message alone in `prompt`
    elif said[0][-len(before) :] == said[1]:
        turns = column
    else:
        raise Unusable(f"the prompt column and what {name} says before its last message disagree")
    if systems[0] and systems[1] and _said(systems[0]) != _said(systems[1]):
        raise Unusable(f"the prompt's system turn and that of {name} disagree")
    if turns[-1]["role"] != "user":
        raise Unusable("prompt does not end with a message of the user")
    return [*(systems[1] or systems[0]), *turns]


def _said(turns: list[Message]) -> list[tuple[str, str]]:
    """Who said what, white space around it apart."""
    return [(turn["role"], turn["content"].strip()) for turn in turns]
