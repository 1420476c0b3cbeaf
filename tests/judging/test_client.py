"""The judge against an endpoint that misbehaves: nothing is lost, nothing is paid twice, nothing is silent."""

import copy
import json
import logging
import pickle
import random
import re
import signal
import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from judging_jobs import KEY, TWENTY_PERCENT, VARIABLE, config, is_complete, requests, scores, start, wait_for
from pydantic import ValidationError
from server import FAULTS, Server, score

from vrm.config import ConfigError
from vrm.config.judge import JudgeConfig
from vrm.judging import Failed, Judge, JudgeError, Reply, Store, Unanswered, Unusable, Usage, spending, total
from vrm.judging.transport import NoAnswer, backoff, post, retry_after


def ask(server, directory, asked, **changes):
    return Judge(config(server.url, **changes), Store(directory)).ask(asked)


def test_replies_come_in_order_and_are_asked_once(tmp_path):
    asked = [*requests(0, 30), *requests(10, 20)]
    with Server({"slow": 0.3}) as server:
        first = ask(server, tmp_path, asked)
        again = ask(server, tmp_path, asked)
    assert [reply.text for reply in first] == scores(0, 30) + scores(10, 20)
    assert first == again
    assert server.tries.total() == 30
    assert first[0].logprobs[0]["top_logprobs"][1]["token"] == "M"
    assert first[0].usage == Usage(len("question 0"), score("question 0"))
    assert set(server.authorisation) == {f"Bearer {KEY}"}
    assert 1 < server.most_under_way <= 4


def test_equal_requests_of_two_benchmarks_are_on_the_first_ones_account(tmp_path):
    one = requests(0, 1)[0]
    with Server() as server:
        ask(server, tmp_path, [one, replace(one, benchmark="alpaca_eval")])
    assert [entry.benchmark for entry in Store(tmp_path).entries()] == ["arena_hard"]


def test_a_reply_that_came_while_the_request_was_being_reserved_is_taken(tmp_path):
    class Late(Store):
        def reserve(self, key):
            Store(tmp_path).append(Reply(key, "mt_bench", "theirs", Usage(1, 1)))
            return super().reserve(key)

    with Server() as server:
        assert Judge(config(server.url), Late(tmp_path)).ask(requests(0, 1))[0].text == "theirs"
    assert not server.tries


def test_nothing_to_ask(tmp_path):
    with Server() as server:
        assert ask(server, tmp_path, []) == []


def test_a_fifth_of_all_replies_faulty_gives_what_a_quiet_run_gives(tmp_path):
    with Server() as quiet, Server(TWENTY_PERCENT) as server:
        expected = ask(quiet, tmp_path / "quiet", requests(0, 120))
        assert ask(server, tmp_path / "faulty", requests(0, 120)) == expected
    is_complete(tmp_path / "faulty", server, 120)
    assert len(server.met) > 6
    assert server.met[None] < server.tries.total() - 10


def test_every_fault_alone_is_overcome(tmp_path):
    for fault in FAULTS:
        with Server({fault: 1.0}, most_faults=1, late=0.3) as server:
            outcome = ask(server, tmp_path / fault, requests(0, 2), timeout=0.1)
        assert [reply.text for reply in outcome] == scores(0, 2), fault
        is_complete(tmp_path / fault, server, 2)
        assert set(server.tries.values()) == ({1} if fault == "slow" else {2}), fault


def test_two_processes_share_a_store_and_pay_once(tmp_path):
    with Server(TWENTY_PERCENT | {"slow": 0.5}) as server:
        processes = [start(server, tmp_path, 0, 60), start(server, tmp_path, 0, 60)]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert [output[0].strip() for output in outputs] == [str(scores(0, 60))] * 2, outputs
    assert KEY not in str(outputs)
    assert "\r" not in outputs[0][1]  # no bar in a log
    is_complete(tmp_path, server, 60)
    assert not list((tmp_path / "held").iterdir())


