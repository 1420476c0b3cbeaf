"""Real files, as the public made them; skipped where they are absent."""

import numpy as np
import pytest

from vrm.config import DataConfig, EvaluationSet
from vrm.data.pairs import SPLITS, make_pairs, normalise_pairs
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.records import read_pairs

SUMMEVAL_ASPECTS = ["coherence", "consistency", "fluency", "relevance"]


@pytest.fixture
def summeval(shared_data, tmp_path):
    """The 80 articles, read, paired and normalised."""
    config = DataConfig(path=str(shared_data / "summeval/train.jsonl"), label="SummEval", aspects=SUMMEVAL_ASPECTS)
    scored = read_scored_prompts(config, tmp_path)
    paired = make_pairs(config, tmp_path)
    return scored, paired, normalise_pairs(config, tmp_path), tmp_path


def test_summeval(summeval):
    scored, paired, normalisation, out = summeval
    assert (scored["prompts"], scored["responses"], scored["rows_quarantined"]) == (80, 1280, 0)
    assert sum(paired[split]["prompts"] for split in SPLITS) == 80
    assert normalisation.n == 2 * paired["train"]["pairs"]
    for split in SPLITS:
        for pair in read_pairs(out / "pairs" / f"{split}.jsonl"):
            assert np.mean(pair.chosen_scores) > np.mean(pair.rejected_scores)
            assert sum(pair.target) == pytest.approx(1)


def test_reward_bench_shape(summeval, shared_data):
    out = summeval[-1]
    source = EvaluationSet(path=str(shared_data / "reward_bench_shape/pairs.jsonl"), label="R", format="reward_bench")
    counts = read_preference_set("r", source, out / "pairs/train.jsonl", out / "sets", SUMMEVAL_ASPECTS)
    assert (counts["pairs"], counts["rows_quarantined"], counts["leaked_pairs"]) == (989, 0, 0)
    assert counts["subsets"]["llmbar-adver-neighbor"] == 134


def test_ultrafeedback_pairs(summeval, shared_data):
    out = summeval[-1]
    source = EvaluationSet(path=str(shared_data / "ultrafeedback_pairs/train.jsonl"), label="U")
    counts = read_preference_set("u", source, out / "pairs/train.jsonl", out / "sets", SUMMEVAL_ASPECTS)
    assert (counts["rows"], counts["pairs"], counts["pairs_with_identical_texts"]) == (1000, 998, 4)
    assert counts["rows_quarantined_because"] == {"chosen is empty": 1, "rejected is empty": 1}


def test_training_pairs_as_an_evaluation_set_leak_wholly(summeval):
    out = summeval[-1]
    source = EvaluationSet(path=str(out / "pairs/train.jsonl"), label="T")
    counts = read_preference_set("t", source, out / "pairs/train.jsonl", out / "sets", SUMMEVAL_ASPECTS)
    assert counts["leaked_pairs"] == counts["pairs"] > 0
