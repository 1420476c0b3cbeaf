"""What is asked of a judge and what comes back: the records of the room, and how a reply is read.

* A request's key is the sha256 of everything that decides the reply: model, messages, parameters, and the caller's
  `attempt` tag. The address is not part of it: the same judge behind another port is the same judge. Judges that
  differ need names that differ, except those that we serve: their command is part of the key.
* `benchmark` says who asked, for the accounts; it is not part of the key, so two benchmarks share an equal request.
* Tokens that the endpoint does not report are estimated as characters / 4, and marked as estimated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vrm.records import Message

if TYPE_CHECKING:
    from vrm.config.judge import JudgeConfig

CHARACTERS_PER_TOKEN = 4
LIMITS = ("max_completion_tokens", "max_tokens")
NO_FIELDS: Mapping[str, Any] = {}
BODY_KEPT = 2000  # characters of an unusable reply that are kept for whoever looks into it


@dataclass(frozen=True)
class Request:
    """One question to the judge.

    Args:
        messages: the conversation that the judge continues.
        benchmark: who asks; replies are accounted for under this name.
        attempt: tag of the caller; a caller that could not use a reply's text asks again under the next one.
        parameters: of the endpoint, over those of `JudgeConfig`; one that is None is left out of the request.
    """

    messages: Sequence[Message]
    benchmark: str
    attempt: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """Length of all messages."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Usage:
    """Tokens of one exchange; `estimated` where the endpoint did not report them."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False


@dataclass(frozen=True)
class Reply:
    """A usable reply.

    Args:
        key: of its request.
        benchmark: who paid for it.
        text: what the judge said.
        usage: its tokens.
        finish_reason: why it ended, in the endpoint's words ("length": it was cut).
        model: who replied, in the endpoint's words.
        logprobs: one mapping a token (`token`, `logprob`, `top_logprobs`), as the endpoint gave them; None: none asked.
    """

    key: str
    benchmark: str
    text: str
    usage: Usage
    finish_reason: str = ""
    model: str = ""
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Unusable:
    """A reply that was paid for (HTTP 200) and can't be used; `reason` names why, `body` is its beginning."""

    key: str
    benchmark: str
    reason: str
    usage: Usage
    body: str = ""


@dataclass(frozen=True)
class Unanswered:
    """A request that was sent and whose reply never came: nobody but the endpoint knows whether it was billed.

    `usage` is the most that it can have been: an estimated prompt and the longest reply.
    """

    key: str
    benchmark: str
    reason: str
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """What stands in a reply's place when there is none.

    Args:
        reason: of the last try: rate limited, server error, connection lost, unreachable, timed out, malformed JSON,
            no choices, no text, no logprobs, held elsewhere; or that the endpoint does not take it: too long, refused
            (by a filter), rejected (in words that are in `detail`).
        attempts: tries that were made; unusable replies of earlier runs count.
        key: of the request.
        benchmark: who asked.
        detail: what else is known, e.g. the HTTP status.
    """

    reason: str
    attempts: int
    key: str = ""
    benchmark: str = ""
    detail: str = ""


def payload(request: Request, config: JudgeConfig) -> dict[str, Any]:
    """The JSON that is sent."""
    parameters: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    if config.top_logprobs is not None:
        parameters |= {"logprobs": True, "top_logprobs": config.top_logprobs}
    parameters |= request.parameters
    parameters |= config.request
    if parameters.get("max_completion_tokens") is not None and "max_tokens" not in config.request:
        del parameters["max_tokens"]  # it is the same limit, and endpoints refuse both
    parameters = {name: value for name, value in parameters.items() if value is not None}
    return {**parameters, "model": config.model, "messages": list(request.messages)}


