"""The world's judge behind an OpenAI-compatible address on this machine.

* The first line of standard output is the address, up to and with /v1. The server leaves when its standard input
  closes, so that it never outlives whoever started it; what is under way is finished first.
* POST /v1/chat/completions answers with a judgment of `vrm.world.judge`; GET /v1/models names the one model; errors
  have OpenAI's shape.
* The same request gets the same bytes: replies carry no time. Sampling parameters and limits of length are accepted
  and change nothing; what would change a reply's shape (`stream`, `n`) is refused.
* Tokens are counted as words and punctuation marks.
* Replies are kept by model name. Judges with different faults need different names (`--model`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vrm.records import count_words
from vrm.world.judge import UnreadableRequestError, WorldJudge

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
