"""What over-optimisation is measured by: the best of many answers, their rewards, and the gold reward.

* A policy answers each prompt many times, and reward models score the answers (`sample_best_of_n`); what the best of n
  of them is worth, for every n at once, is `best_of_n`.
* The gold judge, which no training sees, scores sampled answers, these and those along PPO (`score_gold`). The
  configuration names it (`policy.gold`), as a function of a module or as the directory of a reward model.
* Only sampling imports models: the report reads this file too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.config import BestOfN, ConfigError, Generation, OutsideModel
from vrm.config.policy import RATED
from vrm.models.base import RewardModel, RewardOutput, checked_prompts
from vrm.records import Prompt, RecordError, read_jsonl
from vrm.runfiles import BEST_OF_N_SAMPLES, GOLD_REWARDS
from vrm.watch import watched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vrm.training.rollout import Question


# What best-of-n sampling is worth: expected reward of the best of n answers, from N >= n answers a prompt.
#
# * The same answers serve every n: all their subsets of size n are averaged over, without drawing any.
# * Best means best by the proxy reward; what its gold reward then is shows how far the proxy can be trusted.
# * `best_of_n_kl` is exact where no two answers are the same, and an upper bound where answers repeat.
#
# Source: Nakano et al. 2021, "WebGPT", appendix on best-of-n (the estimator); Stiennon et al. 2020, appendix G.3 (the
# KL); Gao et al. 2023, "Scaling laws for reward model overoptimization" (both, against the square root of the KL);
# Beirami et al. 2024, "Theoretical guarantees on the alignment of best-of-n policy" (the bound).


def best_of_n(proxy: ArrayLike, values: ArrayLike, n: int) -> NDArray[np.float64]:
    """Expected value of the answer with the highest proxy reward among n, drawn without replacement from N.

    Answers whose proxy rewards are equal share the probability of being the best.

    Args:
        proxy: what the best is chosen by, shape (P, N): P prompts, N answers each.
        values: what is wanted of the chosen answer, shape (P, N); the proxy itself, or another reward.
        n: number of answers to choose from, 1 <= n <= N.

    Returns:
        Shape (P,), in the unit of `values`: the mean over all subsets of size n, hence unbiased.

    Raises:
        ValueError: shapes disagree, or n is not in 1..N.

    Source: Nakano et al. 2021; ties averaged by us.
    """
    proxy, values = (np.asarray(array, dtype=np.float64) for array in (proxy, values))
    if proxy.ndim != 2 or proxy.shape != values.shape:
        raise ValueError(f"proxy and values need one shape (P, N), not {proxy.shape} and {values.shape}")
    weights = rank_weights(proxy.shape[1], n)
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(proxy, order, axis=1)
    return np.array([_shared(row, weights) @ v[o] for row, v, o in zip(ranked, values, order, strict=True)])


def rank_weights(total: int, n: int) -> NDArray[np.float64]:
    """Probability that the i-th lowest of N answers is the best of n that are drawn: C(i-1, n-1) / C(N, n).

    Args:
        total: N.
        n: how many are drawn.

    Returns:
        Shape (N,), for i = 1..N; sums to 1.

    Raises:
        ValueError: n is not in 1..N.
    """
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} can't be had from {total} answers")
    # From the top down, w_N = n / N and w_(i-1) = w_i (i - n) / (i - 1): no binomial that could overflow.
    i = np.arange(total, 1, -1, dtype=np.float64)
    ratios = np.maximum(i - n, 0.0) / (i - 1)
    return np.concatenate([[n / total], n / total * np.cumprod(ratios)])[::-1]


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n policy || policy it samples from), in nats: log n - (n - 1) / n.

    Source: Stiennon et al. 2020, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


def doublings(total: int) -> list[int]:
    """1, 2, 4, ... up to N, and N itself."""
    return sorted({2**power for power in range(total.bit_length())} | {total})


def _shared(ranked: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights, averaged within runs of equal proxy rewards; both of shape (N,)."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(ranked) > 0]))
    sizes = np.diff(np.append(starts, len(ranked)))
    return np.repeat(np.add.reduceat(weights, starts) / sizes, sizes)


# The answers.


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
    from transformers import AutoTokenizer

    from vrm.models.known_texts import KnownTexts, made_with
    from vrm.models.scoring import load_outside, load_reward_model
    from vrm.models.templates import read_template
    from vrm.models.text import TextEncoder, prepare_tokenizer
    from vrm.training.rollout import read_questions

    template = None if job.chat_template is None else read_template(job.chat_template)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(job.policy, revision=job.revision), template)
    limits = job.max_prompt_length, job.max_length
    encoder = TextEncoder(tokenizer, *limits, chat_template_kwargs=job.chat_template_kwargs)
    questions = read_questions(job.pairs, encoder, job.best_of_n.prompts)
    asked = [question for question in questions for _ in range(job.best_of_n.samples)]
    rows = _answers(job, tokenizer, asked)
    prompts, texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
    print(f"{len(rows)} answers to {len(questions)} prompts, {encoder.truncation.prompts_cut} of which were cut")
    encoders: dict[str, KnownTexts] = {}  # models of one backbone read the same token ids
    for variant, source in job.rewards.items():
        load = load_outside if isinstance(source, OutsideModel) else load_reward_model
        part = "rated" if variant.endswith(RATED) else "full"
        model = load(source, batch_size=job.scoring_batch_size, progress=True, reward=part)
        model.encoder = encoders.setdefault(repr(made_with(model.encoder)), KnownTexts.of(model.encoder))
        output = model.score(prompts, texts)
        print(f"{variant} had to cut {output.truncated.sum()} of the texts before it scored them")
        for row, reward, cut in zip(rows, output.mean.tolist(), output.truncated.tolist(), strict=True):
            row["rewards"][variant], row["cut"][variant] = reward, cut
    BEST_OF_N_SAMPLES.write(job.out, rows)


def _answers(job: BestOfNJob, tokenizer: PreTrainedTokenizerBase, asked: list[Question]) -> list[dict[str, Any]]:
    """A row an answer, without rewards; the policy is in memory no longer than this takes."""
    from vrm.generation.engines import decode, load_engine, seeds_of

    # drawn once and not trained on in between: vLLM's start alone would take longer
    settings = job.generation.model_copy(update={"engine": "transformers"})
    engine = load_engine(settings, job.policy, job.revision, tokenizer, progress=True)
    rows = []
    answers = engine.generate([question.ids for question in asked], seeds_of(job.seed, len(asked)))
    for question, ids in zip(asked, answers, strict=True):
        text, ended = decode(tokenizer, ids, engine.ends)
        row = {"prompt_id": question.prompt_id, "prompt": question.prompt, "response": text, "length": len(ids)}
        rows.append({**row, "ended": ended, "rewards": {}, "cut": {}})
    return rows


# The gold reward.


class TextFunction:
    """A function of (prompt text, response text) behind the contract of `vrm.models.base`.

    Args:
        function: the reward; the prompt's text is the content of its last user turn.
    """

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self.function = function
        self.aspects: list[str] = []

    def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of N texts; see `RewardModel.score`.

        Raises:
            ValueError: a prompt has no user turn.
        """
        pairs = zip(checked_prompts(prompts, responses), responses, strict=True)
        found = watched(list(pairs), "gold", "answers")
        rewards = [self.function(last_user_turn(prompt), response) for prompt, response in found]
        return RewardOutput(
            mean=np.array(rewards, dtype=float), truncated=np.zeros(len(rewards), dtype=bool), link=None
        )


