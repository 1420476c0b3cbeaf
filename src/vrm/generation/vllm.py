"""Generation with vLLM, through TRL's own wrapper: a copy of the policy on the same GPU that training uses.

* TRL knows how to hand over weights from DDP, FSDP, DeepSpeed and adapters; nothing of that is repeated here.
* Each process generates for its own prompts (`colocate`, no tensor parallelism).
* TRL's wrapper makes vLLM run inside this process, where it samples from torch's global generator of the GPU: seeding
  that gives repeatable answers, up to vLLM's own nondeterminism. A seed in the sampling parameters would not do: it is
  one for all prompts, whose answers would then share their random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vrm.config import ConfigError, Generation
from vrm.generation.base import end_ids, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        from trl.import_utils import is_vllm_available

        if not is_vllm_available():
            raise ConfigError(
                "policy.generation.engine is vllm, but vllm is not installed (`pip install trl[vllm]`); "
                "install it, or set policy.generation.engine to transformers"
            )
        from accelerate import Accelerator
        from trl.generation.vllm_generation import VLLMGeneration

        self.ends = end_ids(model, tokenizer)
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

    def generate(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """See `Engine.generate`."""
        with seeded(seed, self.device):
            _, answers, _, _ = self._vllm.generate([list(prompt) for prompt in prompts], None, num_generations=1)
        return [list(answer) for answer in answers]
