"""The server: what a request may take, texts of several requests in one call of the model, routes, token, the end.

* A request's body is read whole before anything looks at it, within a size and a time, so that a slow or an endless
  sender costs a bounded amount of memory.
* While the model is at work, requests wait; when it is free, it takes all that wait, up to a number of texts. Nobody
  waits for company: a lone request is scored at once, and a crowd makes large batches by itself. What waits is bounded:
  beyond that a request is refused at once (`Full`), so that the client comes back later instead of everybody's waiting
  time growing without end.
* A request that the model refuses spoils nobody else's: its batch is scored again one request at a time. Company
  changes a reward by rounding alone, which is a promise of `vrm.models.base.RewardModel`.
* What can't be answered now gets 503 with Retry-After at once, what takes too long 504, and what is wrong 4xx with a
  reason. No error repeats what was sent, no log holds a text.
* On an address that others can reach there is always a token. It comes from the environment, never from the command
  line, which every user of a machine can read.
* SIGTERM and Ctrl-C: no new connections, what is in flight is answered, then the process ends.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vrm import __version__
from vrm.config import ConfigError
from vrm.models.base import RewardModel, RewardOutput
from vrm.models.templates import RenderedTexts, Unrenderable
from vrm.records import Prompt
from vrm.serving.shapes import Classify, Embeddings, Refused, RemoteReward, RemoteRewards, Score, Scored

TOKEN = "VRM_SERVE_TOKEN"
"""Environment variable with the token."""
PATHS = ("/score", "/get_reward", "/classify", "/v1/embeddings", "/health", "/metrics")
OPEN = ("/health",)
"""Needs no token: whoever watches a server need not be able to use it."""
RETRY_AFTER = 1
"""Seconds after which a refused client should ask again."""


@dataclass(frozen=True)
class Bounds:
    """What requests may take.

    Args:
        body: bytes of a request.
        bodies: bytes of all requests that are being read or answered.
        texts: of a request.
        queue: texts that wait or are at work, of all requests.
        batch: texts of a call of the model.
        seconds: from a request's first byte to its answer.
    """

    body: int = 8 * 2**20
    bodies: int = 256 * 2**20
    texts: int = 512
    queue: int = 8192
    batch: int = 64
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name}: {value}, and must be above 0")
        if self.texts > self.queue:
            raise ConfigError(f"a request may have {self.texts} texts and only {self.queue} may wait: raise --queue")
        if self.body > self.bodies:
            raise ConfigError(f"a request may have {self.body} bytes and all together only {self.bodies}")


class Metrics:
    """What a server says about itself, in Prometheus' form."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        of = {"registry": self.registry}
        self.requests = Counter("vrm_requests", "requests answered", ["path", "status"], **of)
        self.seconds = Histogram("vrm_request_seconds", "from first byte to answer", ["path"], **of)
        self.texts = Counter("vrm_texts", "texts scored", **of)
        self.truncated = Counter("vrm_truncated_texts", "texts that were cut before they were scored", **of)
        sizes = [2**power for power in range(11)]
        self.batch = Histogram("vrm_batch_texts", "texts of a call of the model", buckets=sizes, **of)
        self.scoring = Histogram("vrm_scoring_seconds", "seconds of a call of the model", **of)
        self.waiting = Gauge("vrm_waiting_texts", "texts that wait or are at work", **of)

    def observe_call(self, texts: int, seconds: float) -> None:
        """One call of the model."""
        self.batch.observe(texts)
        self.scoring.observe(seconds)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """One answer."""
        path = path if path in PATHS else "other"  # whatever clients make up must not become a series each
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """For a scraper."""
        return generate_latest(self.registry)


# Texts of several requests in one call of the model.


class Full(Exception):
    """As many texts wait as may."""


class NotFinite(Exception):
    """The model's reward of a text is no number."""


