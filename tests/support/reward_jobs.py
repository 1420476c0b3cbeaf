"""Reward trainings that take a second."""

from safetensors.torch import load_file

from vrm.config import RewardTraining, Variant

ASPECTS = ["clarity", "accuracy", "candour"]
TRAINING = RewardTraining(
    epochs=3, learning_rate=5e-3, max_prompt_length=64, max_length=96, evaluations=5, evaluation_pairs=24, checkpoints=2
)
SCALAR = Variant(label="RM", kind="scalar")
VRM = Variant(label="VRM", latent_dim=4, score_anchor_weight=0.1)


def quick():
    return TRAINING.model_copy(update={"epochs": 0.5, "evaluations": 1, "checkpoints": 0})


def weights(job):
    return load_file(job.out / "model" / "model.safetensors")
