"""Twenty steps of a randomly initialised VRM on pairs as long as UltraFeedback's: predicted and measured peak memory.

    python benchmarks/reward_memory.py --shape qwen3-4b        # one 80 GB card, bf16, activation checkpointing
    python benchmarks/reward_memory.py --shape tiny            # seconds on a laptop: does the script work?

* Weights are random, texts are random words; lengths follow `LENGTHS`, and one pair is as long as the limits allow: it
  decides the peak, and it is what the prediction (`vrm.planning.memory`) is about.
* Afterwards the trained model scores 1,000 pairs as `vrm score` does, in float32.
* The code under the clock is the project's own (`vrm.training.reward`, `vrm.models.scoring`). One JSON line a
  measurement goes to `--out`; `docs/benchmarks.md` says how to read them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen3Config

from vrm.config import RewardTraining, Variant
from vrm.models.scoring import HuggingFaceRewardModel
from vrm.planning import memory
from vrm.planning.memory import PUBLIC, Shape
from vrm.records import PreferencePair, prompt_id, read_pairs, write_jsonl
from vrm.training.backbones import train_tokenizer
from vrm.training.reward import PairwiseRewardTrainer, RewardJob, make_trainer

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
VOCABULARY = 4096
"""Tokens of the made-up tokenizer; the model keeps the vocabulary of its shape."""
STEPS = 20
SCORED = 1000
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LENGTHS = {"prompt": (3, 10, 27, 91, 200, 634, 1090, 1500), "response": (1, 7, 60, 215, 480, 815, 1055, 1400)}
"""Tokens at `QUANTILES`, at 4 characters a token; the outermost are rounded.

Source: 1,000 public pairs of trl-lib/ultrafeedback_binarized (../shared/data/README.md), chosen and rejected alike.
"""


@dataclass(frozen=True)
class Setting:
    """A backbone and the limits that it is trained with, in tokens.

    Args:
        shape: the backbone.
        max_prompt_length, max_length: as in the paper's preset.
        scale: of `LENGTHS`.
    """

    shape: Shape
    max_prompt_length: int
    max_length: int
    scale: float = 1.0


TINY = Shape(2 * VOCABULARY, hidden=64, layers=2, heads=2, key_value_heads=1, head_dim=32, intermediate=128)
SETTINGS = {
    "qwen3-4b": Setting(PUBLIC["Qwen/Qwen3-4B"], 1024, 2048),
    "qwen3-0.6b": Setting(PUBLIC["Qwen/Qwen3-0.6B"], 1024, 2048),
    "tiny": Setting(TINY, 64, 128, scale=1 / 16),
}


def main() -> None:
    """Predict, train, score; print and keep one record each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SETTINGS, default="qwen3-4b")
    parser.add_argument("--batch", type=int, default=1, help="pairs a forward pass")
    parser.add_argument(
        "--accumulation", type=int, default=8, help="forward passes a step; memory does not depend on it"
    )
    parser.add_argument("--scoring-batch", type=int, default=8, help="texts a forward pass when scoring")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vrm-reward-memory"), help="weights go here (8 GB)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results.jsonl"))
    options = parser.parse_args()
    setting = SETTINGS[options.shape]
    pairs = STEPS * options.batch * options.accumulation
    trainer = prepare(setting, options, pairs)
    setup = {"shape": options.shape, "batch": options.batch, "device": device_name()}
    for record in (train(trainer, setting, pairs), score(trainer, setting, options)):
        print(json.dumps(record | setup))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record | setup) + "\n")


def device_name() -> str:
    """What it runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def prepare(setting: Setting, options: argparse.Namespace, pairs: int) -> PairwiseRewardTrainer:
    """A random backbone and random pairs on disk, and the project's trainer of a VRM on them."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 9))) for _ in range(2 * VOCABULARY)]
    tokenizer = train_tokenizer([" ".join(words)] * 4, VOCABULARY, template="qwen3")
    backbone, data = options.scratch / options.shape, options.scratch / "pairs"
    save_backbone(setting.shape, tokenizer, backbone)
    rate = len(tokenizer(" ".join(words))["input_ids"]) / len(words)
    maker = PairMaker(words, rate, setting, rng)
    longest = maker.pair("longest", 2 * setting.max_length, 2 * setting.max_length)
    write_jsonl(data / "train.jsonl", [longest, *(maker.drawn(str(i)) for i in range(pairs - 1))])
    write_jsonl(data / "validation.jsonl", [maker.drawn(f"v{i}") for i in range(SCORED)])
    on_gpu = torch.cuda.is_available()
    training = RewardTraining(
        epochs=1,
        batch_size=options.batch,
        gradient_accumulation=options.accumulation,
        learning_rate=9e-6,
        max_prompt_length=setting.max_prompt_length,
        max_length=setting.max_length,
        evaluations=1,
        evaluation_pairs=1,
        checkpoints=0,
        bf16=on_gpu,
        gradient_checkpointing=True,
    )
    places = {"pairs": data, "checkpoints": options.scratch / "checkpoints", "out": options.scratch / "out"}
    trainer, _ = make_trainer(
        RewardJob(Variant(label="VRM"), training, ASPECTS, seed=0, backbone=str(backbone), revision=None, **places)
    )
    trainer.eval_dataset, trainer.args.eval_strategy, trainer.args.eval_on_start = None, "no", False
    return trainer


