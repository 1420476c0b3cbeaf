"""MT-Bench: ratings read from the judge's replies, and the means of one model's ratings.

* A rating is the first `[[rating]]` of a reply, else the first `[rating]`: FastChat's two regular expressions.
* A reply without a rating is missing: counted and named by its question, never scored as 0.
* The score is the mean over all rated turns, not the mean of the two turns' means.
* FastChat takes whatever number stands in the brackets. So do we, but ratings off the scale of 1 to 10 are named.

Source: lm-sys/FastChat, `fastchat/llm_judge`: `one_score_pattern`, `one_score_pattern_backup`, `temperature_config` and
`NEED_REF_CATS` in `common.py`, `display_result_single` in `show_result.py` (which drops its -1, our None).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrm.judging.verdicts import parse_rating

TEMPERATURES: dict[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "reasoning": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "extraction": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Sampling temperature of the judged model by category, in the order of the questions; 0 is greedy decoding."""

TURNS = (1, 2)

QUESTION_CATEGORIES: dict[int, str] = {
    81 + 10 * block + i: category for block, category in enumerate(TEMPERATURES) for i in range(10)
}
"""Category of each official question, by its id 81..160: ten a category."""

Named = dict[Any, tuple[int, ...]]
"""Turns by question id."""


@dataclass(frozen=True)
class Scores:
    """Mean ratings of one model, in rating points 1..10; NaN where nothing is rated.

    Args:
        turn_1: mean over the rated first turns.
        turn_2: mean over the rated second turns.
        overall: mean over all rated turns: the benchmark's score.
        by_category: mean over both turns' ratings, by category in the order of the questions.
        rated: number of ratings behind `overall`.
        unparsed: judgments without a rating; not in any mean.
        missing: questions' turns without any judgment; not in any mean.
        off_scale: ratings outside 1..10; in the means, as upstream has it.
    """

    turn_1: float
    turn_2: float
    overall: float
    by_category: dict[str, float]
    rated: int
    unparsed: Named
    missing: Named
    off_scale: Named

    @property
    def n_unparsed(self) -> int:
        """Number of judgments without a rating."""
        return sum(map(len, self.unparsed.values()))

    @property
    def n_missing(self) -> int:
        """Number of turns without any judgment."""
        return sum(map(len, self.missing.values()))


def scores(judgments: Iterable[Mapping[str, Any]], categories: Mapping[Any, str] | None = None) -> Scores:
    """Mean ratings of one model, over turn 1, turn 2, all turns, and by category.

    Args:
        judgments: FastChat's records of single-answer grading, one a question and turn: `question_id`, `turn` (1 or
            2), `judgment` (the judge's reply; None where there is none) and, if given, `model`. A `score` is not read.
        categories: category by question id of every question asked; the official 80 by default.

    Returns:
        The means, and by question what is not in them.

    Raises:
        ValueError: several models, a question that `categories` lacks, a turn other than 1 and 2, or two judgments of
            one question and turn.

    Source: FastChat `display_result_single`.
    """
    categories = QUESTION_CATEGORIES if categories is None else categories
    judgments = list(judgments)
    _require_one_model(judgments)
    ratings = {(question, turn): None for question in categories for turn in TURNS}
    judged = set()
    for record in judgments:
        key = record["question_id"], record["turn"]
        if key not in ratings:
            raise ValueError(f"no question {key[0]} with a turn {key[1]} was asked")
        if key in judged:
            raise ValueError(f"question {key[0]}, turn {key[1]}, is judged twice")
        judged.add(key)
        ratings[key] = parse_rating(record["judgment"] or "")
    rated = {key: rating for key, rating in ratings.items() if rating is not None}
    return Scores(
        turn_1=_mean(rating for (_, turn), rating in rated.items() if turn == 1),
        turn_2=_mean(rating for (_, turn), rating in rated.items() if turn == 2),
        overall=_mean(rated.values()),
        by_category={
            category: _mean(rating for (question, _), rating in rated.items() if categories[question] == category)
            for category in dict.fromkeys(categories.values())
        },
        rated=len(rated),
        unparsed=_named(key for key in ratings if key in judged and key not in rated),
        missing=_named(key for key in ratings if key not in judged),
        off_scale=_named(key for key, rating in rated.items() if not 1 <= rating <= 10),
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _named(keys: Iterable[tuple[Any, int]]) -> Named:
    named: Named = {}
    for question, turn in keys:
        named[question] = (*named.get(question, ()), turn)
    return named


def _require_one_model(judgments: list[Mapping[str, Any]]) -> None:
    models = sorted({str(record["model"]) for record in judgments if "model" in record})
    if len(models) > 1:
        raise ValueError(f"the scores are one model's, and these judgments are of {', '.join(models)}")
