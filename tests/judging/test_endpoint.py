"""A served judge: it is there while it is asked, and gone afterwards, however we end."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from judging_jobs import KEY, VARIABLE, wait_for
from paths import ROOT
from warm_server import WarmServer

from vrm import warm
from vrm.config import ConfigError
from vrm.config.judge import JudgeConfig
from vrm.judging import JudgeError, Reply, Request, Store, ask_apart, request_key
from vrm.judging.endpoint import endpoint
from vrm.world.evaluation_sets import ARENA_CONFIG

WORLD = "python -m vrm.world.judge_server --model world-judge"
SAYS = "print('http://127.0.0.1:9/v1/', flush=True)"


@pytest.fixture(autouse=True)
def source(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))


def served(command, **changes):
    return JudgeConfig(serve=command, model="world-judge", api_key_env=VARIABLE, **changes)


def script(tmp_path, text):
    (tmp_path / "serve.py").write_text(f"import os, sys, time\n{text}\n")
    return served(f"python {tmp_path / 'serve.py'}")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = f"/proc/{pid}/stat"
    return open(status).read().rpartition(")")[2].split()[0] != "Z" if os.path.exists(status) else True


def game(number):
    template = yaml.safe_load(ARENA_CONFIG)["prompt_template"][0]
    text = template.format(question_1=f"question {number}", answer_1="yes", answer_2="no")
    return Request([{"role": "user", "content": text}], "arena_hard")


def test_the_worlds_judge_is_started_asked_and_stopped(tmp_path):
    config = served(WORLD)
    with endpoint(config) as reachable:
        assert reachable == config.model_copy(update={"base_url": reachable.base_url})
        replies = ask_apart(reachable, Store(tmp_path), [game(i) for i in range(5)])
        address = reachable.base_url
    assert all(isinstance(reply, Reply) and "[[" in reply.text for reply in replies)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/models", timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the warm interpreter needs pidfd")
def test_in_a_warm_job_it_is_a_fork_that_ends_with_the_context(tmp_path, monkeypatch):
    server = WarmServer(tmp_path / "warm.log")
    monkeypatch.setattr(warm, "_given", server.given())
    with endpoint(served(WORLD)) as reachable:
        replies = ask_apart(reachable, Store(tmp_path), [game(i) for i in range(5)])
    assert all(isinstance(reply, Reply) and "[[" in reply.text for reply in replies)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{reachable.base_url}/models", timeout=5)
    wait_for(lambda: sorted(server.children()) == ["vrm.judging.asking", "vrm.world.judge_server"])
    faults = {"python -m vrm.nonsense": r"No module named vrm\.nonsense", f"{WORLD} --colour red": "unrecognized arg"}
    for command, said in faults.items():
        with pytest.raises(ConfigError, match=said), endpoint(served(command)):
            pass
    server.end()


def test_an_address_of_ones_own_is_left_alone():
    config = JudgeConfig(base_url="http://127.0.0.1:9/v1", model="m")
    with endpoint(config) as reachable:
        assert reachable is config


def test_keys_hold_the_command_and_not_the_address():
    asked = game(0)
    at_home = JudgeConfig(base_url="http://127.0.0.1:9/v1", model="world-judge")
    noisy = served(f"{WORLD} --noise 1")
    keys = {request_key(asked, config) for config in (at_home, served(WORLD), noisy)}
    assert len(keys) == 3
    for port in (1, 2):
        somewhere = noisy.model_copy(update={"base_url": f"http://127.0.0.1:{port}/v1"})
        assert request_key(asked, somewhere) == request_key(asked, noisy)


def test_keys_of_an_address_stay_what_they_were():
    """Golden: stores of earlier versions stay valid."""
    config = JudgeConfig(base_url="http://127.0.0.1:9/v1", model="m")
    request = Request([{"role": "user", "content": "q"}], "mt_bench", attempt=1)
    assert request_key(request, config) == "2875e69c1c578f470c5a37a1aeed802aba5440c6c85d2a39a46961ad5b749e20"


def test_the_key_is_not_in_its_environment_and_its_output_is_read_on(tmp_path):
    config = script(
        tmp_path,
        f"{SAYS}\nopen({str(tmp_path / 'environment')!r}, 'w').write(repr(dict(os.environ)))\n"
        f"print('x' * 2**20, flush=True)\nopen({str(tmp_path / 'through')!r}, 'w')\nsys.stdin.read()",
    )
    with endpoint(config) as reachable:
        assert reachable.base_url == "http://127.0.0.1:9/v1"
        wait_for((tmp_path / "through").exists)
    environment = (tmp_path / "environment").read_text()
    assert "PYTHONPATH" in environment
    assert VARIABLE not in environment
    assert KEY not in environment


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit('no port is free')", "ended without an address: no port is free"),
        ("print('Serving.', flush=True); sys.stdin.read()", "has to be its address.*'Serving.'"),
        ("print('http://u:p@h/v1', flush=True); sys.stdin.read()", "has to be its address"),
        ("sys.stderr.write('loading'); sys.stderr.flush(); sys.stdin.read()", "no address within 0.5 s: loading"),
    ],
)
def test_a_server_that_does_not_start_is_named_with_its_error_output(tmp_path, monkeypatch, program, said):
    monkeypatch.setattr("vrm.judging.endpoint.START", 0.5 if "within" in said else 20)
    with pytest.raises(ConfigError, match=said), endpoint(script(tmp_path, program)):
        pass


@pytest.mark.parametrize("command", ["/no/such/program --port 1", "", "python 'unbalanced"])
def test_a_command_that_can_not_be_started_is_named(command):
    with pytest.raises(ConfigError, match=r"judge.serve.*can't be started"), endpoint(served(command)):
        pass


def ask_served(config, tmp_path):
    with endpoint(config) as reachable:
        return ask_apart(reachable, Store(tmp_path / "store"), [game(i) for i in range(5)])


def test_a_server_that_ends_while_it_is_asked_is_named(tmp_path):
    hasty = {"attempts": 2, "concurrency": 1, "backoff": 0.001}
    config = script(tmp_path, f"{SAYS}\nsys.stderr.write('out of memory')\nsys.exit(3)").model_copy(update=hasty)
    with pytest.raises(JudgeError, match=r"nobody answers.* judge.serve has ended with status 3: out of memory"):
        ask_served(config, tmp_path)
    alive = script(tmp_path, f"{SAYS}\nsys.stdin.read()").model_copy(update=hasty)
    with pytest.raises(JudgeError, match=r"nobody answers.*the network\.$"):
        ask_served(alive, tmp_path)


def test_a_key_that_a_server_logs_is_not_repeated(tmp_path):
    logs = f"sys.stderr.write('Authorization: Bearer ' + '-'.join({KEY.split('-')}) + ' 401')"
    with pytest.raises(ConfigError, match=r"Authorization: Bearer \[key\] 401$"), endpoint(script(tmp_path, logs)):
        pass


def test_one_that_does_not_leave_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("vrm.judging.endpoint.GRACE", 0.3)
    config = script(
        tmp_path,
        "import signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n{SAYS}\ntime.sleep(60)",
    )
    with endpoint(config):
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(map(is_running, pids))
    wait_for(lambda: not any(map(is_running, pids)))


HOLDER = """
import json, sys, time
from vrm.config.judge import JudgeConfig
from vrm.judging.endpoint import endpoint
with endpoint(JudgeConfig(**json.loads(sys.argv[1]))) as config:
    print(config.base_url, flush=True)
    time.sleep(60)
"""


def test_it_does_not_outlive_a_run_that_is_killed():
    config = served(WORLD)
    command = [sys.executable, "-c", HOLDER, json.dumps(config.model_dump(mode="json"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        address = holder.stdout.readline().strip()
        assert urllib.request.urlopen(f"{address}/models", timeout=5).status == 200
        holder.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/models", timeout=5)
            time.sleep(0.02)
        except OSError:
            return
    pytest.fail("it still answers")
