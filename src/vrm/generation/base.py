"""The contract of an engine: token ids in, token ids out; and what both engines need."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class Sampling(NamedTuple):
    """How the answers of one call are sampled.

    Args:
        temperature: 0 takes the likeliest token.
        max_new_tokens: the longest answer, its end token included; at most what the engine was made with.
    """

    temperature: float
    max_new_tokens: int


class Engine(Protocol):
    """Answers prompts with the policy's present weights."""

    ends: frozenset[int]
    """Ids of the tokens that end an answer."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """Token ids of one answer to each of N prompts, in the caller's order.

        An answer's last token is an end token, unless it was too long; padding is never part of it. The same prompts,
        seed and sampling give the same answers, and the global random state is left alone.

        Args:
            prompts: token ids, each of them as long as it likes.
            seed: of this call.
            sampling: of this call; None: as the engine's settings have it.
        """
        ...

    def sync(self) -> None:
        """Take over the policy's weights, where the engine holds a copy of them."""
        ...


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Collection[int] | None = None
) -> tuple[str, bool]:
    """The text of an answer, without special tokens and surrounding space, and whether it came to an end.

    Args:
        tokenizer: the policy's.
        ids: what an engine gave.
        ends: the engine's end tokens; None: the tokenizer's alone.
    """
    ended = len(ids) > 0 and ids[-1] in ({tokenizer.eos_token_id} if ends is None else ends)
    return tokenizer.decode(ids, skip_special_tokens=True).strip(), ended


def end_ids(declared_by: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's end token and those that the model declares, e.g. the end of a turn beside that of a text."""
    declared = declared_by.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (tokenizer.eos_token_id, *declared) if token is not None)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A random stream of its own for CPU and `device`; the global ones go on as if nothing had happened."""
    import torch

    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would seed every GPU, also those that are not put back
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
