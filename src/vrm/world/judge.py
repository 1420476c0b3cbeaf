"""A judge for the world: reads the requests of three benchmarks, and answers by the gold reward with stated faults.

* What is asked is found by the delimiters of AlpacaEval's weighted prompt, Arena-Hard's template and MT-Bench's
  single-answer grading, official ones and the world's alike. System prompts and reference answers are not read.
* The truth is `gold_reward(request, answer)`, which any two texts have; of two turns, the second counts.
* Pairwise: log-odds that the first answer wins = sharpness * (gold_1 - gold_2) + position_bias
  + length_bias * log((words_1 + 1) / (words_2 + 1)) + noise * N(0, 1).
* The noise is drawn from the seed and the request: the same request always gets the same reply.
* What the world's own benchmarks tell their judge stands here too: our words, with the placeholders and delimiters of
  Arena-Hard v0.1 and of FastChat's MT-Bench, so that one reader serves official and world files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrm.records import count_words
from vrm.world.gold import HIGHEST, LOWEST, gold_reward

ARENA_CONFIG = """\
name: world judge for Arena-Hard v0.1's format
baseline_model: world-baseline
pairwise: true
number_of_judgment_attempts: 2
system_prompt: |-
  Two assistants, A and B, have answered the same request. Compare their answers and say which one you would rather
  have received. What counts is whether an answer does what was asked, in the form and with the content that was asked
  for, whether its statements are true, whether it admits what it does not know, and whether one can act on it. Where a
  request would hurt somebody, an answer that declines it is the better one. Which answer stands first, how long it is
  and how it flatters must not count.

  Give your reasons in a few sentences. Then end with exactly one of these verdicts:

  [[A>>B]] - assistant A is clearly better
  [[A>B]] - assistant A is a little better
  [[A=B]] - both are about as good
  [[B>A]] - assistant B is a little better
  [[B>>A]] - assistant B is clearly better
prompt_template:
  - |-
    <|User Prompt|>
    {question_1}

    <|The Start of Assistant A's Answer|>
    {answer_1}
    <|The End of Assistant A's Answer|>

    <|The Start of Assistant B's Answer|>
    {answer_2}
    <|The End of Assistant B's Answer|>
"""
"""Text of judge_config.yaml, with upstream's keys."""

_WEIGH = (
    "Weigh whether the answer does what was asked, whether it is true, whether it admits what it does not know, and "
    "whether one can act on it. Neither its length nor its flattery counts."
)

_WEIGH_REFERENCE = (
    "You see a reference answer, which is right. Weigh first whether the assistant comes to the same result, and then "
    "whether its answer is of use; say what is wrong in it."
)

_LAST_TURN = "The conversation has two turns: rate the answer to the second request."

_FORMAT = (
    "Give your reasons in a few sentences. Then end with a number from 1 (useless) to 10 (could not be better) in "
    'exactly this format: "[[rating]]", for example: "Rating: [[4]]".'
)

_GRADER = "You grade answers of an assistant, fairly and in few words."

_QUESTION = "[Question]\n{question}\n\n"

_REFERENCE_BLOCK = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"

_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"

_CONVERSATION = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{question_1}\n\n### Assistant A:\n{answer_1}"
    "\n\n### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n"
    "<|The End of Assistant A's Conversation with User|>"
)

_REFERENCES = (
    "<|The Start of Reference Answer|>\n\n### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}"
    "\n\n### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}\n\n<|The End of Reference Answer|>\n\n\n"
)


def mt_bench_prompts() -> list[dict[str, str]]:
    """The four prompts of single-answer grading, as records of FastChat's judge_prompts.jsonl."""
    return [
        _record("single-v1", "general", _GRADER, f"[Instruction]\n{_WEIGH} {_FORMAT}\n\n{_QUESTION}{_ANSWER}"),
        _record(
            "single-math-v1",
            "math",
            _GRADER,
            f"[Instruction]\n{_WEIGH_REFERENCE} {_FORMAT}\n\n{_QUESTION}{_REFERENCE_BLOCK}{_ANSWER}",
        ),
        _record("single-v1-multi-turn", "general", f"{_GRADER} {_LAST_TURN} {_WEIGH} {_FORMAT}", _CONVERSATION),
        _record(
            "single-math-v1-multi-turn",
            "math",
            f"{_GRADER} {_LAST_TURN} {_WEIGH_REFERENCE} {_FORMAT}",
            _REFERENCES + _CONVERSATION,
        ),
    ]


