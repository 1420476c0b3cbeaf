"""Scoring 16 responses a prompt, ours and a padded scorer side by side: logical tokens a second.

    python benchmarks/scoring.py                                                # lengths drawn like UltraFeedback's
    python benchmarks/scoring.py --records ../shared/data/summeval/train.jsonl  # prompt and completions of a file

* `padded` scores as RewardBench's pipeline does (`rewardbench/models/pipeline.py`): texts in their order of arrival, in
  batches that the tokenizer pads, one forward pass of the sequence classifier each. Its batch is `--batch`; the default
  of RewardBench's script, 64, pads more.
* `ours_varlen`, on CUDA and in bfloat16, is `ours` with FlashAttention over all texts at once.
* `ours_padded` sorts by length; `ours` computes a prompt once for all of its responses and pads nothing; `ours_vrm` is
  a VRM scored the same way. All read the same texts, and tokenising them is part of the time.
* Before the clock starts, rewards of `padded` and `ours` are compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from side_by_side import (
    DISTRIBUTION,
    MAX_LENGTH,
    MAX_PROMPT,
    SHAPES,
    Stopwatch,
    Turns,
    drawn_lengths,
    made_up_words,
    model_config,
    report,
    tokenizer_of,
)
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from vrm.models.scoring import HuggingFaceRewardModel
from vrm.models.vrm import VrmConfig, VrmForSequenceClassification

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
TOLERANCE = {"float32": 1e-4, "bf16": 0.1}
"""How far two scorers' rewards may be apart; they are of order 1."""


def main() -> None:
    """Take turns; print a table and append it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="JSON lines with instruction and completions; default: drawn")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model, with random weights")
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--responses", type=int, default=16, help="a prompt")
    parser.add_argument("--batch", type=int, default=16, help="texts a forward pass, of the padded scorers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/scoring.csv"))
    parser.add_argument("--json", type=Path, help="the same rows, appended as JSON lines")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    prompts, responses, tokenizer = recorded(options) if options.records else drawn(options)
    scorers = make_scorers(tokenizer, options)
    tokens = sum(len(text.ids) for text in scorers["ours"].encoder.encode(_turns(prompts), responses))
    check(scorers, prompts, responses, TOLERANCE["bf16" if options.bf16 else "float32"])

    def turn(name: str) -> np.ndarray:
        watch = Stopwatch()
        scorers[name].score(prompts, responses)
        return watch.read()

    turns = Turns({name: lambda name=name: turn(name) for name in scorers})
    turns.play(options.rounds)
    setting = {
        "records": options.records or "drawn",
        "lengths": "the texts' own" if options.records else DISTRIBUTION,
        "prompts": len(set(prompts)),
        "texts": len(prompts),
        "logical_tokens": tokens,
        "padded_batch": options.batch,
        "precision": "bf16" if options.bf16 else "float32",
        "model": options.shape,
    }
    report(turns.rows(tokens, "padded"), setting, options.out, options.json)


def drawn(options: argparse.Namespace) -> tuple[list[str], list[str], PreTrainedTokenizerBase]:
    """Random words of drawn lengths, prompt by prompt."""
    rng = np.random.default_rng(options.seed)
    words = made_up_words(rng)
    tokenizer = tokenizer_of([" ".join(words)])
    rate = len(tokenizer(" ".join(words))["input_ids"]) / len(words)

    def text(tokens: int) -> str:
        return " ".join(rng.choice(words, max(1, round(tokens / rate))))

    prompts, responses = [], []
    for _ in range(options.prompts):
        prompt, lengths = drawn_lengths(rng, options.responses)
        prompts += [text(prompt)] * options.responses
        responses += [text(length) for length in lengths]
    return prompts, responses, tokenizer


def recorded(options: argparse.Namespace) -> tuple[list[str], list[str], PreTrainedTokenizerBase]:
    """The first prompts of a file in UltraFeedback's shape with all of their responses."""
    lines = options.records.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    texts = [r["instruction"] for r in records] + [c["response"] for r in records for c in r["completions"]]
    rows = [
        (record["instruction"], completion["response"])
        for record in records[: options.prompts]
        for completion in record["completions"][: options.responses]
    ]
    prompts, responses = (list(column) for column in zip(*rows, strict=True))
    return prompts, responses, tokenizer_of(texts)


def _turns(prompts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


class PaddedScorer:
    """RewardBench's way: arrival order, the tokenizer's padding, the classifier's own pooling."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
        self.model, self.tokenizer, self.batch = model.eval(), tokenizer, batch

    def score(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        """Rewards of N texts, shape (N,)."""
        texts = []
        for turn, response in zip(_turns(prompts), responses, strict=True):
            turns = [*turn, {"role": "assistant", "content": response}]
            texts.append(self.tokenizer.apply_chat_template(turns, tokenize=False))
        rewards = []
        for start in range(0, len(texts), self.batch):
            inputs = self.tokenizer(
                texts[start : start + self.batch],
                add_special_tokens=False,
                return_token_type_ids=False,
                truncation=True,
                max_length=MAX_LENGTH,
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.no_grad():
                rewards.append(self.model(**inputs).logits.squeeze(-1).float().cpu().numpy())
        return np.concatenate(rewards)


def make_scorers(
    tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> dict[str, PaddedScorer | HuggingFaceRewardModel]:
    """All scorers; those of a classifier have equal weights."""
    config = model_config(options.shape, tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = {"max_prompt_length": MAX_PROMPT, "max_length": MAX_LENGTH}

    dtype = torch.bfloat16 if options.bf16 else torch.float32

    def classifier() -> PreTrainedModel:
        set_seed(options.seed)
        with torch.device(device):
            return AutoModelForSequenceClassification.from_config(config).to(dtype)

    set_seed(options.seed)
    with torch.device(device):
        variational = VrmForSequenceClassification(VrmConfig(text_config=config, aspects=ASPECTS)).to(dtype)
    variational.head.float()  # as it is trained and loaded
    padded = {"engine": "padded", "batch_size": options.batch}
    with_cuda = {}
    if device == "cuda" and options.bf16:
        with_cuda["ours_varlen"] = HuggingFaceRewardModel(classifier(), tokenizer, **limits, engine="shared_varlen")
    return {
        "padded": PaddedScorer(classifier(), tokenizer, options.batch),
        "ours_padded": HuggingFaceRewardModel(classifier(), tokenizer, **limits, **padded),
        "ours": HuggingFaceRewardModel(classifier(), tokenizer, **limits),
        "ours_vrm": HuggingFaceRewardModel(variational, tokenizer, **limits),
        **with_cuda,
    }


def check(
    scorers: dict[str, PaddedScorer | HuggingFaceRewardModel],
    prompts: list[str],
    responses: list[str],
    tolerance: float,
) -> None:
    """Both scorers have to give the same rewards to texts that neither cuts."""
    output = scorers["ours"].score(prompts, responses)
    peer = scorers["padded"].score(prompts, responses)
    whole = ~output.truncated
    apart = float(np.abs(output.mean - peer)[whole].max())
    print(f"largest difference of rewards between padded and ours: {apart:.2e} ({sum(~whole)} texts cut, left out)")
    if not apart <= tolerance:
        raise SystemExit(f"the scorers disagree by {apart:.2e}: what follows would compare different things")


if __name__ == "__main__":
    main()