def request_key(request: Request, config: JudgeConfig) -> str:
    """64 hexadecimal digits: sha256 of the canonical JSON of what is sent, the `attempt` tag, and `serve` if set."""
    canonical = {"payload": payload(request, config), "attempt": request.attempt}
    if config.serve is not None:
        canonical["serve"] = config.serve  # its words say how noisy and biased it is
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def estimated_tokens(characters: int) -> int:
    """Characters / 4, rounded up: a rule of thumb for English, no tokenizer's count."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def longest_usage(request: Request, max_tokens: int, fields: Mapping[str, Any] = NO_FIELDS) -> Usage:
    """The most that a request can use: its prompt, estimated, and the longest reply it allows.

    Args:
        request: what is asked.
        max_tokens: the longest reply where nothing else is set.
        fields: `JudgeConfig.request`, which is over the request's own parameters.
    """
    limits = [part.get(name) for part in (fields, request.parameters) for name in LIMITS]
    allowed = next((limit for limit in limits if isinstance(limit, int) and limit > 0), max_tokens)
    return Usage(estimated_tokens(request.characters), allowed, estimated=True)


def read_reply(key: str, request: Request, value: Any, *, wants_logprobs: bool) -> Reply | Unusable:
    """A usable reply, or the reason why this one is not.

    Args:
        key: of the request.
        request: what was asked.
        value: the parsed JSON of an HTTP 200.
        wants_logprobs: whether the request asked for log-probabilities.
    """
    value = value if isinstance(value, dict) else {}
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    text = _text(message.get("content")) if isinstance(message, dict) else None
    usage = _usage(value.get("usage"), request, text)
    reason, logprobs = None, None
    if choice is None:
        reason = "no choices"
    elif choice.get("finish_reason") == "content_filter" or (isinstance(message, dict) and message.get("refusal")):
        reason = "refused"
    elif not isinstance(text, str) or not text:
        reason = "no text"
    elif wants_logprobs:
        logprobs = _logprobs(choice)
        reason = "no logprobs" if logprobs is None else None
    if reason:
        return Unusable(key, request.benchmark, reason, usage, json.dumps(value)[:BODY_KEPT])
    finish, model = choice.get("finish_reason") or "", value.get("model") or ""
    return Reply(key, request.benchmark, text, usage, str(finish), str(model), logprobs)


def _text(content: Any) -> Any:
    """What is said; some models send it in parts, thoughts beside it."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def is_rather_an_error(reply: Unusable) -> bool:
    """Whether a 200 held nothing, and no tokens that were billed: it is not counted over all runs, but asked again."""
    return reply.reason == "no choices" and reply.usage.estimated


def unreadable(key: str, request: Request, reason: str, body: str) -> Unusable:
    """A paid reply of which nothing can be read, not even its tokens."""
    usage = Usage(estimated_tokens(request.characters), estimated_tokens(len(body)), estimated=True)
    return Unusable(key, request.benchmark, reason, usage, body[:BODY_KEPT])


def _usage(value: Any, request: Request, text: Any) -> Usage:
    """What the endpoint reports, or an estimate."""
    counts = [value.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(value, dict) else []
    if counts and all(type(count) is int and count >= 0 for count in counts):
        return Usage(*counts)
    length = len(text) if isinstance(text, str) else 0
    return Usage(estimated_tokens(request.characters), estimated_tokens(length), estimated=True)


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tokens with their log-probabilities, if every one has them."""
    holder = choice.get("logprobs")
    tokens = holder.get("content") if isinstance(holder, dict) else None
    whole = isinstance(tokens, list) and tokens and all(isinstance(t, dict) and "logprob" in t for t in tokens)
    return tokens if whole else None


# What a judge says, without what it has thought before: reasoning models write both into one text.
#
# Only what is said holds a verdict: in its thoughts a judge weighs verdicts that it then takes back.

_TAG = r"(?:seed:)?(think|thinking|thought|thoughts|reasoning)"
PAIRS = [
    (re.compile(rf"<{_TAG}>", re.IGNORECASE), re.compile(rf"</{_TAG}>", re.IGNORECASE)),
    (re.compile(r"\[THINK\]"), re.compile(r"\[/THINK\]")),  # Magistral
    (re.compile("◁think▷"), re.compile("◁/think▷")),  # Kimi
    (re.compile(r"<\|channel\|>analysis"), re.compile(r"<\|channel\|>final(?:<\|message\|>)?")),  # gpt-oss
]
"""How thoughts begin and end, by family of models."""


def without_thoughts(text: str) -> str:
    """A reply without its thoughts; nothing where a thought does not end, for instance because the reply was cut.

    * Closed thoughts are taken out, wherever they stand, with those inside them.
    * Some chat templates begin the thought in the prompt: what stands before an end without a beginning is a thought.
    * Everything after a beginning without an end is a thought, and what stands before it is no last word either.
    """
    for beginning, end in PAIRS:
        marks = sorted([(m, 1) for m in beginning.finditer(text)] + [(m, -1) for m in end.finditer(text)], key=_place)
        said, depth, start = [], 0, 0
        for mark, step in marks:
            if step > 0 and depth == 0:
                said.append(text[start : mark.start()])
            if step < 0 and depth <= 1:  # the thought's end; without a beginning, all before it was thought
                said = said if depth else []
                start = mark.end()
            depth = max(0, depth + step)
        if depth:
            return ""
        text = "".join([*said, text[start:]])
    return text


def _place(mark: tuple[re.Match[str], int]) -> int:
    return mark[0].start()
