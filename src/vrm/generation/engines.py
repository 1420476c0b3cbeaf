"""How a policy answers: token ids in, token ids out, through `transformers` or vLLM.

The contract and what both engines need come first, then each engine, then the choice that the configuration names.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from vrm.config import ConfigError, Generation
from vrm.models.scoring import own_device, pad_batch
from vrm.models.text import end_ids, generation_config
from vrm.models.vrm import positions
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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> list[list[int]]:
        """Token ids of one answer to each of N prompts, in the caller's order.

        An answer's last token is an end token, unless it was too long; padding is never part of it. The same prompts,
        seeds and sampling give the same answers, and the global random state is left alone.

        Args:
            prompts: token ids, each of them as long as it likes.
            seeds: one a prompt, 0 or more; see `seeds_of`.
            sampling: of this call; None: as the engine's settings have it.
        """
        ...

    def sync(self) -> None:
        """Take over the policy's weights, where the engine holds a copy of them."""
        ...


def seeds_of(call: int | list[int], answers: int) -> list[int]:
    """A seed for each answer of a call, which has one seed itself, or several."""
    # one seed for all would give all prompts the same random numbers (vllm-project/vllm#50440)
    return np.random.SeedSequence(call).generate_state(answers).tolist()


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
# * Models and their caches are transformers', the loop over tokens is ours: a prompt is read once, however many answers
#   it gets, and answers that have ended are no longer computed. Answers are those of `model.generate`, token by token;
#   in the time of small models on a CPU they cost two thirds of it (docs/decisions.md).
# * What is sampled is what log-probabilities are of: the policy's own generation_config.json, which may hold top-k or a
#   repetition penalty (Qwen2.5's does), is not read, but for what ends an answer.
# * An answer is drawn with random numbers of its own, one a token: which prompts are answered beside it changes its
#   logits by rounding and nothing else. `torch.multinomial` would draw one for each token of the vocabulary, which took
#   a third of the time of a small model on a CPU.

LOOK_EVERY = 8
"""Tokens after which is looked for answers that have ended; a GPU then waits for the host."""
WORTH_IT = 0.75
"""Share of a batch's answers that may still be open for the others to be dropped from the cache, which copies it."""


