"""Asks through the store: in a process of its own, and again where a reply does not say what it should.

* A process that is killed takes its open connections with it: up to `concurrency` replies that were billed and that
  nobody has. The courier sees its standard input close when its parent ends, however it ends (kill -9 included),
  takes no further request, stores what is under way, which takes twice the time-out at most, and leaves.
* A rerun that comes meanwhile finds those requests reserved, and waits for their replies instead of paying again.
* What kills the courier itself (a power cut, the whole job's memory limit) can still lose replies: the store then
  counts them as unanswered.

`main` is the courier: a job as one line of JSON on standard input, news as JSON lines on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vrm.judging.client import Judge, JudgeError
from vrm.judging.exchange import Failed, Reply, Request, request_key
from vrm.judging.store import Store, StoreError, not_stored
from vrm.warm import start_child
from vrm.watch import Watch

if TYPE_CHECKING:  # the courier need not wait for pydantic
    from vrm.config import JudgeConfig

ERRORS = ("ConfigError", "JudgeError", "StoreError")
"""Classes of errors that the courier passes on."""


def ask_apart(
    config: JudgeConfig, store: Store, requests: Sequence[Request], *, seed: int = 0, progress: bool = False
) -> list[Reply | Failed]:
    """`Judge.ask` in a process of its own: a killed run loses no reply that was under way.

    Args:
        config: the endpoint (of a served one, what `vrm.judging.endpoint` gives) and the manners of asking it; the
            key goes from our environment into the courier's.
        store: where replies are kept.
        requests: what to ask.
        seed: of the jitter.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no key.
        JudgeError: the endpoint refuses every request, can't be reached, or the courier was stopped.
        StoreError: a reply can't be written.
    """
    keys = [request_key(request, config) for request in requests]
    job = {
        "config": config.model_dump(mode="json"),
        "store": str(store.directory.resolve()),
        "seed": seed,
        "requests": [asdict(request) for request in requests],
    }
    with Watch("judging", "requests", len(set(keys)), quiet=not progress) as watch:
        failed = _send(json.dumps(job), watch)
    return [store.find(key) or Failed(**failed[key]) for key in keys]


def _send(job: str, watch: Watch) -> dict[str, dict[str, Any]]:
    """Have a job done; what failed, by key."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    # a session of its own: Ctrl-C at the terminal reaches us alone, and we tell it by closing its input
    with start_child(command, __name__) as courier:
        try:
            courier.stdin.write(job.encode() + b"\n")
            courier.stdin.flush()
        except BrokenPipeError:  # it could not even start; its error output says why
            with suppress(BrokenPipeError):  # what is still in the buffer would be written when this block ends
                courier.stdin.close()
        for line in courier.stdout:
            news = json.loads(line)
            if "error" in news:
                raise _error(news["error"], news["message"])
            if "failed" in news:
                return news["failed"]
            watch.add(news["done"])
        last = courier.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise JudgeError(
            f"the process that asks the judge ended early ({last or 'it said nothing'}); replies that came are in the "
            "store, and a rerun goes on from there"
        )


def _error(kind: str, message: str) -> Exception:
    """An error of the courier's, as it was raised there."""
    from vrm.config import ConfigError

    return {error.__name__: error for error in (ConfigError, JudgeError, StoreError)}[kind](message)


def main() -> None:
    """The courier."""
    job = json.loads(sys.stdin.buffer.readline())
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Thread(target=_watch_parent, args=[stop], daemon=True).start()
    try:
        # the parent has checked it; of a served judge, it has the address beside the command, which no file may have
        config = SimpleNamespace(**job["config"])
        requests = [Request(**request) for request in job["requests"]]
        judge = Judge(config, Store(Path(job["store"])), seed=job["seed"], stop=stop, on_outcome=lambda: _say(done=1))
        outcomes = judge.ask(requests)
        _say(failed={outcome.key: asdict(outcome) for outcome in outcomes if isinstance(outcome, Failed)})
    except Exception as error:
        if type(error).__name__ not in ERRORS:
            raise
        _say(error=type(error).__name__, message=str(error))
    os._exit(0)  # nobody may be left to take what Python would flush at its end


def _watch_parent(stop: Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _say(**news: Any) -> None:
    """One line, with one write: threads don't mix theirs, and a parent that is gone does not matter."""
    with suppress(BrokenPipeError):
        text = memoryview(json.dumps(news).encode() + b"\n")
        while text:
            text = text[os.write(1, text) :]


# Asking again, a bounded number of times, where a reply came but does not say what it should.

Ask = Callable[[Sequence[Request]], list[Reply | Failed]]
"""A reply or a named failure for each request, in the caller's order."""


def asker(config: JudgeConfig, store: Store) -> Ask:
    """Asks through the store, and the endpoint in a process of its own for what the store lacks."""

    def ask(requests: Sequence[Request]) -> list[Reply | Failed]:
        if not_stored(requests, config, store):
            return ask_apart(config, store, requests, progress=True)
        return [store.find(request_key(request, config)) for request in requests]

    return ask


def same_again(request: Request, _: Reply) -> Request:
    """The same question under the next `attempt`, so that the store does not answer it with the last reply."""
    return replace(request, attempt=request.attempt + 1)


def ask_until(
    ask: Ask,
    requests: Sequence[Request],
    usable: Callable[[Reply], bool],
    attempts: int,
    again: Callable[[Request, Reply], Request] = same_again,
) -> list[list[Reply | Failed]]:
    """Ask each request until its reply is usable, `attempts` times at most; all that are open go out together.

    Args:
        ask: a reply or a named failure for each request.
        requests: what to ask.
        usable: whether a reply says what it should.
        attempts: at least 1.
        again: the request that follows an unusable reply.

    Returns:
        For each request, in the caller's order, the outcomes of its attempts, at least one. A failure is always the
        last: the endpoint has been tried often enough by then.
    """
    outcomes: list[list[Reply | Failed]] = [[] for _ in requests]
    waiting = dict(enumerate(requests))
    for _ in range(attempts):
        if not waiting:
            break
        following = {}
        for (number, request), outcome in zip(waiting.items(), ask(list(waiting.values())), strict=True):
            outcomes[number].append(outcome)
            if isinstance(outcome, Reply) and not usable(outcome):
                following[number] = again(request, outcome)
        waiting = following
    return outcomes


def recording(ask: Ask, asked: list[Request]) -> Ask:
    """`ask`, which also appends to `asked` what it is asked."""

    def ask_and_note(requests: Sequence[Request]) -> list[Reply | Failed]:
        asked.extend(requests)
        return ask(requests)

    return ask_and_note


def storable(text: str) -> str:
    """A reply's text as UTF-8 can hold it: half a surrogate pair, which JSON allows, becomes a question mark."""
    return text.encode(errors="replace").decode()
