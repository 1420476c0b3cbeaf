"""What the judge will be asked, before there is any answer: requests from the sets' sizes, tokens from typical lengths.

Once answers are there, `vrm.planning.progress` knows better: it makes the requests and looks their replies up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vrm.config import Config, JudgeConfig
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_files import FOLDERS
from vrm.records import RecordError


class Official(NamedTuple):
    """An official set, and what judging one policy's answers to it takes.

    Args:
        questions: its prompts.
        requests: of each prompt: one comparison, two games, two turns.
        prompt: tokens of a request, on average.
        completion: tokens of a reply, on average.
        asks: the file with the prompts.
    """

    questions: int
    requests: int
    prompt: int
    completion: int
    asks: str


OFFICIAL = {
    "alpaca_eval": Official(805, 1, 900, 1, "reference_outputs.json"),
    "arena_hard": Official(500, 2, 2200, 600, "question.jsonl"),
    "mt_bench": Official(80, 2, 1300, 200, "question.jsonl"),
}
"""The one place of the sets' sizes and typical lengths.

AlpacaEval's tokens were measured on the package (830 to 970, one token back); the other two are assumed: two answers
of about 700 tokens with a question and the instructions, a conversation with its reference, verdicts that give reasons.
"""


@dataclass(frozen=True)
class JudgeCost:
    """Of one benchmark, over all policies, if each request is answered at the first try.

    Args:
        benchmark: its name.
        requests: how many.
        prompt_tokens: of all requests.
        completion_tokens: of all replies.
        dollars: None where there are no prices; `price` says what that means.
    """

    benchmark: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


def questions(config: Config, benchmark: str) -> int:
    """Prompts of a benchmark: of the user's file where it is here, else of the official set.

    Raises:
        RecordError: the user's file is no list of prompts.
    """
    official, directory = OFFICIAL[benchmark], config.data.benchmarks_dir
    path = Path(directory or "", FOLDERS[benchmark], official.asks)
    if directory is None or not path.is_file():
        return official.questions
    text = path.read_bytes()
    if path.suffix == ".jsonl":
        return sum(bool(line.strip()) for line in text.split(b"\n"))
    try:
        return len(json.loads(text))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: no JSON list of prompts ({error}); docs/data.md has the format") from None


def judge_costs(config: Config) -> list[JudgeCost]:
    """What the judge will be asked of each benchmark of the run."""
    policies, found = len(config.judged_policies), []
    prices = config.judge.prices if config.judge else None
    for name in config.benchmarks.run:
        official = OFFICIAL[name]
        requests = official.requests * questions(config, name) * policies
        prompt, completion = requests * official.prompt, requests * official.completion
        dollars = (prompt * prices.prompt + completion * prices.completion) / 1e6 if prices else None
        found.append(JudgeCost(name, requests, prompt, completion, dollars))
    return found


def price(judge: JudgeConfig, dollars: float | None, most: str = "") -> str:
    """What requests cost, in words.

    Args:
        judge: whom they ask. One that is served here is free, unless it has prices: it may pass on what it is asked.
        dollars: None where there are no prices.
        most: put before an amount.
    """
    if judge.serve is not None and judge.prices is None:
        return "a local judge, free"
    return "price unknown" if dollars is None else f"{most}${dollars:,.2f}"


def has_begun(config: Config, results: Path) -> bool:
    """Whether a policy of the run has answered a benchmark, or a reply of its judge is stored.

    Args:
        config: the run's.
        results: its directory.
    """
    if not config.benchmarks.run:
        return False
    answers = (results / judged.folder / "answers" for judged in config.judged_policies)
    files = (folder / FILES[name] for folder in answers for name in config.benchmarks.run)
    return Path(config.judge.store, "replies.jsonl").is_file() or any(path.is_file() for path in files)
