"""MT-Bench: single-answer grading, one rating a turn, and the means of a policy's ratings.

* The first turn is graded by itself, the second with the whole conversation before it; math, reasoning and coding
  questions with the reference answers beside them.
* A rating is the first `[[rating]]` of a reply, else the first `[rating]`: FastChat's two regular expressions. FastChat
  takes whatever number stands in the brackets. So do we, but ratings off the scale of 1 to 10 are named.
* A reply without a rating is asked for again, up to `attempts` replies; FastChat asks once, and has -1 there. What is
  still missing is counted and named by its question, never scored as 0.
* The score is the mean over all rated turns, not the mean of the two turns' means.

Source: lm-sys/FastChat, `fastchat/llm_judge`: `gen_judgment.py` (`make_judge_single`, `make_match_single`); `common.py`
(`run_judge_single`: temperature 0, max_tokens 2048; `one_score_pattern`, `one_score_pattern_backup`,
`temperature_config`, `NEED_REF_CATS`); `show_result.py` (`display_result_single`, which drops its -1, our None).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrm.config import Config, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import (
    MT_REFERENCE_CATEGORIES,
    AnswerSet,
    Conversation,
    JudgePrompt,
    MtQuestion,
    QuestionId,
    read_mt_bench,
    read_mt_judge_prompts,
    read_mt_references,
)
from vrm.judged.base import (
    ANSWER_AGAIN,
    Judgments,
    Row,
    base_record,
    count_failed,
    draws_table,
    join_notes,
    read_judgments,
    require_model,
    require_same,
    score_row,
    terms_table,
)
from vrm.judging.asking import Ask, ask_until, recording, storable
from vrm.judging.exchange import Failed, Reply, Request, without_thoughts
from vrm.records import RecordError, read_jsonl
from vrm.runfiles import JUDGED_ITEMS, JUDGED_SCORES, JudgedTables


def mt_bench_set(config: Config, judged: JudgedPolicy, directory: Path) -> AnswerSet:
    def record(origin: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        return {**origin, "model_id": judged.name, "choices": [{"index": 0, "turns": texts}]}

    conversations = []
    for question in read_mt_bench(directory):
        if question.category not in TEMPERATURES:
            raise RecordError(
                f"{directory / 'question.jsonl'}: question {question.question_id} has category {question.category!r}, "
                f"for which no temperature is set; known are: {', '.join(TEMPERATURES)}"
            )
        conversations.append(
            Conversation(tuple(question.turns), TEMPERATURES[question.category], {"question_id": question.question_id})
        )
    return AnswerSet("mt_bench", conversations, config.benchmarks.mt_bench.max_new_tokens, record)


def read_mt_policy(path: Path, questions: Sequence[MtQuestion], model: str) -> dict[QuestionId, tuple[str, str]]:
    """A policy's answers to both turns of MT-Bench's questions, by question in the questions' order.

    Raises:
        RecordError: as `read_arena_policy`.
    """
    answers: dict[QuestionId, tuple[str, str]] = {}
    for number, row in read_jsonl(path):
        where = f"{path}, row {number}"
        try:
            (choice,) = row["choices"]
            first, second = choice["turns"]
            key, name = row["question_id"], row["model_id"]
        except (KeyError, TypeError, ValueError):
            raise RecordError(f"{where}: not FastChat's record of one answer with two turns; {ANSWER_AGAIN}") from None
        if not isinstance(first, str) or not isinstance(second, str):
            raise RecordError(f"{where}: a turn is no text; {ANSWER_AGAIN}")
        if key in answers:
            raise RecordError(f"{where}: a second answer to question {key}; {ANSWER_AGAIN}")
        require_model(where, name, model)
        answers[key] = first, second
    ids = [question.question_id for question in questions]
    require_same(path, ids, answers)
    return {key: answers[key] for key in ids}


RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")

RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")


def parse_rating(text: str) -> float | None:
    """The rating in a judge's reply: the first `[[rating]]`, else the first `[rating]`; None when there is neither.

    Source: FastChat `run_judge_single`, whose -1 is None here.
    """
    said = without_thoughts(text)
    match = RATING.search(said) or RATING_BACKUP.search(said)
    return float(match.group(1)) if match else None


BENCHMARK = "mt_bench"

PARAMETERS = {"temperature": 0.0, "max_tokens": 2048}

TURNS = (1, 2)

UNPARSED = "unparsed"
"""Failure of a turn whose replies hold no rating."""


def judge_mt_bench(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judgments:
    """Have both turns of a policy's answers rated.

    Args:
        config: whose reference answers are shown, and the number of attempts.
        judged: whose answers they are.
        answers: directory with `mt_bench.jsonl`.
        sets: the benchmark's files.
        ask: a reply or a named failure for each request.

    Returns:
        Rows: FastChat's records, one a question and turn in the set's order: `question_id`, `model`, `judge` (the
        judge's name and the prompt's), `turn` (1 or 2), the `judgment` (None: no reply), its `score` (1 to 10, or
        None) and a `failure` (None: there is a score). A failure's `part` is `turn_1` or `turn_2`.

    Raises:
        RecordError: an answer is missing or can't be used.
    """
    settings = config.benchmarks.mt_bench
    questions, prompts = read_mt_bench(sets), read_mt_judge_prompts(sets)
    references = read_mt_references(sets, settings.references)
    ours = read_mt_policy(answers / f"{BENCHMARK}.jsonl", questions, judged.name)
    turns = [(question, turn) for question in questions for turn in TURNS]
    names = [prompt_name(question, turn) for question, turn in turns]
    first = [
        _request(prompts[name], _fields(question, turn, ours[question.question_id], references))
        for name, (question, turn) in zip(names, turns, strict=True)
    ]
    asked: list[Request] = []
    tries = ask_until(recording(ask, asked), first, _has_rating, settings.attempts)
    rows = [
        {
            "question_id": question.question_id,
            "model": judged.name,
            "judge": [config.judge.model, name],
            "turn": turn,
            **_judgment(outcomes),
        }
        for name, (question, turn), outcomes in zip(names, turns, tries, strict=True)
    ]
    failures = [
        {"id": row["question_id"], "part": f"turn_{row['turn']}", "reason": row["failure"]}
        for row in rows
        if row["failure"]
    ]
    return Judgments(rows, asked, failures)


def prompt_name(question: MtQuestion, turn: int) -> str:
    """FastChat's name of the judge prompt for a question's turn."""
    kind = "single-math-v1" if question.category in MT_REFERENCE_CATEGORIES else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"


def _fields(
    question: MtQuestion, turn: int, answer: tuple[str, str], references: Mapping[Any, tuple[str, str]]
) -> dict[str, str]:
    """What stands in the prompt's placeholders."""
    fields = {}
    if question.category in MT_REFERENCE_CATEGORIES:
        fields = {f"ref_answer_{i}": text for i, text in enumerate(references[question.question_id], 1)}
    if turn == 1:
        return fields | {"question": question.turns[0], "answer": answer[0]}
    for i in TURNS:
        fields |= {f"question_{i}": question.turns[i - 1], f"answer_{i}": answer[i - 1]}
    return fields


