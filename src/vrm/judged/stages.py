"""The stages of a judged benchmark: what a policy is asked, what the judge says of its answers, and its scores.

* A benchmark's own file has its prompts, its verdicts and its scores (`BENCHMARKS`); who is asked, and which files are
  written, is decided here.
* `vrm judge`: what the store has is not asked, and needs neither key nor network. A judgment that could not be had
  stays in its place with a `failure`; `counts.json` names it. Same replies, same bytes: nothing depends on the time,
  on the order of replies, or on a served judge's port.
* `vrm judged-scores`: all policies at once, because Arena-Hard's style control is fitted over the whole table. A
  judgment that is missing is in no mean; the note of each number counts them, and the record names the reasons. The
  files are `runfiles.JUDGED_SCORES` and what lies beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from vrm.config import Config, ConfigError, JudgeConfig, JudgedPolicy
from vrm.config.benchmarks import FILES, BenchmarkName
from vrm.data.benchmark_sets import AnswerSet
from vrm.judged.alpaca_eval import alpaca_eval_scores, alpaca_eval_set, judge_alpaca_eval
from vrm.judged.arena_hard import arena_hard_set, judge_arena_hard
from vrm.judged.arena_scores import arena_hard_scores
from vrm.judged.base import Judgments, identity
from vrm.judged.mt_bench import judge_mt_bench, mt_bench_scores, mt_bench_set
from vrm.judging.asking import Ask, asker
from vrm.judging.endpoint import endpoint
from vrm.judging.exchange import Failed, Reply, Request, request_key
from vrm.judging.store import Store, spending_of
from vrm.records import RecordError, write_json, write_jsonl
from vrm.runfiles import JudgedTables, write_judged


class JudgedBenchmark(NamedTuple):
    """What a benchmark's file provides.

    Args:
        questions: (config, policy, directory of the set) -> what the policy is asked, and how its answers are written.
        judge: (config, policy, directory of its answers, directory of the set, ask) -> its judgments.
        scores: (config, results/<run>) -> tables of all policies.
    """

    questions: Callable[[Config, JudgedPolicy, Path], AnswerSet]
    judge: Callable[[Config, JudgedPolicy, Path, Path, Ask], Judgments]
    scores: Callable[[Config, Path], JudgedTables]


BENCHMARKS: dict[BenchmarkName, JudgedBenchmark] = {
    "alpaca_eval": JudgedBenchmark(alpaca_eval_set, judge_alpaca_eval, alpaca_eval_scores),
    "arena_hard": JudgedBenchmark(arena_hard_set, judge_arena_hard, arena_hard_scores),
    "mt_bench": JudgedBenchmark(mt_bench_set, judge_mt_bench, mt_bench_scores),
}


def read_answer_sets(config: Config, judged: JudgedPolicy, sets: Mapping[str, Path]) -> list[AnswerSet]:
    """Every benchmark of `benchmarks.run`, in that order.

    Args:
        config: names the benchmarks, and how they are answered.
        judged: who answers.
        sets: directory that `vrm benchmark-set` filled, by benchmark.

    Raises:
        ConfigError: answers' tokens can't be counted as the configuration says.
        RecordError: a set is missing or can't be used.
    """
    found = []
    for name in config.benchmarks.run:
        if name not in sets:
            raise RecordError(
                f"--sets names no directory called {name}: give the one that `vrm benchmark-set --name {name}` filled"
            )
        found.append(BENCHMARKS[name].questions(config, judged, sets[name]))
        if not found[-1].conversations:
            raise RecordError(f"{sets[name]}: asks nothing; make it again with `vrm benchmark-set --name {name}`")
    return found


def judge_benchmark(
    config: Config, judged: JudgedPolicy, name: BenchmarkName, answers: Path, sets: Path, out: Path
) -> None:
    """Have a policy's answers to one benchmark judged.

    Args:
        config: the judge, its store of replies, which is never an output, and the benchmarks.
        judged: whose answers they are.
        name: the benchmark.
        answers: directory of the policy's answers.
        sets: the benchmark's files.
        out: directory; gets the judgments and `<benchmark>.counts.json`.

    Raises:
        ConfigError: there is no judge, or no key.
        JudgeError: the endpoint refuses every request, or can't be reached.
        RecordError: answers and set don't belong together.
        StoreError: a reply can't be written.
    """
    if config.judge is None:
        raise ConfigError("there is no judge: set judge.base_url and judge.model")
    replies = Store(config.judge.store)
    with endpoint(config.judge) as reachable:
        failed: dict[str, Failed] = {}
        found = ask_for_judgments(config, judged, name, answers, sets, _noting(asker(reachable, replies), failed))
    path = out / FILES[name]
    write_json(path, found.rows) if path.suffix == ".json" else write_jsonl(path, found.rows)
    unanswered = [failed[key] for key in sorted(failed)]
    _say_what_failed(name, unanswered)
    write_json(out / f"{name}.counts.json", _counts(config.judge, judged, name, found, replies, unanswered))


def ask_for_judgments(
    config: Config, judged: JudgedPolicy, name: BenchmarkName, answers: Path, sets: Path, ask: Ask
) -> Judgments:
    """Make one benchmark's requests, ask them by `ask`, and read what comes back; arguments as `judge_benchmark`."""
    return BENCHMARKS[name].judge(config, judged, answers, sets, ask)


def _noting(ask: Ask, failed: dict[str, Failed]) -> Ask:
    """`ask`, which also notes by key the requests that have no reply."""

    def ask_and_note(requests: Sequence[Request]) -> list[Reply | Failed]:
        outcomes = ask(requests)
        failed.update((outcome.key, outcome) for outcome in outcomes if isinstance(outcome, Failed))
        return outcomes

    return ask_and_note


def _say_what_failed(name: str, failed: Sequence[Failed]) -> None:
    reasons = Counter(one.reason for one in failed)
    for reason, number in sorted(reasons.items()):
        example = next(one.detail for one in failed if one.reason == reason)
        print(f"{name}: {number} requests have no reply: {reason}{f' ({example})' if example else ''}")


def _counts(
    config: JudgeConfig, judged: JudgedPolicy, name: str, found: Judgments, store: Store, unanswered: Sequence[Failed]
) -> dict[str, Any]:
    """The account of exactly these requests, whoever paid: a reply that two policies share is in both accounts."""
    keys = {request_key(request, config) for request in found.requests}
    failed = Counter(failure["reason"] for failure in found.failures)
    return {
        "benchmark": name,
        "model": judged.name,
        "judge": identity(config),
        "requests": len(keys),
        "judged": found.judgments,
        "failed": dict(sorted(failed.items())),
        "failures": found.failures,
        "refusals": [{"request": one.key, "reason": one.reason, "detail": one.detail} for one in unanswered],
        **asdict(spending_of(store, keys, config.prices)),
    }


def write_scores(config: Config, name: BenchmarkName, results: Path, out: Path) -> None:
    """Score every judged policy on one benchmark.

    Args:
        config: the policies and the benchmark's settings.
        name: the benchmark.
        results: the run's directory.
        out: CSV of the scores; items, draws, terms and record are written beside it.

    Raises:
        ConfigError: no policy is judged.
        RecordError: answers, judgments and set don't belong together.
    """
    if not config.judged_policies:
        raise ConfigError("no policy is judged: name benchmarks in benchmarks.run and bases in policy.run_bases")
    write_judged(out, BENCHMARKS[name].scores(config, results))
