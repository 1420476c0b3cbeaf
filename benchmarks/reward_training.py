"""Training a reward model, ours and TRL's side by side: logical tokens a second.

    python benchmarks/reward_training.py                                        # lengths drawn like UltraFeedback's
    python benchmarks/reward_training.py --pairs ../shared/data/ultrafeedback_pairs/train.jsonl

* `trl` is TRL's `RewardTrainer` as it comes; `ours_padded` our trainer with TRL's batches; `ours_rm` and `ours_vrm` are
  ours with packed batches, in which a prompt stands once for both responses; `_flex`, to be named and on CUDA alone, is
  their form with FlexAttention.
* All train the same model (Qwen3, hidden size 256, 4 layers, same seed; the VRM adds its head) on the same token ids in
  the same order with the same precision, AdamW and learning rate, without activation checkpointing.
* What counts is the time from the first step's beginning to the last step's end: batches, forward, backward, optimiser.
  Making the trainer does not count.
* `side_by_side.py` says how turns are taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from side_by_side import (
    DISTRIBUTION,
    MAX_LENGTH,
    MAX_PROMPT,
    Stopwatch,
    Turns,
    drawn_lengths,
    made_up_words,
    report,
    small_config,
    tokenizer_of,
)
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import RewardConfig, RewardTrainer

from vrm.config import Variant
from vrm.models.shared_prefix import share_prefixes
from vrm.models.text import TextEncoder
from vrm.models.vrm import VrmConfig, VrmForSequenceClassification
from vrm.training.pairs import PackedPairCollator, PairCollator
from vrm.training.reward import PairwiseRewardTrainer
from vrm.training.reward_kinds import KINDS

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
CONTESTANTS = ("trl", "ours_padded", "ours_rm", "ours_vrm")
WITH_CUDA = ("ours_rm_flex", "ours_vrm_flex")


def main() -> None:
    """Take turns; print a table and append it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="JSON lines with prompt, chosen, rejected (texts); default: drawn")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--prompt-pooling", choices=("last", "attention"), default="last", help="the VRM's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS + WITH_CUDA, default=list(CONTESTANTS))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/reward_training.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, tokenizer = real_pairs(options) if options.pairs else drawn_pairs(options)
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    turns = Turns({name: Contestant(name, rows, tokenizer, options).turn for name in options.contestants})
    turns.play(options.rounds)
    setting = {
        "pairs": options.pairs or "drawn",
        "lengths": "the texts' own" if options.pairs else DISTRIBUTION,
        "pairs_a_step": options.batch,
        "steps": options.steps,
        "logical_tokens": tokens,
        "precision": "bf16" if options.bf16 else "float32",
        "prompt_pooling": options.prompt_pooling,
        "model": "qwen3 hidden 256 layers 4",
    }
    against = "trl" if "trl" in options.contestants else options.contestants[0]
    report(turns.rows(tokens, against), setting, options.out)


def drawn_pairs(options: argparse.Namespace) -> tuple[list[dict[str, object]], PreTrainedTokenizerBase]:
    """Random token ids of drawn lengths, the end token last."""
    rng = np.random.default_rng(options.seed)
    tokenizer = tokenizer_of([" ".join(made_up_words(rng))])
    rows = []
    for _ in range(options.batch * options.steps):
        prompt, responses = drawn_lengths(rng, 2)
        ids = rng.integers(10, len(tokenizer), prompt).tolist()
        sides = [[*ids, *rng.integers(10, len(tokenizer), n - 1).tolist(), tokenizer.eos_token_id] for n in responses]
        rows.append(_row(*sides, prompt, rng))
    return rows, tokenizer


