"""What judging will ask and cost at most, before a single request goes out.

* Where a policy has answered, the requests are made as judging makes them, and those that the store has a reply to are
  set aside: what is left is what a run would pay for next.
* Where it has not, its answers are taken to be as long as they may be: the most, not the likely.
* Where a set's files are not here either, the official set's size and mean lengths are taken, and the basis says so.
* Tokens are characters / 4; retries and repeated questions are not counted.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vrm.config import Config, ConfigError, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import read_alpaca_eval, read_arena_hard, read_mt_bench
from vrm.judging.cost import Estimate, estimate, total
from vrm.judging.exchange import CHARACTERS_PER_TOKEN, Failed, Reply, Request, request_key
from vrm.judging.judgments import Ask, ask_for_judgments
from vrm.judging.store import Store
from vrm.records import write_json, write_jsonl


class Official(NamedTuple):
    """Size of an official set.

    Args:
        questions: how many.
        requests: for each question.
        characters: mean of a request's prompt, without the policy's answers.
        answers: of the policy in a request, on average.
        completion: longest reply in tokens.
    """

    questions: int
    requests: int
    characters: int
    answers: float
    completion: int


OFFICIAL = {
    "alpaca_eval": Official(805, 1, 3520, 1.0, 1),
    "arena_hard": Official(500, 2, 4160, 1.0, 4096),
    "mt_bench": Official(80, 2, 1588, 1.5, 2048),
}
"""Lengths were measured on the official files with empty answers; AlpacaEval's with weighted_alpaca_eval_gpt4_turbo."""


@dataclass(frozen=True)
class Planned:
    """One benchmark, over all judged policies.

    Args:
        benchmark: its name.
        policies: how many are judged.
        answered: how many of them have answered.
        stored: requests that the store has a reply to; they cost nothing.
        requests: that are still to be paid for.
        prompt_tokens: of those.
        completion_tokens: likewise, at most.
        dollars: likewise, at most; None: prices are unknown.
        basis: what the numbers are from.
    """

    benchmark: str
    policies: int
    answered: int
    stored: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    basis: str


def plan_judging(config: Config, sets: Mapping[str, Path] | None, results: Path | None = None) -> pd.DataFrame:
    """What each benchmark of the run will still be asked, one row a benchmark; columns as in `Planned`.

    Args:
        config: the judge, its prices and its store; benchmarks and policies.
        sets: directory of each benchmark's files, as far as they are here; None: none is.
        results: the run's directory, for answers that are there already; None: look for none.

    Raises:
        ConfigError: benchmarks are run, and there is no judge.
        RecordError: a set or an answer can't be used.
    """
    if config.benchmarks.run and config.judge is None:
        raise ConfigError("there is no judge: set judge.base_url and judge.model")
    rows = [_plan(config, name, (sets or {}).get(name), results) for name in config.benchmarks.run]
    return pd.DataFrame([asdict(row) for row in rows], columns=list(Planned.__annotations__))


def plan_text(plan: pd.DataFrame) -> str:
    """The plan for people, a line a benchmark and one for all; "" where nothing is judged."""
    if plan.empty:
        return ""
    lines = []
    for row in plan.itertuples():
        stored = f" ({row.stored:,} more are in the store)" if row.stored else ""
        lines.append(f"{row.benchmark}: {_amount(row)}{stored}; {row.policies} policies, {row.basis}")
    sums = plan[["requests", "prompt_tokens", "completion_tokens"]].sum()
    dollars = None if plan["dollars"].isna().any() else plan["dollars"].sum()
    lines.append(f"together: {_amount(sums.to_dict() | {'dollars': dollars})}; retries not counted")
    return "\n".join(lines)


def _amount(row: Any) -> str:
    get = row.get if isinstance(row, dict) else lambda name: getattr(row, name)
    dollars = "prices unknown" if pd.isna(get("dollars")) else f"at most ${get('dollars'):,.2f}"
    prompt, completion = get("prompt_tokens"), get("completion_tokens")
    return f"{get('requests'):,} requests, {prompt:,} prompt and at most {completion:,} completion tokens, {dollars}"


