"""What PPO learns from: the models of a run, the answers of its policy, and what each of them is worth.

* `Texts` are prompts with their responses, of which a policy and a critic say something token by token. How they are
  put into rows for that is `vrm.models.responses`' affair.
* `ActorCritic`: the actor, the reference that it is kept near, the critic, and their optimisers.
* `Answerer`: the policy answers, the reward model reads the text, both policies give log-probabilities (`Answers`);
  with values and advantages they are one batch of PPO (`Experience`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from vrm.config import ConfigError, PpoTraining
from vrm.generation.engines import Engine, decode, seeds_of
from vrm.models.base import RewardModel
from vrm.models.responses import batch_responses, response_log_probs, response_outputs, response_values
from vrm.models.templates import left_out
from vrm.models.text import TextEncoder
from vrm.records import Prompt, read_pairs
from vrm.runfiles import ANSWER_MEASURES
from vrm.training.engine import kernel_of, prepare_rows
from vrm.training.policies import SECTION, PolicyJob, load_policy
from vrm.training.trainer import switch_off_dropout, weight_dtype, with_adapters


@dataclass(frozen=True)
class Texts:
    """B prompts, each with a response of up to T tokens.

    Args:
        ids: token ids of prompt and response, and
        prompts: how many of them are the prompt's, B of each.
        mask: 1.0 on real response tokens, shape (B, T).
        batch: makes a batch of texts, given as ids and their prompt's length, for the policy and the critic.
        pass_size: texts a forward pass.
    """

    ids: list[list[int]]
    prompts: list[int]
    mask: Tensor
    batch: Callable[[list[tuple[list[int], int]]], dict[str, Any]]
    pass_size: int

    def rows(self, index: Tensor) -> Texts:
        """Some of the rows."""
        numbers = index.tolist()
        ids, prompts = [self.ids[i] for i in numbers], [self.prompts[i] for i in numbers]
        return replace(self, ids=ids, prompts=prompts, mask=self.mask[index.to(self.mask.device)])

    @cached_property
    def parts(self) -> list[Texts]:
        """The rows by forward pass: policy, reference and critic read the same batches."""
        return [self.rows(rows) for rows in torch.arange(len(self.ids)).split(self.pass_size)]

    def let_go(self) -> None:
        """Free the parts' batches, and what models keep with them (masks): all have read them."""
        self.__dict__.pop("parts", None)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What policy and critic read; see `batch_responses`."""
        return self.batch(list(zip(self.ids, self.prompts, strict=True)))

    def columns(self, found: Tensor) -> Tensor:
        """What was found of these responses alone, in the columns of the whole batch: (B, T) with 0 on the right."""
        return F.pad(found, (0, self.mask.shape[1] - found.shape[1]))


def token_log_probs(model: torch.nn.Module, texts: Texts) -> Tensor:
    """log pi of each response token, nats, shape (B, T); `model` has a fused head."""
    return texts.columns(response_log_probs(model, texts.inputs))


def token_log_probs_and_entropy(model: torch.nn.Module, texts: Texts) -> tuple[Tensor, Tensor]:
    """The same, and the policy's entropy before each token, nats, both of shape (B, T)."""
    found = response_outputs(model, texts.inputs)
    return texts.columns(found.log_probs), texts.columns(found.entropy)


def in_parts(compute: Callable[[Texts], tuple[Tensor, ...]], texts: Texts) -> tuple[Tensor, ...]:
    """`compute` by forward pass, put together again."""
    return tuple(torch.cat(column) for column in zip(*map(compute, texts.parts), strict=True))


def token_values(critic: torch.nn.Module, texts: Texts) -> Tensor:
    """V(s_t), read one position before response token t, shape (B, T); 0 on padding."""
    return texts.columns(response_values(critic, texts.inputs))


@dataclass(frozen=True)
class Experience:
    """B answered prompts with everything that the optimiser steps on them need; the policy's and critic's are old ones.

    Args:
        texts: what was said.
        log_probs: log pi of each token, shape (B, T).
        values: V(s_t), shape (B, T).
        advantages: whitened over the whole batch, shape (B, T).
        returns: what the critic learns, shape (B, T).
    """

    texts: Texts
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Experience:
        """Some of the rows."""
        tensors = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "texts"}
        return replace(self, texts=self.texts.rows(index), **tensors)


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
        if job.training.lora:
            accelerator.register_save_state_pre_hook(_leave_out_frozen)
        else:
            frozen = load_policy(job, tokenizer, "entropy", temperature=temperature)
            # not the accelerator's to prepare: it would be in every checkpoint
            self._reference = frozen.requires_grad_(False).eval().to(accelerator.device)
        # transformers checkpoints activations in training mode alone; dropout is off, so nothing else depends on it
        self.actor.train()
        self.critic.train()
        self.batch = partial(
            batch_responses,
            pad_token_id=tokenizer.pad_token_id,
            kernel=kernel_of(actor, job.training, SECTION),
            tokens_per_row=job.training.tokens_per_row,
            device=accelerator.device,
        )
        """Makes a batch of texts for actor, reference and critic."""

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


