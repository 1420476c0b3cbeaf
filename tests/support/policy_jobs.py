"""A policy job on the toy pairs, small enough for a second."""

from vrm.config import PolicyTraining
from vrm.training.policies import PolicyJob

TRAINING = PolicyTraining(
    epochs=3, learning_rate=3e-3, max_prompt_length=64, max_length=96, evaluations=3, evaluation_pairs=24
)


def policy_job(backbone, pairs, directory, **changes):
    """A job whose checkpoints and results lie under `directory`; `changes` replace fields of its training."""
    return PolicyJob(
        policy=str(backbone),
        training=TRAINING.model_copy(update=changes),
        seed=1,
        pairs=pairs,
        checkpoints=directory / "checkpoints",
        out=directory / "out",
    )


class Killed(Exception):
    """Stands for a SIGKILL in the middle of training."""
