"""The numbers of docs/results that no part of the package computes: length alone, and who knows the unsafe prompts."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import toy_pair
from paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import real_text


@pytest.fixture
def pairs():
    """Pairs whose chosen response is the longer one in 8 of 10."""
    rng = np.random.default_rng(0)
    made = [toy_pair(i, rng) for i in range(10)]
    texts = [("a b c", "a b") if i < 8 else ("a", "a b") for i in range(10)]
    return [type(p)(**{**vars(p), "chosen": c, "rejected": r}) for p, (c, r) in zip(made, texts, strict=True)]


def test_length_alone_takes_the_side_that_is_right_in_training(pairs):
    swapped = [type(p)(**{**vars(p), "chosen": p.rejected, "rejected": p.chosen}) for p in pairs]
    assert real_text._length_alone(pairs, pairs)[2].estimate == pytest.approx(0.8)
    label, _, interval, *_ = real_text._length_alone(swapped, pairs)
    assert "shorter" in label
    assert interval.estimate == pytest.approx(0.2)


def test_the_auc_is_the_share_of_unsafe_prompts_above_safe_ones():
    weights = {"a": 0.9, "b": 0.4, "c": 0.4, "d": 0.1}
    scores = pd.DataFrame({"prompt_id": [*weights, "a"], "weight_caution": [*weights.values(), 0.9]})
    kinds = {"a": True, "b": True, "c": False, "d": False}
    _, _, interval, _, prompts, unsafe = real_text._knows_the_unsafe("VRM", [scores, scores], kinds)
    assert interval.estimate == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert interval.low <= interval.estimate <= interval.high
    assert (prompts, unsafe) == (4, 2)


def test_a_score_that_is_the_rating_follows_it_and_a_response_counts_once(pairs):
    rated = [
        type(p)(**{**vars(p), "chosen_scores": [1.0, 0.0, i], "rejected_scores": [1.0, 0.0, -i]})
        for i, p in enumerate(pairs)
    ]
    table = pd.DataFrame({"chosen_x": [float(i) for i in range(10)], "rejected_x": [-float(i) for i in range(10)]})
    assert real_text._follows(table, "x", 2, rated) == pytest.approx(1.0)
    assert real_text._follows(-table, "x", 2, rated) == pytest.approx(-1.0)
