"""The offline preference world, which takes the place of data from outside where there is none."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vrm.config.base import Fraction, NonNegativeFloat, PositiveInt, Section


class WorldConfig(Section):
    """The offline preference world: how much of it is written, and how its annotators err."""

    prompts: PositiveInt = Field(3200, description="Scored prompts for training, validation and test.")
    responses_per_prompt: Annotated[int, Field(ge=2)] = Field(
        4, description="Responses rated for each prompt, as in UltraFeedback."
    )
    evaluation_prompts: PositiveInt = Field(600, description="Prompts of the held-out UF-C-like sets.")
    pairs_per_subset: PositiveInt = Field(40, description="Pairs in each RewardBench-shaped subset.")
    pairs_per_probe: PositiveInt = Field(150, description="Pairs in each probe of one objective or spurious feature.")
    instructions: PositiveInt = Field(160, description="Prompts of the AlpacaEval-shaped set.")
    arena_prompts: PositiveInt = Field(120, description="Prompts of the Arena-Hard-shaped set.")
    mt_bench_questions: PositiveInt = Field(80, description="Two-turn questions of the MT-Bench-shaped set.")
    rating_bias: NonNegativeFloat = Field(
        0.0,
        description="Rating points that one piece of flattery adds to every rating, other features less: annotators "
        "whose ratings share the bias of their overall judgment. 0: ratings are unbiased.",
    )
    rating_noise: NonNegativeFloat = Field(0.7, description="Standard deviation of a rating, in rating points.")
    preference_noise: NonNegativeFloat = Field(
        0.3, description="Standard deviation of the overall judgment of one response, in rating points."
    )
    spurious_bias: NonNegativeFloat = Field(
        0.55, description="Rating points that one piece of flattery adds to the overall judgment; other features less."
    )
    leaked_share: Fraction = Field(0.03, description="Share of evaluation prompts that also occur in training.")
    faulty_share: Fraction = Field(0.005, description="Share of scored prompts with a rating missing or 'N/A'.")
    seed: int = Field(0, ge=0, description="Seed of the whole world.")
