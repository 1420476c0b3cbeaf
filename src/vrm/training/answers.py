"""A policy answers questions, and each answer is measured: what it is worth, and how far it is from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vrm.generation import Engine, decode
from vrm.models.base import RewardModel
from vrm.models.templates import left_out
from vrm.models.text import TextEncoder
from vrm.records import Prompt, read_pairs
from vrm.training.actor_critic import ActorCritic
from vrm.training.experience import Texts, pad_texts, token_log_probs

MEASURES = ("reward", "kl", "entropy", "length")
"""What is measured of each answer; see docs/files.md."""


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
        return dict(zip(MEASURES, (self.rewards, self.logratio.sum(1), entropy, length), strict=True))


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
        responses = self.engine.generate([question.ids for question in questions], seed)
        decoded = [decode(self.tokenizer, ids, self.engine.ends) for ids in responses]
        output = self.reward.score([question.prompt for question in questions], [text for text, _ in decoded])
        texts = pad_texts([q.ids for q in questions], responses, self.tokenizer.pad_token_id, device)
        with torch.no_grad():
            log_probs, entropy = self.in_parts(lambda part: token_log_probs(self.models.actor, part), texts)
            with self.models.reference() as model:
                reference, _ = self.in_parts(lambda part: token_log_probs(model, part), texts)
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

    def in_parts(self, compute: Callable[[Texts], tuple[Tensor, ...]], texts: Texts) -> tuple[Tensor, ...]:
        """`compute` on `batch_size` texts at a time, put together again."""
        parts = [compute(texts.rows(rows)) for rows in torch.arange(len(texts.ids)).split(self.batch_size)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
