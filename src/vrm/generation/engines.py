"""How a policy answers: token ids in, token ids out, through `transformers` or vLLM.

The contract and what both engines need come first, then each engine, then the choice that the configuration names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from vrm.config import ConfigError, Generation
from vrm.models.scoring import own_device, pad_batch
from vrm.watch import watched

if TYPE_CHECKING:
    import torch


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


# Generation with `transformers`: the policy itself answers, in batches of similar length.
#
# * What is sampled is what log-probabilities are of: the policy's own generation_config.json, which may hold top-k or a
#   repetition penalty (Qwen2.5's does), is set aside. `generate` would fill whatever we leave open from it.
# * Five milliseconds a token for 128 texts and a model of 0.3M parameters on one CPU thread, two of them in
#   `torch.multinomial`; static caches, eager attention or switching compilation off make no difference there.


class TransformersEngine:
    """`model.generate` behind the contract of `Engine`.

    Args:
        model: the policy; adapters may be on it.
        tokenizer: its tokenizer, with a pad token.
        settings: how to sample.
        progress: show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Generation,
        *,
        progress: bool = False,
    ) -> None:
        # adapters sit inside the layers; the wrapper around them would only hand its generation_config down
        self.model: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.tokenizer, self.batch_size, self.progress = tokenizer, settings.batch_size, progress
        self.ends = end_ids(self.model.generation_config, tokenizer)
        self.sampling, self.top_p = Sampling(settings.temperature, settings.max_new_tokens), settings.top_p

    def sync(self) -> None:
        """Nothing to do: the policy itself answers."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; sampled answers depend on `batch_size` and on the other prompts, greedy ones don't."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        starts = range(0, len(order), self.batch_size)
        answers: dict[int, list[int]] = {}
        config = self._generation_config(sampling or self.sampling)
        with self._answering(config), seeded(seed, self.model.device):
            for start in watched(starts, "generating", "batches", quiet=not self.progress):
                rows = order[start : start + self.batch_size]
                answers |= zip(rows, self._batch([prompts[i] for i in rows], config), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            # top_k would be 50
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            **how,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _batch(self, prompts: list[Sequence[int]], config: GenerationConfig) -> Iterator[list[int]]:
        ids, mask = (part.to(self.model.device) for part in pad_batch(prompts, self.tokenizer, side="left"))
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for row in out[:, ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
            yield row[:end]

    @contextmanager
    def _answering(self, config: GenerationConfig) -> Iterator[None]:
        """Evaluation mode, in which activations are not checkpointed either, and our generation config alone."""
        model, training, own = self.model, self.model.training, self.model.generation_config
        model.eval()
        model.generation_config = config
        try:
            yield
        finally:
            model.train(training)
            model.generation_config = own


# Generation with vLLM, twice: for a policy in training through TRL's wrapper, for a finished one from its files.
#
# In training (`VllmEngine`), a copy of the policy shares its GPU:
#
# * TRL knows how to hand over weights from DDP, FSDP, DeepSpeed and adapters; nothing of that is repeated here.
# * Each process generates for its own prompts (`colocate`, no tensor parallelism).
# * TRL's wrapper makes vLLM run inside this process, where it samples from torch's global generator of the GPU: seeding
#   that gives repeatable answers, up to vLLM's own nondeterminism. A seed in the wrapper's sampling parameters would
#   not do: it is one for all prompts, whose answers would then share their random numbers.
#
# A finished policy (`VllmFilesEngine`) is read by `vllm.LLM`, which may run in a process of its own. There every prompt
# brings a seed of its own.


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


# The choice.


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
        return VllmEngine(model, tokenizer, settings, max_prompt_length=max_prompt_length)

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
        return VllmFilesEngine(policy, revision, tokenizer, settings, max_prompt_length=max_prompt_length, key=key)
    import torch
    from transformers import AutoModelForCausalLM

    device = own_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(policy, revision=revision, dtype=dtype, use_safetensors=True)
    return TransformersEngine(model.to(device), tokenizer, settings, progress=progress)
