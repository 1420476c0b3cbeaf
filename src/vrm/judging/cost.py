"""What judging has cost, from the store, and what requests will cost at most that it has no reply to.

The store's tokens are the endpoint's own counts, except where it gave none; those are estimated as characters / 4 and
reported beside the others. Estimates before a call are all characters / 4.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

from vrm.config.judge import JudgeConfig, Prices
from vrm.judging.exchange import NO_FIELDS, Reply, Request, Unanswered, Unusable, Usage, longest_usage, request_key
from vrm.judging.store import Replies


@dataclass(frozen=True)
class Spending:
    """What the store says of one benchmark.

    Args:
        replies: usable ones.
        unusable: replies that were paid for in vain.
        unanswered: requests whose reply never came (time-outs, lost connections, killed runs); perhaps billed.
        prompt_tokens: of `replies` and `unusable`.
        completion_tokens: likewise.
        estimated_tokens: how many of those are characters / 4, because the endpoint did not count.
        cost: dollars, of `replies` and `unusable`; None: prices are unknown.
        perhaps: dollars that `unanswered` can have cost on top, at most.
    """

    replies: int = 0
    unusable: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0
    cost: float | None = 0.0
    perhaps: float | None = 0.0


@dataclass(frozen=True)
class Estimate:
    """What requests will use, if each of them is answered at the first try.

    Args:
        requests: how many.
        prompt_tokens: characters / 4.
        completion_tokens: the most: every reply as long as it may be.
        cost: dollars, at most; None: prices are unknown.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def spending(store: Replies, prices: Prices | None) -> dict[str, Spending]:
    """What each benchmark has paid, by name in alphabetical order."""
    parts: dict[str, list[Spending]] = defaultdict(list)
    for entry in store.entries():
        parts[entry.benchmark].append(_spending(entry, prices))
    return {name: total(parts[name]) for name in sorted(parts)}


def spending_of(store: Replies, keys: Collection[str], prices: Prices | None) -> Spending:
    """What the requests with these keys have cost, whoever asked and whatever came back."""
    nothing = Spending(cost=_dollars(Usage(0, 0), prices), perhaps=_dollars(Usage(0, 0), prices))
    return total([nothing, *(_spending(entry, prices) for entry in store.entries() if entry.key in keys)])


def estimate(
    requests: Iterable[Request], prices: Prices | None, *, max_tokens: int, fields: Mapping[str, Any] = NO_FIELDS
) -> Estimate:
    """What requests will use; tokens are characters / 4.

    Args:
        requests: which are to be paid for; `not_stored` gives those.
        prices: None leaves the cost unknown.
        max_tokens: the longest reply where a request sets none, `JudgeConfig.max_tokens`.
        fields: `JudgeConfig.request`.
    """
    most = [longest_usage(request, max_tokens, fields) for request in requests]
    usage = Usage(sum(each.prompt_tokens for each in most), sum(each.completion_tokens for each in most))
    return Estimate(len(most), usage.prompt_tokens, usage.completion_tokens, _dollars(usage, prices))


def not_stored(requests: Iterable[Request], config: JudgeConfig, store: Replies) -> list[Request]:
    """The requests that would be asked, each once: those to which the store has no reply."""
    unique = {request_key(request, config): request for request in requests}
    return [request for key, request in unique.items() if store.find(key) is None]


def total(parts: Iterable[Spending] | Mapping[str, Spending]) -> Spending:
    """The sum of at least one; an unknown cost makes the sum's unknown."""
    rows = list(parts.values() if isinstance(parts, Mapping) else parts)
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields_of(Spending)}
    return Spending(**{name: None if None in column else _sum(column) for name, column in columns.items()})


def _sum(column: list[int] | list[float]) -> int | float:
    """Dollars to the last bit, whatever the order: replies come in any."""
    return math.fsum(column) if any(isinstance(value, float) for value in column) else sum(column)


def _spending(entry: Reply | Unusable | Unanswered, prices: Prices | None) -> Spending:
    usage, none = entry.usage, _dollars(Usage(0, 0), prices)
    if isinstance(entry, Unanswered):
        return Spending(unanswered=1, cost=none, perhaps=_dollars(usage, prices))
    tokens = (usage.prompt_tokens, usage.completion_tokens)
    usable = isinstance(entry, Reply)
    return Spending(usable, not usable, 0, *tokens, usage.estimated * sum(tokens), _dollars(usage, prices), none)


def _dollars(usage: Usage, prices: Prices | None) -> float | None:
    if prices is None:
        return None
    return (usage.prompt_tokens * prices.prompt + usage.completion_tokens * prices.completion) / 1e6
