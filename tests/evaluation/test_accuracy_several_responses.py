"""Best of four, Ties and RM-Bench, against values worked by hand from upstream's definitions."""

import math

import numpy as np
import pandas as pd
import pytest

from vrm.evaluation.accuracy import Item, best_of, group_pairs, grouped, rm_bench, several_metrics, ties_score


def item(row_id, chosen, rejected, subset=""):
    return Item(row_id, subset, dict(enumerate(chosen)), dict(enumerate(rejected)))


def test_best_of_four_shares_a_highest_reward():
    assert best_of([item("a", [3.0], [2.0, 1.0, 0.0])]) == 1
    assert best_of([item("a", [1.0], [2.0, 1.0, 0.0])]) == 0
    assert best_of([item("a", [2.0], [2.0, 1.0, 2.0])]) == pytest.approx(1 / 3)
    assert best_of([item("a", [2.0], [2.0, 1.0, 0.0]), item("b", [9.0], [0.0, 0.0, 0.0])]) == pytest.approx(0.75)


def test_ties_by_hand():
    """Two prompts. The first is right in every respect; the second's right answers lie apart, one below a wrong one."""
    items = [
        item("ref:1", [5.0], [1.0, 0.0]),  # right - wrong = 4
        item("tied:1", [4.0, 3.0], [1.0, 0.0]),  # spread 1, gap 2
        item("ref:2", [2.0], [1.0]),  # gap 1
        item("tied:2", [6.0, 0.0], [1.0]),  # spread 6, gap -1
    ]
    margin = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 6 - 1)) / 2
    assert ties_score(items) == pytest.approx(0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * margin)


def test_ties_where_the_right_answers_are_equal():
    same = [item("ref:1", [2.0], [1.0]), item("tied:1", [2.0, 2.0], [1.0])]
    assert ties_score(same) == pytest.approx(1.01)  # tanh of infinity
    level = [item("ref:1", [1.0], [1.0]), item("tied:1", [1.0, 1.0], [1.0])]
    assert ties_score(level) == 0  # 0 / 0 counts as 0


def test_ties_need_both_rows_of_a_prompt():
    assert math.isnan(ties_score([item("ref:1", [2.0], [1.0])]))
    assert math.isnan(ties_score([item("7", [2.0], [1.0])]))


def test_rm_bench_by_hand():
    """The right answer's style lifts its reward by 0, 1, 2 and the wrong one's likewise: hard pairs are lost."""
    styled = item("a", [0.5, 1.5, 2.5], [0.0, 1.0, 2.0], "chat")
    assert rm_bench([styled]) == {
        "style/easy": 1.0, "style/normal": 1.0, "style/hard": 0.0,
        "domain/chat": pytest.approx(2 / 3), "rm_bench": pytest.approx(2 / 3),
    }  # fmt: skip
    lost = item("b", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], "safety-refuse")
    won = item("c", [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "safety-response")
    both = rm_bench([styled, lost, won])  # safety is one domain of two rows: half right at every difficulty
    assert both["domain/safety"] == pytest.approx(0.5)
    assert (both["style/hard"], both["style/easy"]) == (pytest.approx(0.25), pytest.approx(0.75))
    assert both["rm_bench"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_rows_are_put_together_again_and_plain_pairs_are_none():
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(size=2), rng.normal(size=4)
    ids = [f"CPP/0/{i}-{j}" for i in range(2) for j in range(4)]
    order = rng.permutation(8)
    chosen, rejected = np.repeat(right, 4)[order], np.tile(wrong, 2)[order]
    (row,) = group_pairs([ids[k] for k in order], ["s"] * 8, chosen.tolist(), rejected.tolist())
    assert row.row_id == "CPP/0"
    assert [rewards.tolist() for rewards in row.rewards] == [right.tolist(), wrong.tolist()]
    assert group_pairs(["CPP/0", "7"], ["", ""], [1.0, 1.0], [0.0, 0.0]) == []
    assert several_metrics([]) == {}


def test_the_metrics_of_a_table_have_upstreams_numbers():
    scores = pd.DataFrame(
        {
            "pair_id": ["1/0-0", "1/0-1", "1/0-2", "2/0-0", "2/0-1", "2/0-2"],
            "subset": ["Math"] * 3 + ["Focus"] * 3,
            "reward_chosen": [1.0] * 6,
            "reward_rejected": [0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
        }
    )
    values = several_metrics(grouped(scores))
    assert (values["best_of"], values["best_of/Math"], values["best_of/Focus"]) == ((0.5, 2), (0.0, 1), (1.0, 1))
    assert several_metrics(grouped(scores.assign(pair_id=list("abcdef")))) == {}
