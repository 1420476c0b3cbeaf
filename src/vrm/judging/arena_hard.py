"""Arena-Hard v0.1: two games a prompt against the baseline.

* In game 1 the baseline is A, in game 2 the model is A.
* A judge that gives no verdict at all is told to go on, in the same conversation, up to `attempts` replies; they are
  joined by line breaks, and all verdicts in them have to agree. One that contradicts itself is not asked again.

Source: lmarena/arena-hard-auto v0.1, `gen_judgment.py` (`judgment`, `get_score`) and `config/judge_config.yaml`, of
which temperature, length of a reply and the words of the second request are copied. Its joined text begins with a line
break; ours does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrm.config import Config, JudgedPolicy
from vrm.data.benchmark_sets import (
    ArenaQuestion,
    JudgePrompt,
    read_arena_baseline,
    read_arena_hard,
    read_arena_judge_prompt,
)
from vrm.judging.asking import ask_until, recording, storable
from vrm.judging.exchange import Failed, Reply, Request
from vrm.judging.judgments import Ask, Judged
from vrm.judging.policy_answers import read_arena_policy
from vrm.judging.verdicts import VERDICT, read_verdict

BENCHMARK = "arena_hard"
PARAMETERS = {"temperature": 0.0, "max_tokens": 4096}
GO_ON = "continue your judgment and finish by outputting a final verdict label"


def judge_arena_hard(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judged:
    """Have a policy's answers compared with the baseline's.

    Args:
        config: the baseline and the number of attempts.
        judged: whose answers they are.
        answers: directory with `arena_hard.jsonl`.
        sets: the benchmark's files.
        ask: a reply or a named failure for each request.

    Returns:
        Rows: upstream's records, one a question in the set's order: `question_id`, `model`, `judge` and `games`, two
        of them, each with the `judgment` (None: no reply), its `score` (a label, or None) and a `failure` (None: there
        is a score). A failure's `part` is `game 1` or `game 2`.

    Raises:
        RecordError: an answer is missing or can't be used.
        ConfigError: the baseline's tokens were counted in another way than the policy's.
    """
    settings = config.benchmarks.arena_hard
    questions = read_arena_hard(sets)
    ours = read_arena_policy(answers / f"{BENCHMARK}.jsonl", questions, judged.name)
    prompt = read_arena_judge_prompt(sets)
    first = [
        _request(prompt, question, game)
        for question, baseline in zip(questions, read_arena_baseline(sets, settings), strict=True)
        for game in _games(_text(baseline), _text(ours[question.question_id]))
    ]
    asked: list[Request] = []
    tries = ask_until(recording(ask, asked), first, _has_verdict, settings.attempts, _go_on)
    games = [_game(outcomes) for outcomes in tries]
    rows = [
        {
            "question_id": question.question_id,
            "model": judged.name,
            "judge": config.judge.model,
            "games": games[2 * i : 2 * i + 2],
        }
        for i, question in enumerate(questions)
    ]
    failures = [
        {"id": row["question_id"], "part": f"game {number}", "reason": game["failure"]}
        for row in rows
        for number, game in enumerate(row["games"], 1)
        if game["failure"]
    ]
    return Judged(rows, asked, failures)


def _games(baseline: str, model: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """What A and B say in game 1, and in game 2."""
    return (baseline, model), (model, baseline)


def _text(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["turns"][0]["content"]


def _request(prompt: JudgePrompt, question: ArenaQuestion, game: tuple[str, str]) -> Request:
    # str.format reads the template alone: braces in the texts stay as they are
    text = prompt.template.format(question_1=question.prompt, answer_1=game[0], answer_2=game[1])
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": text}]
    return Request(messages, BENCHMARK, parameters=PARAMETERS)


def _go_on(request: Request, reply: Reply) -> Request:
    said, more = {"role": "assistant", "content": reply.text}, {"role": "user", "content": GO_ON}
    return replace(request, messages=[*request.messages, said, more], attempt=request.attempt + 1)


def _has_verdict(reply: Reply) -> bool:
    """Whether it holds any, be they contradictory or unknown ones."""
    return VERDICT.search(reply.text) is not None


def _game(outcomes: Sequence[Reply | Failed]) -> dict[str, Any]:
    """A game of upstream's record, from the outcomes of its attempts."""
    texts = [storable(outcome.text) for outcome in outcomes if isinstance(outcome, Reply)]
    judgment = "\n".join(texts) if texts else None
    label, reason = read_verdict(judgment)
    failed = outcomes[-1].reason if isinstance(outcomes[-1], Failed) else reason
    return {"judgment": judgment, "score": label, "failure": None if label else failed}
