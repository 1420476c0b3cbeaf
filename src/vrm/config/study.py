"""The study: reward models against the number of pairs, in worlds of other annotators, and with one part taken out.

It is a run of its own (`workflow/presets/study.yaml`); a run without `study` makes none of its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field, model_validator

from vrm.config.base import Name, NonNegativeFloat, PositiveInt, Section

BASE = "base"
"""The world of the run itself, as `world` has it."""


class StudyWorld(Section):
    """What a world of the study has instead of the run's own; null keeps that.

    One that has nothing but more prompts is another point of the figure's curve over pairs.
    """

    label: str = Field(description="What figures call it.")
    spurious_bias: NonNegativeFloat | None = Field(None, description="Instead of world.spurious_bias.")
    rating_bias: NonNegativeFloat | None = Field(None, description="Instead of world.rating_bias.")
    prompts: PositiveInt | None = Field(None, description="Instead of world.prompts.")
    pairs: PositiveInt | None = Field(None, description="Instead of study.worlds_pairs.")

    def changes(self) -> dict[str, float]:
        """The keys of `world` that it changes."""
        return self.model_dump(exclude={"label", "pairs"}, exclude_none=True)

    @model_validator(mode="after")
    def _biases_are_compared_at_the_same_pairs(self) -> StudyWorld:
        if self.pairs is not None and set(self.changes()) != {"prompts"}:
            raise ValueError("pairs is for a world that changes prompts alone; the others are at study.worlds_pairs")
        return self


@dataclass(frozen=True)
class StudyCell:
    """One reward model of the study.

    Args:
        world: a key of `study.worlds`, or `BASE`.
        variant: a key of `reward.variants`.
        pairs: training pairs.
        seed: its seed.
    """

    world: str
    variant: str
    pairs: int
    seed: int

    @property
    def file(self) -> str:
        """Where its scores lie, below `results/<run>/`."""
        return f"study/{self.world}/{self.variant}/pairs{self.pairs}/seed{self.seed}/scores.csv"


class StudyConfig(Section):
    """Which reward models are trained on how many pairs of which world."""

    seeds: list[int] = Field([1, 2, 3], min_length=1, description="Every point is a mean over these.")
    variants: list[Name] = Field([], description="Variants of the figure `power`.")
    pairs: list[PositiveInt] = Field([], description="Numbers of training pairs in the run's own world, ascending.")
    worlds: dict[Name, StudyWorld] = Field({}, description="Worlds of other annotators, by name.")
    worlds_pairs: PositiveInt = Field(5000, description="Training pairs in each of them.")
    ablation: list[Name] = Field([], description="Variants of the table `ablation`; differences are to the first.")
    ablation_pairs: PositiveInt = Field(5000, description="Training pairs of the ablation.")

    @model_validator(mode="after")
    def _base_is_taken(self) -> StudyConfig:
        if BASE in self.worlds:
            raise ValueError(f"study.worlds names {BASE}, which is the run's own world; rename it")
        return self

    def sweep(self) -> list[tuple[str, int]]:
        """World and pairs of every point of the figure."""
        worlds = ((name, world.pairs or self.worlds_pairs) for name, world in self.worlds.items())
        return [*((BASE, pairs) for pairs in self.pairs), *worlds]

    def power_cells(self) -> list[StudyCell]:
        """The models behind the figure `power`."""
        return list(self._cells(self.sweep(), self.variants))

    def ablation_cells(self) -> list[StudyCell]:
        """The models behind the table `ablation`."""
        return list(self._cells([(BASE, self.ablation_pairs)], self.ablation))

    def _cells(self, points: list[tuple[str, int]], variants: list[str]) -> Iterator[StudyCell]:
        for world, pairs in points:
            for variant in variants:
                for seed in self.seeds:
                    yield StudyCell(world, variant, pairs, seed)
