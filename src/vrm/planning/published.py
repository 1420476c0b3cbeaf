"""Our estimates beside what published trainings took; `python -m vrm.planning.published` prints the table.

The efficiency of 0.3 was chosen with the first of them in view, so that one is a calibration and no test.
"""

from __future__ import annotations

from dataclasses import dataclass

from vrm.config import Lora
from vrm.planning import time
from vrm.planning.memory import Precision
from vrm.planning.shapes import Shape
from vrm.planning.time import A100

MISTRAL_7B = Shape(32000, 4096, 32, 32, 8, 128, 14336, tied=False, head_norms=False)
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
        PublishedRun(
            "DPO, 4-bit LoRA, 7B", hub.format("qlora"), 7610.5 * 8 / 3600, _dpo(Precision(True, Lora(), True))
        ),
        PublishedRun(
            "decoding, 7B, 2048 tokens", "Qwen-7B's table: 40.93 tokens/s, A100", 2048 / 40.93 / 3600, _decoding()
        ),
    ]


def _dpo(precision: Precision) -> float:
    """One pass over the pairs, and one of the reference in the same loop."""
    passes = time.passes(precision) + 1
    operations = 2 * PAIRS * LENGTH * passes * time.forward_operations(MISTRAL_7B, LENGTH)
    return time.hours(operations, A100)


def _decoding() -> float:
    qwen_7b = Shape(151936, 4096, 32, 32, 32, 128, 11008, tied=False, attention_bias=True, head_norms=False)
    return time.decoding_hours(qwen_7b, A100, answers=1, prompt=1, new_tokens=2048, batch=1)


def table() -> str:
    """The runs as a Markdown table."""
    lines = ["| run | took, GPU h | estimated, GPU h | source |", "|---|---|---|---|"]
    lines += [f"| {run.name} | {run.taken:.3g} | {run.estimated:.3g} | {run.source} |" for run in runs()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
