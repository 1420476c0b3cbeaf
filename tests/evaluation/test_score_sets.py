"""Scoring of evaluation sets, with a reward model that is nothing but a word count."""

from dataclasses import replace

import numpy as np
import pandas as pd

from vrm.evaluation.calibration import marginal_probability, thurstone_probability
from vrm.evaluation.score_sets import score_pairs, score_sets
from vrm.models.base import RewardModel, RewardOutput
from vrm.records import PreferencePair, prompt_id, write_jsonl


class WordCount:
    """Reward = number of words; weights say whether the prompt is long; texts over 5 words are cut."""

    aspects = ("length", "rest")

    def __init__(self):
        self.texts = []

    def score(self, prompts, responses):
        self.texts += responses
        words = np.array([len(text.split()) for text in responses], dtype=np.float32)
        long = np.array([len(p[0]["content"]) > 10 for p in prompts], dtype=np.float32)
        return RewardOutput(words, words > 5, None, np.stack([long, 1 - long], 1), np.stack([words, 0 * words], 1))


def pair(name, prompt, chosen, rejected, **rest):
    turns = [{"role": "user", "content": prompt}]
    return PreferencePair(name, prompt_id(turns), turns, chosen, rejected, **rest)


PAIRS = [
    pair("a", "short", "x y z", "x", true_weights=[0.25, 0.75]),
    pair("b", "a longer prompt", "x " * 6, "x y", subset="s"),
]


def test_every_pair_has_its_row():
    model = WordCount()
    assert isinstance(model, RewardModel)
    table = score_pairs(model, PAIRS, {PAIRS[1].prompt_id})
    assert table.reward_chosen.tolist() == [3, 6]
    assert table.reward_rejected.tolist() == [1, 2]
    assert table.leaked.tolist() == [0, 1]
    assert table.truncated.tolist() == [0, 1]
    assert table.weight_length.tolist() == [0, 1]
    assert table.chosen_length.tolist() == [3, 6]
    assert table.true_weight_rest[0] == 0.75
    assert np.isnan(table.true_weight_rest[1])


def test_equal_texts_are_scored_once_and_prompts_keep_them_apart(tmp_path):
    """A second set holds the first one's responses under the opposite label, and another prompt."""
    swapped = [pair("c", "short", "x", "x y z"), pair("d", "other", "x", "x y z")]
    write_jsonl(tmp_path / "one.jsonl", PAIRS)
    write_jsonl(tmp_path / "two.jsonl", swapped)
    model = WordCount()
    sets = {"one": tmp_path / "one.jsonl", "two": tmp_path / "two.jsonl"}
    score_sets(model, sets, tmp_path / "two.jsonl", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(model.texts) == 6
    assert table.evaluation_set.tolist() == ["one", "one", "two", "two"]
    assert table.reward_chosen.tolist() == [3, 6, 1, 1]
    assert table.reward_rejected.tolist() == [1, 2, 3, 3]
    assert table.leaked.tolist() == [1, 0, 1, 1]


class WithResidual(WordCount):
    """Half a point of each reward is beside the rated aspects."""

    def score(self, prompts, responses):
        whole = super().score(prompts, responses)
        return replace(whole, rated=whole.mean - 0.5, residual=np.full(len(responses), 0.5))


def test_a_residual_adds_columns_and_moves_none():
    before, after = (score_pairs(model(), PAIRS, set()) for model in (WordCount, WithResidual))
    columns = list(before.columns)
    parts = ["rated_chosen", "rated_rejected", "residual_chosen", "residual_rejected", "rated_probability"]
    assert list(after.columns) == [*columns, *parts]
    pd.testing.assert_frame_equal(after[columns], before)
    for side in ("chosen", "rejected"):
        assert (after[f"rated_{side}"] + after[f"residual_{side}"]).tolist() == after[f"reward_{side}"].tolist()


def test_validation_pairs_have_a_file_of_their_own(tmp_path):
    write_jsonl(tmp_path / "one.jsonl", PAIRS)
    write_jsonl(tmp_path / "validation.jsonl", PAIRS[:1])
    sets, out = {"one": tmp_path / "one.jsonl"}, tmp_path / "scores.csv"
    score_sets(WordCount(), sets, tmp_path / "one.jsonl", out, validation=tmp_path / "validation.jsonl")
    scores, validation = pd.read_csv(out), pd.read_csv(tmp_path / "validation.csv")
    assert scores.evaluation_set.tolist() == ["one", "one"]
    assert validation.pair_id.tolist() == ["a"]
    assert validation.reward_chosen.tolist() == [3]
    assert "evaluation_set" not in validation


def test_a_reward_that_is_only_length_is_said_in_the_log(tmp_path, capsys):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    arguments = ({"one": tmp_path / "pairs.jsonl"}, tmp_path / "pairs.jsonl", tmp_path / "scores.csv")
    score_sets(WordCount(), *arguments, validation=tmp_path / "pairs.jsonl")
    assert "warning: the reward is length" in capsys.readouterr().err


def test_lengths_are_in_characters():
    table = score_pairs(WordCount(), PAIRS, set())
    assert table.length_chosen.tolist() == [5, 12]
    assert table.length_rejected.tolist() == [1, 3]


class Says(WordCount):
    """Answers as given, with the columns of a pair at the same places for every field."""

    def __init__(self, **fields):
        super().__init__()
        self.fields = fields

    def score(self, prompts, responses):
        return replace(super().score(prompts, responses), **self.fields)


def test_probability_is_the_models_own():
    """Rewards 3, 1 and 6, 2: differences of 2 and 4."""
    std = np.array([1.0, 2.0, 0.5, 0.0])
    variance = np.array([5.0, 0.25])
    expected = {
        "thurstone": thurstone_probability([2, 4], variance),
        "marginal": marginal_probability([2, 4], variance),
    }
    expected["means"] = 1 / (1 + np.exp([-2, -4]))
    for link, q in expected.items():
        np.testing.assert_allclose(score_pairs(Says(std=std, link=link), PAIRS, set()).probability, q, rtol=1e-6)
    assert "probability" not in score_pairs(Says(link=None), PAIRS, set())


def test_draws_of_both_responses_are_taken_together():
    """Draws that differ by a constant say so, however wide each response's own are."""
    draws = np.linspace(-50, 50, 11)
    samples = np.stack([draws + 1, draws, draws, draws[::-1]])
    q = score_pairs(Says(samples=samples, std=samples.std(axis=1)), PAIRS, set()).probability
    assert q[0] == 1 / (1 + np.exp(-1.0))
    assert abs(q[1] - 0.5) < 1e-12
