"""GPU hours from floating-point operations and memory traffic, at a stated efficiency.

* Forward: 2 operations a weight and token, and attention's 2 x width x length a token and block (causal).
* Training: 3 forward passes; with adapters 2, since frozen weights get no gradient; one more with checkpointing. With
  4-bit weights each takes `UNPACKING` times as long.
* Decoding is not bound by arithmetic: a step reads all weights and the cache, and through transformers takes at least
  `LAUNCH` seconds a block, whatever the card.

Source: Kaplan et al. 2020, section 2.1 (2N, and 6N a token for training); Narayanan et al. 2021, section 5.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from math import ceil, comb
from pathlib import Path
from typing import Any

from vrm.config import Config, Lora, Source
from vrm.planning.memory import Precision, Shape, key_value_cache

# How many texts there are and how long they are, before anything is read: what the time of a job is made of.
#
# Rows of local files are counted. Of hub datasets those of our presets are known; their lengths are means in tokens.

CHARACTERS = 4
"""Characters of a token, in English text."""
SAMPLE = 200
"""Lines of a local file whose length is measured."""


@dataclass(frozen=True)
class Texts:
    """Rows of a dataset, and the mean length of what is in them.

    Args:
        rows: how many.
        prompt: mean tokens of a prompt.
        response: mean tokens of a response.
        known: False where this is a stand-in because the data are not here yet.
    """

    rows: int
    prompt: float
    response: float
    known: bool = True


UNKNOWN = Texts(0, 0, 0, known=False)

PUBLIC: dict[tuple[str, str], Texts] = {
    ("openbmb/UltraFeedback", "train"): Texts(63_967, 185, 305),
    ("allenai/ultrafeedback_binarized_cleaned", "test_prefs"): Texts(2_000, 185, 305),
    ("allenai/reward-bench", "filtered"): Texts(2_985, 185, 305),
}
"""Hub datasets by id and split.

Source: UltraFeedback: rows from its card, lengths from its paper; they agree with the 405,688,662 bytes of the 61,135
rows of HuggingFaceH4/ultrafeedback_binarized, each of which holds the prompt four times and a response three times, at
4 characters a token. RewardBench's rows are the benchmark's; its lengths, and all of the last two sets' beside their
size, are taken to be UltraFeedback's.
"""


def texts_of(source: Source) -> Texts:
    """Rows and lengths of a source; `UNKNOWN` where neither the file is here nor the dataset is one of `PUBLIC`."""
    if source.hub is not None:
        return PUBLIC.get((source.hub.dataset, source.hub.split), UNKNOWN)
    path = Path(source.path)
    if path.suffix != ".jsonl" or not path.is_file():
        return UNKNOWN
    with open(path, encoding="utf-8", errors="replace") as handle:
        head = list(islice(handle, SAMPLE))
        rows = len(head) + sum(1 for _ in handle)
    lengths = [_lengths(line) for line in head]
    prompt, response = (sum(side) / max(len(lengths), 1) / CHARACTERS for side in zip(*lengths, strict=True))
    return Texts(rows, prompt, response)


def training_pairs(config: Config) -> int:
    """Pairs that are trained on, at most: ties and unusable rows come off."""
    data = config.data
    a_prompt = 1 if data.pairing != "all" else min(comb(4, 2), data.max_pairs_per_prompt or comb(4, 2))
    return round(texts_of(data).rows * (1 - data.validation_fraction - data.test_fraction)) * a_prompt


def _lengths(line: str) -> tuple[int, int]:
    """Characters of a row's prompt, and of one of its responses on average."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0, 0
    if not isinstance(row, dict):
        return 0, 0
    completions = row.get("completions")
    if isinstance(completions, list) and completions:
        texts = [c.get("response") for c in completions if isinstance(c, dict)]
    else:
        texts = [row.get("chosen"), row.get("rejected")]
    return _characters(row.get("instruction", row.get("prompt"))), sum(map(_characters, texts)) // max(len(texts), 1)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(str(message.get("content", ""))) for message in value or [] if isinstance(message, dict))


# Hours.

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
UNPACKING = 1.65
"""How many times longer a pass takes whose weights are 4-bit numbers, unpacked for each product.

Source: alignment-handbook's 4-bit run below, which took that many times what we estimate of the same run in bfloat16.
Today's kernels may do better; we have measured nothing on a GPU.
"""
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


def unpacking(precision: Precision) -> float:
    """How many times longer each of them takes than in 16 bits or more."""
    return UNPACKING if precision.packed else 1.0


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
    width: float = 2,
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
        width: bytes that are moved a weight.
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


# Our estimates beside what published trainings took; `python -m vrm.planning.time` prints the table.
#
# The efficiency of 0.3 was chosen with the first of them in view and `UNPACKING` with the second, so that these two are
# calibrations and no tests.

MISTRAL_7B = Shape(32000, 4096, 32, 32, 8, 128, 14336, tied=False, head_norms=False)
QLORA = Lora(load_in_4bit=True)
PAIRS, LENGTH = 61_135, 490
"""HuggingFaceH4/ultrafeedback_binarized: rows of train_prefs, and mean tokens of prompt and response."""


@dataclass(frozen=True)
class PublishedRun:
    """A published training.

    Args:
        name: what was trained.
        source: where its time stands.
        taken: GPU hours that it took.
        estimated: GPU hours by our formulas.
    """

    name: str
    source: str
    taken: float
    estimated: float


def runs() -> list[PublishedRun]:
    """Published runs whose model, data, cards and time are stated."""
    hub = "huggingface.co/alignment-handbook/zephyr-7b-dpo-{}, train_results.json; 8 cards of 80 GB, taken as A100"
    return [
        PublishedRun("DPO, all weights, 7B", hub.format("full"), 5328.5 * 8 / 3600, _dpo(Precision(True, None, True))),
        PublishedRun("DPO, 4-bit LoRA, 7B", hub.format("qlora"), 7610.5 * 8 / 3600, _dpo(Precision(True, QLORA, True))),
        PublishedRun(
            "decoding, 7B, 2048 tokens", "Qwen-7B's table: 40.93 tokens/s, A100", 2048 / 40.93 / 3600, _decoding()
        ),
    ]


def _dpo(precision: Precision) -> float:
    """One pass over the pairs, and one of the reference in the same loop."""
    times = passes(precision) + 1
    operations = 2 * PAIRS * LENGTH * times * forward_operations(MISTRAL_7B, LENGTH)
    return hours(operations * unpacking(precision), A100)


def _decoding() -> float:
    qwen_7b = Shape(151936, 4096, 32, 32, 32, 128, 11008, tied=False, attention_bias=True, head_norms=False)
    return decoding_hours(qwen_7b, A100, answers=1, prompt=1, new_tokens=2048, batch=1)


def table() -> str:
    """The runs as a Markdown table."""
    lines = ["| run | took, GPU h | estimated, GPU h | source |", "|---|---|---|---|"]
    lines += [f"| {run.name} | {run.taken:.3g} | {run.estimated:.3g} | {run.source} |" for run in runs()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