def save_backbone(shape: Shape, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """A causal LM of that shape with random weights in bfloat16, unless it is there already."""
    if (directory / "model.safetensors.index.json").exists() or (directory / "model.safetensors").exists():
        return
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@dataclass(frozen=True)
class PairMaker:
    """Pairs of random words.

    Args:
        words: what texts are made of.
        rate: tokens a word.
        setting: limits, and the scale of lengths.
        rng: draws.
    """

    words: list[str]
    rate: float
    setting: Setting
    rng: np.random.Generator

    def drawn(self, name: str) -> PreferencePair:
        """A pair whose lengths follow `LENGTHS`."""
        lengths = {part: np.interp(self.rng.random(2), QUANTILES, table) for part, table in LENGTHS.items()}
        scaled = {part: values * self.setting.scale for part, values in lengths.items()}
        return self.pair(name, scaled["prompt"][0], *scaled["response"])

    def pair(self, name: str, prompt: float, chosen: float, rejected: float | None = None) -> PreferencePair:
        """A pair with texts of so many tokens, annotated at random."""
        turn = [{"role": "user", "content": self._text(prompt)}]
        texts = [self._text(tokens) for tokens in (chosen, chosen if rejected is None else rejected)]
        scores = self.rng.standard_normal((2, len(ASPECTS)))
        target = np.exp(scores[0]) / np.exp(scores[0]).sum()
        annotation = dict(zip(("chosen_normalised", "rejected_normalised"), scores.tolist(), strict=True))
        return PreferencePair(name, prompt_id(turn), turn, *texts, **annotation, target=target.tolist())

    def _text(self, tokens: float) -> str:
        return " ".join(self.rng.choice(self.words, max(1, round(tokens / self.rate))))


def train(trainer: PairwiseRewardTrainer, setting: Setting, pairs: int) -> dict[str, object]:
    """`STEPS` optimiser steps; GiB predicted by part and in all, and GiB that the allocator saw."""
    training = trainer.args
    precision = memory.Precision(bf16=training.bf16, checkpointing=True, by_group=True)
    rows = 2 * training.per_device_train_batch_size
    predicted = memory.training(setting.shape, precision, rows, setting.max_length, head=False)
    tokens = sum(len(row[side]) for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids"))
    seconds, peak = timed(trainer.train)
    return {
        "what": "vrm_20_steps",
        "steps": trainer.state.global_step,
        "pairs": pairs,
        "mean_tokens": round(tokens / (2 * pairs), 1),
        "longest": setting.max_length,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "predicted_gib": {name: round(value, 3) for name, value in predicted.parts.items()},
        "predicted_total_gib": round(predicted.total, 3),
        **peak,
    }


def score(trainer: PairwiseRewardTrainer, setting: Setting, options: argparse.Namespace) -> dict[str, object]:
    """Rewards of both texts of `SCORED` pairs, once the optimiser is gone."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = None
    model.zero_grad(set_to_none=True)
    limits = {"max_prompt_length": setting.max_prompt_length, "max_length": setting.max_length}
    scorer = HuggingFaceRewardModel(model, trainer.processing_class, **limits, batch_size=options.scoring_batch)
    pairs = read_pairs(options.scratch / "pairs" / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    found = []

    def both() -> None:
        found.extend(scorer.score(prompts, [getattr(p, side) for p in pairs]).mean for side in ("chosen", "rejected"))

    seconds, peak = timed(both)
    return {
        "what": "score_1000_pairs",
        "pairs": len(pairs),
        "finite": bool(np.isfinite(found).all()),
        "seconds": round(seconds, 2),
        "pairs_per_second": round(len(pairs) / seconds, 2),
        **peak,
    }


def timed(run: Callable[[], object]) -> tuple[float, dict[str, float | None]]:
    """Seconds of a call, and the GiB that it allocated and reserved at its peak; None without a GPU."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    peaks = {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3) if cuda else None,
    }
    return time.perf_counter() - started, peaks


if __name__ == "__main__":
    main()
