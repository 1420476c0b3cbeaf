"""Preference pairs without scores, from a file to a trained reward model."""

import json

import numpy as np
import pytest

from vrm.config import DataConfig, RewardTraining, Variant
from vrm.data.pairs import make_pairs, normalise_pairs
from vrm.data.scored import read_scored_prompts
from vrm.models.scoring import load_reward_model
from vrm.records import RecordError, read_pairs
from vrm.training.reward import RewardJob, train_reward_model

TRAINING = RewardTraining(
    epochs=3, learning_rate=5e-3, max_prompt_length=64, max_length=96, evaluations=1, evaluation_pairs=8, checkpoints=0
)
SCALAR = Variant(label="RM", kind="scalar")
LAMBDA_0 = Variant(label="VRM", latent_dim=4, supervision_weight=0)
ASPECTS = ["clarity", "accuracy"]


@pytest.fixture
def prepared(tmp_path, toy_pairs):
    """Plain pairs through the three stages of preparation."""
    rows = [
        {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in read_pairs(toy_pairs / "train.jsonl")
    ]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        path=str(tmp_path / "plain.jsonl"), label="x", aspects=ASPECTS, validation_fraction=0.2, test_fraction=0
    )
    read_scored_prompts(config, tmp_path / "data")
    make_pairs(config, tmp_path / "data")
    assert normalise_pairs(config, tmp_path / "data") is None
    return tmp_path / "data" / "pairs"


def job(variant, tiny_backbone, pairs, tmp_path):
    return RewardJob(variant, TRAINING, ASPECTS, 1, str(tiny_backbone), None, pairs, tmp_path / "c", tmp_path / "out")


@pytest.mark.parametrize("variant", [SCALAR, LAMBDA_0], ids=["RM", "VRM with lambda 0"])
def test_they_train_a_model_that_knows_better(variant, tiny_backbone, prepared, tmp_path):
    train_reward_model(job(variant, tiny_backbone, prepared, tmp_path))
    model = load_reward_model(tmp_path / "out" / "model")
    pairs = read_pairs(prepared / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (model.score(prompts, [getattr(p, side) for p in pairs]).mean for side in ("chosen", "rejected"))
    assert np.mean(chosen > rejected) > 0.9


def test_supervision_without_scores_is_refused(tiny_backbone, prepared, tmp_path):
    with pytest.raises(RecordError, match="need annotated scores"):
        train_reward_model(job(Variant(label="VRM", latent_dim=4), tiny_backbone, prepared, tmp_path))
