"""Where the judged benchmarks' official files come from: an address at a pinned revision, a hash, a licence.

A hash stands here only where we had the file's bytes in hand; docs/data.md says for each how far we could compare them
with upstream's. A file without a hash is never fetched.
"""

from __future__ import annotations

from dataclasses import dataclass

ALPACA = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/25be1b6c406f339fe1e362bbe2b3f2720b946511/results"
ALPACA_HUB = "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814"
ARENA = "https://raw.githubusercontent.com/lmarena/arena-hard-auto"
ARENA_DATA = f"{ARENA}/e0a8ea1df42c1df76451a6cd04b14e31ff992b87/data/arena-hard-v0.1"
FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat"
FASTCHAT_DATA = f"{FASTCHAT}/v0.2.36/fastchat/llm_judge/data"  # a tag can be moved; the hash would tell
FASTCHAT_QUESTIONS = f"{FASTCHAT}/589532dcfa83700f950b9aa3983416c543afabc0/fastchat/llm_judge/data"

ALPACA_LICENCE = "CC BY-NC 4.0 (the README's data licence; code Apache-2.0)"
ARENA_LICENCE = "Apache-2.0 (as recorded with our test copy; not verified)"
FASTCHAT_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class BenchmarkSource:
    """One official file.

    Args:
        holds: what it should hold, for messages.
        url: its address; "" where there is no pinned one.
        sha256: of its bytes; "" where it isn't known.
        licence: as upstream states it.
    """

    holds: str
    url: str = ""
    sha256: str = ""
    licence: str = "not known"


GPT4_PREVIEW = BenchmarkSource(
    "AlpacaEval 2's 805 instructions with gpt4_1106_preview's answers",
    f"{ALPACA}/gpt4_1106_preview/model_outputs.json",
    "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
    ALPACA_LICENCE,
)

SOURCES: dict[str, BenchmarkSource] = {
    "alpaca_eval/reference_outputs.json": GPT4_PREVIEW,
    "alpaca_eval/gpt4_1106_preview/model_outputs.json": GPT4_PREVIEW,
    "alpaca_eval/gpt-4o-2024-05-13/model_outputs.json": BenchmarkSource(
        "gpt-4o-2024-05-13's answers to the 805 instructions",
        f"{ALPACA}/gpt-4o-2024-05-13/model_outputs.json",
        licence=ALPACA_LICENCE,
    ),
    "alpaca_eval/df_gamed.csv": BenchmarkSource(
        "the instructions' difficulties, for the length-controlled win rate",
        f"{ALPACA_HUB}/df_gamed.csv",
        "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d",
        ALPACA_LICENCE,
    ),
    "arena_hard_v0.1/question.jsonl": BenchmarkSource(
        "Arena-Hard v0.1's 500 prompts",
        f"{ARENA_DATA}/question.jsonl",
        "4daad38811161c3ba5c248f26b90c3cef89634f4c772002ed9138c1e13f63e9f",
        ARENA_LICENCE,
    ),
    "arena_hard_v0.1/model_answer/gpt-4-0314.jsonl": BenchmarkSource(
        "gpt-4-0314's answers to Arena-Hard v0.1, the benchmark's own baseline",
        f"{ARENA_DATA}/model_answer/gpt-4-0314.jsonl",
        "245109b8fe7c3bef0304f1c559d29da377f97f61535ad1170b46a61a08eb9ac7",
        ARENA_LICENCE,
    ),
    "arena_hard_v0.1/model_answer/gpt-4-1106-preview.jsonl": BenchmarkSource(
        "gpt-4-1106-preview's answers to Arena-Hard v0.1 (hub dataset lmarena-ai/arena-hard-auto)",
        licence=ARENA_LICENCE,
    ),
    "arena_hard_v0.1/judge_config.yaml": BenchmarkSource(
        "Arena-Hard v0.1's judge prompt: system_prompt and prompt_template",
        f"{ARENA}/7f1b7f5dd6ce53e1f8530220ceb452b7019a8056/config/judge_config.yaml",
        "8f6e2a641676ae1453ae6be149b549d92b739564a23a8db27b86c50999fa607e",
        ARENA_LICENCE,
    ),
    "mt_bench/question.jsonl": BenchmarkSource(
        "MT-Bench's 80 questions of two turns",
        f"{FASTCHAT_QUESTIONS}/mt_bench/question.jsonl",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        FASTCHAT_LICENCE,
    ),
    "mt_bench/judge_prompts.jsonl": BenchmarkSource(
        "FastChat's judge prompts, the four of single-answer grading among them",
        f"{FASTCHAT_DATA}/judge_prompts.jsonl",
        "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
        FASTCHAT_LICENCE,
    ),
    "mt_bench/reference_answer/gpt-4.jsonl": BenchmarkSource(
        "gpt-4's answers to MT-Bench's math, reasoning and coding questions",
        f"{FASTCHAT_DATA}/mt_bench/reference_answer/gpt-4.jsonl",
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
        FASTCHAT_LICENCE,
    ),
}
"""By path below `data.benchmarks_dir`."""


def source_of(path: str) -> BenchmarkSource:
    """Where the file at `path` below `data.benchmarks_dir` comes from; for another model's answers, what it holds."""
    return SOURCES.get(path) or BenchmarkSource("the model's answers in the benchmark's own format (docs/data.md)")
