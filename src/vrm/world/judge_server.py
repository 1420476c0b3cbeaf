"""The world's judge: reads requests of three benchmarks, and answers over HTTP by the gold reward with stated faults.

* What is asked is found by the delimiters of AlpacaEval's weighted prompt, Arena-Hard's template and MT-Bench's
  single-answer grading, official ones and the world's alike. System prompts and reference answers are not read.
* The truth is `gold_reward(request, answer)`, which any two texts have; of two turns, the second counts.
* Pairwise: log-odds that the first answer wins = sharpness * (gold_1 - gold_2) + position_bias
  + length_bias * log((words_1 + 1) / (words_2 + 1)) + noise * N(0, 1).
* The noise is drawn from the seed and the request: the same request always gets the same reply.
* It stands behind an OpenAI-compatible address on this machine. The first line of standard output is the address, up to
  and with /v1. The server leaves when its standard input closes, so that it never outlives whoever started it; what is
  under way is finished first.
* POST /v1/chat/completions answers with a judgment; GET /v1/models names the one model; errors have OpenAI's shape.
* The same request gets the same bytes: replies carry no time. Sampling parameters and limits of length are accepted
  and change nothing; what would change a reply's shape (`stream`, `n`) is refused.
* Tokens are counted as words and punctuation marks.
* Replies are kept by model name. Judges with different faults need different names (`--model`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from vrm.records import count_words
from vrm.world.gold import HIGHEST, LOWEST, gold_reward

# What is asked.


class UnreadableRequestError(ValueError):
    """The messages are not a request of one of the three benchmarks."""


@dataclass(frozen=True)
class Game:
    """Arena-Hard: which of two answers is better, on five steps."""

    prompt: str
    answer_a: str
    answer_b: str


@dataclass(frozen=True)
class Grading:
    """MT-Bench: a rating of one answer; of two turns, `prompt` and `answer` are the second."""

    prompt: str
    answer: str
    turn: int


@dataclass(frozen=True)
class Comparison:
    """AlpacaEval: the name of the better output; `first` is called m, and `second` M."""

    prompt: str
    first: str
    second: str


_GAME = (
    "<|User Prompt|>\n",
    "\n\n<|The Start of Assistant A's Answer|>\n",
    "\n<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\n",
    "\n<|The End of Assistant B's Answer|>",
)

_ONE_TURN = ("[Question]\n", "\n\n[The Start of Assistant's Answer]\n", "\n[The End of Assistant's Answer]")

_REFERENCE = "\n\n[The Start of Reference Answer]\n"

_TWO_TURNS = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n",
    "\n\n### Assistant A:\n",
    "\n\n### User:\n",
    "\n\n### Assistant A:\n",
    "\n\n<|The End of Assistant A's Conversation with User|>",
)

_COMPARISON = (
    '\n    "instruction": """',
    '""",\n}\n\n## Model Outputs\n',
    '"model_identifier": "m",\n        "output": """',
    '"""\n    },\n    {\n        "model_identifier": "M",\n        "output": """',
    '"""\n    }\n}\n\n## Task\n',
)

_COMPARISON_END = "## Best Model Identifier"


def parse_request(messages: Sequence[Mapping[str, Any]]) -> Game | Grading | Comparison:
    """What a judge is asked, from the first user message that holds a benchmark's request.

    A request is told by how it ends. An answer that holds a delimiter is read up to the first whole junction, so that
    one mark alone in it does no harm.

    Args:
        messages: of a chat completion, each with `role` and `content`.

    Raises:
        UnreadableRequestError: there is no such message.
    """
    for message in messages:
        if message.get("role") == "user" and isinstance(text := message.get("content"), str):
            found = _read(text.encode(errors="replace").decode().rstrip())  # JSON may hold lone surrogates
            if found:
                return found
    raise UnreadableRequestError(
        "no user message is laid out as a request of AlpacaEval (weighted_alpaca_eval_gpt4_turbo's prompt), Arena-Hard "
        "v0.1 or MT-Bench (single-answer grading); this judge reads no other ones"
    )


