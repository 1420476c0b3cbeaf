"""An OpenAI-compatible endpoint on loopback that misbehaves on demand, and counts what it bills.

A reply is billed when a 200 goes out. Like real servers, this one drops a request whose client has gone, unless
`bills_the_gone`. Which request is ill-treated in which way follows from the seed, the request and the number of its
try, never from the order in which threads come.
"""

import hashlib
import json
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "reset", "late", "slow", "malformed", "cut", "empty", "no_logprobs")
BILLED_IN_VAIN = ("malformed", "cut", "empty", "no_logprobs")


def question(body):
    """What tells requests apart: the texts of all messages."""
    return "\n".join(message["content"] for message in body["messages"])


def score(text):
    """The judgment: 1 to 10, from the question alone."""
    return 1 + int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


class _Http(ThreadingHTTPServer):
    request_queue_size = 128  # or the kernel resets connections that nobody wanted to fail
    daemon_threads = True


class Server:
    """Context manager; the endpoint is at `url`.

    Args:
        faults: share of tries that meet each of `FAULTS`.
        seed: of those.
        most_faults: a question's tries beyond this number are treated well.
        retry_after: header of a 429.
        late: seconds until a "late" reply, which should be longer than the client's time-out; "slow" is 20 ms.
        always: status of every answer, instead of all else.
        says: body of that answer.
        hold_after: park what comes after so many billed replies, until `release`.
        bills_the_gone: bill also what was parked when its client died.
        knows_idempotency_keys: answer a repeated Idempotency-Key from memory, without billing.
        judges: the judgment, from a body and the number of requests with the same text that were seen before this
            one (told apart by the key in their Idempotency-Key); None: `[[score]]`.
    """

    def __init__(self, faults=None, *, seed=0, most_faults=3, retry_after="0.01", late=1.0, always=None, says=None,
                 hold_after=None, bills_the_gone=False, knows_idempotency_keys=False, judges=None):  # fmt: skip
        self.faults, self.seed, self.most_faults = faults or {}, seed, most_faults
        self.retry_after, self.late, self.always, self.says = retry_after, late, always, says
        self.hold_after, self.bills_the_gone = hold_after, bills_the_gone
        self.knows_idempotency_keys, self.judges = knows_idempotency_keys, judges
        self.keys_of, self.billed_keys = {}, Counter()
        self.lock, self.released, self.parked = threading.Lock(), threading.Event(), 0
        self.billed, self.in_vain, self.met, self.tries = Counter(), Counter(), Counter(), Counter()
        self.times, self.refusals, self.authorisation, self.remembered = [], [], [], {}
        self.under_way = self.most_under_way = 0

    @property
    def paid(self):
        """All billed replies."""
        return self.billed.total() + self.in_vain.total()

    def __enter__(self):
        self.http = _Http(("127.0.0.1", 0), Handler)
        self.http.behaviour = self
        self.http.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def draw(self, text, number):
        """The fault that a try meets; None: it is treated well."""
        if number > self.most_faults:
            return None
        draw = random.Random(f"{self.seed} {text} {number}").random()
        for fault, share in self.faults.items():
            if draw < share:
                return fault
            draw -= share
        return None


class Handler(BaseHTTPRequestHandler):
    """One POST."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def do_POST(self):
        server = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = question(body)
        with server.lock:
            server.tries[text] += 1
            server.keys_of.setdefault(text, {}).setdefault(self.key(), len(server.keys_of[text]))
            number = server.tries[text]
            server.times.append((text, time.monotonic()))
            server.authorisation.append(self.headers.get("Authorization"))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.answer(server, body, text, number)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, server, body, text, number):
        if server.always:
            return self.send(server.always, server.says or {"error": {"message": "no"}})
        gone = self.park(server)
        if gone and not server.bills_the_gone:
            return None
        fault = server.draw(text, number)
        with server.lock:
            server.met[fault] += 1
        if fault == "429":
            server.refusals.append(time.monotonic())
            return self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": server.retry_after})
        if fault == "500":
            return self.send(500, None)
        if fault == "reset":
            return self.reset()
        if fault in ("late", "slow"):
            time.sleep(server.late if fault == "late" else 0.02)
            if self.client_has_gone():
                return None
        return self.bill(server, body, text, fault)

    def bill(self, server, body, text, fault):
        remembered = self.headers.get("Idempotency-Key") if server.knows_idempotency_keys else None
        with server.lock:
            if remembered not in server.remembered:
                (server.in_vain if fault in BILLED_IN_VAIN else server.billed)[text] += 1
            if remembered:
                server.remembered[remembered] = True
            server.billed_keys[self.key()] += fault not in BILLED_IN_VAIN
            said = server.judges(body, server.keys_of[text][self.key()]) if server.judges else f"[[{score(text)}]]"
        if fault == "malformed":
            return self.send(200, '{"choices": [{"message": {"cont')
        return self.send(200, reply(body, text, fault, said), cut=fault == "cut")

    def key(self):
        """Of the request, which all its tries share."""
        return self.headers.get("Idempotency-Key", "").rpartition("-")[0]

    def park(self, server):
        """Wait for `release` once enough is billed; whether the client has gone meanwhile."""
        with server.lock:
            if server.hold_after is None or server.paid < server.hold_after or server.released.is_set():
                return False
            server.parked += 1
        server.released.wait(20)
        return self.client_has_gone()

    def client_has_gone(self):
        readable = select.select([self.connection], [], [], 0)[0]
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def send(self, status, value, headers=None, cut=False):
        content = (value if isinstance(value, str) else json.dumps(value)).encode() if value is not None else b""
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content) + 99 * cut), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


def reply(body, text, fault, said):
    """A chat completion with the judgment, in the shape of OpenAI's."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
    if body.get("logprobs") and fault != "no_logprobs":
        likely = [{"token": token, "logprob": -0.5 * score(text) - i} for i, token in enumerate("mM")]
        choice["logprobs"] = {"content": [{**likely[0], "top_logprobs": likely}]}
    usage = {"prompt_tokens": len(text), "completion_tokens": score(text), "total_tokens": len(text) + score(text)}
    choices = [] if fault == "empty" else [choice]
    return {"id": "x", "object": "chat.completion", "model": "judge-1", "choices": choices, "usage": usage}