def test_threads_of_two_judges_pay_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with Server({"slow": 1.0}) as server, ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: ask(server, tmp_path, requests(0, 12)), range(3)))
    assert runs[0] == runs[1] == runs[2]
    is_complete(tmp_path, server, 12)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """The endpoint drops what was under way when its client died, as servers do that see the connection close."""
    with Server(TWENTY_PERCENT, hold_after=20) as server:
        victim = start(server, tmp_path, 0, 60)
        wait_for(lambda: server.parked == 4)
        victim.send_signal(signal.SIGKILL)
        output = victim.communicate()
        paid = server.paid
        server.released.set()
        wait_for(lambda: server.under_way == 0)
        assert server.paid == paid >= 20
        assert [reply.text for reply in ask(server, tmp_path, requests(0, 60))] == scores(0, 60)
    assert KEY not in str(output)
    is_complete(tmp_path, server, 60)
    lost = [entry for entry in Store(tmp_path).entries() if isinstance(entry, Unanswered)]
    assert sum(entry.reason == "lost with its process" for entry in lost) == 4


@pytest.mark.parametrize("knows_idempotency_keys", [True, False])
def test_what_was_billed_to_a_dead_client_is_accounted_for(tmp_path, knows_idempotency_keys):
    """The endpoint bills replies that nobody is there to take: at most those under way, and the accounts say so."""
    with Server(hold_after=10, bills_the_gone=True, knows_idempotency_keys=knows_idempotency_keys) as server:
        victim = start(server, tmp_path, 0, 20)
        wait_for(lambda: server.parked == 4)
        victim.kill()
        victim.communicate()
        server.released.set()
        wait_for(lambda: server.under_way == 0)
        assert all(isinstance(reply, Reply) for reply in ask(server, tmp_path, requests(0, 20)))
    sums = total(spending(Store(tmp_path), None))
    assert (sums.replies, sums.unanswered) == (20, 4)
    assert server.billed.total() == (20 if knows_idempotency_keys else 24)


@pytest.mark.parametrize(
    ("fault", "reason", "paid"),
    [
        ("429", "rate limited", 0),
        ("500", "server error", 0),
        ("reset", "connection lost", 0),
        ("late", "timed out", 0),
        ("malformed", "malformed JSON", 3),
        ("cut", "connection lost", 3),
        ("empty", "no choices", 3),
        ("no_logprobs", "no logprobs", 3),
    ],
)
def test_bounded_tries_end_in_a_named_failure(tmp_path, fault, reason, paid):
    with Server({fault: 1.0}, most_faults=99, late=0.2) as server:
        for _ in range(2):
            outcome = ask(server, tmp_path, requests(0, 2), attempts=3, timeout=0.05)
            assert [(failed.reason, failed.attempts) for failed in outcome] == [(reason, 3)] * 2
            assert [failed.benchmark for failed in outcome] == ["arena_hard", "mt_bench"]
    # what was paid for in vain counts over all runs: the second one asks no more
    assert set(server.tries.values()) == {3 if paid else 6}
    store = Store(tmp_path)
    assert sum(isinstance(entry, Unusable) for entry in store.entries()) == 2 * paid == server.paid
    assert sum(isinstance(entry, Unanswered) for entry in store.entries()) == (12 if fault in ("reset", "late") else 0)


def test_one_bad_request_does_not_stop_the_others(tmp_path):
    with Server({"500": 0.5}, seed=3, most_faults=99) as server:
        outcome = ask(server, tmp_path, requests(0, 20), attempts=1)
    kinds = [type(entry) for entry in outcome]
    assert 0 < kinds.count(Failed) < 20
    assert kinds.count(Failed) == server.met["500"]


def test_a_failed_request_is_asked_again_under_another_attempt(tmp_path):
    again = [replace(request, attempt=1) for request in requests(0, 3)]
    with Server() as server:
        first, second = ask(server, tmp_path, requests(0, 3)), ask(server, tmp_path, again)
    assert set(server.billed.values()) == {2}
    assert not {reply.key for reply in first} & {reply.key for reply in second}


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": None, "refusal": "I can't"}, "stop", "refused"),
        ({"content": "x"}, "content_filter", "refused"),
        ({"content": ""}, "length", "no text"),
        ({"content": [1]}, "stop", "no text"),
        (None, "stop", "no text"),
    ],
)
def test_replies_without_a_judgment_are_named(tmp_path, message, finish, reason):
    says = {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }
    with Server(always=200, says=says) as server:
        assert ask(server, tmp_path, requests(0, 1), attempts=2)[0].reason == reason
    assert [entry.usage for entry in Store(tmp_path).entries()] == [Usage(7, 1)] * 2