def real_pairs(options: argparse.Namespace) -> tuple[list[dict[str, object]], PreTrainedTokenizerBase]:
    """Pairs of a file, drawn at random, tokenised as in our training."""
    rng = np.random.default_rng(options.seed)
    records = [json.loads(line) for line in options.pairs.read_text(encoding="utf-8").splitlines()]
    tokenizer = tokenizer_of([record[side] for record in records for side in ("prompt", "chosen", "rejected")])
    encoder = TextEncoder(tokenizer, MAX_PROMPT, MAX_LENGTH)
    records = [records[i] for i in rng.permutation(len(records))[: options.batch * options.steps]]
    prompts = [[{"role": "user", "content": record["prompt"]}] for record in records]
    sides = [encoder.encode(prompts, [record[side] for record in records]) for side in ("chosen", "rejected")]
    return [_row(c.ids, r.ids, c.prompt_length, rng) for c, r in zip(*sides, strict=True)], tokenizer


def _row(chosen: list[int], rejected: list[int], prompt: int, rng: np.random.Generator) -> dict[str, object]:
    scores = rng.standard_normal((2, len(ASPECTS)))
    target = np.exp(scores[0]) / np.exp(scores[0]).sum()
    annotation = {"chosen_normalised": scores[0].tolist(), "rejected_normalised": scores[1].tolist()}
    ids = {"chosen_ids": chosen, "rejected_ids": rejected, "prompt_length": prompt}
    return ids | annotation | {"target": target.tolist()}


@dataclass
class Contestant:
    """One way to train.

    Args:
        name: see `CONTESTANTS`.
        rows: the pairs.
        tokenizer: theirs.
        options: of the command line.
    """

    name: str
    rows: list[dict[str, object]]
    tokenizer: PreTrainedTokenizerBase
    options: argparse.Namespace

    def turn(self) -> np.ndarray:
        """Train a fresh model for one pass over the pairs; what a `Stopwatch` read."""
        clock = Clock()
        with tempfile.TemporaryDirectory() as directory:
            trainer = self._make(Path(directory))
            trainer.add_callback(clock)
            trainer.train()
        return clock.seconds

    def _make(self, directory: Path) -> RewardTrainer:
        set_seed(self.options.seed)
        model = self._model()
        args = RewardConfig(
            output_dir=str(directory),
            max_steps=self.options.steps,
            per_device_train_batch_size=self.options.batch,
            learning_rate=1e-4,
            max_length=None,
            bf16=self.options.bf16,
            activation_checkpointing=False,
            logging_steps=self.options.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=self.options.seed,
            use_cpu=not torch.cuda.is_available(),
        )
        common = {"model": model, "args": args, "processing_class": self.tokenizer}
        if self.name == "trl":
            columns = ("chosen_ids", "rejected_ids")
            rows = [{column: row[column] for column in columns} for row in self.rows]
            return RewardTrainer(**common, train_dataset=Dataset.from_list(rows))
        kind = "variational" if "vrm" in self.name else "scalar"
        return PairwiseRewardTrainer(
            **common,
            kind=KINDS[kind](Variant(label=self.name, kind=kind), ASPECTS),
            train_dataset=Dataset.from_list(self.rows),
            data_collator=self._collator(),
        )

    def _model(self) -> torch.nn.Module:
        config = small_config(self.tokenizer)
        if "vrm" in self.name:
            pooling = self.options.prompt_pooling
            model = VrmForSequenceClassification(
                VrmConfig(text_config=config, aspects=ASPECTS, num_labels=1, prompt_pooling=pooling)
            )
        else:
            model = AutoModelForSequenceClassification.from_config(config)
        if self.name not in ("trl", "ours_padded"):
            share_prefixes(model)
        return model

    def _collator(self) -> Callable[[list[dict[str, object]]], dict[str, object]]:
        pad = self.tokenizer.pad_token_id
        if self.name == "ours_padded":
            return PairCollator(pad_token_id=pad)
        return PackedPairCollator(pad, blocks=self.name.endswith("_flex"))


class Clock(TrainerCallback):
    """From the first step's beginning to the last one's end."""

    def __init__(self) -> None:
        self.watch: Stopwatch | None = None
        self.seconds = np.zeros(2)

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        """Start, once."""
        self.watch = self.watch or Stopwatch()

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        """Stop, so far."""
        self.seconds = self.watch.read()


if __name__ == "__main__":
    main()
