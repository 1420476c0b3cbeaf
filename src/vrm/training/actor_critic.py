"""The models of a PPO run: the actor, the reference it must not leave, the critic, and their optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model

from vrm.config import ConfigError, PpoTraining
from vrm.models.checks import checked_weights
from vrm.training.adapters import weight_dtype, with_adapters
from vrm.training.policies import PolicyJob, load_policy

ADAM_EPSILON = 1e-5
"""With 1e-8 the critic's first steps are erratic (Huang et al. 2022, "The 37 Implementation Details of PPO")."""


class ActorCritic:
    """Actor and critic start from the same policy; with adapters the reference is the actor without them.

    Args:
        job: names the policy.
        ppo: learning rates, and how many updates there are.
        tokenizer: the policy's.
        temperature: what the policy answers at; probabilities are those of what it samples from.
        accelerator: places and wraps.

    Raises:
        ConfigError: the launch asks for sharding, or the policy's family has no token classifier.
    """

    def __init__(
        self,
        job: PolicyJob,
        ppo: PpoTraining,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator, self.updates = accelerator, ppo.updates
        self.rates = {"actor": ppo.learning_rate, "critic": ppo.critic_learning_rate}
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ConfigError(
                "PPO runs one whole policy a GPU: accelerate shards no two models at once; launch it without FSDP and "
                "DeepSpeed, and set policy.training.lora where the models are large"
            )
        actor = load_policy(job, tokenizer, "entropy", temperature=temperature)
        critic = load_critic(job, tokenizer.pad_token_id)
        if job.training.gradient_checkpointing:
            for model in (actor, critic):
                model.activation_checkpointing_enable({"use_reentrant": False})
        optimizers = [_optimizer(actor, ppo.learning_rate), _optimizer(critic, ppo.critic_learning_rate)]
        self.actor, self.critic, *optimizers = accelerator.prepare(actor, critic, *optimizers)
        self.optimizers = dict(zip(self.rates, optimizers, strict=True))
        self._reference: torch.nn.Module | None = None
        if not job.training.lora:
            frozen = load_policy(job, tokenizer, "entropy", temperature=temperature)
            # not the accelerator's to prepare: it would be in every checkpoint
            self._reference = frozen.requires_grad_(False).eval().to(accelerator.device)
        # transformers checkpoints activations in training mode alone; dropout is off, so nothing else depends on it
        self.actor.train()
        self.critic.train()

    @property
    def policy(self) -> PreTrainedModel:
        """The actor without what the accelerator wrapped around it."""
        return self.accelerator.unwrap_model(self.actor)

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The reference policy, for as long as the block lasts."""
        if self._reference is not None:
            with self.accelerator.autocast():
                yield self._reference
        else:
            with self.policy.disable_adapter():
                yield self.actor

    def set_learning_rates(self, update: int) -> None:
        """Linear to zero: a function of the update's number, so there is no scheduler to be saved."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * (1 - update / self.updates)

    def step(self, max_grad_norm: float, actor_learns: bool) -> dict[str, Tensor]:
        """One step of both optimisers (of the critic's alone while it warms up); returns the gradients' norms."""
        norms = {}
        for name, optimizer in self.optimizers.items():
            norms[f"{name}_gradient_norm"] = torch.zeros((), device=self.accelerator.device)
            if name == "critic" or actor_learns:
                parameters = getattr(self, name).parameters()
                norms[f"{name}_gradient_norm"] = self.accelerator.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
            optimizer.zero_grad()
        return norms


def load_critic(job: PolicyJob, pad_token_id: int) -> PreTrainedModel:
    """V(s): the policy's backbone with a linear head that starts at 0 everywhere."""
    options = {"revision": job.revision, "num_labels": 1, "dtype": weight_dtype(job.training)}
    critic = checked_weights(AutoModelForTokenClassification, job.policy, fresh=["score", "classifier"], **options)
    disable_dropout_in_model(critic)  # its head comes with one of 0.1
    critic.config.pad_token_id = pad_token_id
    if not hasattr(critic, "score"):
        raise ConfigError(
            f"{job.policy}: PPO's critic needs a token classifier with a `score` head, as Qwen and Llama have"
        )
    for parameter in critic.score.parameters():
        torch.nn.init.zeros_(parameter)
    return with_adapters(critic, job.training.lora, exclude="score", train_excluded=True)


def _optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learnt, learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)
