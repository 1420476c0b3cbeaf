"""The warm interpreter: a job ends, prints and is killed as a plain one; nothing outlives what it was started for."""

import json
import os
import signal
import subprocess
import sys

import pytest
from warm_server import ENVIRONMENT, WarmServer, wait_for

from vrm import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = WarmServer(tmp_path_factory.mktemp("warm") / "logs" / "warm.log")
    yield started
    started.end()
    wait_for(lambda: not os.path.exists(started.place()))


def blocked(server, tmp_path, **options):
    """A job that waits for somebody to write its configuration, and that file."""
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    return server.begin("world", "--config", fifo, "--out", tmp_path / "world", **options), fifo


def opened(fifo):
    """The file, open for writing, as soon as somebody reads."""

    def attempt():
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    return wait_for(attempt)


@pytest.mark.parametrize("arguments", [["--version"], ["nonsense"], ["world", "--config", "absent.yaml", "--out", "x"]])
def test_a_job_says_what_a_plain_one_says_and_has_its_exit_code(server, arguments, tmp_path):
    plain = WarmServer.run(type("", (), {"begin": WarmServer.begin, "address": "off"})(), *arguments, cwd=tmp_path)
    before = len(server.jobs())
    assert server.run(*arguments, cwd=tmp_path) == plain
    assert [job["job"] for job in wait_for(lambda: server.jobs()[before:])] == [arguments]


def test_a_job_has_its_own_directory_umask_and_environment(server, tmp_path):
    begin = len(server.jobs())
    code, _, said = server.run("schema", "--out", "schema.json", cwd=tmp_path, umask=0o077)
    assert (code, said) == (0, "")
    assert (tmp_path / "schema.json").stat().st_mode & 0o777 == 0o600
    # a variable of ours is read when a command runs: here it asks for a traceback
    (tmp_path / "denied").mkdir()
    wrong = ("schema", "--out", "denied")
    traced = {**ENVIRONMENT, "VRM_TRACEBACK": "1"}
    assert "Traceback" not in server.run(*wrong, cwd=tmp_path)[2]
    assert "Traceback" in server.run(*wrong, cwd=tmp_path, environment=traced)[2]
    assert len(wait_for(lambda: server.jobs()[begin + 2 :])) == 1


@pytest.mark.parametrize("change", [{"HF_HUB_OFFLINE": "0"}, {"PYTHONHASHSEED": "7"}, {"OMP_NUM_THREADS": None}])
def test_a_job_that_would_inherit_something_else_is_plain(server, change):
    before = len(server.jobs())
    changed = {name: value for name, value in {**ENVIRONMENT, **change}.items() if value is not None}
    assert server.run("--version", environment=changed)[0] == 0
    assert server.run("--version")[0] == 0
    assert len(wait_for(lambda: server.jobs()[before:])) == 1


def test_changed_sources_and_other_limits_are_refused():
    inherited, sources = json.loads(json.dumps(warm._inherited())), warm._sources()
    job = {"inherited": inherited, "environment": {"OMP_NUM_THREADS": "1"}, "arguments": ["vrm"]}
    assert any(path.endswith("vrm/warm.py") for path, *_ in sources)
    assert not warm._fits(job, inherited, sources[1:])
    assert not warm._fits(job, {**inherited, "niceness": inherited["niceness"] + 1}, sources)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_job_and_its_client(server, tmp_path, number):
    before = len(server.jobs())
    job, fifo = blocked(server, tmp_path)
    writer = opened(fifo)
    job.send_signal(number)
    said = job.communicate()[1]
    assert job.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    wait_for(lambda: server.jobs()[before:])  # the job itself has ended
    os.close(writer)
    with pytest.raises(OSError, match="No such device"):  # nobody reads there any longer
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)


def test_a_job_survives_whoever_started_the_server_and_the_server_ends_with_it(tmp_path):
    server = WarmServer(tmp_path / "warm.log")
    job, fifo = blocked(server, tmp_path)
    writer = opened(fifo)
    server.end()
    wait_for(lambda: not os.path.exists(server.place()))
    assert job.poll() is None
    assert server.run("--version")[0] == 0  # plain, as there is no server
    os.write(writer, b"nonsense: 1\n")
    os.close(writer)
    assert "nonsense" in job.communicate()[1]
    assert job.returncode == 1
    assert len(server.jobs()) == 1


def test_a_killed_server_leaves_no_job_behind(tmp_path):
    server = WarmServer(tmp_path / "warm.log")
    job, fifo = blocked(server, tmp_path)
    writer = opened(fifo)
    server.kill()
    assert job.wait() == -signal.SIGKILL
    os.close(writer)

    def unread():
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return True

    wait_for(unread)
    server.end()
    os.unlink(server.address)
    os.rmdir(server.place())


def test_a_child_is_waited_for_and_killed_as_a_process_is(server, monkeypatch):
    monkeypatch.setattr(warm, "_given", server.given())
    before = len(server.children())
    child = warm.start_child(["/no/such/program"], "vrm.world.judge_server", ["--model", "m"])
    assert child.stdout.readline().startswith(b"http://127.0.0.1:")
    assert os.getpgid(child.pid) == child.pid
    assert child.poll() is None
    os.kill(child.pid, signal.SIGSTOP)
    child.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(20) == child.poll() == -signal.SIGKILL
    with pytest.raises(OSError, match="no/such/program"):
        warm.start_child(["/no/such/program"], "vrm.nonsense")
    wait_for(lambda: server.children()[before:] == ["vrm.world.judge_server"])


LEAVE = """
import atexit, sys, threading, time
from vrm import warm
warm._is_fork = sys.argv[1] == "fork"
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("output ", end="")
warm.leave(3)
"""


@pytest.mark.parametrize("full", [False, True], ids=["room", "full disk"])
def test_a_fork_ends_as_python_does(full):
    """Threads, exit functions and output first; output that can't be written changes the status."""
    ends = []
    for how in ("fork", "plain"):
        with open("/dev/full", "w") as nowhere:
            out = nowhere if full else subprocess.PIPE
            ends.append(subprocess.run([sys.executable, "-c", LEAVE, how], stdout=out, stderr=subprocess.DEVNULL))
    assert ends[0].returncode == ends[1].returncode
    assert (ends[0].returncode == 3) != full
    assert ends[0].stdout == ends[1].stdout == (None if full else b"output thread\nexit function\n")


def test_what_models_need_is_imported_while_a_job_that_changes_data_runs(tmp_path):
    server = WarmServer(tmp_path / "warm.log")
    assert server.run("schema", "--help")[0] == 0
    assert "libtorch" not in server.maps()
    job, fifo = blocked(server, tmp_path)
    writer = opened(fifo)
    wait_for(lambda: "libtorch" in server.maps())  # nobody has asked for it yet
    assert job.poll() is None
    assert server.run("schema", "--help")[0] == 0  # others are served meanwhile
    os.write(writer, b"nonsense: 1\n")
    os.close(writer)
    assert "nonsense" in job.communicate()[1]
    server.end()
    wait_for(lambda: not os.path.exists(server.place()))
