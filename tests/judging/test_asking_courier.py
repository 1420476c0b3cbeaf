"""The courier: a run that is killed at any moment loses no reply, and pays for none twice."""

import json
import os
import signal
import subprocess
import sys
import traceback

import pytest
from judging_jobs import KEY, TWENTY_PERCENT, VARIABLE, config, is_complete, requests, scores, start, wait_for
from paths import ROOT
from server import Server
from warm_server import WarmServer

from vrm import warm
from vrm.config import ConfigError
from vrm.judging import Failed, JudgeError, Store, Unanswered, ask_apart

NEEDS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the warm interpreter needs pidfd")


def begun(tmp_path_factory):
    """A warm interpreter that has imported: what starts children has been a job of it."""
    server = WarmServer(tmp_path_factory.mktemp("warm") / "warm.log")
    assert server.run("--version")[0] == 0
    return server


@pytest.fixture
def warm_fork(tmp_path_factory, monkeypatch):
    """This process starts children as a job of the warm interpreter does."""
    server = begun(tmp_path_factory)
    monkeypatch.setattr(warm, "_given", server.given())
    yield server
    server.end()


def test_gives_what_the_judge_gives(tmp_path):
    with Server(TWENTY_PERCENT) as server:
        asked = [*requests(0, 30), *requests(5, 10)]
        replies = ask_apart(config(server.url), Store(tmp_path), asked)
    assert [reply.text for reply in replies] == scores(0, 30) + scores(5, 10)
    is_complete(tmp_path, server, 30)


@pytest.fixture(params=[False, pytest.param(True, marks=NEEDS_LINUX)], ids=["plain", "warm"])
def warm_server(request, tmp_path_factory):
    """A warm interpreter that the courier is a fork of; None: it is a process of its own."""
    if not request.param:
        yield None
        return
    server = begun(tmp_path_factory)
    yield server
    server.end()


def start_apart(server, directory, warm_server):
    """A process that judges through a courier, as a job of the warm interpreter where there is one."""
    return start(server, directory, 0, 30, json.dumps(warm_server.given()) if warm_server else "apart")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_killed_leaves_its_replies_in_the_store(tmp_path, number, warm_server):
    """The endpoint bills what was under way whether anybody takes it or not; somebody does."""
    with Server(hold_after=10, bills_the_gone=True) as server:
        victim = start_apart(server, tmp_path, warm_server)
        wait_for(lambda: server.parked == 4)
        victim.send_signal(number)
        if number == signal.SIGINT:  # Python's own end waits for the courier
            server.released.set()
        output = victim.communicate(timeout=10)
        server.released.set()
        assert KEY not in str(output)
        replies = ask_apart(config(server.url), Store(tmp_path), requests(0, 30))
        assert [reply.text for reply in replies] == scores(0, 30)
    is_complete(tmp_path, server, 30)
    assert not [entry for entry in Store(tmp_path).entries() if isinstance(entry, Unanswered)]
    if warm_server:
        wait_for(lambda: warm_server.children() == ["vrm.judging.asking"])


@NEEDS_LINUX
def test_a_courier_outlives_its_job_and_the_warm_interpreter(tmp_path, tmp_path_factory):
    warm_server = begun(tmp_path_factory)
    with Server(hold_after=10, bills_the_gone=True) as server:
        victim = start_apart(server, tmp_path, warm_server)
        wait_for(lambda: server.parked == 4)
        warm_server.kill()
        victim.kill()
        victim.communicate()
        server.released.set()
        replies = ask_apart(config(server.url), Store(tmp_path), requests(0, 30))
        assert [reply.text for reply in replies] == scores(0, 30)
    is_complete(tmp_path, server, 30)
    assert not [entry for entry in Store(tmp_path).entries() if isinstance(entry, Unanswered)]


@NEEDS_LINUX
def test_failures_and_errors_come_back_from_a_fork_as_they_are(tmp_path, monkeypatch, warm_fork):
    test_failures_and_errors_come_back_as_they_are(tmp_path, monkeypatch)
    assert warm_fork.children() == ["vrm.judging.asking"] * 3


@NEEDS_LINUX
def test_a_fork_takes_the_plain_courier_where_the_warm_interpreter_is_gone(tmp_path, warm_fork):
    warm_fork.kill()
    with Server() as server:
        assert len(ask_apart(config(server.url), Store(tmp_path), requests(0, 3))) == 3
    assert warm_fork.children() == []


def test_failures_and_errors_come_back_as_they_are(tmp_path, monkeypatch):
    with Server(always=500) as server:
        failed = ask_apart(config(server.url, attempts=2), Store(tmp_path), requests(0, 1))[0]
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.attempts, failed.benchmark) == ("server error", 2, "arena_hard")
    with Server(always=401, says={"error": {"message": KEY}}) as server, pytest.raises(JudgeError) as caught:
        ask_apart(config(server.url), Store(tmp_path), requests(0, 1))
    assert VARIABLE in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=VARIABLE):
        ask_apart(config("http://127.0.0.1:1/v1"), Store(tmp_path), requests(0, 1))


def test_a_courier_that_can_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(RuntimeError, match="ended early"):
        ask_apart(config("http://127.0.0.1:1/v1"), Store(tmp_path), requests(0, 1))


def test_a_courier_does_not_wait_for_what_it_does_not_need():
    code = (
        "import sys; from vrm.judging.asking import main; sys.exit('pydantic' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
