"""When the next request may go out: rate limit, the endpoint's own wishes, and back-off with full jitter."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock


class Pace:
    """Spaces the requests of one process evenly, and keeps all of them back while the endpoint wants a pause.

    Args:
        per_minute: most requests a minute; None: no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._lock, self._next, self._held_until = Lock(), 0.0, 0.0

    def wait(self, stop: Event) -> None:
        """Return when it is this caller's turn, or when `stop` is set."""
        with self._lock:
            turn = max(time.monotonic(), self._next, self._held_until)
            self._next = turn + self._interval
        # a pause may be asked for while we wait
        while (left := max(turn, self._held_until) - time.monotonic()) > 0:
            if stop.wait(left):
                return

    def hold(self, seconds: float) -> None:
        """Let nothing out for so long, because the endpoint said so."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)


def backoff(attempt: int, first: float, longest: float, rng: random.Random) -> float:
    """Seconds to wait after failed try number `attempt` (from 0): uniform in [0, min(longest, first 2^attempt)].

    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015 ("full jitter").
    """
    return rng.uniform(0, min(longest, first * 2.0 ** min(attempt, 60)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks us to wait; None: it does not say.

    Retry-After holds seconds or a date (RFC 9110, 10.2.3); `retry-after-ms` is OpenAI's and Azure's finer variant.
    """
    fine, coarse = headers.get("retry-after-ms"), headers.get("Retry-After")
    for text, scale in ((fine, 1e-3), (coarse, 1.0)):
        try:
            seconds = float(text or "") * scale
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(coarse or "")
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
