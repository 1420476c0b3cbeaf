"""What the judge will be asked, before there is any answer: requests from the sets' sizes, tokens from typical lengths.

Once answers are there, the judging room knows better: it counts the requests themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vrm.config import Config

QUESTIONS = {"alpaca_eval": 805, "arena_hard": 500, "mt_bench": 80}
"""Prompts of each official benchmark."""
REQUESTS = {"alpaca_eval": 1, "arena_hard": 2, "mt_bench": 2}
"""Of each prompt: one comparison, two games, two turns."""
TOKENS = {"alpaca_eval": (900, 1), "arena_hard": (2200, 600), "mt_bench": (1300, 200)}
"""Prompt and completion tokens of a request.

AlpacaEval's was measured on the package (830 to 970, one token back); the other two are assumed: two answers of about
700 tokens with a question and the instructions, a conversation with its reference, and verdicts that give reasons.
"""
FILES = {
    "alpaca_eval": "alpaca_eval/reference_outputs.json",
    "arena_hard": "arena_hard_v0.1/question.jsonl",
    "mt_bench": "mt_bench/question.jsonl",
}
"""Where the prompts are in `data.benchmarks_dir`."""


@dataclass(frozen=True)
class JudgeCost:
    """Of one benchmark, over all policies, if each request is answered at the first try.

    Args:
        benchmark: its name.
        requests: how many.
        prompt_tokens: of all requests.
        completion_tokens: of all replies.
        dollars: None where prices are unknown.
    """

    benchmark: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


def questions(config: Config, benchmark: str) -> int:
    """Prompts of a benchmark: of the user's file where it is here, else of the official set."""
    path = Path(config.data.benchmarks_dir or "") / FILES[benchmark]
    if config.data.benchmarks_dir is None or not path.is_file():
        return QUESTIONS[benchmark]
    text = path.read_text(encoding="utf-8")
    return len(json.loads(text)) if path.suffix == ".json" else sum(bool(line.strip()) for line in text.splitlines())


def judge_costs(config: Config) -> list[JudgeCost]:
    """What the judge will be asked of each benchmark of the run."""
    policies, found = len(config.judged_policies), []
    prices = config.judge.prices if config.judge else None
    for name in config.benchmarks.run:
        requests = REQUESTS[name] * questions(config, name) * policies
        prompt, completion = (requests * each for each in TOKENS[name])
        dollars = (prompt * prices.prompt + completion * prices.completion) / 1e6 if prices else None
        found.append(JudgeCost(name, requests, prompt, completion, dollars))
    return found
