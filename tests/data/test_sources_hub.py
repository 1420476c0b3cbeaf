"""Local directories as the hub lays them out: Parquet shards, a card with configurations, the public columns.

`hub.dataset` may name such a directory; `datasets` reads it as it reads the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vrm.config import ConfigError, DataConfig, EvaluationSet
from vrm.data.pairs import make_pairs, normalise_pairs
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.data.sources import read_rows
from vrm.records import read_jsonl, read_pairs

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it has read; not beyond a test, and not in the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_dataset(directory: Path, splits: dict[str, list[dict[str, Any]]], shards: int = 1) -> Path:
    """A dataset's repository: data/<split>-<shard>.parquet, and a card that says so."""
    (directory / "data").mkdir(parents=True)
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, rows in splits.items():
        for shard in range(shards):
            table = pyarrow.Table.from_pylist(rows[shard::shards])
            parquet.write_table(table, directory / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet")
        card += [f"  - split: {split}", f"    path: data/{split}-*"]
    (directory / "README.md").write_text("\n".join([*card, "---", "# A data card", ""]))
    return directory


def aspect(rating: str, kind: str | None = None) -> dict[str, Any]:
    """An annotation: two of the four aspects have a type beside the rating."""
    named = {"Rating": rating, "Rationale": "because"}
    return named | ({"Type": kind, "Rationale For Rating": "so"} if kind else {})


def ultrafeedback(number: int, ratings: list[str]) -> dict[str, Any]:
    """A row with all the columns that UltraFeedback has."""
    completions = [
        {
            "annotations": {
                "helpfulness": aspect(rating, "1"),
                "honesty": aspect(rating),
                "instruction_following": aspect(rating),
                "truthfulness": aspect(rating, "None"),
            },
            "critique": "Good.",
            "custom_system_prompt": "You are helpful.",
            "fine-grained_score": 3.5,
            "model": f"model{each}",
            "overall_score": 10.0 - each,
            "principle": "helpfulness",
            "response": f"Answer {each} to {number}",
        }
        for each, rating in enumerate(ratings)
    ]
    return {
        "source": "evol_instruct",
        "instruction": f"Question {number}?",
        "models": [completion["model"] for completion in completions],
        "completions": completions,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


@pytest.fixture
def scored(tmp_path) -> Path:
    """Forty prompts in two shards; one response of the last is not rated, and one prompt has no responses."""
    rows = [ultrafeedback(n, ["5", "4", "2", "1"]) for n in range(38)]
    rows += [ultrafeedback(38, ["5", "N/A", "2", "1"]), ultrafeedback(39, [])]
    return write_dataset(tmp_path / "UltraFeedback", {"train": rows}, shards=2)


def test_ultrafeedback_goes_from_the_hubs_layout_to_normalised_pairs(scored, tmp_path):
    # as the paper's preset: no test split
    config = DataConfig(hub={"dataset": str(scored)}, label="test", test_fraction=0.0, validation_fraction=0.3)
    counts = read_scored_prompts(config, tmp_path)
    assert counts["rows"] == 40
    assert (counts["prompts"], counts["responses"], counts["rows_quarantined"]) == (39, 38 * 4 + 3, 1)
    assert counts["responses_set_aside_because"] == {"rating of instruction_following is not a number": 1}
    made = make_pairs(config, tmp_path)
    assert made["train"]["pairs"] + made["validation"]["pairs"] == 39
    assert made["test"]["pairs"] == 0
    normalise_pairs(config, tmp_path)
    train = list(read_pairs(tmp_path / "pairs" / "train.jsonl"))
    assert len(train) == made["train"]["pairs"]
    assert all(pair.chosen.startswith("Answer 0") and len(pair.chosen_scores) == len(ASPECTS) for pair in train)
    assert (tmp_path / "pairs" / "test.jsonl").read_text() == ""


def test_the_source_is_named_with_its_split(scored, tmp_path):
    config = DataConfig(hub={"dataset": str(scored)}, label="test")
    assert read_scored_prompts(config, tmp_path)["source"] == f"{scored}@local, split train"


def test_a_split_that_is_not_there_says_what_to_mend(scored):
    config = DataConfig(hub={"dataset": str(scored), "split": "test"}, label="test")
    with pytest.raises(ConfigError, match=r"correct hub\.dataset, hub\.name, hub\.split"):
        list(read_rows(config))


def reward_bench(number: int, subset: str) -> dict[str, Any]:
    """A row with all the columns that RewardBench has."""
    return {
        "prompt": f"Question {number}?",
        "chosen": f"good {number}",
        "chosen_model": "human",
        "rejected": f"bad {number}",
        "rejected_model": "unkown",
        "subset": subset,
        "id": number,
    }


def test_reward_bench_is_read_by_split_with_its_subsets_and_ids(tmp_path):
    subsets = ["alpacaeval-easy", "math-prm", "hep-cpp"]
    rows = [reward_bench(n, subsets[n % 3]) for n in range(9)]
    directory = write_dataset(tmp_path / "reward-bench", {"raw": rows, "filtered": rows[:6]})
    config = EvaluationSet(
        label="RewardBench", format="reward_bench", hub={"dataset": str(directory), "split": "filtered"}
    )
    counts = read_preference_set("reward_bench", config, None, tmp_path, ASPECTS)
    assert counts["subsets"] == dict.fromkeys(sorted(subsets), 2)
    pairs = list(read_pairs(tmp_path / "reward_bench.jsonl"))
    assert [pair.pair_id for pair in pairs] == [str(n) for n in range(6)]
    assert pairs[1].prompt == [{"role": "user", "content": "Question 1?"}]


def binarized(number: int) -> dict[str, Any]:
    """A row with all the columns of ultrafeedback_binarized_cleaned."""
    question = {"content": f"Question {number}?", "role": "user"}
    chosen = [question, {"content": f"good {number}", "role": "assistant"}]
    rejected = [question, {"content": f"bad {number}", "role": "assistant"}]
    return {
        "prompt": question["content"],
        "prompt_id": f"{number:064x}",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": 8.5,
        "score_rejected": 7.0,
        "source": "flan_v2_niv2",
    }


def test_binarized_conversations_become_pairs_and_are_audited_against_training(scored, tmp_path):
    config = DataConfig(hub={"dataset": str(scored)}, label="test", test_fraction=0.0, validation_fraction=0.3)
    read_scored_prompts(config, tmp_path)
    make_pairs(config, tmp_path)
    train = tmp_path / "raw_pairs" / "train.jsonl"
    splits = {"train_prefs": [binarized(0)], "test_prefs": [binarized(n) for n in range(30, 50)]}
    directory = write_dataset(tmp_path / "binarized", splits)
    uf_c = EvaluationSet(label="UF-C", hub={"dataset": str(directory), "split": "test_prefs"})
    counts = read_preference_set("uf_c", uf_c, train, tmp_path, ASPECTS)
    # questions 30 to 38 have scored responses; those that fell to training are leaked
    learnt = {row["prompt"][0]["content"] for _, row in read_jsonl(train)}
    leaked = [n for n in range(30, 39) if f"Question {n}?" in learnt]
    assert (counts["pairs"], counts["leaked_prompts"]) == (20, len(leaked))
    assert leaked
    first = next(iter(read_pairs(tmp_path / "uf_c.jsonl")))
    assert (first.prompt, first.chosen, first.rejected) == (
        [{"role": "user", "content": "Question 30?"}],
        "good 30",
        "bad 30",
    )
