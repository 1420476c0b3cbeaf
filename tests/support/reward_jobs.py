"""Reward trainings that take a second."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from vrm.config import RewardTraining, Variant
from vrm.models.scoring import HuggingFaceRewardModel
from vrm.training import reward, trainer

ASPECTS = ["clarity", "accuracy", "candour"]
TRAINING = RewardTraining(
    epochs=3, learning_rate=5e-3, max_prompt_length=64, max_length=96, evaluations=5, evaluation_pairs=24, checkpoints=2
)
LIMITS = {"max_prompt_length": 64, "max_length": 96}
SCALAR = Variant(label="RM", kind="scalar")
VRM = Variant(label="VRM", latent_dim=4, score_anchor_weight=0.1)


def quick():
    return TRAINING.model_copy(update={"epochs": 0.5, "evaluations": 1, "checkpoints": 0})


def weights(job):
    return load_file(job.out / "model" / "model.safetensors")


def scores(model, pairs):
    """Rewards of all chosen responses, then of all rejected ones."""
    texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return model.score([pair.prompt for pair in pairs] * 2, texts).mean


def train_adapters(job, pairs, look=lambda model: None):
    """Train with adapters; the scores of `pairs` right before they are merged, of a model that `look` is shown."""
    tokenizer, before = AutoTokenizer.from_pretrained(job.backbone), []

    def scored_and_merged(model):
        look(model)
        adapted = HuggingFaceRewardModel(model.get_base_model(), tokenizer, **LIMITS)
        # as it is measured while it is trained
        with torch.autocast("cpu", torch.bfloat16, enabled=job.training.bf16):
            before.append(scores(adapted, pairs))
        return trainer.merged(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "merged", scored_and_merged)
        reward.train_reward_model(job)
    return before[0]
