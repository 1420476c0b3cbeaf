"""The judge server over real HTTP: its address, replies, refusals, and its end."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from urllib.parse import urlsplit

import pytest
import yaml

from vrm.judged.arena_hard import LABELS, parse_verdict
from vrm.judged.mt_bench import parse_rating
from vrm.records import count_words
from vrm.world.evaluation_sets import ARENA_CONFIG, mt_bench_prompts
from vrm.world.judge_server import JudgeServer, WorldJudge, main

TEMPLATE = yaml.safe_load(ARENA_CONFIG)["prompt_template"][0]
GRADING = mt_bench_prompts()[0]["prompt_template"]


def game(number=0):
    text = TEMPLATE.format(question_1=f"question {number}", answer_1="dig a deep bed", answer_2="make it nice")
    return {"model": "world-judge", "messages": [{"role": "user", "content": text}]}


class Client:
    """One connection that stays open."""

    def __init__(self, url):
        self.connection = http.client.HTTPConnection(urlsplit(url).hostname, urlsplit(url).port, timeout=10)

    def send(self, method, path, body=None, headers=None):
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, content, headers or {})
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def ask(self, body):
        return self.send("POST", "/v1/chat/completions", body)


@pytest.fixture(scope="module")
def server():
    server = JudgeServer(WorldJudge(), "world-judge")
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(5)
    assert server.finish(5)


@pytest.fixture
def client(server):
    client = Client(server.url)
    yield client
    client.connection.close()


def _start(*options):
    command = [sys.executable, "-m", "vrm.world.judge_server", *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_completion_has_openais_shape_and_the_judges_words(client):
    status, value = client.ask({**game(), "temperature": 0, "max_tokens": 2048})
    assert status == 200
    assert value["object"] == "chat.completion"
    assert value["model"] == "world-judge"
    assert value["choices"] == [WorldJudge().reply(game()["messages"])]
    text = value["choices"][0]["message"]["content"]
    assert parse_verdict(text) in LABELS
    sent, said = count_words(game()["messages"][0]["content"]), count_words(text)
    assert value["usage"] == {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said}


def test_ratings_and_log_probabilities_come_over_the_wire(client):
    text = GRADING.format(question="why", answer="because")
    asked = {"model": "world-judge", "messages": [{"role": "user", "content": text}]}
    _, value = client.ask({**asked, "logprobs": True, "top_logprobs": 2})
    choice = value["choices"][0]
    assert choice == WorldJudge().reply(asked["messages"], 2)
    assert parse_rating(choice["message"]["content"]) is not None
    assert client.ask({**asked, "logprobs": True})[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert client.ask({**asked, "logprobs": False})[1]["choices"][0]["logprobs"] is None


def test_one_connection_serves_many_requests_with_equal_bytes_for_equal_ones(client):
    replies = [client.ask(game(n % 2)) for n in range(6)]
    local_port = client.connection.sock.getsockname()[1]
    assert client.ask(game()) == replies[0] == replies[2] == replies[4]
    assert replies[0] != replies[1] == replies[5]
    assert client.connection.sock.getsockname()[1] == local_port


def test_many_clients_at_once_get_what_one_would(server):
    def work(number):
        return Client(server.url).ask(game(number))[1]["choices"][0]

    with ThreadPoolExecutor(16) as pool:
        choices = list(pool.map(work, range(64)))
    assert choices == [WorldJudge().reply(game(n)["messages"]) for n in range(64)]


def test_the_models_are_listed(client):
    status, value = client.send("GET", "/v1/models")
    assert (status, value["object"], [m["id"] for m in value["data"]]) == (200, "list", ["world-judge"])


@pytest.mark.parametrize(
    ("change", "status", "code", "param", "says"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model", "'world-judge'"),
        ({"model": None}, 400, None, "model", "model"),
        ({"messages": [{"role": "user", "content": "hi"}]}, 400, "unreadable_request", "messages", "laid out"),
        ({"messages": []}, 400, None, "messages", "list"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, 400, None, "messages", "texts"),
        ({"messages": "hi"}, 400, None, "messages", "list"),
        ({"n": 2}, 400, None, "n", "1"),
        ({"stream": True}, 400, None, "stream", "not supported"),
        ({"logprobs": 5}, 400, None, "logprobs", "true or false"),
        ({"top_logprobs": 5}, 400, None, "top_logprobs", "`logprobs` true"),
        ({"logprobs": True, "top_logprobs": 21}, 400, None, "top_logprobs", "20"),
        ({"logprobs": True, "top_logprobs": True}, 400, None, "top_logprobs", "whole number"),
    ],
)
def test_a_wrong_request_is_refused_in_openais_shape_and_the_connection_goes_on(
    client, change, status, code, param, says
):
    got, value = client.ask({**game(), **change})
    assert got == status
    error = value["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert says in error["message"]
    assert client.ask(game())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "JSON"),
        ("POST", "/v1/chat/completions", b"\xff", 400, "JSON"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "JSON"),
        ("POST", "/v1/chat/completions", b"[]", 400, "object"),
        ("POST", "/v1/completions", b"{}", 404, "/v1/completions"),
        ("GET", "/v2", None, 404, "/v2"),
        ("DELETE", "/v1/models", None, 501, "DELETE"),
    ],
)
def test_what_is_no_request_at_all_is_refused_too(client, method, path, body, status, says):
    got, value = client.send(method, path, body)
    assert got == status
    assert says in value["error"]["message"]


@pytest.mark.parametrize("length", ["-1", "x", "", str(2**40)])
def test_a_length_that_cant_be_read_ends_the_connection(server, length):
    with socket.create_connection((urlsplit(server.url).hostname, server.server_port), timeout=10) as connection:
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        with connection.makefile("rb") as stream:
            said = stream.read()
    assert said.startswith(b"HTTP/1.1 400")
    assert b"Connection: close" in said
    assert b"Content-Length of at most" in said


def test_it_says_where_it_is_serves_and_leaves_when_its_input_closes():
    with _start("--model", "strict", "--seed", "3", "--position-bias", "0", "--length-bias", "0.1") as process:
        url = process.stdout.readline().rstrip("\n")
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/v1")
        client = Client(url)
        _, value = client.ask({**game(), "model": "strict"})
        assert value["choices"] == [WorldJudge(position_bias=0.0, length_bias=0.1, seed=3).reply(game()["messages"])]
        process.stdin.close()  # while a connection is open and idle
        assert process.wait(5) == 0
        assert process.stdout.read() == process.stderr.read() == ""
    with pytest.raises(OSError):
        Client(url).ask(game())


def test_it_leaves_at_once_when_there_is_no_input():
    started = time.monotonic()
    command = [sys.executable, "-m", "vrm.world.judge_server"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1
    assert time.monotonic() - started < 5


def test_what_is_under_way_is_finished_first():
    class Slow(WorldJudge):
        def reply(self, messages, logprobs=None):
            begun.set()
            assert go_on.wait(10)
            return super().reply(messages, logprobs)

    begun, go_on, replies = Event(), Event(), []
    server = JudgeServer(Slow(), "world-judge")
    serving = Thread(target=server.serve_forever, args=(0.01,))
    asking = Thread(target=lambda: replies.append(Client(server.url).ask(game())))
    serving.start()
    asking.start()
    assert begun.wait(10)
    server.stop()
    serving.join(5)
    assert not server.finish(0.05)
    go_on.set()
    assert server.finish(10)
    asking.join(5)
    assert replies[0][0] == 200


def test_a_port_in_use_is_named(server, capsys):
    assert main(["--port", str(server.server_port)]) == 1
    assert f"port {server.server_port}" in capsys.readouterr().err


def test_the_server_imports_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "pydantic", "vrm.config")
    code = f"import sys, vrm.world.judge_server; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "[]\n"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "python -m vrm.world.judge_server --noise" in capsys.readouterr().out
