"""One DPO step and one PPO update of a randomly initialised policy: peak memory and tokens a second.

    python benchmarks/policy_step.py --shape qwen2.5-7b --lora          # one 80 GB card
    python benchmarks/policy_step.py --shape tiny                       # a minute on a laptop: does the script work?

Shapes are those of the public models, weights are random, texts are random words of UltraFeedback's typical lengths:
what is measured is memory and speed, which do not depend on what the weights say. The code under the clock is the
project's own (`vrm.training.preference`, `vrm.training.ppo`). One JSON line a measurement goes to `--out`, and
`docs/benchmarks.md` says how to read them.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from vrm.config import Generation, Lora, PolicyTraining, PpoLimits, PpoTraining, PreferenceMethod
from vrm.models.scoring import HuggingFaceRewardModel
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import VrmConfig, VrmForSequenceClassification
from vrm.records import PreferencePair, prompt_id, read_pairs, write_jsonl
from vrm.training.backbones import train_tokenizer
from vrm.training.pairs import tokenise_pairs
from vrm.training.policies import PolicyJob
from vrm.training.ppo import PpoRun
from vrm.training.preference import make_trainer

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
VOCABULARY = 4096
"""Tokens of the made-up tokenizer; the models keep the vocabulary of their shape, whose cost is what counts."""


@dataclass(frozen=True)
class Shape:
    """A policy and a reward model, and how long texts are.

    Args:
        policy, reward: configuration class and sizes.
        prompt, response: tokens.
    """

    policy: tuple[type, dict]
    reward: tuple[type, dict]
    prompt: int
    response: int


QWEN25_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 2 * VOCABULARY,  # as in the real shapes, more than the tokenizer knows
}
SHAPES = {
    "qwen2.5-7b": Shape((Qwen2Config, QWEN25_7B), (Qwen3Config, QWEN3_4B), prompt=512, response=512),
    "tiny": Shape((Qwen2Config, TINY), (Qwen3Config, TINY | {"head_dim": 32}), prompt=64, response=32),
}


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--lora", action="store_true", help="adapters of rank 16 instead of full fine-tuning")
    parser.add_argument("--load-in-4bit", action="store_true", help="with --lora: the frozen layers as 4-bit numbers")
    parser.add_argument("--batch", type=int, default=4, help="pairs or answers a forward pass")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vrm-benchmark"), help="weights go here (15 GB)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results.jsonl"))
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    job, reward = prepare(shape, options)
    tokens = 2 * options.batch * (shape.prompt + shape.response)  # B pairs, or 2B answers
    prepared = {"dpo_step": lambda: dpo_step(job), "ppo_update": lambda: ppo_update(job, reward, shape, options)}
    for name, prepare_step in prepared.items():
        record = measure(name, prepare_step(), tokens)
        record |= {name: getattr(options, name) for name in ("shape", "lora", "load_in_4bit", "batch")}
        print(json.dumps(record))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(name: str, run: Callable[[], None], tokens: int) -> dict[str, object]:
    """Peak memory and tokens a second of `run`, whose first call is a warm-up."""
    cuda = torch.cuda.is_available()
    run()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "what": name,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def prepare(shape: Shape, options: argparse.Namespace) -> tuple[PolicyJob, HuggingFaceRewardModel]:
    """Random policy on disk, random reward model in memory, random pairs of the wanted lengths."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 9))) for _ in range(2 * VOCABULARY)]
    tokenizer = train_tokenizer([" ".join(words)] * 4, VOCABULARY, template="qwen2.5")
    policy = options.scratch / options.shape
    if not (policy / "config.json").exists():
        kind, sizes = shape.policy
        limits = {"max_position_embeddings": 4096, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(kind(**sizes, **limits, bos_token_id=None), dtype=torch.bfloat16)
        model.save_pretrained(policy)
        tokenizer.save_pretrained(policy)
        del model
    pairs = options.scratch / "pairs"
    for split in ("train", "validation"):
        rows = [_pair(i, words, shape, rng) for i in range(4 * options.batch)]
        write_jsonl(pairs / f"{split}.jsonl", rows)
    on_gpu = torch.cuda.is_available()
    training = PolicyTraining(
        batch_size=options.batch,
        max_prompt_length=shape.prompt,
        max_length=shape.prompt + shape.response,
        evaluations=1,
        evaluation_pairs=options.batch,
        checkpoints=0,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        lora=Lora(load_in_4bit=options.load_in_4bit) if options.lora else None,
        epochs=0.25,  # one step of `batch` pairs
    )
    job = PolicyJob(
        policy=str(policy),
        training=training,
        seed=0,
        pairs=pairs,
        checkpoints=options.scratch / "checkpoints",
        out=options.scratch / "out",
    )
    return job, _reward_model(shape, tokenizer)


def dpo_step(job: PolicyJob) -> Callable[[], None]:
    """A function that makes one optimiser step on one batch of pairs; what comes before it is not under the clock."""
    method = PreferenceMethod(label="DPO", method="dpo", beta=0.01)
    tokenizer = job.tokenizer()
    path = job.pairs / "train.jsonl"
    pairs, _ = tokenise_pairs(read_pairs(path), job.encoder(tokenizer), path, "max_length")
    trainer = make_trainer(job, method, tokenizer, pairs, pairs[: job.training.batch_size])
    trainer.eval_dataset, trainer.args.eval_strategy, trainer.args.eval_on_start = None, "no", False
    return lambda: trainer.train()


def ppo_update(
    job: PolicyJob, reward: HuggingFaceRewardModel, shape: Shape, options: argparse.Namespace
) -> Callable[[], None]:
    """A function that makes one PPO update: answers, scores, one pass of optimiser steps."""
    answers = 2 * options.batch
    ppo = PpoTraining(
        updates=8,
        prompts_per_update=answers,
        epochs=1,
        minibatch_size=options.batch,
        critic_warmup=0,
        evaluation_prompts=1,
        checkpoints=0,
        limits=PpoLimits(kl=1e9, entropy=0, missing_end=1.0, explained_variance=-1e9, response_length=1e-9),
    )
    generation = Generation(max_new_tokens=shape.response, batch_size=answers)
    run = PpoRun(job, ppo, generation, reward)
    return lambda: run.update(1)


def _reward_model(shape: Shape, tokenizer: object) -> HuggingFaceRewardModel:
    kind, sizes = shape.reward
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text_config = kind(**sizes, max_position_embeddings=4096, pad_token_id=0)
    config = VrmConfig(text_config=text_config, aspects=ASPECTS, generation_prompt_ids=generation_prompt_ids(tokenizer))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = VrmForSequenceClassification(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.head.float()
    limits = {"max_prompt_length": shape.prompt, "max_length": shape.prompt + shape.response}
    return HuggingFaceRewardModel(model, tokenizer, **limits, batch_size=8)


def _pair(number: int, words: list[str], shape: Shape, rng: np.random.Generator) -> PreferencePair:
    """Texts that are a little too long, so that each is cut to exactly the wanted length."""

    def text(tokens: int) -> str:
        return " ".join(rng.choice(words, tokens))

    prompt = [{"role": "user", "content": text(shape.prompt)}]
    return PreferencePair(str(number), prompt_id(prompt), prompt, text(shape.response), text(shape.response))


if __name__ == "__main__":
    main()
