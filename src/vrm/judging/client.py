"""The judge: requests in, a reply or a named failure for each out, in the caller's order.

* What the store has is not asked again. What is asked is reserved there first, so that two threads or processes pay
  once; a request that somebody else is asking goes to the end of the queue.
* HTTP 200 with a reply is paid for. It is in the store, usable or not, before anything else happens.
* Worth another try: 429, 408, 409, 425, 5xx, lost connections, time-outs, and paid replies that can't be used. Paid
  ones count over all runs: a rerun pays for no more than `attempts` in all.
* Not worth one: a request that the endpoint refuses (too long, filtered, or in words that nobody knows) is a failure
  of its own, with these words, where other requests succeed. Where the first ones all fail alike, and where an error
  concerns all requests (key, balance, address), the run stops with a `JudgeError` that says what to look at. See
  `vrm.judging.refusals`.
* HTTP 200 with an error for a body is an error.
* A stop, an error or Ctrl-C lets what is under way come in and be stored; it is paid for. So that a killed process
  does so too, `vrm.judging.asking` runs all this in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING

from vrm.judging.exchange import (
    Failed,
    Reply,
    Request,
    Unanswered,
    Unusable,
    is_rather_an_error,
    longest_usage,
    payload,
    read_reply,
    request_key,
    unreadable,
)
from vrm.judging.refusals import AllAlike, FirstRequests, Meaning, Said, error_in, meaning, read_error, status_inside
from vrm.judging.store import Reservation, Store
from vrm.judging.transport import Answer, ApiKey, NoAnswer, Pace, backoff, make_opener, post, retry_after
from vrm.watch import Watch

if TYPE_CHECKING:  # the courier need not wait for pydantic
    from vrm.config.judge import JudgeConfig

HELD_POLL = 0.02  # seconds between looks at a request that somebody else is asking
LONGEST_SAID = 300  # characters of an endpoint's error that ours repeats


class JudgeError(RuntimeError):
    """No request can succeed; the message says what to check. Replies that came before are in the store."""


class NoneLeft(Exception):
    """Every request has been taken."""


@dataclass(frozen=True)
class _Trouble:
    """A try without a usable reply; `final`: another one would be no better; `wait`: seconds the endpoint asks for.

    `refusal` has the status and the meaning of a request that the endpoint does not take; `error_as_reply`: it came
    with HTTP 200.
    """

    reason: str
    detail: str = ""
    wait: float | None = None
    final: bool = False
    refusal: tuple[int, Meaning] | None = None
    error_as_reply: bool = False


@dataclass
class _Run:
    """What the workers of one `ask` share."""

    waiting: deque[tuple[str, Request]]
    progress: Watch
    first: FirstRequests
    outcomes: dict[str, Reply | Failed] = field(default_factory=dict)
    held_since: dict[str, float] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)
    unreachable: int = 0

    def take(self) -> tuple[str, Request]:
        """The next request; raises `NoneLeft`."""
        try:
            return self.waiting.popleft()
        except IndexError:
            raise NoneLeft from None


class Judge:
    """Asks an OpenAI-compatible endpoint; what it said is in the store.

    Args:
        config: the endpoint and the manners of asking it.
        store: where replies are kept.
        seed: of the jitter; it decides nothing but waiting times.
        progress: show a progress bar.
        stop: setting it ends `ask` as soon as what is under way has come in.
        on_outcome: called, from any thread, whenever a request is done with.

    Raises:
        ConfigError: the environment variable with the key is missing, empty, or can't be a key.
    """

    def __init__(
        self,
        config: JudgeConfig,
        store: Store,
        *,
        seed: int = 0,
        progress: bool = False,
        stop: Event | None = None,
        on_outcome: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.store, self.seed, self.progress = config, store, seed, progress
        self._stop, self._on_outcome = stop, on_outcome
        self._key = _read_key(config)
        self._pace = Pace(config.requests_per_minute)
        self._opener = make_opener(config.base_url)
        self._url = f"{config.base_url}/chat/completions"

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failed]:
        """A reply or a named failure for each request, in the caller's order; equal requests share one.

        Raises:
            JudgeError: the endpoint refuses every request, can't be reached at all, or `stop` was set.
            StoreError: a reply can't be written.
        """
        keys = [request_key(request, self.config) for request in requests]
        wanted = dict(zip(reversed(keys), reversed(requests), strict=True))  # the first of equal ones pays
        queue = deque((key, wanted[key]) for key in dict.fromkeys(keys))
        with Watch("judging", "requests", len(queue), quiet=not self.progress) as progress:
            asked = [key for key, _ in queue if not self.store.find(key)]
            first = FirstRequests(asked, known=len(asked) < len(queue))
            run = _Run(queue, progress, first, stop=self._stop or Event())
            self._work_through(run, min(self.config.concurrency, len(queue)))
        if len(run.outcomes) < len(wanted):
            raise JudgeError(
                f"stopped with {len(wanted) - len(run.outcomes)} requests to go; a rerun goes on from there"
            )
        return [run.outcomes[key] for key in keys]

    def _work_through(self, run: _Run, threads: int) -> None:
        if not threads:
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="judge") as pool:
            workers = [pool.submit(self._work, run) for _ in range(threads)]
            try:
                for worker in as_completed(workers):
                    worker.result()
            except BaseException:
                run.stop.set()  # leaving the pool waits for what is under way
                raise

    def _work(self, run: _Run) -> None:
        """Take requests until none is left."""
        while not run.stop.is_set():
            try:
                if not run.first.begin():
                    run.stop.wait(HELD_POLL)
                    continue
                try:
                    key, request = run.take()
                    outcome = self._outcome(key, request, run)
                finally:
                    run.first.ended()
            except NoneLeft:
                return
            except AllAlike as alike:
                run.stop.set()
                where = f" to each of the first {len(run.first.keys)} requests"
                raise self._stopping(alike.why.check, alike.detail, where) from None
            except BaseException:
                run.stop.set()
                raise
            if outcome is None:
                run.waiting.append((key, request))
                run.stop.wait(HELD_POLL)
            else:
                run.outcomes[key] = outcome
                run.progress.add()
                self._on_outcome()

    def _outcome(self, key: str, request: Request, run: _Run) -> Reply | Failed | None:
        """None: somebody else is asking, or the run stops."""
        if reply := self.store.find(key):
            return reply
        with self.store.reserve(key) as reservation:
            if reservation:
                return self.store.find(key) or self._try_often(key, request, reservation, run)
        waited = time.monotonic() - run.held_since.setdefault(key, time.monotonic())
        if waited > self.config.attempts * (2 * self.config.timeout + self.config.longest_wait):
            return Failed("held elsewhere", 0, key, request.benchmark, f"{waited:.0f} s, by a process that hangs")
        return None

    def _try_often(self, key: str, request: Request, reservation: Reservation, run: _Run) -> Reply | Failed | None:
        config, rng = self.config, random.Random(f"{self.seed} {key}")
        # an endpoint that sends an error, or nothing, as a reply may have recovered since
        paid = [reply for reply in self.store.unusable(key) if not is_rather_an_error(reply)]
        trouble, tries, errors = _Trouble(paid[-1].reason if paid else "", "in an earlier run"), len(paid), 0
        while tries < config.attempts:
            if run.stop.is_set():
                return None
            outcome = self._try(key, request, reservation, run, errors)
            errors += isinstance(outcome, _Trouble) and outcome.error_as_reply
            self._mind_unreachable(outcome, run)
            if not isinstance(outcome, _Trouble):
                if outcome is not None:
                    run.first.succeeds()
                return outcome
            trouble, tries = outcome, tries + 1
            if trouble.final:
                break
            if tries < config.attempts:
                # after a pause that the endpoint wants, all who wait for it should not come at once either
                run.stop.wait((trouble.wait or 0) + backoff(tries - 1, config.backoff, config.longest_wait, rng))
        run.first.fails(key, *(trouble.refusal or ()), detail=trouble.detail)
        return Failed(trouble.reason, tries, key, request.benchmark, trouble.detail)

    def _try(
        self, key: str, request: Request, reservation: Reservation, run: _Run, errors: int
    ) -> Reply | _Trouble | None:
        """One exchange, after `errors` that were no replies; None: the run stops."""
        sent = payload(request, self.config)
        most = longest_usage(request, self.config.max_tokens, self.config.request)
        # gateways that know this header bill a repeated request once; after an unusable reply it has to be a new one
        headers = {"Idempotency-Key": f"{key}-{len(self.store.unusable(key)) + errors}"}
        self._pace.wait(run.stop)
        if run.stop.is_set():
            return None
        reservation.sending(request.benchmark, most, self.store.count(key))
        try:
            body = json.dumps(sent).encode()
            answer = post(self._opener, self._url, body, self._key, headers, self.config.timeout)
        except NoAnswer as lost:
            if lost.sent:
                self.store.append(Unanswered(key, request.benchmark, lost.reason, most))
            reservation.settled()
            return _Trouble(lost.reason, self._key.hide(lost.detail))
        if answer.status != 200:
            reservation.settled()
            return self._refusal(answer, answer.status, self._said(answer))
        if said := self._error_as_reply(answer):
            reservation.settled()
            return replace(self._refusal(answer, status_inside(said), said), error_as_reply=True)
        entry = self._read(key, request, answer, bool(sent.get("logprobs")))
        self.store.append(entry)
        reservation.settled()
        return self.store.find(key) if isinstance(entry, Reply) else _Trouble(entry.reason, "HTTP 200")

    def _read(self, key: str, request: Request, answer: Answer, wants_logprobs: bool) -> Reply | Unusable:
        text = answer.body.decode("utf-8", "replace")
        try:
            value = self._key.scrub(json.loads(text)) if answer.broken is None else None
        except (ValueError, RecursionError):
            value = None
        if value is None:
            return unreadable(key, request, answer.broken or "malformed JSON", self._key.scrub(text))
        return read_reply(key, request, value, wants_logprobs=wants_logprobs)

    def _said(self, answer: Answer) -> Said:
        """The error in a body, without the key."""
        said = read_error(answer.body.decode("utf-8", "replace"))
        return replace(said, words=self._key.hide(said.words)[:LONGEST_SAID])  # cut last: a part shows what is hidden

    def _error_as_reply(self, answer: Answer) -> Said | None:
        """The error in a 200; None: it is a reply, or nothing that could be read."""
        try:
            is_error = answer.broken is None and error_in(json.loads(answer.body)) is not None
        except (ValueError, RecursionError):
            return None
        return self._said(answer) if is_error else None

    def _refusal(self, answer: Answer, status: int, said: Said) -> _Trouble:
        """What an error means for this request.

        Raises:
            JudgeError: it means the same for all of them.
        """
        why = meaning(status, said)
        shown = f"HTTP {status}" if status == answer.status else f"HTTP {answer.status} with an error"
        detail = f"{shown}: {said.words}" if said.words else shown
        if why.scope == "all":
            raise self._stopping(why.check, detail)
        if why.scope != "again":
            return _Trouble(why.reason, detail, final=True, refusal=(status, why))
        wait = retry_after(answer.headers)
        if wait is not None and wait > self.config.longest_wait:
            detail += f"; it asks to wait {wait:.0f} s, and judge.longest_wait is {self.config.longest_wait:g} s"
            return _Trouble(why.reason, detail, final=True)
        if wait is not None:
            self._pace.hold(wait)
        return _Trouble(why.reason, detail, wait)

    def _stopping(self, check: str, detail: str, where: str = "") -> JudgeError:
        check = check.replace("{key}", self.config.api_key_env or "that judge.api_key_env should name")
        return JudgeError(f"the judge at {self.config.base_url} answers {detail}{where}. Check {check}.")

    def _mind_unreachable(self, outcome: Reply | _Trouble | None, run: _Run) -> None:
        """Nothing but refused connections, more than a restart explains: nobody is there."""
        if not isinstance(outcome, _Trouble) or outcome.reason != "unreachable":
            run.unreachable = 0
            return
        run.unreachable += 1
        if run.unreachable > self.config.attempts * self.config.concurrency:
            raise JudgeError(
                f"nobody answers at {self.config.base_url} ({outcome.detail}). Check judge.base_url and the network."
            )


def _read_key(config: JudgeConfig) -> ApiKey:
    """The key from the environment.

    Raises:
        ConfigError: it is missing, empty, or can't be a key.
    """
    name = config.api_key_env
    if name is None:
        return ApiKey("")
    fault = (
        f"the judge's key: the environment variable {name} is not set; set it, or let judge.api_key_env name "
        "another one (null where the endpoint needs no key)"
    )
    if os.environ.get(name):
        try:
            return ApiKey(os.environ[name])
        except ValueError as error:
            fault = f"the judge's key in the environment variable {name}: {error}"
    from vrm.config import ConfigError  # here: a courier that has its key need not wait for pydantic

    raise ConfigError(fault)
