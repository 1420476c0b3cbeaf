"""MT-Bench: single-answer grading, one rating a turn.

* The first turn is graded by itself, the second with the whole conversation before it; math, reasoning and coding
  questions with the reference answers beside them.
* A reply without a rating is asked for again, up to `attempts` replies. FastChat asks once, and has -1 there.

Source: lm-sys/FastChat, `fastchat/llm_judge`: `gen_judgment.py` (`make_judge_single`, `make_match_single`) and
`common.py` (`run_judge_single`: temperature 0, max_tokens 2048).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrm.config import Config, JudgedPolicy
from vrm.data.benchmark_sets import (
    MT_REFERENCE_CATEGORIES,
    JudgePrompt,
    MtQuestion,
    read_mt_bench,
    read_mt_judge_prompts,
    read_mt_references,
)
from vrm.judging.asking import ask_until, recording, storable
from vrm.judging.exchange import Failed, Reply, Request
from vrm.judging.judgments import Ask, Judged
from vrm.judging.policy_answers import read_mt_policy
from vrm.judging.verdicts import parse_rating

BENCHMARK = "mt_bench"
PARAMETERS = {"temperature": 0.0, "max_tokens": 2048}
TURNS = (1, 2)
UNPARSED = "unparsed"
"""Failure of a turn whose replies hold no rating."""


def judge_mt_bench(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judged:
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
    return Judged(rows, asked, failures)


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