class TransformersEngine:
    """A causal LM of transformers behind the contract of `Engine`.

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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; an answer depends on the other prompts and on `batch_size` by rounding alone."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        starts = range(0, len(order), self.batch_size)
        answers: dict[int, list[int]] = {}
        sampling = sampling or self.sampling
        with self._evaluating():
            for start in watched(starts, "generating", "batches", quiet=not self.progress):
                rows = order[start : start + self.batch_size]
                found = self._batch([prompts[i] for i in rows], [seeds[i] for i in rows], sampling)
                answers |= zip(rows, found, strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _batch(self, prompts: list[Sequence[int]], seeds: list[int], sampling: Sampling) -> Iterator[list[int]]:
        """Answers to B prompts."""
        import torch

        device, most = self.model.device, sampling.max_new_tokens
        choose = _Choice(seeds, sampling, self.top_p, device)
        ends = torch.tensor(sorted(self.ends), device=device)
        said = torch.full((len(prompts), most), self.tokenizer.pad_token_id, device=device)
        open_rows = torch.arange(len(prompts), device=device)
        with torch.no_grad():
            decoder = _Decoder(self.model, self.tokenizer)
            logits = decoder.read(prompts)
            for step in range(most):
                said[open_rows, step] = tokens = choose(logits, open_rows, step)
                if step + 1 == most:
                    break
                if (step + 1) % LOOK_EVERY == 0:
                    still = ~torch.isin(said[open_rows, : step + 1], ends).any(1)
                    left = int(still.sum())
                    if not left:
                        break
                    if left <= WORTH_IT * len(still):
                        kept = still.nonzero().squeeze(1)
                        decoder.keep(kept)
                        open_rows, tokens = open_rows[kept], tokens[kept]
                logits = decoder.step(tokens)
        choose.check()
        for row in said.tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
            yield row[:end]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, in which activations are not checkpointed either."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


class _Decoder:
    """The next token's logits of a batch of texts, of which each token is computed once.

    Args:
        model: in evaluation mode.
        tokenizer: has the pad token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import DynamicCache

        self.model, self.tokenizer = model, tokenizer
        self.cache = DynamicCache(config=model.config)
        self.takes = inspect.signature(model.forward).parameters.keys()

    def read(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits after each of B prompts, shape (B, V); those that are the same are read once."""
        import torch

        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        batch = pad_batch(list(place), self.tokenizer, side="left")
        ids, self.mask = (part.to(self.model.device) for part in batch)
        self.positions = positions(self.mask)
        logits = self._forward(ids)
        if len(place) == len(prompts):
            return logits
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=ids.device)
        self.keep(rows)
        return logits[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token of each text: (B,) -> (B, V)."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._forward(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows, of which one may be there several times."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        inputs = {"attention_mask": self.mask, "position_ids": self.positions, "logits_to_keep": 1}
        inputs = {name: value for name, value in inputs.items() if name in self.takes}
        return self.model(input_ids=ids, cache=self.cache, use_cache=True, **inputs).logits[:, -1]


class _Choice:
    """Draws tokens from the softmax of logits by inverting its distribution function, or takes the likeliest ones.

    Args:
        seeds: of B rows.
        sampling: the temperature, and how many tokens can be drawn.
        top_p: share of the probability, of the likeliest tokens, that is drawn from.
        device: of the logits.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, top_p: float, device: torch.device) -> None:
        import torch

        self.warpers = LogitsProcessorList()
        self.numbers = None
        if sampling.temperature > 0:
            tail = [TopPLogitsWarper(top_p)] if top_p < 1 else []
            self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature)), *tail])
            drawn = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            # below 1 by some units in the last place, so that a product with the whole mass is below that too
            self.numbers = torch.from_numpy(drawn).clamp_(max=1 - 2**-50).to(device)  # (B, tokens)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """A token for each of R rows: logits (R, V), the rows' numbers (R,) -> (R,)."""
        import torch

        if self.numbers is None:
            self.finite &= ~logits.isnan().any()
            return logits.argmax(-1)
        # in float64: the sum over a large vocabulary would lose the rarest tokens
        mass = self.warpers(None, logits.float()).softmax(-1).cumsum(-1, dtype=torch.float64)
        whole = mass[:, -1:]
        self.finite &= whole.isfinite().all()
        drawn = torch.searchsorted(mass, self.numbers[rows, step, None] * whole, right=True)
        return drawn.clamp_(max=mass.shape[1] - 1).squeeze(1)

    def check(self) -> None:
        """Raise FloatingPointError where a row had no distribution to draw from."""
        if not self.finite:
            raise FloatingPointError(
                "the policy's logits are not finite: its training has diverged, or its files are damaged"
            )


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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; vLLM draws all answers of a call from one stream, which follows from all seeds."""
        # the wrapper reads both anew at every call
        self._vllm.temperature, self._vllm.max_completion_length = sampling or self.sampling
        with seeded(seeds_of(list(seeds), 1)[0], self.device):
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

    Source: vLLM 0.27 to 0.30, `LLM` in `vllm/entrypoints/llm.py` and `vllm/sampling_params.py`.
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

        self.ends = end_ids(generation_config(policy, revision), tokenizer)
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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; up to vLLM's own nondeterminism."""
        from vllm import SamplingParams

        temperature, max_new_tokens = sampling or self.sampling
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
            f"{key} is vllm, but vllm is not installed; `pip install --constraint requirements-vllm.lock 'vrm[vllm]'` "
            f"into an environment of its own (docs/scale.md), or set {key} to transformers"
        )


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
