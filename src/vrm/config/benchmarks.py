"""The judged benchmarks: what is asked of the policies, how they answer, and what they are compared with."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from vrm.config.base import Name, NonNegativeFloat, PositiveInt, Section

BenchmarkName = Literal["alpaca_eval", "arena_hard", "mt_bench"]

FILES: dict[BenchmarkName, str] = {
    "alpaca_eval": "alpaca_eval.json",
    "arena_hard": "arena_hard.jsonl",
    "mt_bench": "mt_bench.jsonl",
}
"""The file of a policy's answers, and of the judgments of them: AlpacaEval's package has one JSON list a file."""


class JudgedPolicy(NamedTuple):
    """A policy whose answers are judged; `method` is a key of policy.methods, or `sft`: what training started from."""

    base: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """What the benchmarks' files call the model."""
        return f"{self.base}.{self.method}.seed{self.seed}"

    @property
    def folder(self) -> str:
        """Its directory in the run's."""
        return f"policy/{self.base}/{self.method}/seed{self.seed}"


class Answering(Section):
    """How a policy's answers are generated, whatever is asked."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="What generates; vllm is an extra.")
    batch_size: PositiveInt = Field(128, description="Prompts answered at once; answers depend on it by rounding.")
    save_every: PositiveInt = Field(
        128, description="Answers after which they are saved, rounded up to whole batches; a killed job goes on there."
    )
    shares: PositiveInt = Field(
        1,
        description="Jobs, a GPU each, that share the batches of a policy's first turns; another answers the second "
        "turns and writes the files, which do not depend on it.",
    )
    max_prompt_length: PositiveInt = Field(
        3072, description="Tokens kept of a conversation; its beginning is cut, and counted."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = Field(0.9, description="Share of the GPU's memory for vLLM.")


class Benchmark(Section):
    """What every judged benchmark has."""

    label: str = Field(description="Column name in tables; what is not the official set says so here.")
    max_new_tokens: PositiveInt = Field(description="Longest answer in tokens, the end token included.")


class AlpacaEval(Benchmark):
    """AlpacaEval 2: one comparison with a reference answer for each instruction."""

    label: str = Field("AlpacaEval 2", description="Column name in tables.")
    max_new_tokens: PositiveInt = Field(2048, description="Longest answer in tokens, the end token included.")
    temperature: NonNegativeFloat = Field(0.7, description="Sampling temperature; 0 takes the likeliest token.")
    annotator: str = Field(
        "weighted_alpaca_eval_gpt4_turbo",
        description="The package's annotator whose prompt and parser are used; the model that judges is judge.model.",
    )
    references: dict[Name, str] = Field(
        {},
        description="By policy base: generator whose answers are the reference, from "
        "alpaca_eval/<generator>/model_outputs.json of the benchmark files; others: reference_outputs.json.",
    )
    attempts: PositiveInt = Field(2, description="How often a comparison is asked until there is a preference.")


class ArenaHard(Benchmark):
    """Arena-Hard v0.1: two games against one baseline for each prompt."""

    label: str = Field("Arena-Hard v0.1", description="Column name in tables.")
    max_new_tokens: PositiveInt = Field(4096, description="Longest answer in tokens, the end token included.")
    temperature: NonNegativeFloat = Field(0.0, description="Sampling temperature; 0 takes the likeliest token.")
    baseline: str = Field("gpt-4-0314", description="The model that all are compared with.")
    token_counter: str = Field(
        "gpt-3.5-turbo",
        description="What counts an answer's tokens for style control: a model name that tiktoken knows (upstream's is "
        "gpt-3.5-turbo), or `words`. The baseline's answers have to be counted likewise.",
    )
    attempts: PositiveInt = Field(2, description="How often a game is judged until there is a verdict.")
    bootstrap_samples: PositiveInt = Field(
        2000,
        description="Joint resamples of the prompts behind WR's and SC's intervals; fewer than 1,000 give SC's "
        "differences no p-value.",
    )


class MtBench(Benchmark):
    """MT-Bench: two turns, each rated from 1 to 10; temperatures are the benchmark's own, by category."""

    label: str = Field("MT-Bench", description="Column name in tables.")
    max_new_tokens: PositiveInt = Field(1024, description="Longest answer to a turn in tokens.")
    references: str = Field("gpt-4", description="Model whose answers are shown to the judge for math and the like.")
    attempts: PositiveInt = Field(2, description="How often a turn is judged until there is a rating.")


class BenchmarksConfig(Section):
    """Which judged benchmarks are run, and how."""

    run: list[BenchmarkName] = Field([], description="Which are run, in the order of the table's columns; none: none.")
    answering: Answering = Field(default_factory=Answering, description="How answers are generated.")
    alpaca_eval: AlpacaEval = Field(default_factory=AlpacaEval, description="AlpacaEval 2.")
    arena_hard: ArenaHard = Field(default_factory=ArenaHard, description="Arena-Hard v0.1.")
    mt_bench: MtBench = Field(default_factory=MtBench, description="MT-Bench.")
