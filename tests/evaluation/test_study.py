"""The study's stages: a model is trained on as many pairs as it is told, and another world differs where it is told."""

import json

import numpy as np
import pandas as pd
import pytest
from paths import ROOT

from vrm.config import load
from vrm.evaluation.study import make_study_world, train_and_score
from vrm.records import read_jsonl, read_pairs, write_jsonl
from vrm.training.pairs import write_tokens
from vrm.world.write import write_world


@pytest.fixture
def config(tmp_path):
    overlay = {
        "world": {"prompts": 60, "evaluation_prompts": 20, "pairs_per_subset": 2, "pairs_per_probe": 2},
        "data": {"validation_fraction": 0.2, "test_fraction": 0.0},
        "evaluation": {"run": ["uf_c", "noise_free"]},
        "reward": {"run": ["rm"], "training": {"epochs": 1, "max_prompt_length": 64, "max_length": 96}},
        "policy": {"run_bases": [], "scorers_from": None},
        "benchmarks": {"run": []},
        "report": {"tables": [], "figures": []},
        "study": {
            "worlds": {
                "fair": {"label": "no bias", "spurious_bias": 0.0},
                "shared": {"label": "ratings too", "rating_bias": 2.0},
            }
        },
    }
    (tmp_path / "overlay.yaml").write_text(json.dumps(overlay))
    return load([ROOT / "config.yaml", tmp_path / "overlay.yaml"])


def test_a_model_is_trained_on_the_first_pairs_alone(config, tiny_backbone, toy_pairs, tmp_path):
    few = tmp_path / "few"
    write_jsonl(few / "train.jsonl", read_pairs(toy_pairs / "train.jsonl")[:32])
    write_jsonl(few / "validation.jsonl", read_pairs(toy_pairs / "validation.jsonl"))
    sets = [toy_pairs / "validation.jsonl"]

    def scores(name, pairs, data, tokens=None):
        train_and_score(config, "rm", pairs, 1, str(tiny_backbone), data, sets, tmp_path / f"{name}.csv", tokens)
        return pd.read_csv(tmp_path / f"{name}.csv")[["reward_chosen", "reward_rejected"]].to_numpy()

    told, cut, more = scores("told", 32, toy_pairs), scores("cut", 96, few), scores("more", 96, toy_pairs)
    np.testing.assert_allclose(told, cut, atol=1e-6)
    assert np.abs(told - more).max() > 1e-3
    write_tokens(str(tiny_backbone), None, None, config.reward.training, toy_pairs, tmp_path / "tokens")
    np.testing.assert_array_equal(scores("tokens", 32, toy_pairs, tmp_path / "tokens"), told)


def test_worlds_differ_in_what_they_change_and_in_nothing_else(config, tmp_path):
    write_world(config.world, tmp_path / "own")
    for name in config.study.worlds:
        make_study_world(config, name, tmp_path / name)
        assert len(read_pairs(tmp_path / name / "data/pairs/train.jsonl")) > 30
        assert len(read_pairs(tmp_path / name / "sets/uf_c.jsonl")) == 20
    places = ("own", "fair/world", "shared/world")
    own, fair, shared = ([row for _, row in read_jsonl(tmp_path / p / "ultrafeedback.jsonl")] for p in places)
    assert texts(own) == texts(fair) == texts(shared)
    assert ratings(own) == ratings(fair) != ratings(shared)
    assert overall(own) == overall(shared) != overall(fair)


def texts(rows):
    return [[completion["response"] for completion in row["completions"]] for row in rows]


def ratings(rows):
    return [[completion["annotations"] for completion in row["completions"]] for row in rows]


def overall(rows):
    return [[completion["overall_score"] for completion in row["completions"]] for row in rows]