def _read(text: str) -> Game | Grading | Comparison | None:
    """The request in one message, without white space at its end; None if there is none."""
    if parts := _between(text, _GAME):
        return Game(*parts)
    if parts := _between(text, _ONE_TURN):
        return Grading(parts[0].partition(_REFERENCE)[0], parts[1], 1)
    if parts := _between(text, _TWO_TURNS):
        return Grading(parts[2], parts[3], 2)
    if text.endswith(_COMPARISON_END):
        before, found, _ = text.rpartition(_COMPARISON[-1])
        if parts := _between(before + found, _COMPARISON):
            return Comparison(parts[0], parts[2], parts[3])
    return None


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands between marks that follow one another, the last of them at the text's end; None if one lacks."""
    *marks, end = marks
    if not text.endswith(end):
        return None
    parts, rest = [], text.removesuffix(end)
    for mark in marks:
        part, found, rest = rest.partition(mark)
        if not found:
            return None
        parts.append(part)
    return [*parts[1:], rest]


# What is answered.

TIE, CLEAR = 0.3, 3.0
"""Log-odds up to which a game is a tie, and from which on its winner is clearly better."""

LOWEST_RATING, HIGHEST_RATING = 1.0, 10.0

TOKENS = ("m", "M")
"""AlpacaEval's names of the output that is shown first and of the other one."""

SAID = {
    "A>>B": "Assistant A does what the request asks for, and assistant B does little of it.",
    "A>B": "Assistant A does a little more of what the request asks for than assistant B.",
    "A=B": "Both answers do about as much of what the request asks for.",
    "B>A": "Assistant B does a little more of what the request asks for than assistant A.",
    "B>>A": "Assistant B does what the request asks for, and assistant A does little of it.",
}
"""The reason that goes before a verdict."""


