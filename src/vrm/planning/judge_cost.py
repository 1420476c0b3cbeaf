"""What the judge will be asked: before there is any answer, and once a run has begun.

* Before: requests from the sets' sizes, tokens from typical lengths.
* Once it has begun: what is judged of it, and what is left to pay, at most, which `vrm plan` adds to its estimate. The
  requests about the answers that are here are made as judging makes them, and looked up in the store: what it has a
  reply to is paid for, the others are what judging would ask next. Policies that have not answered yet are counted;
  what they will cost is in the estimate.
* Equal requests are asked once, so what is stored and left may be less than the estimate has.
* Tokens of what is left are characters / 4, and replies as long as they may be. Not counted are retries, and what will
  be asked again because a reply says too little.
* Nothing is written: the store is only read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vrm.config import Config, ConfigError, JudgeConfig, JudgedPolicy
from vrm.config.benchmarks import FILES, BenchmarkName
from vrm.data.benchmark_files import FOLDERS
from vrm.judging.exchange import Failed, Reply, Request, request_key
from vrm.judging.store import Estimate, Replies, estimate, not_stored, spending, total
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


# Once a run has begun.


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


@dataclass(frozen=True)
class Progress:
    """One benchmark's answers that are here.

    Args:
        benchmark: its name.
        answered: policies that have answered.
        stored: different requests that the store has a reply to; they cost nothing.
        left: those that are still to be paid for.
        trouble: why the requests can't be made here; then both are empty.
    """

    benchmark: str
    answered: int
    stored: int
    left: Estimate
    trouble: str = ""


def progress_text(config: Config, results: Path) -> str:
    """What is stored and what is left to pay, a line a benchmark and two for all.

    Args:
        config: the judge, its prices and its store; benchmarks and policies.
        results: the run's directory.

    Raises:
        StoreError: the store can't be read.
    """
    store = Replies(config.judge.store)
    found = [progress(config, name, results, store) for name in config.benchmarks.run]
    policies, width = len(config.judged_policies), max(len(name) for name in FILES)
    by = f"by the replies in {config.judge.store}{_paid(config, store)}"
    lines = [f"Judged so far, of the sets in {_sets(results)}, {by}; equal requests are asked once:"]
    for one in found:
        of = f"{one.answered} of {policies} policies have answered"
        lines.append(f"  {one.benchmark:{width}} {of}{one.trouble or _amount(config, one)}")
    if config.judge.prices:
        dollars = sum(one.left.cost for one in found)
        known = ", as far as it can be told" * any(one.trouble for one in found)
        lines.append(f"  left to pay for these answers{known}: at most ${dollars:,.2f}, retries not counted")
    return "\n".join([*lines, *_to_come(config, found)]) + "\n"


def progress(config: Config, name: BenchmarkName, results: Path, store: Replies) -> Progress:
    """What one benchmark's answers that are here have been asked, and will be; see `Progress`."""
    sets, prices = _sets(results) / name, config.judge.prices
    folders = {judged: results / judged.folder / "answers" for judged in config.judged_policies}
    here = {judged: folder for judged, folder in folders.items() if (folder / FILES[name]).is_file()}
    asked: dict[str, Request] = {}
    trouble = ""
    try:
        for judged, folder in here.items():
            requests = _requests(config, judged, name, folder, sets, store)
            asked |= {request_key(request, config.judge): request for request in requests}
    except (ConfigError, RecordError) as error:  # AlpacaEval's package is not here, or files have changed since
        asked, trouble = {}, f"; what is left can't be told: {error}"
    left = not_stored(asked.values(), config.judge, store)
    most = estimate(left, prices, max_tokens=config.judge.max_tokens, fields=config.judge.request)
    return Progress(name, len(here), len(asked) - len(left), most, trouble)


def _sets(results: Path) -> Path:
    """The run's copies of the benchmarks' files: the estimate counts those that the configuration names."""
    return results / "judged" / "sets"


def _requests(
    config: Config, judged: JudgedPolicy, name: BenchmarkName, answers: Path, sets: Path, store: Replies
) -> list[Request]:
    """What judging would ask, as far as the store's replies lead."""
    from vrm.judged.stages import ask_for_judgments  # pandas, and AlpacaEval's package, which takes seconds

    def look(requests: Sequence[Request]) -> list[Reply | Failed]:
        return [store.find(request_key(request, config.judge)) or Failed("not asked", 0) for request in requests]

    return ask_for_judgments(config, judged, name, answers, sets, look).requests


def _amount(config: Config, one: Progress) -> str:
    if not one.answered:
        return ""
    left, stored = one.left, f"; {one.stored:,} requests are stored"
    if not left.requests:
        return f"{stored}, none is left"
    tokens = f"about {left.prompt_tokens / 1e6:.1f} M tokens in, at most {left.completion_tokens / 1e6:.1f} M out"
    return f"{stored}, {left.requests:,} are left: {tokens}, {price(config.judge, left.cost, 'at most ')}"


def _paid(config: Config, store: Replies) -> str:
    """What the store's replies have cost, whichever run asked."""
    spent = spending(store, config.judge.prices)
    if not spent or config.judge.prices is None:
        return ""
    both = total(spent)
    perhaps = f", perhaps ${both.perhaps:,.2f} more for requests that were never answered" if both.unanswered else ""
    return f" (${both.cost:,.2f} paid{perhaps})"


def _to_come(config: Config, found: Sequence[Progress]) -> list[str]:
    """The policies that have not answered yet, at the estimate's typical lengths."""
    policies = len(config.judged_policies)
    shares = [(policies - one.answered) / policies for one in found]
    if not any(shares) or config.judge.prices is None:
        return []
    dollars = sum(share * cost.dollars for share, cost in zip(shares, judge_costs(config), strict=True))
    return [f"  answers that are not here yet: about ${dollars:,.2f}, as estimated above"]