def load_gold(spec: str) -> RewardModel:
    """The gold judge of a configuration.

    Args:
        spec: `module:function` of (prompt text, response text) to a number, or the directory of a reward model.

    Raises:
        ConfigError: there is no such directory, module or function.
    """
    if Path(spec).is_dir():
        # a function needs no torch
        from vrm.models.scoring import load_reward_model

        return load_reward_model(spec, progress=True)
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ConfigError(f"policy.gold is {spec!r}: neither `module:function` nor a directory")
    try:
        function = getattr(import_module(name), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"policy.gold is {spec!r}: {error}") from error
    if not callable(function):
        raise ConfigError(f"policy.gold is {spec!r}: {name} has no function {attribute!r}")
    return TextFunction(function)


def last_user_turn(prompt: Prompt) -> str:
    """The content of a conversation's last user turn.

    Raises:
        ValueError: there is none.
    """
    for message in reversed(prompt):
        if message["role"] == "user":
            return message["content"]
    raise ValueError("a prompt without a user turn has no text to judge an answer by")


def score_gold(spec: str, samples: Path, out: Path) -> None:
    """Score a `samples.jsonl` by the gold judge.

    Args:
        spec: which judge, see `load_gold`.
        samples: rows with `prompt` (messages) and `response`; see docs/files.md.
        out: CSV with the column `gold`, a row a sample, in their order.

    Raises:
        ConfigError: there is no such judge.
        RecordError: a row lacks its prompt or response; names the file and the row.
    """
    model = load_gold(spec)
    prompts, responses = [], []
    for number, row in read_jsonl(samples):
        try:
            prompts.append(row["prompt"])
            responses.append(row["response"])
        except KeyError as error:
            raise RecordError(f"{samples}, row {number}: has no {error}") from None
    GOLD_REWARDS.write(out, pd.DataFrame({"gold": model.score(prompts, responses).mean}))
