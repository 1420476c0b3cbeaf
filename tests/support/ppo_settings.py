"""PPO trainings that take a second."""

import numpy as np

from vrm.config import Generation, PpoLimits, PpoTraining
from vrm.models.base import RewardOutput

NEVER = PpoLimits(kl=1e9, entropy=0, missing_end=1.0, explained_variance=-1e9, response_length=1e-9)
SHORT = Generation(max_new_tokens=6, batch_size=16)


class FunctionReward:
    """A reward model made of a function of the response."""

    aspects: list[str] = []  # noqa: RUF012

    def __init__(self, function):
        self.function = function

    def score(self, prompts, responses):
        values = np.array([float(self.function(response)) for response in responses])
        return RewardOutput(mean=values, truncated=np.zeros(len(values), dtype=bool))


LENGTH = FunctionReward(len)
PPO = PpoTraining(
    updates=6,
    prompts_per_update=8,
    minibatch_size=4,
    epochs=2,
    critic_warmup=1,
    evaluations=2,
    evaluation_prompts=5,
    checkpoints=2,
    limits=NEVER,
)
