"""Arena-Hard v0.1: two games a prompt against the baseline, their verdicts, and the battles that they count as.

* In game 1 the baseline is A, in game 2 the model is A.
* A judge that gives no verdict at all is told to go on, in the same conversation, up to `attempts` replies; they are
  joined by line breaks, and all verdicts in them have to agree. One that contradicts itself is not asked again.
* A game is one battle, or three where its verdict is `>>`; games without a verdict are named.
* An answer's length, for style control, is in the tokens of tiktoken's encoding for gpt-3.5-turbo, whichever model has
  answered; text that looks like a special token is ordinary text there.

Source: lmarena/arena-hard-auto v0.1: `gen_judgment.py` (`judgment`, `get_score`) and `config/judge_config.yaml`, of
which temperature, length of a reply and the words of the second request are copied (its joined text begins with a line
break; ours does not); `show_result.py` (`get_battles_from_row`); `gen_answer.py` (the tokens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from vrm.config import Config, ConfigError, JudgedPolicy
from vrm.data.benchmark_sets import (
    AnswerSet,
    ArenaQuestion,
    Conversation,
    JudgePrompt,
    QuestionId,
    read_arena_answers,
    read_arena_baseline,
    read_arena_hard,
    read_arena_judge_prompt,
)
from vrm.judged.base import Judgments, require_model, require_same
from vrm.judging.asking import Ask, ask_until, recording, storable
from vrm.judging.exchange import Failed, Reply, Request, without_thoughts
from vrm.records import count_words

WORDS = "words"

KEY = "benchmarks.arena_hard.token_counter"


def make_counter(name: str) -> Callable[[str], int]:
    """What counts the tokens of an answer.

    Args:
        name: a model's name that tiktoken knows, or `words`: words and punctuation marks, without any tokenizer.

    Raises:
        ConfigError: tiktoken is not installed, does not know the name, or can't get its encoding.
    """
    if name == WORDS:
        return count_words
    other = f"or set {KEY} to {WORDS} and have the baseline's answers counted likewise"
    try:
        import tiktoken
    except ImportError:
        raise ConfigError(
            f"{KEY} is {name}, but tiktoken is not installed: install it (`pip install tiktoken`), {other}"
        ) from None
    try:
        encoding = tiktoken.encoding_for_model(name)
    except KeyError:
        raise ConfigError(
            f"{KEY} is {name}, which tiktoken does not know: give a name that it knows, {other}"
        ) from None
    except (OSError, ValueError, ImportError) as error:  # no network, a wrong hash, no `requests`
        raise ConfigError(
            f"{KEY} is {name}, but tiktoken can't get its encoding ({error}): let TIKTOKEN_CACHE_DIR name a directory "
            f"that has it (tiktoken fills it where there is a network), {other}"
        ) from None
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def arena_hard_set(config: Config, judged: JudgedPolicy, directory: Path) -> AnswerSet:
    settings = config.benchmarks.arena_hard
    count = make_counter(settings.token_counter)

    def record(origin: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        tokens = count(texts[0])
        return {
            **origin,
            "model_id": judged.name,
            "choices": [{"index": 0, "turns": [{"content": texts[0], "token_len": tokens}]}],
            "conv_metadata": {"token_len": tokens, "token_counter": settings.token_counter},
        }

    conversations = [
        Conversation((question.prompt,), settings.temperature, {"question_id": question.question_id})
        for question in read_arena_hard(directory)
    ]
    return AnswerSet("arena_hard", conversations, settings.max_new_tokens, record)


def read_arena_policy(path: Path, questions: Sequence[ArenaQuestion], model: str) -> dict[QuestionId, dict[str, Any]]:
    """A policy's answers to Arena-Hard in upstream's records, by question in the questions' order.

    Raises:
        RecordError: the file is missing, an answer can't be used, is another model's, is missing, or to no question.
    """
    answers = {row["question_id"]: row for row in read_arena_answers(path)}
    for key, row in answers.items():
        require_model(f"{path}, question {key}", row["model_id"], model)
    ids = [question.question_id for question in questions]
    require_same(path, ids, answers)
    return {key: answers[key] for key in ids}


VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")

LABELS: dict[str, tuple[int, float]] = {
    "A>>B": (3, 1.0),
    "A>B": (1, 1.0),
    "A=B": (1, 0.5),
    "B>A": (1, 0.0),
    "B>>A": (3, 0.0),
}
"""Number of battles of a verdict, and A's score in each. Other labels (B=A, A<B) drop the game, as in v0.1."""