def _plan(config: Config, name: str, sets: Path | None, results: Path | None) -> Planned:
    policies = config.judged_policies
    find = _finder(config)
    stored: set[str] = set()
    open_requests: dict[str, Estimate] = {}
    waiting = []
    for judged in policies:
        answers = None if results is None else results / judged.folder / "answers"
        if sets is None or answers is None or not (answers / FILES[name]).is_file():
            waiting.append(judged)
            continue
        for key, request in _requests(config, judged, name, answers, sets, find):
            if find(key):
                stored.add(key)
            else:
                open_requests[key] = _estimate(config, [request])
    expected, basis = _expect(config, name, sets, waiting)
    answered = len(policies) - len(waiting)
    if answered:
        basis = f"{answered} have answered" + (f"; the others: {basis}" if waiting else "")
    sums = total([_estimate(config, []), expected, *open_requests.values()])
    tokens = sums.prompt_tokens, sums.completion_tokens
    return Planned(name, len(policies), answered, len(stored), sums.requests, *tokens, sums.cost, basis)


def _expect(config: Config, name: str, sets: Path | None, waiting: Sequence[JudgedPolicy]) -> tuple[Estimate, str]:
    """What the policies without answers will be asked about, and on what basis that is known."""
    longest = getattr(config.benchmarks, name).max_new_tokens
    assumed = f"answers of {longest} tokens assumed"
    if sets is not None:
        parts = []
        try:
            for base, count in Counter(judged.base for judged in waiting).items():
                parts += [_expect_of_set(config, next(j for j in waiting if j.base == base), name, sets)] * count
            return total([_estimate(config, []), *parts]), f"by the set's files, {assumed}"
        except ConfigError as error:  # AlpacaEval's package is not here, nor a tokenizer
            assumed += f" (the set's files are here, but: {error})"
    size = OFFICIAL[name]
    prompt = -(-size.characters // CHARACTERS_PER_TOKEN) + round(size.answers * longest)
    count = size.questions * size.requests * len(waiting)
    prices = config.judge.prices
    tokens = count * prompt, count * size.completion
    cost = None if prices is None else (tokens[0] * prices.prompt + tokens[1] * prices.completion) / 1e6
    return Estimate(count, *tokens, cost), f"official size of {size.questions} questions assumed, {assumed}"


def _expect_of_set(config: Config, judged: JudgedPolicy, name: str, sets: Path) -> Estimate:
    """The requests about one policy's answers, were they all as long as they may be."""
    longest = getattr(config.benchmarks, name).max_new_tokens
    text = "x" * (CHARACTERS_PER_TOKEN * longest)
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder)
        if name == "alpaca_eval":
            rows = read_alpaca_eval(sets, judged.base, config.benchmarks.alpaca_eval)
            write_json(answers / FILES[name], [{**row, "output": text, "generator": judged.name} for row in rows])
        else:
            arena = name == "arena_hard"
            turns = [{"content": text, "token_len": longest}] if arena else [text, text]
            questions = read_arena_hard(sets) if arena else read_mt_bench(sets)
            rows = [
                {"question_id": q.question_id, "model_id": judged.name, "choices": [{"index": 0, "turns": turns}]}
                for q in questions
            ]
            write_jsonl(answers / FILES[name], rows)
        requests = _requests(config, judged, name, answers, sets, lambda _: None)
    return _estimate(config, [request for _, request in requests])


def _requests(
    config: Config, judged: JudgedPolicy, name: str, answers: Path, sets: Path, find: Callable[[str], Reply | None]
) -> list[tuple[str, Request]]:
    """What judging would ask as far as the store's replies lead, by key; a question without a reply stays without."""

    def look(requests: Sequence[Request]) -> list[Reply | Failed]:
        return [find(request_key(request, config.judge)) or Failed("not asked", 0) for request in requests]

    ask: Ask = look
    found = ask_for_judgments(config, judged, name, answers, sets, ask)
    return [(request_key(request, config.judge), request) for request in found.requests]


def _finder(config: Config) -> Callable[[str], Reply | None]:
    """Looks into the store; one that is not there is not made."""
    directory = Path(config.judge.store)
    return Store(directory).find if (directory / "replies.jsonl").is_file() else lambda _: None


def _estimate(config: Config, requests: Iterable[Request]) -> Estimate:
    nothing = Estimate(cost=None if config.judge.prices is None else 0.0)
    parts = estimate(requests, config.judge.prices, max_tokens=config.judge.max_tokens)
    return total([nothing, *parts.values()])
