"""Asking again, a bounded number of times, where a reply came but does not say what it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vrm.config import JudgeConfig
from vrm.judging.cost import not_stored
from vrm.judging.courier import ask_apart
from vrm.judging.exchange import Failed, Reply, Request, request_key
from vrm.judging.store import Store

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
