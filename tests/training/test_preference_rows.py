"""Rows of the preference methods: what a batch holds, and KTO's mismatched responses."""

from types import SimpleNamespace

import pytest
import torch

from vrm.config import ConfigError, PolicyTraining, PreferenceMethod
from vrm.models.text import TokenisedText
from vrm.training.pairs import TokenisedPair
from vrm.training.preference import RowCollator, measured_rows, paired_rows, unpaired_rows


def make_pairs(count, share=1):
    """Prompt i is [i, i]; its chosen response [100 + i, 1], its rejected one [200 + i, 200 + i, 1].

    `share` neighbouring pairs count as having the same prompt.
    """
    return [
        TokenisedPair(
            record=SimpleNamespace(prompt_id=f"p{i // share}"),
            chosen=TokenisedText([i, i, 100 + i, 1], 2, False),
            rejected=TokenisedText([i, i, 200 + i, 200 + i, 1], 2, False),
        )
        for i in range(10, 10 + count)
    ]


def test_a_batch_is_the_first_texts_then_the_second_with_labels_on_responses_alone():
    rows = paired_rows(make_pairs(2))
    batch = RowCollator(pad_token_id=0)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [
        [10, 10, 110, 1, 0],
        [11, 11, 111, 1, 0],
        [10, 10, 210, 210, 1],
        [11, 11, 211, 211, 1],
    ]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 1, 1, 0]
    assert batch["labels"].tolist()[0] == [-100, -100, 110, 1, -100]
    assert batch["labels"].tolist()[3] == [-100, -100, 211, 211, 1]
    assert batch["response_mask"].sum(1).tolist() == [2, 2, 3, 3]


def test_a_packed_batch_has_each_prompt_once():
    rows = paired_rows(make_pairs(2))
    batch = RowCollator(pad_token_id=0, kernel="groups")([rows[0], rows[1]])
    # the prompt's last token begins each of its responses
    assert batch["input_ids"].tolist() == [[10, 10, 110, 1, 10, 210, 210, 1, 11, 11, 111, 1, 11, 211, 211, 1]]
    assert batch["response_mask"].sum(1).tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("kernel", [None, "groups"])
def test_texts_without_gradient_are_a_batch_of_their_own(kernel):
    rows = paired_rows(make_pairs(2))
    batch = RowCollator(pad_token_id=0, kernel=kernel, apart=True)([rows[0], rows[1]])
    assert batch["response_mask"].sum(1).tolist() == [2, 2]
    assert batch["second"]["response_mask"].sum(1).tolist() == [3, 3]


def test_references_and_labels_stand_beside_the_texts():
    row = {"first_ids": [5, 0, 1], "second_ids": [5, 6, 1], "prompt_length": 1, "first_reference": -2.0}
    batch = RowCollator(pad_token_id=0)([row | {"second_reference": -3.0, "desirable": True}])
    assert torch.equal(batch["second_reference"], torch.tensor([-3.0]))
    assert torch.equal(batch["desirable"], torch.tensor([True]))


def test_kto_mixes_both_kinds_and_mismatches_within_a_batch():
    pairs, size = make_pairs(16), 8
    rows = unpaired_rows(pairs, size, seed=0)
    assert len(rows) == 2 * 16
    for start in range(0, len(rows), size):
        batch = rows.select(range(start, start + size))
        matched = [tuple(row["first_ids"][2:]) for row in batch]
        mismatched = [tuple(row["second_ids"][2:]) for row in batch]
        assert set(mismatched) <= set(matched)
        assert all(row["first_ids"][:2] == row["second_ids"][:2] for row in batch)
        assert 0 < sum(row["desirable"] for row in batch) < size  # of one kind alone the KL has no counterweight
    assert list(unpaired_rows(pairs, size, seed=1)["first_ids"]) != list(rows["first_ids"])


@pytest.mark.parametrize("share", [1, 4], ids=["one pair a prompt", "four pairs a prompt"])
@pytest.mark.parametrize("measured", [True, False], ids=["measured", "trained on"])
def test_a_mismatched_response_answers_another_prompt(share, measured):
    pairs = make_pairs(16, share)
    rows = measured_rows(pairs) if measured else unpaired_rows(pairs, 16, seed=0)
    for row in rows:
        here, other = row["first_ids"][0], row["second_ids"][2] % 100  # prompt i, response 100 + i or 200 + i
        assert here // share != other // share


def test_what_is_measured_is_mismatched_with_both_kinds():
    """As a training's batches are: of rejected responses alone, which fall, the KL would be none."""
    chosen = [row["second_ids"][2] < 200 for row in measured_rows(make_pairs(16))]  # response 100 + i or 200 + i
    assert sum(chosen) == len(chosen) / 2


def test_a_mismatched_text_is_no_longer_than_the_longest_of_its_batch():
    short, long = make_pairs(2)
    long = TokenisedPair(SimpleNamespace(prompt_id="q"), TokenisedText([9] * 7 + [1], 7, False), long.rejected)
    rows = measured_rows([short, long])
    assert max(map(len, rows["second_ids"])) <= 8


def test_kto_needs_a_batch():
    method = PreferenceMethod(label="KTO", method="kto")
    with pytest.raises(ConfigError, match="batch_size is to be at least 2"):
        method.trained_with(PolicyTraining(batch_size=1))
    assert method.trained_with(PolicyTraining(batch_size=2)).batch_size == 2


def test_measured_rows_keep_a_pair_together():
    rows = measured_rows(make_pairs(3))
    assert rows["desirable"][:] == [True, False] * 3
    assert [row[0] for row in rows["first_ids"]] == [10, 10, 11, 11, 12, 12]
