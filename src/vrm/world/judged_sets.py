"""The world's judged benchmarks: prompts, reference answers and judge prompts, in the public files' shapes.

* AlpacaEval's shape: one instruction of any kind, answered by the world's authors in turn. A policy that writes as the
  authors do wins half of the comparisons.
* Arena-Hard's shape: all kinds of prompt in turn. The baseline gives an author's answer or, at random, the better of
  two: harder to beat.
* MT-Bench's shape: two requests about one herb, both complete by themselves, so that the gold judge reads the second
  one without the first. Reference answers are of top quality. Harmful and harmless requests are left out, as MT-Bench
  has none.
* All prompts are new: none occurs in training. The random streams are this module's own, one a benchmark, so that no
  file depends on the size of another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vrm.config import WorldConfig
from vrm.records import count_words, write_json, write_jsonl, write_whole
from vrm.world.gold import HIGHEST
from vrm.world.judge import ARENA_CONFIG, mt_bench_prompts
from vrm.world.preference_sets import PromptPool
from vrm.world.prompts import ASPECTS, KINDS, Request, true_weights
from vrm.world.responses import AUTHORS, Response, answer, answers, compose, render
from vrm.world.write import training_requests

AUTHORS_NAME = "world-authors"
"""Generator of the AlpacaEval-shaped references."""

BASELINE_NAME = "world-baseline"
"""Model of the Arena-Hard-shaped baseline answers."""

REFERENCE_NAME = "world-reference"
"""Model of the MT-Bench-shaped reference answers."""

BASELINE_TRIES = (1, 2)
"""Of so many answers, drawn for each prompt, the Arena-Hard-shaped baseline gives the best one."""

CATEGORIES: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "writing": ("writing", (None,)),
    "roleplay": ("chat", (None,)),
    "reasoning": ("puzzle", ("container", "holder", "sequence")),
    "math": ("puzzle", ("sum", "difference")),
    "coding": ("puzzle", ("cost", "shade")),
    "extraction": ("facts", (None,)),
    "stem": ("how_to", (None,)),
    "humanities": ("forecast", (None,)),
}
"""MT-Bench's categories: the kind of prompt that takes their place, and the sorts of its puzzles. The categories with
a reference answer are those of puzzles, whose answers can be checked."""

_STREAMS = int.from_bytes(b"judged", "big")
"""Tells these random streams from those of `write_world`, whatever the number of either."""

Row = dict[str, Any]


def write_benchmarks(config: WorldConfig, out: Path) -> None:
    """Write the files of the three judged benchmarks below `out`, laid out as `data.benchmarks_dir` is.

    The same configuration gives the same bytes.

    Args:
        config: of the world; `instructions`, `arena_prompts` and `mt_bench_questions` are the numbers of prompts.
        out: directory; gets alpaca_eval, arena_hard_v0.1 and mt_bench.
    """
    training = _training_requests(config)
    alpaca_rng, arena_rng, mt_rng = map(np.random.default_rng, np.random.SeedSequence([config.seed, _STREAMS]).spawn(3))
    write_json(out / "alpaca_eval/reference_outputs.json", _alpaca_eval(training, config.instructions, alpaca_rng))

    arena = out / "arena_hard_v0.1"
    questions, baseline = _arena_hard(training, config.arena_prompts, arena_rng)
    write_jsonl(arena / "question.jsonl", questions)
    write_jsonl(arena / f"model_answer/{BASELINE_NAME}.jsonl", baseline)
    write_whole(arena / "judge_config.yaml", ARENA_CONFIG)

    mt_bench = out / "mt_bench"
    questions, references = _mt_bench(training, config.mt_bench_questions, mt_rng)
    write_jsonl(mt_bench / "question.jsonl", questions)
    write_jsonl(mt_bench / f"reference_answer/{REFERENCE_NAME}.jsonl", references)
    write_jsonl(mt_bench / "judge_prompts.jsonl", mt_bench_prompts())


def _training_requests(config: WorldConfig) -> list[Request]:
    """The prompts in the world's training file, from their own stream: the first of `write_world`."""
    (stream,) = np.random.SeedSequence(config.seed).spawn(1)
    return training_requests(config, np.random.default_rng(stream))


def _alpaca_eval(training: list[Request], count: int, rng: np.random.Generator) -> list[Row]:
    pool = PromptPool(training, 0.0, rng)
    return [
        {
            "dataset": f"world/{request.kind}",
            "instruction": request.text,
            "output": answer(request, AUTHORS[row % len(AUTHORS)], rng).text,
            "generator": AUTHORS_NAME,
        }
        for row, request in enumerate(_distinct(lambda _: pool.draw(), count))
    ]


def _arena_hard(training: list[Request], count: int, rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Questions and the baseline's answers."""
    pool, kinds = PromptPool(training, 0.0, rng), tuple(KINDS)
    questions, baseline = [], []
    for request in _distinct(lambda row: pool.draw(kinds[row % len(kinds)]), count):
        key = {"question_id": hashlib.sha256(request.text.encode()).hexdigest()[:32]}
        questions.append(
            {**key, "category": "world", "cluster": request.kind, "turns": [{"content": request.text}]},
        )
        text = _best_answer(request, rng).text
        tokens = count_words(text)
        baseline.append(
            {
                **key,
                "model_id": BASELINE_NAME,
                "choices": [{"index": 0, "turns": [{"content": text, "token_len": tokens}]}],
                "conv_metadata": {"token_len": tokens, "token_counter": "words"},
            }
        )
    return questions, baseline


def _best_answer(request: Request, rng: np.random.Generator) -> Response:
    """The best of one or more authors' answers, by what is true."""
    weights = true_weights(request)
    tries = BASELINE_TRIES[int(rng.integers(len(BASELINE_TRIES)))]
    return max((y for _, y in answers(request, tries, rng)), key=lambda y: float(weights @ np.array(y.scores)))


def _mt_bench(training: list[Request], count: int, rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Questions with two turns, and the answers to those that have a reference."""
    pool, categories = PromptPool(training, 0.0, rng), tuple(CATEGORIES)

    def draw(row: int) -> Request:
        kind, sorts = CATEGORIES[categories[row % len(categories)]]
        return pool.draw(kind, sort=sorts[int(rng.integers(len(sorts)))])

    questions, references = [], []
    for row, first in enumerate(_distinct(draw, count)):
        number, category = row + 1, categories[row % len(categories)]
        turns = (first, _follow_up(first, draw, row))
        questions.append({"question_id": number, "category": category, "turns": [turn.text for turn in turns]})
        if CATEGORIES[category][0] == "puzzle":
            texts = [render(compose(turn, [HIGHEST] * len(ASPECTS), rng), rng).text for turn in turns]
            choices = [{"index": 0, "turns": texts}]
            references.append({"question_id": number, "model_id": REFERENCE_NAME, "choices": choices})
    return questions, references


def _follow_up(first: Request, draw: Callable[[int], Request], row: int) -> Request:
    """Another request about the same herb, in another form and with another item."""
    while True:
        second = draw(row)
        if second.herb == first.herb and second.form != first.form and second.item != first.item:
            return second


def _distinct(draw: Callable[[int], Request], count: int) -> Iterator[Request]:
    """`count` prompts with distinct texts; `draw` gets the row's number."""
    seen: set[str] = set()
    while len(seen) < count:
        request = draw(len(seen))
        if request.text not in seen:
            seen.add(request.text)
            yield request