def _leave_out_frozen(models: list[torch.nn.Module], states: list[dict[str, Tensor]], _directory: str) -> None:
    """Keep what is trained alone in a checkpoint: the policy's files have the rest."""
    for model, state in zip(models, states, strict=True):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name in state.keys() - trained:
            del state[name]


def load_critic(job: PolicyJob, pad_token_id: int) -> PreTrainedModel:
    """V(s): the policy's backbone with a linear head that starts at 0 everywhere."""
    critic = AutoModelForTokenClassification.from_pretrained(
        job.policy, revision=job.revision, num_labels=1, dtype=weight_dtype(job.training), use_safetensors=True
    )
    critic.config.pad_token_id = pad_token_id
    if not hasattr(critic, "score"):
        raise ConfigError(
            f"{job.policy}: PPO's critic needs a token classifier with a `score` head, as Qwen and Llama have"
        )
    for parameter in critic.score.parameters():
        torch.nn.init.zeros_(parameter)
    prepare_rows(critic, job.training, job.policy, SECTION)
    critic = with_adapters(critic, job.training.lora, exclude="score", train_excluded=True)
    switch_off_dropout(critic)  # its head comes with one of 0.1
    return critic


def _optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learnt, learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)


@dataclass(frozen=True)
class Question:
    """A prompt, as messages and as the policy's token ids."""

    prompt_id: str
    prompt: Prompt
    ids: list[int]


def read_questions(path: Path, encoder: TextEncoder, limit: int | None = None) -> list[Question]:
    """The first distinct prompts of a file of preference pairs, in the order of their ids.

    Those that the policy's chat template refuses are left out, and named.
    """
    prompts = {pair.prompt_id: pair.prompt for pair in read_pairs(path)}
    keys = sorted(prompts)[:limit]
    ids, refused = encoder.try_encode_prompts([prompts[key] for key in keys])
    left_out(refused, [f"{path}, prompt {key}" for key in keys], f"prompts of {path}")
    return [Question(key, prompts[key], tokens) for key, tokens in zip(keys, ids, strict=True) if tokens is not None]


@dataclass(frozen=True)
class Answers:
    """Answers to B questions; nothing in here has a gradient.

    Args:
        responses: the texts, B of them.
        ended: whether there was an end token, shape (B,).
        cut: whether the reward model had to cut the text, shape (B,).
        texts: token ids.
        rewards: the reward model's, in its own unit, shape (B,).
        log_probs: log pi of each token, shape (B, T).
        reference: log pi_ref of each token, shape (B, T).
        entropy: the policy's before each token, nats, shape (B, T).
    """

    responses: list[str]
    ended: Tensor
    cut: Tensor
    texts: Texts
    rewards: Tensor
    log_probs: Tensor
    reference: Tensor
    entropy: Tensor

    @property
    def logratio(self) -> Tensor:
        """log pi - log pi_ref of each token, 0 on padding, shape (B, T)."""
        return (self.log_probs - self.reference) * self.texts.mask

    def measures(self) -> dict[str, Tensor]:
        """Reward, KL (nats a response), entropy (nats a token) and length (tokens) of each answer, shape (B,)."""
        length = self.texts.mask.sum(1)
        entropy = (self.entropy * self.texts.mask).sum(1) / length
        return dict(zip(ANSWER_MEASURES, (self.rewards, self.logratio.sum(1), entropy, length), strict=True))


@dataclass(frozen=True)
class Answerer:
    """Asks the policy, then the reward model, in text, then policy and reference for log-probabilities.

    Args:
        models: the policy and its reference.
        engine: generates with the policy.
        reward: what answers are worth.
        tokenizer: the policy's.
        batch_size: texts a forward pass.
    """

    models: ActorCritic
    engine: Engine
    reward: RewardModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    def answer(self, questions: list[Question], seed: int) -> Answers:
        """One sampled answer to each of B questions."""
        device = self.models.accelerator.device
        self.engine.sync()
        responses = self.engine.generate([question.ids for question in questions], seeds_of(seed, len(questions)))
        decoded = [decode(self.tokenizer, ids, self.engine.ends) for ids in responses]
        output = self.reward.score([question.prompt for question in questions], [text for text, _ in decoded])
        texts = self._texts([question.ids for question in questions], responses)
        with torch.no_grad():
            log_probs, entropy = in_parts(lambda part: token_log_probs_and_entropy(self.models.actor, part), texts)
            with self.models.reference() as model:
                (reference,) = in_parts(lambda part: (token_log_probs(model, part),), texts)
        return Answers(
            responses=[text for text, _ in decoded],
            ended=torch.tensor([ended for _, ended in decoded], device=device),
            cut=torch.as_tensor(output.truncated, device=device),
            texts=texts,
            rewards=torch.as_tensor(output.mean, dtype=torch.float32, device=device),
            log_probs=log_probs,
            reference=reference,
            entropy=entropy,
        )

    def _texts(self, prompts: list[list[int]], responses: list[list[int]]) -> Texts:
        device = self.models.accelerator.device
        ids = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        mask = pad_sequence([torch.ones(len(response)) for response in responses], batch_first=True)
        return Texts(ids, list(map(len, prompts)), mask.to(device), self.models.batch, self.batch_size)
