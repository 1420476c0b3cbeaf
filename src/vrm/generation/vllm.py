"""Generation with vLLM, twice: for a policy in training through TRL's wrapper, for a finished one from its files.

In training (`VllmEngine`), a copy of the policy shares its GPU:

* TRL knows how to hand over weights from DDP, FSDP, DeepSpeed and adapters; nothing of that is repeated here.
* Each process generates for its own prompts (`colocate`, no tensor parallelism).
* TRL's wrapper makes vLLM run inside this process, where it samples from torch's global generator of the GPU: seeding
  that gives repeatable answers, up to vLLM's own nondeterminism. A seed in the wrapper's sampling parameters would not
  do: it is one for all prompts, whose answers would then share their random numbers.

A finished policy (`VllmFilesEngine`) is read by `vllm.LLM`, which may run in a process of its own. There every prompt
brings a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vrm.config import ConfigError, Generation
from vrm.generation.base import Sampling, end_ids, seeded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


class VllmEngine:
    """TRL's `VLLMGeneration` behind the contract of `Engine`.

    Args:
        model: the policy; its weights are copied by `sync`.
        tokenizer: its tokenizer.
        settings: how to sample.
        max_prompt_length: tokens of the longest prompt; None: as many as the model takes.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Generation,
        *,
        max_prompt_length: int | None = None,
    ) -> None:
        _require_vllm("policy.generation.engine")
        from accelerate import Accelerator
        from trl.generation.vllm_generation import VLLMGeneration

        self.ends = end_ids(model.generation_config, tokenizer)
        self.sampling = Sampling(settings.temperature, settings.max_new_tokens)
        self.device = model.device
        self._vllm = VLLMGeneration(
            model,
            Accelerator(),  # shares the state of the one that trains
            tokenizer,
            mode="colocate",
            gpu_memory_utilization=settings.vllm_memory,
            max_model_length=max_prompt_length + settings.max_new_tokens if max_prompt_length else None,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_completion_length=settings.max_new_tokens,
            logprobs=None,
            generation_kwargs={"stop_token_ids": sorted(self.ends)},
        )

    def sync(self) -> None:
        """Copy the policy's present weights to vLLM."""
        self._vllm.sync_weights()

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`."""
        # the wrapper reads both anew at every call
        self._vllm.temperature, self._vllm.max_completion_length = sampling or self.sampling
        with seeded(seed, self.device):
            _, answers, _, _ = self._vllm.generate([list(prompt) for prompt in prompts], None, num_generations=1)
        return [list(answer) for answer in answers]


class VllmFilesEngine:
    """`vllm.LLM` behind the contract of `Engine`, in bfloat16.

    Args:
        policy: directory or hub id of a causal LM.
        revision: commit of the hub model.
        tokenizer: its tokenizer.
        settings: how to sample.
        max_prompt_length: tokens of the longest prompt; None: as many as the model takes.
        key: the configuration's key that asks for vLLM.

    Raises:
        ConfigError: vLLM is not installed.

    Source: vLLM 0.22 to 0.31, `LLM` in `vllm/entrypoints/llm.py` and `vllm/sampling_params.py`.
    """

    def __init__(
        self,
        policy: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: Generation,
        *,
        max_prompt_length: int | None = None,
        key: str = "policy.generation.engine",
    ) -> None:
        _require_vllm(key)
        from vllm import LLM

        self.ends = end_ids(_generation_config(policy, revision), tokenizer)
        self.sampling, self.top_p = Sampling(settings.temperature, settings.max_new_tokens), settings.top_p
        self._vllm = LLM(
            model=policy,
            revision=revision,
            tokenizer_revision=revision,
            dtype="bfloat16",  # by itself it would turn float32 weights into float16
            gpu_memory_utilization=settings.vllm_memory,
            max_model_len=max_prompt_length + settings.max_new_tokens if max_prompt_length else None,
        )

    def sync(self) -> None:
        """Nothing to do: the files don't change."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; up to vLLM's own nondeterminism."""
        from vllm import SamplingParams

        temperature, max_new_tokens = sampling or self.sampling
        # one seed for all would give all prompts the same random numbers (vllm-project/vllm#50440)
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts)).tolist()
        how = [
            SamplingParams(
                temperature=temperature,
                top_p=self.top_p,
                max_tokens=max_new_tokens,
                seed=own,
                stop_token_ids=sorted(self.ends),
                detokenize=False,
            )
            for own in seeds
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._vllm.generate(asked, sampling_params=how, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def _require_vllm(key: str) -> None:
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise ConfigError(
            f"{key} is vllm, but vllm is not installed (`pip install trl[vllm]`); "
            f"install it, or set {key} to transformers"
        )


def _generation_config(policy: str, revision: str | None) -> GenerationConfig:
    """What a causal LM loaded from there would declare."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(policy, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(policy, revision=revision))
