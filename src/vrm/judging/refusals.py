"""What an endpoint's error means: for this request alone, for all of them, or that another try may succeed.

Providers have no common words for it. So the status decides what can be a request's own fault, a table of the words
that are known gives it a name, and whether unknown words mean this request or all of them is decided by whether
other requests succeed (`FirstRequests`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

FIRST = 8
"""Requests, in the caller's order, that have to fail alike before the fault is said to be in all of them."""

OWN = (400, 403, 413, 422, 451)
"""Statuses that may name a single request."""

AGAIN = (408, 409, 425, 429)
"""Statuses, beside 5xx, after which another try may succeed."""

TOO_LONG = (
    "context_length_exceeded",  # OpenAI and many others
    "string_above_max_length",
    "exceed_context_size",  # llama.cpp
    "request_too_large",  # Anthropic
    "maximum context length",  # OpenAI, vLLM, DeepSeek, OpenRouter
    "maximum model length",  # vLLM
    "max_model_len",
    "context length",  # SGLang
    "maximum allowed length",
    "context size",  # llama.cpp
    "context window",
    "prompt is too long",  # Anthropic
    "prompt too long",
    "input is too long",
    "input token count",  # Gemini
    "range of input length",  # DashScope
    "`inputs` must have less than",  # TGI
    "`inputs` tokens + `max_new_tokens` must be",
    "too large for model with",  # Mistral
    "too many input tokens",
)
REFUSED = (
    "content_filter",  # OpenAI, Azure
    "content_policy",
    "contentfilter",  # Zhipu
    "responsibleaipolicyviolation",
    "content filtering policy",  # Anthropic
    "content management policy",  # Azure
    "invalid_prompt",  # OpenAI's reasoning models
    "usage policy",
    "usage policies",
    "data_inspection_failed",  # DashScope
    "datainspectionfailed",
    "inappropriate content",
    "content exists risk",  # DeepSeek
    "prohibited_content",  # Gemini
    "blocked due to safety",
    "moderation",  # OpenRouter
    "flagged",
    "high risk",  # Moonshot
    "sensitive",
)
SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "arrearage")
SPENT_WORDS = ("credit balance is too low", "insufficient balance", "account is in good standing")
NO_KEY = ("api_key_invalid", "invalid_api_key", "api key not valid", "incorrect api key", "invalid api key")

BALANCE = "the account's balance"
CHECKS = {
    400: "judge.model and the parameters it takes: judge.request sets others, e.g. {max_completion_tokens: 4096, "
    "temperature: null}",
    401: "the key in the environment variable {key}, and that it belongs to judge.base_url",
    402: BALANCE,
    403: "that the key in {key} may use judge.model, from this country and network",
    404: "judge.base_url (it usually ends in /v1) and judge.model",
    413: "the length of the requests and of the judge's context",
    422: "judge.model and the parameters it takes; judge.request sets others",
}
CHECK_LENGTH = "the judge's context against the requests and the longest reply (max_tokens); judge.request sets it"


@dataclass(frozen=True)
class Said:
    """An error body: its codes (code, type, status) in lower case, its words for people, and a status inside it."""

    codes: str
    words: str
    status: int | None = None


@dataclass(frozen=True)
class Meaning:
    """What an error means.

    Args:
        scope: `request`: of this one, in known words; `perhaps request`: unless all fail alike; `all`; `again`.
        reason: its name: too long, refused, rejected, rate limited, server error; of `all`, what is wrong.
        check: what to look at where it concerns all requests.
    """

    scope: Literal["request", "perhaps request", "all", "again"]
    reason: str
    check: str


def meaning(status: int, said: Said) -> Meaning:
    """What an answer with this status and error body means."""
    text = f"{said.codes} {said.words}".lower()
    check = CHECKS.get(status, "judge.base_url")
    if any(sign in said.codes for sign in SPENT) or (status < 500 and any(sign in text for sign in SPENT_WORDS)):
        return Meaning("all", "no balance", BALANCE)
    if status in OWN and any(sign in text for sign in NO_KEY):
        return Meaning("all", "no access", f"{CHECKS[401]}; and {check}")
    if status in OWN or status >= 500:
        if any(sign in text for sign in TOO_LONG):
            return Meaning("request", "too long", CHECK_LENGTH)
        if status in OWN and any(sign in text for sign in REFUSED):
            return Meaning("request", "refused", check)
    if status == 413:
        return Meaning("request", "too long", CHECK_LENGTH)
    if status in OWN:
        return Meaning("perhaps request", "rejected", check)
    if status >= 500 or status in AGAIN:
        return Meaning("again", "rate limited" if status == 429 else "server error", check)
    return Meaning("all", "no access", check)


