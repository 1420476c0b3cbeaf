"""`vrm serve` as it is started, on a real socket: answers, stops when told to with all that was asked answered."""

import http.client
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest
from served import Started, load, save_vrm

PROMPTS, RESPONSES = ["alpha beta?", "gamma?"], ["good alpha", "bad beta gamma"]


@pytest.fixture(scope="module")
def directory(tiny_backbone, tmp_path_factory):
    return save_vrm(tiny_backbone, tmp_path_factory.mktemp("vrm"))


def test_it_answers_and_stops_with_all_answered(directory):
    direct = load(directory, posterior_samples=64).score(PROMPTS, RESPONSES)
    body = {"prompts": PROMPTS, "responses": RESPONSES}
    with Started("--model", directory, "--batch", 4) as server:
        status, found = server.ask("/score", body)
        assert status == 200
        np.testing.assert_allclose(found["rewards"], direct.mean, atol=1e-5)
        np.testing.assert_allclose(found["std"], direct.std, atol=1e-5)

        # far more than the server has answered by the time it is told to stop
        answers = []
        long = {"prompts": PROMPTS * 50, "responses": [text + " alpha" * 80 for text in RESPONSES] * 50}
        askers = [threading.Thread(target=lambda: answers.append(server.ask("/score", long))) for _ in range(6)]
        for asker in askers:
            asker.start()
        while not waiting(server):
            time.sleep(0.01)
        in_flight = waiting(server)
        code, _, err = server.stop()
        for asker in askers:
            asker.join(60)
        assert in_flight > 0
        assert [status for status, _ in answers] == [200] * 6
        assert (code, "Traceback" in err) == (0, False)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), 1)


def waiting(server):
    """Texts that wait or are at work; all six requests have to have come for it to be 600."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    texts = float(re.search(r"^vrm_waiting_texts (\S+)", text, re.MULTILINE)[1])
    scored = float(re.search(r"^vrm_texts_total (\S+)", text, re.MULTILINE)[1])
    return texts if texts + scored >= 600 else 0


def test_ctrl_c_stops_it_too_and_a_token_is_asked_for(directory):
    with Started("--model", directory, "--host", "0.0.0.0", "--samples", 0, token="s3cret") as server:
        body = {"query": ["alpha? good"], "prompts": ["alpha?"], "labels": [None]}
        assert server.ask("/get_reward", body)[0] == 401
        status, found = server.ask("/get_reward", body, Authorization="Bearer s3cret")
        assert (status, len(found["rewards"])) == (200, 1)
        assert "s3cret" not in " ".join(server.process.args)
        code, out, err = server.stop(signal.SIGINT)
        assert (code, "Traceback" in err) == (0, False)
        assert "s3cret" not in out


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(directory):
    with Started("--model", directory, "--max-megabytes", 0.001) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as client:
            client.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
            )
            client.settimeout(10)
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        assert server.ask("/score", {"prompts": ["p"], "responses": ["r"]})[0] == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", "0.0.0.0"], "VRM_SERVE_TOKEN"),
        (["--max-texts", "10", "--queue", "5"], "--queue"),
        (["--port", "99999"], "99999"),
        (["--host", "no.such.host.invalid"], "VRM_SERVE_TOKEN"),
    ],
)
def test_what_can_not_be_served_is_said(directory, options, named, capsys, monkeypatch):
    from vrm.cli import main

    monkeypatch.delenv("VRM_SERVE_TOKEN", raising=False)
    assert main(["serve", "--model", str(directory), *options]) == 1
    assert named in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(directory, capsys):
    from vrm.cli import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(directory), "--port", port]) == 1
    assert port in capsys.readouterr().err
