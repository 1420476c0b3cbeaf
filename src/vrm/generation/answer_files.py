"""What each judged benchmark asks, and the records in which it wants the answers.

* Rows keep the order and the number of the set's: AlpacaEval takes an instruction's difficulty by its position.
* No system prompt of ours: what the chat template adds by itself is the policy's own.

Source: AlpacaEval's `model_outputs.json`; lmarena/arena-hard-auto v0.1, `gen_answer.py`; lm-sys/FastChat,
`fastchat/llm_judge/gen_model_answer.py`. Their random answer ids and time stamps are left out: same seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vrm.config import Config, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import read_alpaca_eval, read_arena_hard, read_mt_bench
from vrm.generation.token_counts import make_counter
from vrm.records import RecordError, write_json, write_jsonl


class Answer(NamedTuple):
    """One answer: its text, its length in the policy's tokens (the end token counts), and whether it came to an end."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Conversation:
    """What is asked of the policy in turn; each turn but the first follows its own answer to the one before.

    Args:
        turns: the user's.
        temperature: of sampling.
        origin: fields of the record that say what was asked.
    """

    turns: tuple[str, ...]
    temperature: float
    origin: dict[str, Any]


@dataclass(frozen=True)
class AnswerSet:
    """One benchmark's conversations, and how its file of answers is written.

    Args:
        name: the benchmark.
        conversations: in the set's order, all with the same number of turns.
        max_new_tokens: of one answer.
        record: a conversation's record, from its origin and the texts of its answers.
    """

    name: str
    conversations: list[Conversation]
    max_new_tokens: int
    record: Callable[[dict[str, Any], list[str]], dict[str, Any]]

    @property
    def turns(self) -> int:
        """Turns of every conversation."""
        return len(self.conversations[0].turns)

    def write(self, answers: Sequence[Sequence[Answer]], out: Path) -> None:
        """Write the file of answers; `answers` has a row a conversation, in its order."""
        rows = [
            self.record(conversation.origin, [answer.text for answer in own])
            for conversation, own in zip(self.conversations, answers, strict=True)
        ]
        path = out / FILES[self.name]
        write_json(path, rows) if path.suffix == ".json" else write_jsonl(path, rows)


def read_answer_sets(
    config: Config, judged: JudgedPolicy, sets: Mapping[str, Path], temperatures: Mapping[str, float]
) -> list[AnswerSet]:
    """Every benchmark of `benchmarks.run`, in that order.

    Args:
        config: names the benchmarks, and how they are answered.
        judged: who answers.
        sets: directory that `vrm benchmark-set` filled, by benchmark.
        temperatures: MT-Bench's, by category.

    Raises:
        ConfigError: answers' tokens can't be counted as the configuration says.
        RecordError: a set is missing or can't be used.
    """
    readers = {
        "alpaca_eval": _alpaca_eval,
        "arena_hard": _arena_hard,
        "mt_bench": partial(_mt_bench, temperatures=temperatures),
    }
    found = []
    for name in config.benchmarks.run:
        if name not in sets:
            raise RecordError(
                f"--sets names no directory called {name}: give the one that `vrm benchmark-set --name {name}` filled"
            )
        found.append(readers[name](config, judged, sets[name]))
        if not found[-1].conversations:
            raise RecordError(f"{sets[name]}: asks nothing; make it again with `vrm benchmark-set --name {name}`")
    return found


def _alpaca_eval(config: Config, judged: JudgedPolicy, directory: Path) -> AnswerSet:
    settings = config.benchmarks.alpaca_eval

    def record(origin: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        return {**origin, "output": texts[0], "generator": judged.name}

    conversations = [
        Conversation(
            (row["instruction"],),
            settings.temperature,
            {"dataset": row["dataset"], "instruction": row["instruction"]},
        )
        for row in read_alpaca_eval(directory, judged.base, settings)
    ]
    return AnswerSet("alpaca_eval", conversations, settings.max_new_tokens, record)


def _arena_hard(config: Config, judged: JudgedPolicy, directory: Path) -> AnswerSet:
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


def _mt_bench(config: Config, judged: JudgedPolicy, directory: Path, temperatures: Mapping[str, float]) -> AnswerSet:
    def record(origin: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        return {**origin, "model_id": judged.name, "choices": [{"index": 0, "turns": texts}]}

    conversations = []
    for question in read_mt_bench(directory):
        if question.category not in temperatures:
            raise RecordError(
                f"{directory / 'question.jsonl'}: question {question.question_id} has category {question.category!r}, "
                f"for which no temperature is set; known are: {', '.join(temperatures)}"
            )
        conversations.append(
            Conversation(tuple(question.turns), temperatures[question.category], {"question_id": question.question_id})
        )
    return AnswerSet("mt_bench", conversations, config.benchmarks.mt_bench.max_new_tokens, record)