@dataclass
class _Job:
    prompts: Sequence[Prompt | str]
    responses: Sequence[str]
    done: asyncio.Future[RewardOutput] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Scores what requests bring, in one thread.

    Args:
        model: is called from that thread alone.
        batch_texts: texts of a call; a request with more of them has a call to itself.
        queue_texts: texts that may wait or be at work.
        observe: is told the texts and the seconds of every call.
    """

    def __init__(
        self,
        model: RewardModel,
        batch_texts: int,
        queue_texts: int,
        observe: Callable[[int, float], None] = lambda texts, seconds: None,
    ) -> None:
        self.model, self.batch_texts, self.queue_texts, self.observe = model, batch_texts, queue_texts, observe
        self.texts = 0
        """Texts that wait or are at work."""
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    @property
    def works(self) -> bool:
        """Whether somebody takes what waits."""
        return self._task is not None and not self._task.done()

    async def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of a request's N texts.

        Raises:
            Full: there is no room for them now.
            NotFinite: a reward is no number.
            Exception: what the model raises for these texts.
        """
        if self.texts + len(responses) > self.queue_texts:
            raise Full
        job = _Job(prompts, responses)
        self.texts += len(responses)
        try:
            self._jobs.append(job)
            self._arrived.set()
            return await job.done
        finally:  # whoever gave up waiting makes room, too
            self.texts -= len(responses)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            jobs = self._take()
            if not jobs:
                self._arrived.clear()
                continue
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, jobs)
            for job, result in zip(jobs, found, strict=True):
                if job.done.done():  # its client has given up
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _take(self) -> list[_Job]:
        """What is scored next: as many requests, in their order, as fit into a call."""
        taken: list[_Job] = []
        room = self.batch_texts
        while self._jobs and (not taken or len(self._jobs[0].responses) <= room):
            job = self._jobs.popleft()
            if not job.done.done():
                taken.append(job)
                room -= len(job.responses)
        return taken

    def _score(self, jobs: list[_Job]) -> list[RewardOutput | Exception]:
        """Each request's rewards, or what the model says against it; runs in the thread."""
        prompts = [prompt for job in jobs for prompt in job.prompts]
        responses = [response for job in jobs for response in job.responses]
        started = time.perf_counter()
        try:
            out = self.model.score(prompts, responses)
        except Exception as error:
            return [error] if len(jobs) == 1 else [self._score([job])[0] for job in jobs]
        self.observe(len(responses), time.perf_counter() - started)
        ends = np.cumsum([len(job.responses) for job in jobs])
        return [_finite(_rows(out, end - len(job.responses), end)) for job, end in zip(jobs, ends, strict=True)]


def _rows(out: RewardOutput, start: int, end: int) -> RewardOutput:
    columns = {part.name: getattr(out, part.name) for part in fields(RewardOutput)}
    return RewardOutput(**{name: None if values is None else values[start:end] for name, values in columns.items()})


def _finite(out: RewardOutput) -> RewardOutput | NotFinite:
    floats = [out.mean, out.std, out.weights, out.per_objective, out.rated, out.residual]
    if all(values is None or np.isfinite(values).all() for values in floats):
        return out
    return NotFinite("the model's reward of a text is not a finite number")


# Routes.