REASONS = ("no reply", "no verdict", "contradictory verdicts", "unknown label")
"""Why a game is dropped."""


def parse_verdict(text: str) -> str | None:
    """The label of a judge's reply, one of `LABELS`; None if there is none, an unknown one, or several that disagree.

    Args:
        text: the reply; where the judge was asked twice, both replies joined by a line break, as upstream stores them.

    Source: `get_score` with v0.1's pattern; later code takes the last verdict.
    """
    return read_verdict(text)[0]


def read_verdict(text: str | None) -> tuple[str | None, str]:
    """The label or None, and why it is None: one of `REASONS`, or "" for a label."""
    if text is None or not text.strip():
        return None, "no reply"
    found = set(VERDICT.findall(without_thoughts(text)))
    if not found:
        return None, "no verdict"
    if len(found) > 1:
        return None, "contradictory verdicts"
    (label,) = found
    return (label, "") if label in LABELS else (None, "unknown label")


BENCHMARK = "arena_hard"

PARAMETERS = {"temperature": 0.0, "max_tokens": 4096}

GO_ON = "continue your judgment and finish by outputting a final verdict label"


def judge_arena_hard(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judgments:
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
    return Judgments(rows, asked, failures)


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
    return VERDICT.search(without_thoughts(reply.text)) is not None


def _game(outcomes: Sequence[Reply | Failed]) -> dict[str, Any]:
    """A game of upstream's record, from the outcomes of its attempts."""
    texts = [storable(outcome.text) for outcome in outcomes if isinstance(outcome, Reply)]
    judgment = "\n".join(texts) if texts else None
    # each by itself: a thought that does not end must not swallow the next reply
    said = "\n".join(filter(None, map(without_thoughts, texts)))
    label, reason = read_verdict(said or judgment)
    failed = outcomes[-1].reason if isinstance(outcomes[-1], Failed) else reason
    return {"judgment": judgment, "score": label, "failure": None if label else failed}


def battles(judgments: Iterable[Mapping[str, Any]], baseline: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Games with a verdict, and games without, both in the order of model, question and game.

    Args:
        judgments: upstream's records, one a model and question: `model`, `question_id` and `games`, two of them, each
            with the judge's reply as `judgment`. A game that is absent or None, or whose reply is None or blank, has
            no reply. A stored `score` is not read.
        baseline: the model that is A in game 1 and B in game 2.

    Returns:
        Games played, with `model`, `question_id`, `game` (1 or 2), `label`, `weight` in battles and `baseline_score`
        (1, 0.5 or 0); and games dropped, with `model`, `question_id`, `game` and `reason`.

    Raises:
        ValueError: the baseline is judged against itself, a record has more than two games, or a model's answer to a
            question is judged twice.

    Source: `get_battles_from_row`, with a weight instead of copies.
    """
    played, dropped, seen = [], [], set()
    for record in sorted(judgments, key=lambda record: (record["model"], str(record["question_id"]))):
        key = {"model": record["model"], "question_id": record["question_id"]}
        if record["model"] == baseline:
            raise ValueError(f"{baseline} is the baseline, and judged against itself on {record['question_id']}")
        if tuple(key.values()) in seen:
            raise ValueError(f"{record['model']} is judged twice on {record['question_id']}")
        seen.add(tuple(key.values()))
        games = list(record["games"])
        if len(games) > 2:
            raise ValueError(f"{record['model']} has {len(games)} games on {record['question_id']}, more than two")
        for number, game in enumerate([*games, None, None][:2], start=1):
            label, reason = read_verdict((game or {}).get("judgment"))
            if label is None:
                dropped.append({**key, "game": number, "reason": reason})
                continue
            weight, a_score = LABELS[label]
            score = a_score if number == 1 else 1 - a_score
            played.append({**key, "game": number, "label": label, "weight": weight, "baseline_score": score})
    columns = ["model", "question_id", "game"]
    return (
        pd.DataFrame(played, columns=[*columns, "label", "weight", "baseline_score"]),
        pd.DataFrame(dropped, columns=[*columns, "reason"]),
    )