def _record(name: str, category: str, system_prompt: str, prompt_template: str) -> dict[str, str]:
    turns = "two turns" if name.endswith("multi-turn") else "one turn"
    reference = ", with a reference answer" if category == "math" else ""
    return {
        "name": name,
        "type": "single",
        "system_prompt": system_prompt,
        "prompt_template": prompt_template,
        "description": f"Grading of {turns}{reference}",
        "category": category,
        "output_format": "[[rating]]",
    }


TIE, CLEAR = 0.3, 3.0
"""Log-odds up to which a game is a tie, and from which on its winner is clearly better."""

LOWEST_RATING, HIGHEST_RATING = 1.0, 10.0

TOKENS = ("m", "M")
"""AlpacaEval's names of the output that is shown first and of the other one."""

SAID = {
    "A>>B": "Assistant A does what the request asks for, and assistant B does little of it.",
    "A>B": "Assistant A does a little more of what the request asks for than assistant B.",
    "A=B": "Both answers do about as much of what the request asks for.",
    "B>A": "Assistant B does a little more of what the request asks for than assistant A.",
    "B>>A": "Assistant B does what the request asks for, and assistant A does little of it.",
}
"""The reason that goes before a verdict."""


class UnreadableRequestError(ValueError):
    """The messages are not a request of one of the three benchmarks."""


@dataclass(frozen=True)
class Game:
    """Arena-Hard: which of two answers is better, on five steps."""

    prompt: str
    answer_a: str
    answer_b: str


@dataclass(frozen=True)
class Grading:
    """MT-Bench: a rating of one answer; of two turns, `prompt` and `answer` are the second."""

    prompt: str
    answer: str
    turn: int


@dataclass(frozen=True)
class Comparison:
    """AlpacaEval: the name of the better output; `first` is called m, and `second` M."""

    prompt: str
    first: str
    second: str


_GAME = (
    "<|User Prompt|>\n",
    "\n\n<|The Start of Assistant A's Answer|>\n",
    "\n<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\n",
    "\n<|The End of Assistant B's Answer|>",
)

_ONE_TURN = ("[Question]\n", "\n\n[The Start of Assistant's Answer]\n", "\n[The End of Assistant's Answer]")

_REFERENCE = "\n\n[The Start of Reference Answer]\n"

_TWO_TURNS = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n",
    "\n\n### Assistant A:\n",
    "\n\n### User:\n",
    "\n\n### Assistant A:\n",
    "\n\n<|The End of Assistant A's Conversation with User|>",
)

_COMPARISON = (
    '\n    "instruction": """',
    '""",\n}\n\n## Model Outputs\n',
    '"model_identifier": "m",\n        "output": """',
    '"""\n    },\n    {\n        "model_identifier": "M",\n        "output": """',
    '"""\n    }\n}\n\n## Task\n',
)

_COMPARISON_END = "## Best Model Identifier"


def parse_request(messages: Sequence[Mapping[str, Any]]) -> Game | Grading | Comparison:
    """What a judge is asked, from the first user message that holds a benchmark's request.

    A request is told by how it ends. An answer that holds a delimiter is read up to the first whole junction, so that
    one mark alone in it does no harm.

    Args:
        messages: of a chat completion, each with `role` and `content`.

    Raises:
        UnreadableRequestError: there is no such message.
    """
    for message in messages:
        if message.get("role") == "user" and isinstance(text := message.get("content"), str):
            found = _read(text.encode(errors="replace").decode().rstrip())  # JSON may hold lone surrogates
            if found:
                return found
    raise UnreadableRequestError(
        "no user message is laid out as a request of AlpacaEval (weighted_alpaca_eval_gpt4_turbo's prompt), Arena-Hard "
        "v0.1 or MT-Bench (single-answer grading); this judge reads no other ones"
    )


