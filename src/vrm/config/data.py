"""Data: where scored prompts come from, and how they become pairs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vrm.config.base import Fraction, PositiveInt, RunPath, Source

SHAPE_ASPECTS: dict[str, tuple[str, ...]] = {
    "helpsteer2": ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    "pku_saferlhf": ("helpfulness", "harmlessness"),
}
"""Aspects of the public data whose columns are the ratings."""


class DataConfig(Source):
    """Rated responses or preference pairs to train on, and how pairs are made of ratings."""

    label: str = Field(description="Printed on every table and figure, e.g. 'synthetic world'.")
    aspects: list[str] = Field(
        ["instruction_following", "truthfulness", "honesty", "helpfulness"],
        min_length=1,
        description="Names of the K rated objectives, as they stand under `annotations`; where `shape` is given, its "
        "own unless these are set.",
    )
    rating_range: tuple[float, float] | None = Field(
        None,
        description="Lowest and highest rating that is possible; null: the shape's own (HelpSteer2 0 to 4), else 1 to "
        "5. Ratings outside stop the reading.",
    )
    preference_from: Literal["mean_of_aspects", "overall_score"] = Field(
        "mean_of_aspects",
        description="What decides which response is chosen; UltraFeedback's overall_score has known faults.",
    )
    pairing: Literal["best_vs_random", "best_vs_worst", "all"] = Field(
        "best_vs_random", description="Which pairs of a prompt's responses become preference pairs."
    )
    max_pairs_per_prompt: PositiveInt | None = Field(
        None, description="With `all`: at most this many pairs a prompt, drawn at random."
    )
    validation_fraction: Fraction = Field(0.1, description="Share of prompts in the validation split.")
    test_fraction: Fraction = Field(0.1, description="Share of prompts in the test split.")
    seed: int = Field(0, description="Seed of every random choice in data preparation.")
    benchmarks_dir: RunPath | None = Field(
        None,
        description="Directory of the judged benchmarks' files, laid out as docs/data.md says; null: fetch them from "
        "pinned revisions. `{run}` stands for the run's name.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shape_names_its_aspects(cls, values: Any) -> Any:
        """The aspects of a shape that has its own, where none are named."""
        if isinstance(values, dict) and values.get("shape") in tuple(SHAPE_ASPECTS) and values.get("aspects") is None:
            return {**values, "aspects": list(SHAPE_ASPECTS[values["shape"]])}
        return values

    @model_validator(mode="after")
    def _training_gets_something(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave nothing for training: the sum must be below 1")
        return self