def _request(prompt: JudgePrompt, fields: Mapping[str, str]) -> Request:
    # str.format reads the template alone: braces in the texts stay as they are
    text = prompt.template.format(**fields)
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": text}]
    return Request(messages, BENCHMARK, parameters=PARAMETERS)


def _has_rating(reply: Reply) -> bool:
    return parse_rating(reply.text) is not None


def _judgment(outcomes: Sequence[Reply | Failed]) -> dict[str, Any]:
    """The last reply with its rating, and why there is none, from the outcomes of a turn's attempts."""
    texts = [storable(outcome.text) for outcome in outcomes if isinstance(outcome, Reply)]
    judgment = texts[-1] if texts else None
    score = None if judgment is None else parse_rating(judgment)
    failed = outcomes[-1].reason if isinstance(outcomes[-1], Failed) else UNPARSED
    return {"judgment": judgment, "score": score, "failure": failed if score is None else None}


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

QUESTION_CATEGORIES: dict[int, str] = {
    81 + 10 * block + i: category for block, category in enumerate(TEMPERATURES) for i in range(10)
}
"""Category of each official question, by its id 81..160: ten a category."""

Named = dict[Any, tuple[int, ...]]
"""Turns by question id."""


@dataclass(frozen=True)
class Ratings:
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


def mean_ratings(judgments: Iterable[Mapping[str, Any]], categories: Mapping[Any, str] | None = None) -> Ratings:
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
    return Ratings(
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


def mt_bench_scores(config: Config, results: Path) -> JudgedTables:
    """MT-Bench of every judged policy: both turns, all turns, each category, mean characters of an answer.

    Raises:
        RecordError: files don't belong together.
    """
    questions = read_mt_bench(results / "judged" / "sets" / "mt_bench")
    categories = {question.question_id: question.category for question in questions}
    keys = [(question.question_id, turn) for question in questions for turn in TURNS]
    rows, items, policies = [], [], {}
    for judged in config.judged_policies:
        path = results / judged.folder / "answers" / FILES["mt_bench"]
        lengths = [len(text) for answer in read_mt_policy(path, questions, judged.name).values() for text in answer]
        judgments = read_judgments(config, results, judged, "mt_bench", keys)
        rows += _mt_rows(judged, judgments, categories)
        rows.append(score_row(judged, "length", float(np.mean(lengths)), n=len(lengths)))
        items += [
            {**judged._asdict(), "item_id": row["question_id"], "part": f"turn_{row['turn']}", "value": rating}
            for row in judgments
            if (rating := _rating(row)) is not None
        ]
        policies[judged.name] = {"failed": count_failed(judgments, "turns")[0], "turns": len(judgments)}
    record = {
        **base_record(config, "mt_bench", policies),
        "references": config.benchmarks.mt_bench.references,
        "intervals": {"level": config.report.level, "resampled": "nothing"},
    }
    means = pd.DataFrame(items, columns=list(JUDGED_ITEMS.columns)).assign(weight=1.0)
    scores = pd.DataFrame(rows, columns=list(JUDGED_SCORES.columns))
    return JudgedTables(scores, means, draws_table({}), terms_table([], {}), record)


def _mt_rows(judged: JudgedPolicy, judgments: Sequence[Row], categories: Mapping[QuestionId, str]) -> list[Row]:
    """The means of one policy's ratings."""
    found = mean_ratings(judgments, categories)
    parts: dict[str, tuple[float, list[Row]]] = {
        "turn_1": (found.turn_1, [row for row in judgments if row["turn"] == 1]),
        "turn_2": (found.turn_2, [row for row in judgments if row["turn"] == 2]),
        "score": (found.overall, list(judgments)),
    }
    for name, mean in found.by_category.items():
        parts[f"category/{name}"] = mean, [row for row in judgments if categories[row["question_id"]] == name]
    rows = []
    for metric, (mean, part) in parts.items():
        rated = sum(_rating(row) is not None for row in part)
        off_scale = sum(row["turn"] in found.off_scale.get(row["question_id"], ()) for row in part)
        odd = f"{off_scale} ratings off the scale of 1 to 10" if off_scale else ""
        rows.append(score_row(judged, metric, mean, n=rated, note=join_notes(count_failed(part, "turns")[1], odd)))
    return rows


def _rating(judgment: Row) -> float | None:
    return parse_rating(judgment["judgment"] or "")