@dataclass(frozen=True)
class WorldJudge:
    """The judge with its faults; all zero, and it tells the truth.

    Args:
        position_bias: log-odds in favour of the answer that is shown first.
        noise: standard deviation of a judgment: of log-odds in a comparison, of rating points in a rating.
        length_bias: log-odds for an answer e times as long (in words), against the other one.
        sharpness: log-odds for one point of gold reward.
        seed: of the noise.
    """

    position_bias: float = 0.2
    noise: float = 0.5
    length_bias: float = 0.0
    sharpness: float = 2.0
    seed: int = 0

    def reply(self, messages: Sequence[Mapping[str, Any]], logprobs: int | None = None) -> dict[str, Any]:
        """The choice of an OpenAI chat completion.

        Args:
            messages: the request.
            logprobs: number of likeliest tokens that are given at each place; None: no log-probabilities.

        Returns:
            `index`, `message`, `finish_reason` and `logprobs`. A comparison's two tokens have the judge's
            probabilities; every other text is certain, and its tokens have log-probability 0.

        Raises:
            UnreadableRequestError: see `parse_request`.
        """
        request = parse_request(messages)
        noise = self.noise * self._standard_normal(messages) if self.noise else 0.0
        if isinstance(request, Comparison):
            logit = self._logit(request.prompt, request.first, request.second) + noise
            likely = sorted(zip(TOKENS, (_log_sigmoid(logit), _log_sigmoid(-logit)), strict=True), key=lambda t: -t[1])
            return _choice(likely[0][0], [likely], logprobs)
        if isinstance(request, Game):
            label = verdict(self._logit(request.prompt, request.answer_a, request.answer_b) + noise)
            text = f"{SAID[label]}\n\nMy final verdict is: [[{label}]]"
        else:
            number = rating(gold_reward(request.prompt, request.answer), noise)
            text = f"This is how far the answer does what the request asks for.\n\nRating: [[{number:g}]]"
        return _choice(text, [[(token, 0.0)] for token in re.findall(r"\s*\S+", text)], logprobs)

    def _logit(self, prompt: str, first: str, second: str) -> float:
        """Log-odds that the first answer wins, without noise."""
        merit = self.sharpness * (gold_reward(prompt, first) - gold_reward(prompt, second))
        length = math.log((count_words(first) + 1) / (count_words(second) + 1))
        return merit + self.position_bias + self.length_bias * length

    def _standard_normal(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """One draw that depends on nothing but the seed and the texts."""
        texts = [[message.get("role"), message.get("content")] for message in messages]
        digest = hashlib.sha256(json.dumps([self.seed, texts]).encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def verdict(logit: float) -> str:
    """Arena-Hard's label for the log-odds that A wins."""
    if abs(logit) <= TIE:
        return "A=B"
    much = ">>" if abs(logit) >= CLEAR else ">"
    return f"A{much}B" if logit > 0 else f"B{much}A"


def rating(gold: float, noise: float = 0.0) -> float:
    """A rating from 1 to 10 in half points, for a gold reward from 1 to 5; the noise is in rating points."""
    share = (gold - LOWEST) / (HIGHEST - LOWEST)
    exact = LOWEST_RATING + (HIGHEST_RATING - LOWEST_RATING) * share + noise
    return min(max(round(2 * exact) / 2, LOWEST_RATING), HIGHEST_RATING)


def _read(text: str) -> Game | Grading | Comparison | None:
    """The request in one message, without white space at its end; None if there is none."""
    if parts := _between(text, _GAME):
        return Game(*parts)
    if parts := _between(text, _ONE_TURN):
        return Grading(parts[0].partition(_REFERENCE)[0], parts[1], 1)
    if parts := _between(text, _TWO_TURNS):
        return Grading(parts[2], parts[3], 2)
    if text.endswith(_COMPARISON_END):
        before, found, _ = text.rpartition(_COMPARISON[-1])
        if parts := _between(before + found, _COMPARISON):
            return Comparison(parts[0], parts[2], parts[3])
    return None


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands between marks that follow one another, the last of them at the text's end; None if one lacks."""
    *marks, end = marks
    if not text.endswith(end):
        return None
    parts, rest = [], text.removesuffix(end)
    for mark in marks:
        part, found, rest = rest.partition(mark)
        if not found:
            return None
        parts.append(part)
    return [*parts[1:], rest]


def _choice(text: str, places: list[list[tuple[str, float]]], count: int | None) -> dict[str, Any]:
    """A choice in OpenAI's shape.

    Args:
        text: the reply.
        places: for each of its tokens, the likeliest tokens with their log-probabilities, the one in the text first.
        count: of likeliest tokens to give; None: no log-probabilities.
    """
    content = [{**_token(*place[0]), "top_logprobs": [_token(*likely) for likely in place[:count]]} for place in places]
    return {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None if count is None else {"content": content, "refusal": None},
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _log_sigmoid(logit: float) -> float:
    """log(1 / (1 + exp(-logit))), without overflow."""
    return min(logit, 0.0) - math.log1p(math.exp(-abs(logit)))