def read_error(body: str) -> Said:
    """The error in a body, as far as it has one that can be read; otherwise the whole text is its words."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    return error_in(value) or Said("", " ".join(body.split()))


def error_in(value: Any) -> Said | None:
    """The error that a parsed body is about; None: it is about something else.

    Known are `{"error": {...}}`, also in a list (Gemini), `{"error": "words"}` (TGI), an error without a wrapper
    (older vLLM, DashScope), `{"detail": ...}` (FastAPI), and an error in the choice (OpenRouter).
    """
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        return None
    error = value.get("error") or _error_of_choice(value)
    if error is None or error == {}:
        if "choices" in value or not ("message" in value or "detail" in value):
            return None
        error = value
    if isinstance(error, str):
        error = {"message": error, "type": value.get("error_type")}
    if not isinstance(error, dict):
        error = {"message": json.dumps(error)}
    names = [error.get(name) for name in ("code", "type", "status")]
    reasons = error.get("metadata") if isinstance(error.get("metadata"), dict) else {}
    inner = error.get("innererror") if isinstance(error.get("innererror"), dict) else {}
    details = error.get("details") if isinstance(error.get("details"), list) else []
    names += [inner.get("code"), *(detail.get("reason") for detail in details if isinstance(detail, dict))]
    words = " ".join([_words(error), *map(str, reasons.get("reasons") or [])]).strip()
    return Said(" ".join(str(name) for name in names if name).lower(), words, _status(error.get("code")))


def _error_of_choice(value: dict[str, Any]) -> Any:
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if first.get("error"):
        return first["error"]
    return {"message": "finish_reason is error"} if first.get("finish_reason") == "error" else None


def _words(error: dict[str, Any]) -> str:
    message = error.get("message") or error.get("detail") or error.get("msg") or ""
    if isinstance(message, list):  # FastAPI: one entry a fault, which repeats the whole request as its `input`
        message = "; ".join(str(part.get("msg", part)) if isinstance(part, dict) else str(part) for part in message)
    return " ".join(str(message).split())


def _status(code: Any) -> int | None:
    """An HTTP status that stands in the body: 400, "502"."""
    text = str(code)
    return int(text) if text.isdecimal() and 400 <= int(text) < 600 else None


def status_inside(said: Said) -> int:
    """The status that an error in a 200 stands for: the one it names, or what its words mean; a server's otherwise."""
    if said.status:
        return said.status
    if "rate_limit" in said.codes or "rate limit" in said.words.lower():
        return 429
    return 400 if meaning(400, said).scope != "perhaps request" or "invalid_request" in said.codes else 500


class AllAlike(Exception):
    """The first requests have all failed alike, and no other has succeeded: `why`, in the endpoint's words `detail`."""

    def __init__(self, why: Meaning, detail: str) -> None:
        super().__init__(why.reason)
        self.why, self.detail = why, detail


@dataclass
class FirstRequests:
    """Whether the endpoint takes any request of a run at all; its first requests decide, and all that succeed.

    A refusal comes faster than a reply, so the fastest answers say nothing: it is the first requests in the caller's
    order that have to fail alike, and nothing may be under way any more that could still succeed.

    Args:
        keys: requests that are to be asked, in the caller's order.
        known: whether the store has replies to requests of this run: model and parameters are those of its key.
    """

    keys: Collection[str]
    known: bool
    succeeded: bool = False
    under_way: int = 0
    ways: dict[str, tuple[int, Meaning, str] | None] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.keys = list(self.keys)[:FIRST]

    def begin(self) -> bool:
        """Whether a request may go under way now; not while the first ones have failed alike and others may succeed.

        Raises:
            AllAlike: nothing that was under way has succeeded.
        """
        with self.lock:
            found = self._all_alike()
            if found and not self.under_way:
                raise AllAlike(*found)
            self.under_way += found is None
            return found is None

    def ended(self) -> None:
        """It is not any more, however it ended."""
        with self.lock:
            self.under_way -= 1

    def succeeds(self) -> None:
        """A reply has come."""
        self.succeeded = True

    def fails(self, key: str, status: int = 0, why: Meaning | None = None, detail: str = "") -> None:
        """A request is given up; `why` is None where it is not the endpoint that refused it."""
        with self.lock:
            if key in self.keys:
                self.ways[key] = (status, why, detail) if why else None

    def _all_alike(self) -> tuple[Meaning, str] | None:
        """What the first requests met, all of them, with its words; None: they didn't, or others succeed."""
        ways = list(self.ways.values())
        if self.succeeded or not ways or len(ways) < len(self.keys) or None in ways:
            return None
        (status, why, detail), alike = ways[0], {(way[0], way[1].reason) for way in ways}
        few = len(ways) < FIRST
        if why.scope == "request":
            stops = not few and not self.known
        elif status == 403:  # rights may have been taken away since the store's replies came
            stops = not few or not self.known
        else:
            stops = not self.known
        return (why, detail) if stops and len(alike) == 1 else None