@pytest.mark.parametrize(
    "says",
    [
        "[]",
        "null",
        "7",
        "{}",
        '{"choices": [3]}',
        "[" * 100000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_odd_bodies_are_counted_with_estimated_tokens(tmp_path, says):
    with Server(always=200, says=says) as server:
        outcome = ask(server, tmp_path, requests(0, 1), attempts=2)[0]
    assert outcome.reason in ("malformed JSON", "no choices")
    entries = Store(tmp_path).entries()
    assert len(entries) == 2
    assert all(entry.usage.estimated and entry.usage.prompt_tokens == 3 for entry in entries)


def test_retry_after_is_honoured(tmp_path):
    with Server({"429": 1.0}, most_faults=1, retry_after="0.25") as server:
        ask(server, tmp_path, requests(0, 1))
    first, second = (moment for _, moment in server.times)
    assert 0.25 <= second - first < 0.5


def test_retry_after_keeps_everybody_back(tmp_path):
    with Server({"429": 0.05, "slow": 0.95}, retry_after="0.15") as server:
        ask(server, tmp_path, requests(0, 60))
    assert 0 < len(server.refusals) < 8
    assert server.refusals[0] < sorted(server.times, key=lambda entry: entry[1])[-20][1]
    for refusal in server.refusals:  # what had gone out already may still come in
        assert not [moment for _, moment in server.times if refusal + 0.05 < moment < refusal + 0.14]


def test_a_wish_to_wait_too_long_is_a_named_failure(tmp_path):
    with Server({"429": 1.0}, retry_after="3600") as server:
        failed = ask(server, tmp_path, requests(0, 1))[0]
    assert (failed.reason, failed.attempts) == ("rate limited", 1)
    assert "wait 3600 s" in failed.detail


def test_rate_limit(tmp_path):
    with Server() as server:
        ask(server, tmp_path, requests(0, 6), requests_per_minute=1200)
    moments = sorted(moment for _, moment in server.times)
    assert moments[-1] - moments[0] >= 5 * 0.05 - 0.01


def test_retry_after_in_seconds_milliseconds_and_as_a_date():
    assert retry_after({"Retry-After": "3"}) == 3
    assert retry_after({"retry-after-ms": "250", "Retry-After": "1"}) == 0.25
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after({"Retry-After": date}) <= 30
    for nonsense in ("", "soon", "-1", "nan", "inf"):
        assert retry_after({"Retry-After": nonsense}) is None
    assert retry_after({}) is None


def test_backoff_has_full_jitter_and_follows_the_seed():
    waits = [backoff(3, 1.0, 60.0, random.Random(i)) for i in range(200)]
    assert min(waits) < 0.5 < 7.5 < max(waits) <= 8
    assert max(backoff(50, 1.0, 60.0, random.Random(i)) for i in range(50)) <= 60
    assert waits == [backoff(3, 1.0, 60.0, random.Random(i)) for i in range(200)]


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "judge.model"), (401, VARIABLE), (402, "balance"), (403, VARIABLE), (404, "/v1"), (307, "judge.base_url")],
)
def test_what_no_retry_mends_stops_at_once_and_says_what_to_check(tmp_path, status, hint):
    says = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid"}}
    with Server(always=status, says=says) as server, pytest.raises(JudgeError, match=f"HTTP {status}") as caught:
        ask(server, tmp_path, requests(0, 200))
    assert hint in str(caught.value)
    assert "[key]" in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert server.tries.total() <= 4


def test_a_spent_quota_stops_at_once(tmp_path):
    says = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with Server(always=429, says=says) as server, pytest.raises(JudgeError, match="balance"):
        ask(server, tmp_path, requests(0, 50))
    assert server.tries.total() <= 4