@dataclass(frozen=True)
class WorldJudge:
    """The judge with its faults; all zero, and it tells the truth.

    Args:
        position_bias: log-odds in favour of the answer that is shown first.
        noise: standard deviation of a judgment: of log-odds in a comparison, of rating points in a rating.
        length_bias: log-odds for an answer e times as long (in words), against the other one.
        sharpness: log-odds for one point of gold reward.
        seed: of the noise.
    """

    position_bias: float = 0.2
    noise: float = 0.5
    length_bias: float = 0.0
    sharpness: float = 2.0
    seed: int = 0

    def reply(self, messages: Sequence[Mapping[str, Any]], logprobs: int | None = None) -> dict[str, Any]:
        """The choice of an OpenAI chat completion.

        Args:
            messages: the request.
            logprobs: number of likeliest tokens that are given at each place; None: no log-probabilities.

        Returns:
            `index`, `message`, `finish_reason` and `logprobs`. A comparison's two tokens have the judge's
            probabilities; every other text is certain, and its tokens have log-probability 0.

        Raises:
            UnreadableRequestError: see `parse_request`.
        """
        request = parse_request(messages)
        noise = self.noise * self._standard_normal(messages) if self.noise else 0.0
        if isinstance(request, Comparison):
            logit = self._logit(request.prompt, request.first, request.second) + noise
            likely = sorted(zip(TOKENS, (_log_sigmoid(logit), _log_sigmoid(-logit)), strict=True), key=lambda t: -t[1])
            return _choice(likely[0][0], [likely], logprobs)
        if isinstance(request, Game):
            label = verdict(self._logit(request.prompt, request.answer_a, request.answer_b) + noise)
            text = f"{SAID[label]}\n\nMy final verdict is: [[{label}]]"
        else:
            number = rating(gold_reward(request.prompt, request.answer), noise)
            text = f"This is how far the answer does what the request asks for.\n\nRating: [[{number:g}]]"
        return _choice(text, [[(token, 0.0)] for token in re.findall(r"\s*\S+", text)], logprobs)

    def _logit(self, prompt: str, first: str, second: str) -> float:
        """Log-odds that the first answer wins, without noise."""
        merit = self.sharpness * (gold_reward(prompt, first) - gold_reward(prompt, second))
        length = math.log((count_words(first) + 1) / (count_words(second) + 1))
        return merit + self.position_bias + self.length_bias * length

    def _standard_normal(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """One draw that depends on nothing but the seed and the texts."""
        texts = [[message.get("role"), message.get("content")] for message in messages]
        digest = hashlib.sha256(json.dumps([self.seed, texts]).encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def verdict(logit: float) -> str:
    """Arena-Hard's label for the log-odds that A wins."""
    if abs(logit) <= TIE:
        return "A=B"
    much = ">>" if abs(logit) >= CLEAR else ">"
    return f"A{much}B" if logit > 0 else f"B{much}A"


def rating(gold: float, noise: float = 0.0) -> float:
    """A rating from 1 to 10 in half points, for a gold reward from 1 to 5; the noise is in rating points."""
    share = (gold - LOWEST) / (HIGHEST - LOWEST)
    exact = LOWEST_RATING + (HIGHEST_RATING - LOWEST_RATING) * share + noise
    return min(max(round(2 * exact) / 2, LOWEST_RATING), HIGHEST_RATING)


def _choice(text: str, places: list[list[tuple[str, float]]], count: int | None) -> dict[str, Any]:
    """A choice in OpenAI's shape.

    Args:
        text: the reply.
        places: for each of its tokens, the likeliest tokens with their log-probabilities, the one in the text first.
        count: of likeliest tokens to give; None: no log-probabilities.
    """
    content = [{**_token(*place[0]), "top_logprobs": [_token(*likely) for likely in place[:count]]} for place in places]
    return {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None if count is None else {"content": content, "refusal": None},
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _log_sigmoid(logit: float) -> float:
    """log(1 / (1 + exp(-logit))), without overflow."""
    return min(logit, 0.0) - math.log1p(math.exp(-abs(logit)))


# The server.

LOOPBACK = "127.0.0.1"
MOST_TOP_LOGPROBS = 20
LONGEST_BODY = 16 * 2**20  # bytes
LONGEST_FINISH = 10.0  # seconds for what is under way when the input closes
POLL = 0.02  # seconds until a stop is noticed

EXAMPLE = """\
example, which leaves after a minute:
  sleep 60 | python -m vrm.world.judge_server --noise 0.3 --port 8123 &
  curl http://127.0.0.1:8123/v1/models
"""


class RefusedError(Exception):
    """A request gets an error instead of a judgment.

    Args:
        status: of HTTP.
        message: for people.
        code: for programs.
        param: the parameter that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class JudgeServer(ThreadingHTTPServer):
    """The server; a thread a connection.

    Args:
        judge: what answers.
        model: the name that requests have to give.
        port: on loopback; 0: a free one.
    """

    daemon_threads = True  # an idle connection must not keep the process
    request_queue_size = 128

    def __init__(self, judge: WorldJudge, model: str, port: int = 0) -> None:
        self.judge, self.model = judge, model
        self.closing = False
        self._under_way, self._changed = 0, threading.Condition()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        """Up to and with /v1."""
        return f"http://{LOOPBACK}:{self.server_port}/v1"

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around the work on one request."""
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Take no more connections; `serve_forever` returns. From another thread than that one."""
        self.closing = True
        self.shutdown()

    def finish(self, seconds: float = LONGEST_FINISH) -> bool:
        """Wait for what is under way; whether it came to an end in time."""
        self.server_close()
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def completion(server: JudgeServer, body: Any) -> dict[str, Any]:
    """The chat completion for a request's body.

    Raises:
        RefusedError: the body is wrong, or is no request of a benchmark.
    """
    model, messages, top_logprobs = _checked(body)
    if model != server.model:
        raise RefusedError(
            404, f"the model {model!r} does not exist; this server has {server.model!r}", "model_not_found", "model"
        )
    try:
        choice = server.judge.reply(messages, top_logprobs)
    except UnreadableRequestError as error:
        raise RefusedError(400, str(error), "unreadable_request", "messages") from None
    sent = sum(count_words(message["content"]) for message in messages)
    said = count_words(choice["message"]["content"])
    return {
        "id": f"chatcmpl-{hashlib.sha256(json.dumps(body).encode()).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said},
    }


def _checked(body: Any) -> tuple[str, list[dict[str, Any]], int | None]:
    """Model, messages, and the number of top log-probabilities (None: none are wanted)."""
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str):
        raise RefusedError(400, "`model` has to be a text", param="model")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise RefusedError(400, "`messages` has to be a list of {role, content}, both of them texts", param="messages")
    if body.get("n") not in (None, 1):
        raise RefusedError(400, "`n` has to be 1: the reply is certain", param="n")
    if body.get("stream"):
        raise RefusedError(400, "`stream` is not supported", param="stream")
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if wanted not in (None, True, False):
        raise RefusedError(400, "`logprobs` has to be true or false", param="logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= MOST_TOP_LOGPROBS or not wanted):
        message = f"`top_logprobs` has to be a whole number from 0 to {MOST_TOP_LOGPROBS}, with `logprobs` true"
        raise RefusedError(400, message, param="top_logprobs")
    return model, messages, (top or 0) if wanted else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


class _Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body go out together
    server: JudgeServer

    def do_GET(self) -> None:
        """The one model."""
        with self.server.under_way():
            if self.path.partition("?")[0] != "/v1/models":
                return self._send(404, self._unknown().body)
            model = {"id": self.server.model, "object": "model", "created": 0, "owned_by": "vrm"}
            return self._send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        """A judgment."""
        with self.server.under_way():
            try:
                body = self._body()
                if self.path.partition("?")[0] != "/v1/chat/completions":
                    raise self._unknown()
                value = completion(self.server, body)
            except RefusedError as refused:
                return self._send(refused.status, refused.body)
            return self._send(200, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, in OpenAI's shape too."""
        self.close_connection = True
        self._send(code, RefusedError(code, message or self.responses[code][0]).body)

    def log_message(self, *_: Any) -> None:
        """Quiet: the client keeps the accounts."""

    def _unknown(self) -> RefusedError:
        return RefusedError(404, f"there is no {self.command} {self.path}; ask for POST /v1/chat/completions")

    def _body(self) -> Any:
        """The parsed body. Unless it is read whole, the connection can't go on."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LONGEST_BODY:
            self.close_connection = True
            raise RefusedError(400, f"give a Content-Length of at most {LONGEST_BODY} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is not valid JSON") from None

    def _send(self, status: int, value: Any) -> None:
        """Send it whole before the request counts as done."""
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection or self.server.closing:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the standard input closes; returns the exit status."""
    options = _parser().parse_args(arguments)
    judge = WorldJudge(options.position_bias, options.noise, options.length_bias, options.sharpness, options.seed)
    try:
        server = JudgeServer(judge, options.model, options.port)
    except (OSError, OverflowError) as error:
        print(f"the port {options.port} can't be had ({error}); --port 0 takes a free one", file=sys.stderr)
        return 1
    print(server.url, flush=True)
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    try:
        server.serve_forever(POLL)
    except KeyboardInterrupt:
        server.closing = True
    return 0 if server.finish() else 1


def _stop_at_end_of_input(server: JudgeServer) -> None:
    # not through sys.stdin, whose lock a thread that still waits would hold while the process ends
    while os.read(0, 2**16):
        pass
    server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vrm.world.judge_server",
        description="An OpenAI-compatible judge that knows the world's truth, with stated faults. It prints its "
        "address and serves until its standard input closes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    faults = WorldJudge()
    for name, kind, default, meaning in (
        ("--model", str, "world-judge", "name that requests give; one a set of faults"),
        ("--position-bias", float, faults.position_bias, "log-odds in favour of the answer that is shown first"),
        ("--noise", float, faults.noise, "standard deviation of a judgment: of log-odds, or of rating points"),
        ("--length-bias", float, faults.length_bias, "log-odds for an answer e times as long as the other one"),
        ("--sharpness", float, faults.sharpness, "log-odds for one point of gold reward"),
        ("--seed", int, faults.seed, "of the noise"),
        ("--port", int, 0, "on 127.0.0.1; 0: a free one"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{meaning} (default: {default})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