class Gate:
    """Between the server and the routes: who may ask, and how much a request may take."""

    def __init__(self, app: ASGIApp, bounds: Bounds, token: str | None, metrics: Metrics) -> None:
        self.app, self.bounds, self.token, self.metrics = app, bounds, token, metrics
        self.held = 0
        """Bytes of bodies in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may pass, whole; answer any other."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, read = time.perf_counter(), 500, 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self.bounds.seconds):
                refusal = self._refuses(scope)
                body = bytearray()
                while refusal is None:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        status = 499  # nobody is there to be answered
                        return
                    part = message.get("body", b"")
                    read += len(part)
                    self.held += len(part)
                    refusal = self._too_much(read)
                    body += part
                    if not message.get("more_body"):
                        break
                answer = self.app if refusal is None else refusal
                await answer(scope, _given(bytes(body), receive), sent)
        except TimeoutError:
            if status != 500:  # an answer is on its way
                raise
            late = failure(504, f"not answered within {self.bounds.seconds:g} s; send fewer or shorter texts")
            await late(scope, receive, sent)
        finally:
            self.held -= read
            self.metrics.observe_request(scope["path"], status, time.perf_counter() - started)

    def _refuses(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self.token and scope["path"] not in OPEN and not _knows(self.token, headers.get(b"authorization", b"")):
            challenge = {"WWW-Authenticate": 'Bearer realm="vrm"'}
            return failure(401, "this server wants a token: Authorization: Bearer ...", challenge)
        announced = headers.get(b"content-length", b"0")
        return self._too_much(int(announced)) if announced.isdigit() else None

    def _too_much(self, size: int) -> JSONResponse | None:
        if size > self.bounds.body:
            return failure(413, f"a request may have {self.bounds.body} bytes; send fewer or shorter texts")
        if self.held > self.bounds.bodies:
            return busy()
        return None


def create_app(
    model: RewardModel,
    name: str,
    *,
    bounds: Bounds | None = None,
    token: str | None = None,
    policy_tokenizer: Any = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        model: scores; in one thread.
        name: how answers call it.
        bounds: of requests; None: the defaults.
        token: what a request has to bring; None: nothing.
        policy_tokenizer: of the policy whose rendered texts `/get_reward` is sent, where its template is another one.
    """
    bounds = bounds or Bounds()
    metrics = Metrics()
    batcher: Batcher | None = None
    own = RenderedTexts(model.encoder.tokenizer) if hasattr(model, "encoder") else None
    templates = [entry for entry in (RenderedTexts(policy_tokenizer) if policy_tokenizer else None, own) if entry]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        async with Batcher(model, bounds.batch, bounds.queue, metrics.observe_call) as batcher:
            metrics.waiting.set_function(lambda: batcher.texts)
            yield

    async def rewards(texts: tuple[list[Any], list[str]]) -> RewardOutput:
        prompts, responses = texts
        if len(responses) > bounds.texts:
            raise HTTPException(413, f"a request may have {bounds.texts} texts, this one has {len(responses)}")
        out = await batcher.score(prompts, responses)
        metrics.texts.inc(len(responses))
        metrics.truncated.inc(int(out.truncated.sum()))
        return out

    app = FastAPI(
        title="vrm serve",
        version=__version__,
        summary=f"Rewards of {name}",
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        responses={code: {"description": text} for code, text in FAILURES.items()},
    )
    app.add_middleware(Gate, bounds=bounds, token=token, metrics=metrics)

    @app.post("/score", summary="Rewards, with standard deviations, weights and scores by aspect")
    async def score(asked: Score) -> Scored:
        return Scored.of(await rewards(asked.texts()), name, model.aspects)

    @app.post("/get_reward", summary="OpenRLHF's remote reward model")
    async def get_reward(asked: RemoteReward) -> RemoteRewards:
        return RemoteRewards.of(await rewards(await _aside(asked.texts, templates)), model.aspects)

    @app.post("/classify", summary="vLLM's classifier, as verl asks it")
    async def classify(asked: Classify) -> dict[str, Any]:
        return asked.answer(await rewards(await _aside(asked.texts, own)), name)

    @app.post("/v1/embeddings", summary="SGLang's reward model, as verl asks it")
    async def embeddings(asked: Embeddings) -> dict[str, Any]:
        return asked.answer(await rewards(await _aside(asked.texts, own)), name)

    @app.get("/health", summary="Whether texts are scored")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}) if batcher and batcher.works else failure(503, "no text is scored")

    @app.get("/metrics", summary="Measurements in Prometheus' form")
    async def measurements() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    model: RewardModel,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    bounds: Bounds | None = None,
    policy_tokenizer: Any = None,
) -> None:
    """Answer until SIGTERM or Ctrl-C.

    Args:
        model, name, bounds, policy_tokenizer: see `create_app`.
        host: to listen on; anything but loopback wants a token in `VRM_SERVE_TOKEN`.
        port: 0 takes a free one.

    Raises:
        ConfigError: no token for an address that others can reach, or the address can't be had.
    """
    token = checked_token(host)
    app = create_app(model, name, bounds=bounds, token=token, policy_tokenizer=policy_tokenizer)
    listening = _listening(host, port)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=30, server_header=False)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {name} at http://{shown}:{listening.getsockname()[1]}; /docs shows how to ask", flush=True)
    # uvicorn raises the signal again when everything is answered; that is no failure
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
    print("stopped; everything that was asked is answered", flush=True)


