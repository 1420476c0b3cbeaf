"""Asking again: until the reply is usable, no more often than allowed, and never after a failure."""

import pytest

from vrm.judging import Failed, Reply, Request, Usage
from vrm.judging.asking import ask_until, recording, storable


def request(number):
    return Request([{"role": "user", "content": f"question {number}"}], "mt_bench")


class Script:
    """Says what is written for a question's attempt, and notes the batches that it is asked."""

    def __init__(self, *lines):
        self.lines, self.batches = lines, []

    def __call__(self, requests):
        self.batches.append([(r.messages[0]["content"], r.attempt) for r in requests])
        texts = [self.lines[int(r.messages[0]["content"].split()[1])][r.attempt] for r in requests]
        return [Failed(t[1:], 6) if t.startswith("!") else Reply("k", "mt_bench", t, Usage(1, 1)) for t in texts]


def said(outcomes):
    return [[o.text if isinstance(o, Reply) else o.reason for o in own] for own in outcomes]


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        (1, [["yes"], ["no"], ["no"], ["down"]]),
        (2, [["yes"], ["no", "yes"], ["no", "down"], ["down"]]),
        (3, [["yes"], ["no", "yes"], ["no", "down"], ["down"]]),
    ],
)
def test_only_unusable_replies_are_asked_again(attempts, expected):
    ask, asked = Script(["yes"], ["no", "yes"], ["no", "!down"], ["!down"]), []
    requests = [request(i) for i in range(4)]
    outcomes = ask_until(recording(ask, asked), requests, lambda reply: reply.text == "yes", attempts)
    assert said(outcomes) == expected
    assert len(asked) == sum(map(len, expected))
    assert asked[:4] == requests
    assert len(ask.batches) == min(attempts, 2)


def test_never_more_often_than_allowed():
    ask = Script(["no"] * 9)
    assert said(ask_until(ask, [request(0)], lambda _: False, 3)) == [["no"] * 3]
    assert ask.batches == [[("question 0", i)] for i in range(3)]


def test_nothing_to_ask_asks_nobody():
    ask = Script()
    assert ask_until(ask, [], lambda _: True, 2) == []
    assert ask.batches == []


def test_the_caller_says_how_it_is_asked_again():
    asked = []

    def again(request, reply):
        return Request([*request.messages, {"role": "user", "content": f"after {reply.text}"}], "mt_bench")

    def ask(requests):
        return [Reply("k", "mt_bench", str(len(requests[0].messages)), Usage(1, 1))]

    ask_until(recording(ask, asked), [request(0)], lambda reply: reply.text == "3", 5, again)
    assert [m["content"] for m in asked[-1].messages] == ["question 0", "after 1", "after 2"]


def test_a_text_can_be_stored():
    assert storable("é\ud83d [[A>B]] \U0001f600") == "é? [[A>B]] \U0001f600"
