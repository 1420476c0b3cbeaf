"""Training a reward model, ours and TRL's side by side: logical tokens a second.

    python benchmarks/reward_training.py                                        # lengths drawn like UltraFeedback's
    python benchmarks/reward_training.py --pairs ../shared/data/ultrafeedback_pairs/train.jsonl
    python benchmarks/reward_training.py --shape qwen3-4b --bf16 --checkpointing --batch 16 --accumulation 2 --steps 1 \
        --contestants trl ours_rm ours_rm+varlen ours_rm+varlen+compile ours_vrm+varlen+compile           # one H100

* `trl` is TRL's `RewardTrainer` as it comes; `ours_padded` our trainer with TRL's batches; `ours_rm` and `ours_vrm` are
  ours with packed batches, in which a prompt stands once for both responses. After a `+` stand how attention is
  computed, on CUDA alone (`flex`, `varlen`), and `compile`: the parts of each block are compiled, TRL's too if asked.
* All train the same model (same seed; the VRM adds its head) on the same token ids in the same order with the same
  precision, AdamW and learning rate, and activation checkpointing where it is asked for.
* What counts is the time from a turn's first step's beginning to its last step's end: batches, forward, backward,
  optimiser. Making the trainer does not count; the first turn of each, in which kernels are compiled, neither.
* On CUDA the use of the card is told too: 6 operations a parameter of the blocks and logical token (`mfu`: what a
  training without checkpointing, sharing or padding has to do), and 8 with checkpointing and computed token
  (`arithmetic`: what is really done, attention's products left out), over the rate that a product of two 8192 x 8192
  matrices of random numbers in bfloat16 has in the same process; peak memory beside the planner's prediction.
* `side_by_side.py` says how turns are taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from side_by_side import (
    DISTRIBUTION,
    MAX_LENGTH,
    MAX_PROMPT,
    SHAPES,
    Stopwatch,
    Turns,
    drawn_lengths,
    made_up_words,
    matrix_rate,
    model_config,
    report,
    tokenizer_of,
)
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import RewardConfig, RewardTrainer

from vrm.config import Variant
from vrm.models.shared_prefix import Kernel, compile_blocks, share_prefixes
from vrm.models.text import TextEncoder
from vrm.models.vrm import VrmConfig, VrmForSequenceClassification
from vrm.planning import memory
from vrm.training.pairs import PackedPairCollator, PairCollator
from vrm.training.reward import PairwiseRewardTrainer
from vrm.training.reward_kinds import KINDS

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
CONTESTANTS = ("trl", "ours_padded", "ours_rm", "ours_vrm")
KERNELS: dict[str, Kernel] = {"flex": "blocks", "varlen": "varlen"}


def main() -> None:
    """Take turns; print a table and append it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="JSON lines with prompt, chosen, rejected (texts); default: drawn")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model, with random weights")
    parser.add_argument("--batch", type=int, default=8, help="pairs a forward pass")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes a step")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tokens-per-row", type=int, help="of packed rows; default: one row")
    parser.add_argument("--optimizer", default="adamw_torch_fused", help="transformers' name for it")
    parser.add_argument("--prompt-pooling", choices=("last", "attention"), default="last", help="the VRM's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), help="see above")
    parser.add_argument("--profile", action="store_true", help="one more turn each: milliseconds by kind of kernel")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/reward_training.csv"))
    parser.add_argument("--json", type=Path, help="the same rows, appended as JSON lines")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, tokenizer = real_pairs(options) if options.pairs else drawn_pairs(options)
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    contestants = [Contestant(name, rows, tokenizer, options) for name in options.contestants]
    rate = matrix_rate() if torch.cuda.is_available() else None
    turns = Turns({each.name: each.turn for each in contestants})
    turns.play(options.rounds)
    setting = {
        "pairs": options.pairs or "drawn",
        "lengths": "the texts' own" if options.pairs else DISTRIBUTION,
        "pairs_a_pass": options.batch,
        "passes_a_step": options.accumulation,
        "steps": options.steps,
        "logical_tokens": tokens,
        "precision": "bf16" if options.bf16 else "float32",
        "checkpointing": options.checkpointing,
        "tokens_per_row": options.tokens_per_row,
        "optimizer": options.optimizer,
        "prompt_pooling": options.prompt_pooling,
        "model": options.shape,
        "matrix_teraflops": rate and round(rate / 1e12, 1),
    }
    against = "trl" if "trl" in options.contestants else options.contestants[0]
    found = turns.rows(tokens, against)
    for row, contestant in zip(found, contestants, strict=True):
        row |= contestant.use_of_the_card(row["seconds"], rate)
    report(found, setting, options.out, options.json)
    if options.profile:
        for contestant in contestants:
            line = json.dumps({"what": "profile", "contestant": contestant.name, **contestant.profile()})
            print(line)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


def drawn_pairs(options: argparse.Namespace) -> tuple[list[dict[str, object]], PreTrainedTokenizerBase]:
    """Random token ids of drawn lengths, the end token last."""
    rng = np.random.default_rng(options.seed)
    tokenizer = tokenizer_of([" ".join(made_up_words(rng))])
    rows = []
    for _ in range(options.batch * options.accumulation * options.steps):
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
    wanted = options.batch * options.accumulation * options.steps
    records = [records[i] for i in rng.permutation(len(records))[:wanted]]
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
        name: one of `CONTESTANTS`, and after each `+` one of `KERNELS` or `compile`.
        rows: the pairs.
        tokenizer: theirs.
        options: of the command line.
        computed: tokens of each forward pass of the last turn, padding included.
        peaks: bytes allocated at the peak of each turn.
    """

    name: str
    rows: list[dict[str, object]]
    tokenizer: PreTrainedTokenizerBase
    options: argparse.Namespace
    computed: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base, *how = self.name.split("+")
        if self.base not in CONTESTANTS or set(how) - {*KERNELS, "compile"}:
            raise SystemExit(f"--contestants: {self.name}: one of {CONTESTANTS}, and + {', '.join(KERNELS)} or compile")
        self.kernel: Kernel = next((KERNELS[each] for each in how if each in KERNELS), "groups")
        self.compiled = "compile" in how

    def turn(self) -> np.ndarray:
        """Train a fresh model for one pass over the pairs; what a `Stopwatch` read."""
        clock = Clock()
        self._train(clock)
        return clock.seconds

    def profile(self) -> dict[str, float]:
        """Milliseconds of a turn by kind of kernel; {} without a GPU."""
        if not torch.cuda.is_available():
            return {}
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            self._train(Clock())
        spent: dict[str, float] = {}
        for event in profiler.key_averages():
            kind = next(
                (kind for kind, words in KINDS_OF_KERNELS.items() if any(w in event.key for w in words)), "other"
            )
            spent[kind] = spent.get(kind, 0.0) + event.self_device_time_total / 1000
        return {kind: round(value, 1) for kind, value in sorted(spent.items(), key=lambda item: -item[1])}

    def _train(self, clock: Clock) -> None:
        self.computed = []
        cuda = torch.cuda.is_available()
        with tempfile.TemporaryDirectory() as directory:
            trainer = self._make(Path(directory))
            trainer.add_callback(clock)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        if cuda:
            self.peaks.append(torch.cuda.max_memory_allocated())
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.accelerator.free_memory()
            trainer.model.zero_grad(set_to_none=True)

    def use_of_the_card(self, seconds: float, rate: float | None) -> dict[str, object]:
        """Tokens that were computed, shares of the card's rate, and GiB; the latter are None without a GPU."""
        shape = SHAPES[self.options.shape]
        logical = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in self.rows)
        passes = 8 if self.options.checkpointing else 6
        shares = {"mfu": 6 * logical, "arithmetic": passes * sum(self.computed)}
        found: dict[str, object] = {"computed_tokens": sum(self.computed)}
        for name, work in shares.items():
            found[name] = rate and round(work * shape.matrix_parameters / (seconds * rate), 3)
        by_group = self.base in ("ours_rm", "ours_vrm") and self.kernel == "groups"
        moments = memory.MOMENTS["adamw_8bit" if "8bit" in self.options.optimizer else "adamw"]
        precision = memory.Precision(self.options.bf16, None, self.options.checkpointing, moments, by_group)
        predicted = memory.states(shape, precision, head=False)
        predicted["activations"] = memory.activations(shape, precision, max(self.computed))
        peaks = {"predicted": sum(predicted.values()), "measured": max(self.peaks) / 2**30 if self.peaks else None}
        return found | {f"{name}_gib": value and round(value, 2) for name, value in peaks.items()}

    def _make(self, directory: Path) -> RewardTrainer:
        set_seed(self.options.seed)
        model = self._model()
        args = RewardConfig(
            output_dir=str(directory),
            max_steps=self.options.steps,
            per_device_train_batch_size=self.options.batch,
            gradient_accumulation_steps=self.options.accumulation,
            learning_rate=1e-4,
            max_length=None,
            bf16=self.options.bf16,
            activation_checkpointing=self.options.checkpointing,
            optim=self.options.optimizer,
            logging_steps=self.options.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=self.options.seed,
            use_cpu=not torch.cuda.is_available(),
        )
        common = {"model": model, "args": args, "processing_class": self.tokenizer}
        if self.base == "trl":
            columns = ("chosen_ids", "rejected_ids")
            rows = [{column: row[column] for column in columns} for row in self.rows]
            trainer = RewardTrainer(**common, train_dataset=Dataset.from_list(rows))
        else:
            kind = "variational" if "vrm" in self.base else "scalar"
            trainer = PairwiseRewardTrainer(
                **common,
                kind=KINDS[kind](Variant(label=self.name, kind=kind), ASPECTS),
                train_dataset=Dataset.from_list(self.rows),
                data_collator=self._collator(),
            )
        trainer.data_collator = self._counting(trainer.data_collator)
        return trainer

    def _model(self) -> torch.nn.Module:
        config = model_config(self.options.shape, self.tokenizer)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            if "vrm" in self.base:
                pooling = self.options.prompt_pooling
                model = VrmForSequenceClassification(
                    VrmConfig(text_config=config, aspects=ASPECTS, num_labels=1, prompt_pooling=pooling)
                )
            else:
                model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        if self.base in ("ours_rm", "ours_vrm"):
            share_prefixes(model)
        if self.compiled:
            compile_blocks(model)
        return model

    def _collator(self) -> Callable[[list[dict[str, object]]], dict[str, object]]:
        pad = self.tokenizer.pad_token_id
        if self.base == "ours_padded":
            return PairCollator(pad_token_id=pad)
        return PackedPairCollator(pad, self.options.tokens_per_row, self.kernel)

    def _counting(self, collator: Callable[..., dict[str, object]]) -> Callable[..., dict[str, object]]:
        def collate(examples: list[dict[str, object]]) -> dict[str, object]:
            batch = collator(examples)
            self.computed.append(batch["input_ids"].numel())
            return batch

        return collate


KINDS_OF_KERNELS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "sm90_", "Kernel2"),
    "attention": ("flash", "fmha", "flex", "attention"),
    "optimiser": ("multi_tensor", "adam", "Adam"),
    "compiled elementwise": ("triton",),
    "elementwise and copies": ("elementwise", "Memcpy", "Memset", "copy", "cat", "reduce", "index"),
}
"""Words in the names of CUDA kernels, the first kind that fits counts."""


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
