"""Picks the engine that the configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vrm.config import Generation
from vrm.generation.base import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_engine(
    settings: Generation,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None = None,
    progress: bool = False,
) -> Engine:
    """The engine of `settings.engine` for a policy.

    Args:
        settings: how to sample, and with what.
        model: the policy.
        tokenizer: its tokenizer, with a pad token.
        max_prompt_length: tokens of the longest prompt, so that vLLM need not reserve more; None: the model's limit.
        progress: show a progress bar (transformers).

    Raises:
        ConfigError: the engine is not installed.
    """
    if settings.engine == "vllm":
        from vrm.generation.vllm import VllmEngine

        return VllmEngine(model, tokenizer, settings, max_prompt_length=max_prompt_length)
    from vrm.generation.transformers import TransformersEngine

    return TransformersEngine(model, tokenizer, settings, progress=progress)
