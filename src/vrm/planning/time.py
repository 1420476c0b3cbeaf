"""GPU hours from floating-point operations and memory traffic, at a stated efficiency.

* Forward: 2 operations a weight and token, and attention's 2 x width x length a token and block (causal).
* Training: 3 forward passes; with adapters 2, since frozen weights get no gradient; one more with checkpointing.
* Decoding is not bound by arithmetic: a step reads all weights and the cache, and through transformers takes at least
  `LAUNCH` seconds a block, whatever the card.

Source: Kaplan et al. 2020, section 2.1 (2N, and 6N a token for training); Narayanan et al. 2021, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vrm.planning.memory import Precision, key_value_cache
from vrm.planning.shapes import Shape

LAUNCH = 1 / 49.94 / 24
"""Seconds a block and step of decoding through transformers.

Source: Qwen's speed benchmark of Qwen2-0.5B-Instruct, 24 blocks (bfloat16, transformers, one sequence, A100):
qwen.readthedocs.io/en/v2.0/benchmark/speed_benchmark.html.
"""
ADAPTED_LAUNCH = 2.0
"""How many times longer that is with adapters beside the weights: twice the number of matrix products. Assumed."""
READING = 0.6
"""Share of the memory's bandwidth that decoding reaches. Assumed."""
ANSWER = 0.5
"""Mean length of an answer as a share of the longest that is allowed. Assumed."""
CONCURRENT = 256
"""Answers under way at once in vLLM (its default)."""


@dataclass(frozen=True)
class Gpu:
    """A card.

    Args:
        name: what it is called.
        peak: bfloat16 operations a second, dense.
        single: float32 operations a second.
        bandwidth: bytes a second.
        efficiency: share of the peak that training and scoring in bfloat16 reach, padding included.
        single_efficiency: likewise in float32, whose peak is easier to reach. Assumed.
    """

    name: str = "H100 SXM"
    peak: float = 989e12
    single: float = 67e12
    bandwidth: float = 3.35e12
    efficiency: float = 0.3
    single_efficiency: float = 0.6


H100 = Gpu()
A100 = Gpu("A100 SXM", 312e12, 19.5e12, 2.0e12)


def forward_operations(shape: Shape, length: float, head: bool = True) -> float:
    """Operations of one token of a text of that length, on average."""
    weights = shape.matrix_parameters + (shape.embedding_parameters if head else 0)
    return 2 * weights + 2 * shape.layers * shape.query_width * length


def passes(precision: Precision) -> int:
    """Forward passes that one training step on a token costs."""
    return (2 if precision.lora else 3) + precision.checkpointing


def hours(operations: float, gpu: Gpu, bf16: bool = True) -> float:
    """GPU hours of so many operations."""
    rate = gpu.peak * gpu.efficiency if bf16 else gpu.single * gpu.single_efficiency
    return operations / rate / 3600


def decoding_hours(
    shape: Shape,
    gpu: Gpu,
    *,
    answers: int,
    prompt: float,
    new_tokens: int,
    batch: int,
    engine: str = "transformers",
    adapted: bool = False,
    width: int = 2,
) -> float:
    """GPU hours of generating answers.

    Args:
        shape: the policy's.
        gpu: the card.
        answers: how many.
        prompt: mean tokens of a prompt.
        new_tokens: longest answer; transformers goes on until the longest of a batch has ended.
        batch: prompts answered at once (transformers).
        engine: `transformers` or `vllm`.
        adapted: adapters lie beside the weights.
        width: bytes of a weight.
    """
    if not answers:
        return 0.0
    vllm = engine == "vllm"
    rows = min(CONCURRENT if vllm else batch, answers)
    steps = new_tokens * ANSWER if vllm else new_tokens
    cache = key_value_cache(shape, rows, prompt + steps / 2) * 2**30
    reading = (width * shape.parameters + cache) / (gpu.bandwidth * READING)
    launching = 0.0 if vllm else shape.layers * LAUNCH * (ADAPTED_LAUNCH if adapted else 1)
    return ceil(answers / rows) * steps * max(reading, launching) / 3600
