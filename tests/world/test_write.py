"""The written files: shapes, labels, planted faults and leaks, and the same bytes for the same seed."""

import csv
import json
import subprocess
import sys

import pytest

from vrm.config import WorldConfig
from vrm.world import gold
from vrm.world.prompts import ASPECTS, KINDS
from vrm.world.write import Z95, wilson, write_world

CONFIG = WorldConfig(
    prompts=300, evaluation_prompts=150, pairs_per_subset=6, pairs_per_probe=40, leaked_share=0.1, faulty_share=0.02
)
FILES = [
    "noise_free.jsonl",
    "probes.jsonl",
    "reward_bench.jsonl",
    "statistics.csv",
    "uf_c.jsonl",
    "ultrafeedback.jsonl",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    write_world(CONFIG, out)
    return out


def _rows(world, name):
    return [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def facts(world):
    with open(world / "statistics.csv", newline="") as handle:
        return {row["metric"]: row for row in csv.DictReader(handle)}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(world, tmp_path):
    write_world(CONFIG, tmp_path / "again")
    write_world(CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    assert sorted(p.name for p in world.iterdir()) == FILES
    for name in FILES:
        assert (world / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (world / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_a_larger_training_file_leaves_no_trace_in_unleaked_evaluation(tmp_path):
    small = CONFIG.model_copy(update={"leaked_share": 0.0, "prompts": 20})
    for name, config in (("a", small), ("b", small.model_copy(update={"prompts": 30}))):
        write_world(config, tmp_path / name)
    assert (tmp_path / "a/reward_bench.jsonl").read_bytes() == (tmp_path / "b/reward_bench.jsonl").read_bytes()


def test_training_has_ultrafeedbacks_shape(world):
    rows = _rows(world, "ultrafeedback")
    assert len({row["instruction"] for row in rows}) == 300
    faulty = 0
    for row in rows:
        assert len(row["completions"]) == 4
        assert sum(row["true_weights"]) == pytest.approx(1, abs=1e-5)
        for completion in row["completions"]:
            ratings = [completion["annotations"].get(a, {}).get("Rating", "N/A") for a in ASPECTS]
            faulty += "N/A" in ratings
            assert all(r == "N/A" or 1 <= float(r) <= 5 for r in ratings)
            assert 1 < completion["overall_score"] < 10
    assert faulty == 6


def test_overall_scores_rarely_tie(world):
    rows = _rows(world, "ultrafeedback")
    ties = sum(len({c["overall_score"] for c in row["completions"]}) < 4 for row in rows)
    assert ties / len(rows) < 0.01


def test_the_held_out_sets_are_the_same_pairs_under_two_labels(world, facts):
    annotated, true = _rows(world, "uf_c"), _rows(world, "noise_free")
    assert len(annotated) == 150
    agree = 0
    for a, b in zip(annotated, true, strict=True):
        assert a["prompt"] == b["prompt"]
        assert {a["chosen"], a["rejected"]} == {b["chosen"], b["rejected"]}
        assert gold.gold_reward(b["prompt"], b["chosen"]) > gold.gold_reward(b["prompt"], b["rejected"])
        assert tuple(b["chosen_scores"]) == gold.read(b["prompt"], b["chosen"]).scores
        agree += a["chosen"] == b["chosen"]
    assert float(facts["held_out/agreement"]["value"]) == pytest.approx(agree / 150, abs=1e-5)


def test_the_benchmark_has_reward_benchs_columns(world):
    rows = _rows(world, "reward_bench")
    assert {"prompt", "chosen", "rejected", "subset", "id"} <= set(rows[0])
    assert len({row["id"] for row in rows}) == len(rows) == 23 * 6


def test_leaked_prompts_are_counted(world, facts):
    known = {row["instruction"] for row in _rows(world, "ultrafeedback")}
    for name in ("uf_c", "reward_bench", "probes"):
        rows = _rows(world, name)
        share = sum(row["prompt"] in known for row in rows) / len(rows)
        assert float(facts[f"leaked/{name}"]["value"]) == pytest.approx(share, abs=1e-5)
        assert 0.02 < share < 0.2


def test_the_statistics_are_complete_and_lie_in_their_intervals(facts):
    assert {f"true_weight/{k}/{a}" for k in KINDS for a in ASPECTS} <= set(facts)
    assert {f"spurious_effect/{s}" for s in gold.SPURIOUS} <= set(facts)
    for row in facts.values():
        assert row["explanation"]
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    value = {metric: float(row["value"]) for metric, row in facts.items()}
    assert value["distinct_responses"] > 0.99
    assert 0.7 < value["training/agreement"] < value["training/ceiling_annotated"] < 1
    assert all(value[f"spurious_effect/{s}"] > 0.6 for s in gold.SPURIOUS)
    assert all(0.7 < value[f"rating_correlation/{a}"] < 1 for a in ASPECTS)


def test_without_bias_and_noise_annotators_tell_the_truth(tmp_path):
    quiet = CONFIG.model_copy(update={"spurious_bias": 0.0, "preference_noise": 0.0, "prompts": 50})
    write_world(quiet, tmp_path)
    with open(tmp_path / "statistics.csv", newline="") as handle:
        facts = {row["metric"]: float(row["value"]) for row in csv.DictReader(handle)}
    assert facts["held_out/agreement"] == facts["held_out/ceiling_annotated"] == 1
    assert facts["training/ceiling_annotated"] == 1


@pytest.mark.parametrize(("wins", "n"), [(8, 10), (150.5, 300), (1, 40)])
def test_wilson_bounds_solve_their_defining_equation(wins, n):
    # the score test of p just rejects at both bounds: |share - p| = z sqrt(p (1 - p) / n)
    for p in wilson(wins, n):
        assert abs(wins / n - p) == pytest.approx(Z95 * (p * (1 - p) / n) ** 0.5)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == pytest.approx(1)


def test_the_world_imports_no_heavy_library():
    code = "import sys, vrm.world.write; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
