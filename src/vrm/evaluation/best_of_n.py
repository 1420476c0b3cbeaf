"""Many answers of a policy to each prompt, with their rewards: what best-of-n is computed from.

What the best of n of them is worth, for every n at once, is `vrm.statistics.best_of_n`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vrm.config import BestOfN, Generation, OutsideModel
from vrm.config.policy import RATED
from vrm.generation.base import decode
from vrm.generation.engines import load_engine
from vrm.models.scoring import load_outside, load_reward_model
from vrm.models.templates import read_template
from vrm.models.text import TextEncoder, prepare_tokenizer
from vrm.runfiles import BEST_OF_N_SAMPLES
from vrm.training.rollout import Question, read_questions


@dataclass(frozen=True)
class BestOfNJob:
    """What answers, what scores, and where to.

    Args:
        policy: directory or hub id of the causal LM that answers.
        revision: commit of the hub model.
        chat_template_kwargs: passed to the policy's chat template.
        chat_template: instead of the policy's own, its text or a file.
        rewards: directory of each reward model, by variant; by `<variant>:rated` for its rated-aspect reward alone. An
            outside model is what the configuration says of it.
        pairs: preference pairs whose prompts are answered.
        generation: how the policy answers; the engine is always transformers.
        best_of_n: how many prompts, and answers to each.
        max_prompt_length, max_length: limits of the policy, in tokens.
        scoring_batch_size: texts a reward model reads at once.
        seed: of the sampling.
        out: the `samples.jsonl` to write.
    """

    policy: str
    revision: str | None
    chat_template_kwargs: Mapping[str, Any]
    rewards: Mapping[str, Path | OutsideModel]
    pairs: Path
    generation: Generation
    best_of_n: BestOfN
    max_prompt_length: int
    max_length: int
    scoring_batch_size: int
    seed: int
    out: Path
    chat_template: str | None = None


def sample_best_of_n(job: BestOfNJob) -> None:
    """Answer the first prompts, in the order of their ids, many times; write one row an answer, see docs/files.md."""
    template = None if job.chat_template is None else read_template(job.chat_template)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(job.policy, revision=job.revision), template)
    limits = job.max_prompt_length, job.max_length
    encoder = TextEncoder(tokenizer, *limits, chat_template_kwargs=job.chat_template_kwargs)
    questions = read_questions(job.pairs, encoder, job.best_of_n.prompts)
    asked = [question for question in questions for _ in range(job.best_of_n.samples)]
    rows = _answers(job, tokenizer, asked)
    prompts, texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
    print(f"{len(rows)} answers to {len(questions)} prompts, {encoder.truncation.prompts_cut} of which were cut")
    for variant, reward in job.rewards.items():
        load = load_outside if isinstance(reward, OutsideModel) else load_reward_model
        part = "rated" if variant.endswith(RATED) else "full"
        model = load(reward, batch_size=job.scoring_batch_size, progress=True, reward=part)
        output = model.score(prompts, texts)
        print(f"{variant} had to cut {output.truncated.sum()} of the texts before it scored them")
        for row, reward, cut in zip(rows, output.mean.tolist(), output.truncated.tolist(), strict=True):
            row["rewards"][variant], row["cut"][variant] = reward, cut
    BEST_OF_N_SAMPLES.write(job.out, rows)


def _answers(job: BestOfNJob, tokenizer: PreTrainedTokenizerBase, asked: list[Question]) -> list[dict[str, Any]]:
    """A row an answer, without rewards; the policy is in memory no longer than this takes."""
    # drawn once and not trained on in between: vLLM's start alone would take longer
    settings = job.generation.model_copy(update={"engine": "transformers"})
    engine = load_engine(settings, job.policy, job.revision, tokenizer, progress=True)
    rows = []
    for question, ids in zip(asked, engine.generate([question.ids for question in asked], job.seed), strict=True):
        text, ended = decode(tokenizer, ids, engine.ends)
        row = {"prompt_id": question.prompt_id, "prompt": question.prompt, "response": text, "length": len(ids)}
        rows.append({**row, "ended": ended, "rewards": {}, "cut": {}})
    return rows
