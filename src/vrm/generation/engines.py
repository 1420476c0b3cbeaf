"""Picks the engine that the configuration names: for a model in memory, or for one on the disk."""

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
) -> Engine:
    """The engine of `settings.engine` for a policy.

    Args:
        settings: how to sample, and with what.
        model: the policy.
        tokenizer: its tokenizer, with a pad token.
        max_prompt_length: tokens of the longest prompt, so that vLLM need not reserve more; None: the model's limit.

    Raises:
        ConfigError: the engine is not installed.
    """
    if settings.engine == "vllm":
        from vrm.generation.vllm import VllmEngine

        return VllmEngine(model, tokenizer, settings, max_prompt_length=max_prompt_length)
    from vrm.generation.transformers import TransformersEngine

    return TransformersEngine(model, tokenizer, settings)


def load_engine(
    settings: Generation,
    policy: str,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None = None,
    key: str = "policy.generation.engine",
    progress: bool = False,
) -> Engine:
    """The engine of `settings.engine` for a finished policy: bfloat16 on a GPU, float32 on the CPU.

    Args:
        settings: how to sample, and with what; calls may sample otherwise, but no longer answers.
        policy: directory or hub id of the causal LM.
        revision: commit of the hub model.
        tokenizer: its tokenizer, with a pad token.
        max_prompt_length: tokens of the longest prompt; None: the model's limit.
        key: the configuration's key of the engine, for errors.
        progress: show a progress bar (transformers).

    Raises:
        ConfigError: the engine is not installed.
    """
    if settings.engine == "vllm":
        from vrm.generation.vllm import VllmFilesEngine

        return VllmFilesEngine(policy, revision, tokenizer, settings, max_prompt_length=max_prompt_length, key=key)
    import torch
    from transformers import AutoModelForCausalLM

    from vrm.generation.transformers import TransformersEngine
    from vrm.models.checks import checked_weights
    from vrm.models.scoring import own_device

    device = own_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    options = {"revision": revision, "dtype": dtype, "use_safetensors": True}
    model = checked_weights(AutoModelForCausalLM, policy, **options)
    return TransformersEngine(model.to(device), tokenizer, settings, progress=progress)
