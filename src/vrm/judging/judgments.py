"""The stage `vrm judge`: a policy's answers to one benchmark, judged, and the account of it.

* A benchmark's module makes the requests and reads the replies; whom it asks is this module's business.
* What the store has is not asked, and needs neither key nor network.
* A judgment that could not be had stays in its place with a `failure`; `counts.json` names it.
* Same replies, same bytes: nothing here depends on the time, on the order of replies, or on a served judge's port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vrm.config import Config, ConfigError, JudgeConfig
from vrm.config.benchmarks import FILES, BenchmarkName, JudgedPolicy
from vrm.judging.cost import not_stored, spending_of
from vrm.judging.courier import ask_apart
from vrm.judging.endpoint import endpoint
from vrm.judging.exchange import Failed, Reply, Request, request_key
from vrm.judging.store import Store
from vrm.records import write_json, write_jsonl

Ask = Callable[[Sequence[Request]], list[Reply | Failed]]
"""A reply or a named failure for each request, in the caller's order."""


@dataclass(frozen=True)
class Judged:
    """What judging a policy's answers to one benchmark gave.

    Args:
        rows: the records of the file of judgments.
        requests: all that were asked, repetitions included.
        failures: one mapping a judgment that could not be had: its `id` in the benchmark, `part` where an id has
            several judgments, and the `reason`.
    """

    rows: list[dict[str, Any]]
    requests: list[Request]
    failures: list[dict[str, Any]]

    @property
    def judgments(self) -> int:
        """How many are usable; a row of Arena-Hard has two games, all others one judgment."""
        return sum(len(row.get("games", [row])) for row in self.rows) - len(self.failures)


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
        found = ask_for_judgments(config, judged, name, answers, sets, asker(reachable, replies))
    path = out / FILES[name]
    write_json(path, found.rows) if path.suffix == ".json" else write_jsonl(path, found.rows)
    write_json(out / f"{name}.counts.json", _counts(config.judge, judged, name, found, replies))


def ask_for_judgments(
    config: Config, judged: JudgedPolicy, name: BenchmarkName, answers: Path, sets: Path, ask: Ask
) -> Judged:
    """Make one benchmark's requests, ask them by `ask`, and read what comes back; arguments as `judge_benchmark`."""
    if name == "alpaca_eval":
        from vrm.judging.alpaca_eval import judge_alpaca_eval

        return judge_alpaca_eval(config, judged, answers, sets, ask)
    if name == "arena_hard":
        from vrm.judging.arena_hard import judge_arena_hard

        return judge_arena_hard(config, judged, answers, sets, ask)
    from vrm.judging.mt_bench import judge_mt_bench

    return judge_mt_bench(config, judged, answers, sets, ask)


def asker(config: JudgeConfig, store: Store) -> Ask:
    """Asks through the store, and the endpoint in a process of its own for what the store lacks."""

    def ask(requests: Sequence[Request]) -> list[Reply | Failed]:
        if not_stored(requests, config, store):
            return ask_apart(config, store, requests, progress=True)
        return [store.find(request_key(request, config)) for request in requests]

    return ask


def identity(config: JudgeConfig) -> dict[str, str | None]:
    """Who judges, for records: the model, and its address or the command that serves it; never a key or a port."""
    return {"model": config.model, "endpoint": config.base_url, "serve": config.serve}


def _counts(config: JudgeConfig, judged: JudgedPolicy, name: str, found: Judged, store: Store) -> dict[str, Any]:
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
        **asdict(spending_of(store, keys, config.prices)),
    }
