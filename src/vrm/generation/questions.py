"""What a policy is asked, and how its answers are written: the records between a benchmark and who answers it.

* Rows keep the order and the number of the set's: AlpacaEval takes an instruction's difficulty by its position.
* No system prompt of ours: what the chat template adds by itself is the policy's own.
* Random answer ids and time stamps, which upstream's records have, are left out: same seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vrm.config.benchmarks import FILES
from vrm.records import write_json, write_jsonl


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
