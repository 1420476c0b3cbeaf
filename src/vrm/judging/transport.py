"""One HTTP exchange with an OpenAI-compatible endpoint: its key, its time limit, and when the next may go out.

* The standard library, not the `openai` package: that would cost a second of import, retries on its own, so that
  attempts, Retry-After and paid replies could not be counted, and hides bodies that it can't parse, which were paid
  for and belong into the store. What we need of it is one POST.
* `urllib` rather than bare `http.client`: it honours HTTPS_PROXY and NO_PROXY, which clusters need. Redirects are
  refused, because urllib would carry the Authorization header to wherever it is sent.
* `timeout` bounds every wait for the socket, and the whole body: a reply that trickles in does not go on for ever.
* The next request waits for the rate limit, for the endpoint's own wishes, and backs off with full jitter.
"""

from __future__ import annotations

import http.client
import random
import socket
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit


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


HIDDEN = "[key]"

LONGEST_BODY = 16 * 2**20  # bytes; a judge's reply has some thousands


class ApiKey:
    """A key that shows itself in a header and nowhere else: not in a repr, an error or a reply that repeats it.

    Args:
        value: the key; "" for an endpoint without one.

    Raises:
        ValueError: it can't go into a header (it is not shown).
    """

    __slots__ = ("_value",)
    PLACEHOLDER = 6
    """Shorter keys, "EMPTY" for instance, are no secrets: a judge may say the word, and its reply stays as it is."""

    def __init__(self, value: str) -> None:
        if not all("!" <= character <= "~" for character in value):
            raise ValueError("the key holds white space or characters that no HTTP header may hold")
        self._value = value

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> str:
        raise TypeError("a key is not written anywhere, not even pickled")

    def headers(self) -> dict[str, str]:
        """The Authorization header; empty without a key."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hide(self, text: str) -> str:
        """A text for people, with the key blotted out."""
        return text.replace(self._value, HIDDEN) if self._value else text

    def scrub(self, value: Any) -> Any:
        """Text or a JSON value for the store, with the key blotted out of every string, names included."""
        if len(self._value) < self.PLACEHOLDER:
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.scrub(item) for item in value]
        return {self.hide(k): self.scrub(v) for k, v in value.items()} if isinstance(value, dict) else value


class NoAnswer(Exception):
    """No HTTP status came back.

    Args:
        reason: unreachable, connection lost, timed out.
        sent: whether the request had gone out, so that it may have been billed.
        detail: what the system said.
    """

    def __init__(self, reason: str, *, sent: bool, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.sent, self.detail = reason, sent, detail


@dataclass(frozen=True)
class Answer:
    """What came back; `broken` names why the body is not whole, if it is not."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: str | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None makes a redirect an error like any other status."""


def make_opener(base_url: str) -> urllib.request.OpenerDirector:
    """An opener that follows no redirects, and no proxies to this very machine."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def post(
    opener: urllib.request.OpenerDirector,
    url: str,
    body: bytes,
    key: ApiKey,
    headers: Mapping[str, str],
    timeout: float,
) -> Answer:
    """POST JSON; any HTTP status is an answer.

    Args:
        opener: of `make_opener`.
        url: where to.
        body: JSON.
        key: goes into the Authorization header.
        headers: further ones.
        timeout: seconds; twice as long, plus the time to connect, is the longest that this takes.

    Raises:
        NoAnswer: no status came back.
    """
    base = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "vrm"}
    request = urllib.request.Request(url, body, {**base, **headers})
    request.unredirected_hdrs |= key.headers()  # no local variable holds it, should anybody print those
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    except urllib.error.URLError as error:  # connecting or sending failed
        cause = error.reason if isinstance(error.reason, BaseException) else error
        raise NoAnswer(_reason(cause, "unreachable"), sent=False, detail=str(cause)) from None
    except (OSError, http.client.HTTPException) as error:  # waiting for the status failed
        raise NoAnswer(_reason(error, "connection lost"), sent=True, detail=str(error)) from None
    with response:
        content, broken = _read(response, time.monotonic() + timeout)
        return Answer(response.status, response.headers, content, broken)


def _read(response: Any, deadline: float) -> tuple[bytes, str | None]:
    """The body, as far as it came, and why it is not whole."""
    parts: list[bytes] = []
    size = 0
    try:
        while part := response.read1(65536):
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                return b"".join(parts), "timed out"
            if size > LONGEST_BODY:
                return b"".join(parts), "malformed JSON"
    except (OSError, http.client.HTTPException) as error:
        return b"".join(parts), _reason(error, "connection lost")
    # unlike read(), read1() does not mind a body that ends before Content-Length
    declared = response.headers.get("Content-Length") or ""
    short = declared.isdecimal() and size < int(declared)
    return b"".join(parts), "connection lost" if short else None


def _reason(error: BaseException, otherwise: str) -> str:
    if isinstance(error, TimeoutError | socket.timeout):
        return "timed out"
    return "connection lost" if isinstance(error, ConnectionResetError | BrokenPipeError) else otherwise
