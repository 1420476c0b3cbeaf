"""What tests of the judge have in common; and, as a program, a process that judges.

python judging_jobs.py URL STORE FIRST LAST [apart]: with a courier, where there is a last word; any other than `apart`
is what a job of a warm interpreter is given, as JSON
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from paths import ROOT
from server import FAULTS, score

from vrm import warm
from vrm.config.judge import JudgeConfig
from vrm.judging import Judge, Reply, Request, Store, Unusable, ask_apart

KEY = "sk-very-secret-0123456789"
VARIABLE = "VRM_TEST_JUDGE_KEY"
TWENTY_PERCENT = dict.fromkeys(FAULTS, 0.2 / len(FAULTS))


def config(url, **changes):
    """A judge that is asked in a hurry."""
    fast = {
        "api_key_env": VARIABLE,
        "timeout": 0.4,
        "backoff": 0.005,
        "longest_wait": 1.0,
        "attempts": 8,
        "concurrency": 4,
        "top_logprobs": 2,
    }
    return JudgeConfig(base_url=url, model="judge-1", **{**fast, **changes})


def requests(first, last):
    """Questions number first to last - 1, of two benchmarks in turn."""
    return [
        Request([{"role": "user", "content": f"question {i}"}], ("arena_hard", "mt_bench")[i % 2])
        for i in range(first, last)
    ]


def start(server, directory, first, last, *apart):
    """This program, on a server of `server.py`."""
    search = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    command = [sys.executable, __file__, server.url, directory, str(first), str(last), *apart]
    environment = {**os.environ, "PYTHONPATH": search}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition, seconds=20):
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def is_complete(directory, server, number):
    """Every judgment is there exactly once and was paid for exactly once; all that was paid for is there."""
    entries = Store(directory).entries()
    replies = [entry for entry in entries if isinstance(entry, Reply)]
    assert len(replies) == len({reply.key for reply in replies}) == number
    assert set(server.billed.values()) == {1}
    assert len(server.billed) == number
    assert sum(isinstance(entry, Unusable) for entry in entries) == server.in_vain.total()


def scores(first, last):
    """The right replies to `requests`."""
    return [f"[[{score(f'question {i}')}]]" for i in range(first, last)]


def main():
    url, store, first, last, *apart = sys.argv[1:]
    if apart not in ([], ["apart"]):
        warm._given.update(json.loads(apart[0]))
    asked, settings, store = requests(int(first), int(last)), config(url), Store(Path(store))
    judge = Judge(settings, store, progress=True)
    replies = ask_apart(settings, store, asked, progress=True) if apart else judge.ask(asked)
    print([reply.text for reply in replies])


if __name__ == "__main__":
    main()
