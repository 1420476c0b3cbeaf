"""Gold rewards of samples, in their order."""

import pandas as pd
import pytest

from vrm.evaluation.overoptimisation import score_gold
from vrm.records import RecordError, write_jsonl
from vrm.world.gold import gold_reward


def test_one_row_a_sample_in_order(tmp_path):
    texts = [("Tell me about basil.", "Basil is a herb."), ("alpha", ""), ("alpha", "beta")]
    rows = [{"prompt": [{"role": "user", "content": prompt}], "response": answer} for prompt, answer in texts]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    score_gold("vrm.world.gold:gold_reward", tmp_path / "samples.jsonl", tmp_path / "samples.gold.csv")
    table = pd.read_csv(tmp_path / "samples.gold.csv")
    assert list(table.columns) == ["gold"]
    assert table.gold.tolist() == pytest.approx([gold_reward(*pair) for pair in texts])


def test_a_row_that_is_no_sample_is_named(tmp_path):
    write_jsonl(tmp_path / "samples.jsonl", [{"prompt": []}])
    with pytest.raises(RecordError, match=r"samples\.jsonl, row 1: has no 'response'"):
        score_gold("vrm.world.gold:gold_reward", tmp_path / "samples.jsonl", tmp_path / "out.csv")