def checked_token(host: str) -> str | None:
    """The token that requests have to bring.

    Raises:
        ConfigError: there is none, and others than this machine can reach the address.
    """
    token = os.environ.get(TOKEN)
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: others can reach this address, so requests need a token; put a long random one into the "
            f"environment variable {TOKEN}"
        )
    return token or None


def failure(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as every route answers it."""
    return JSONResponse({"error": {"code": status, "message": reason}}, status, headers)


def busy() -> JSONResponse:
    """More is asked than can be done."""
    return failure(503, "too much is waiting; ask again", {"Retry-After": str(RETRY_AFTER)})


def invalid(error: RequestValidationError) -> JSONResponse:
    """Says what is wrong where, and not what was sent: that may be long, private, or no valid text."""
    found = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"] if part != "body") or "body"
        if entry["type"] == "json_invalid":
            found.append(f"body: no JSON at character {where}: {entry['ctx']['error']}")
        else:
            found.append(f"{where}: {entry['msg']}")
    shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
    return failure(422, shown.encode("ascii", "backslashreplace").decode("ascii"))


def refused_rows(error: Unrenderable) -> JSONResponse:
    """Conversations that the chat template does not take."""
    return failure(422, "; ".join(f"text {row}: {reason}" for row, reason in list(error.rows.items())[:8]))


FAILURES = {
    401: "no token, or a wrong one",
    413: "more bytes or more texts than a request may have",
    422: "not what the route takes; the message says where and why",
    503: "too much is waiting; Retry-After says when to ask again",
    504: "not answered in time",
}
"""What a request can meet; shown on the OpenAPI page."""


def _handler(make: Callable[[Any], Response]) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handle(_: Request, error: Any) -> Response:
        return make(error)

    return handle


HANDLERS = {
    RequestValidationError: _handler(invalid),
    HTTPException: _handler(lambda error: failure(error.status_code, str(error.detail), error.headers)),
    Refused: _handler(lambda error: failure(422, str(error))),
    Unrenderable: _handler(refused_rows),
    Full: _handler(lambda error: busy()),
    NotFinite: _handler(lambda error: failure(500, str(error))),
    Exception: _handler(
        lambda error: failure(500, f"scoring failed ({type(error).__name__}); the server's log says how")
    ),
}


def _given(body: bytes, receive: Receive) -> Receive:
    """The body at once; afterwards what the server says, which is that the client has gone."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return parts.pop() if parts else await receive()

    return given


async def _aside(read: Callable[[Any], Any], templates: Any) -> Any:
    """Reading texts back runs their template, in a thread, so that others are answered meanwhile."""
    return await asyncio.to_thread(read, templates)


def _knows(token: str, header: bytes) -> bool:
    """Whether a header brings the token: as Bearer, or as the password of Basic, which stands in a URL."""
    scheme, _, value = header.decode("latin-1").strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.strip().encode(), token.encode())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:  # the C library takes the remainder
        raise ConfigError(f"--port {port}: a port is a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # from here on clients may come; the first are answered when the application is up
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; name another address or port") from None
    return listening
