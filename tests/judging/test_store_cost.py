"""What judging costs: from the store, and estimated before a call."""

import pytest
from judging_jobs import config, requests
from server import Server, score

from vrm.config.judge import Prices
from vrm.judging import Estimate, Judge, Request, Store, Unanswered, Usage, estimate, not_stored, spending, total

PRICES = Prices(prompt=2.0, completion=10.0)


def test_spending_is_what_the_server_billed(tmp_path):
    with Server({"empty": 0.3, "malformed": 0.2, "429": 0.2}) as server:
        Judge(config(server.url), Store(tmp_path)).ask(requests(0, 20))
    store = Store(tmp_path)
    costs = spending(store, PRICES)
    assert list(costs) == ["arena_hard", "mt_bench"]
    for parity, cost in enumerate(costs.values()):
        texts = [f"question {i}" for i in range(parity, 20, 2)]
        assert cost.replies == 10
        assert cost.unusable == sum(server.in_vain[text] for text in texts) > 0
        reported = [
            entry.usage
            for entry in store.entries()
            if not entry.usage.estimated and entry.benchmark == list(costs)[parity]
        ]
        assert len(reported) >= 10
        assert cost.cost == pytest.approx((2 * cost.prompt_tokens + 10 * cost.completion_tokens) / 1e6)
        assert cost.prompt_tokens >= sum(map(len, texts))
        assert cost.completion_tokens >= sum(map(score, texts))
    sums = total(costs)
    assert sums.replies + sums.unusable == server.paid
    assert 0 < sums.estimated_tokens < sums.prompt_tokens
    assert (sums.unanswered, sums.perhaps) == (0, 0)


def test_requests_without_an_answer_stand_beside_the_cost(tmp_path):
    store = Store(tmp_path)
    store.append(Unanswered("k", "mt_bench", "timed out", Usage(1000, 2048, True)))
    cost = spending(store, PRICES)["mt_bench"]
    assert (cost.cost, cost.unanswered, cost.prompt_tokens) == (0, 1, 0)
    assert cost.perhaps == pytest.approx((2 * 1000 + 10 * 2048) / 1e6)
    assert spending(store, None)["mt_bench"].cost is None
    assert total(spending(store, None)).perhaps is None


def test_estimate_before_any_call():
    asked = [
        Request([{"role": "user", "content": "x" * 401}], "arena_hard", parameters={"max_tokens": 4096}),
        Request([{"role": "user", "content": "x" * 40}, {"role": "user", "content": "x" * 4}], "mt_bench"),
        Request([], "mt_bench", parameters={"max_tokens": None, "max_completion_tokens": 7}),
    ]
    arena, mt, both = (estimate(some, PRICES, max_tokens=100) for some in (asked[:1], asked[1:], asked))
    assert (arena.requests, arena.prompt_tokens, arena.completion_tokens) == (1, 101, 4096)
    assert (mt.requests, mt.prompt_tokens, mt.completion_tokens) == (2, 11, 107)
    assert both.cost == pytest.approx((2 * 112 + 10 * 4203) / 1e6)
    assert estimate(asked, None, max_tokens=100) == Estimate(3, 112, 4203, None)
    assert estimate([], PRICES, max_tokens=100) == Estimate(0, 0, 0, 0.0)


def test_only_what_the_store_lacks_is_to_be_paid(tmp_path):
    with Server() as server:
        settings = config(server.url)
        Judge(settings, Store(tmp_path)).ask(requests(0, 5))
    left = not_stored([*requests(0, 8), *requests(6, 8)], settings, Store(tmp_path))
    assert left == requests(5, 8)