@pytest.mark.parametrize(("code", "reason"), [("context_length_exceeded", "too long"), ("content_filter", "refused")])
def test_a_prompt_that_the_endpoint_cannot_take_is_a_failure_of_its_own(tmp_path, code, reason):
    with Server(always=400, says={"error": {"message": "no", "code": code}}) as server:
        outcome = ask(server, tmp_path, requests(0, 3))
    assert [(failed.reason, failed.attempts) for failed in outcome] == [(reason, 1)] * 3


def test_nobody_at_the_address(tmp_path):
    with Server() as server:
        pass
    assert ask(server, tmp_path, requests(0, 1), attempts=2)[0].reason == "unreachable"
    with pytest.raises(JudgeError, match=r"nobody answers at .* Check judge.base_url"):
        ask(server, tmp_path, requests(0, 100), attempts=2)
    assert Store(tmp_path).entries() == []  # nothing went out


def test_connections_that_fail_now_and_then_are_no_missing_endpoint(tmp_path, monkeypatch):
    """Replies in between say that somebody is there, however many connections fail in all."""
    tries = []

    def every_other(*arguments):
        tries.append(arguments)
        if len(tries) % 2:
            raise NoAnswer("unreachable", sent=False, detail="refused")
        return post(*arguments)

    monkeypatch.setattr("vrm.judging.client.post", every_other)
    with Server() as server:
        outcome = ask(server, tmp_path, requests(0, 12), attempts=2, concurrency=1)
    assert [reply.text for reply in outcome] == scores(0, 12)
    assert len(tries) == 24


def test_an_error_leaves_what_was_paid_for_in_the_store(tmp_path):
    with Server(hold_after=10) as server:
        victim = start(server, tmp_path, 0, 30)
        wait_for(lambda: server.parked == 4)
        victim.send_signal(signal.SIGINT)
        time.sleep(0.1)
        server.released.set()
        assert "KeyboardInterrupt" in victim.communicate(timeout=10)[1]
    is_complete(tmp_path, server, server.paid)
    assert server.paid == 14


def test_the_key_shows_nowhere(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    says = {"choices": [{"message": {"content": f"your key is {KEY}"}, "finish_reason": "stop"}]}
    escaped = json.dumps(says).replace("sk-", "\\u0073k-")
    for body in (says, escaped):
        with Server(always=200, says=body) as server:
            directory = tmp_path / str(type(body))
            judge = Judge(config(server.url, top_logprobs=None), Store(directory))
            assert judge.ask(requests(0, 1))[0].text == "your key is [key]"
    with Server(always=500, says=f"<p>{KEY}</p>") as server:
        failed = ask(server, tmp_path / "failed", requests(0, 1), attempts=1)[0]
    shown = [repr(judge), str(vars(judge)), repr(judge.config), judge.config.model_dump_json(), repr(failed)]
    assert not re.search(KEY, " ".join(shown))
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(judge._key)
    assert repr(copy.copy(judge.config)) == repr(judge.config)


@pytest.mark.parametrize("as_json", [True, False])
def test_no_part_of_the_key_shows_where_a_long_error_is_cut(tmp_path, as_json):
    """The endpoint's message is repeated up to 300 characters, and its 300th may stand in the middle of the key."""
    with Server(always=401) as server:
        for before in range(300 - len(KEY), 301):
            said = f"{'x' * before} {KEY} was not accepted"
            server.says = {"error": {"message": said}} if as_json else said
            with pytest.raises(JudgeError, match="HTTP 401: xxx") as caught:
                ask(server, tmp_path, requests(0, 1))
            assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize("value", ["", f"{KEY}\n", f"a {KEY}", f"{KEY}é"])
def test_a_key_that_is_none_is_an_error_that_names_the_variable(tmp_path, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=VARIABLE) as caught:
        Judge(config("http://127.0.0.1:1/v1"), Store(tmp_path))
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_an_endpoint_without_a_key(tmp_path):
    with Server() as server:
        ask(server, tmp_path, requests(0, 1), api_key_env=None)
    assert server.authorisation == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key_env": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": "host/v1"},
        {"keys": KEY},
    ],
)
def test_a_configuration_with_a_key_in_it_is_refused_and_not_repeated(changes):
    with pytest.raises(ValidationError) as caught:
        JudgeConfig(**{"base_url": "http://host/v1", "model": "m", **changes})
    assert KEY not in str(caught.value)
