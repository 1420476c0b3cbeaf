"""Evaluation sets: what the reward models are measured on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vrm.config.base import Name, Section, Source, require_known


class EvaluationSet(Source):
    """A set of preference pairs to be scored."""

    label: str = Field(description="Column name in tables.")
    format: Literal["pairs", "reward_bench"] = Field(
        "pairs", description="`reward_bench` reports its four sections; `pairs` one accuracy, and one per subset."
    )
    role: Literal["measured", "probes", "truth"] = Field(
        "measured",
        description="How the report reads it. measured: a column of Table 2. probes: pairs that differ in one thing "
        "alone, read subset by subset in the world table and in no column. truth: a column too, and its labels are the "
        "known truth about the pairs that other sets share with it.",
    )


class EvaluationConfig(Section):
    """What the reward models are measured on."""

    run: list[Name] = Field(min_length=1, description="Which sets are scored, in the order of the table's columns.")
    sets: dict[Name, EvaluationSet] = Field(description="All known sets, by name.")

    @model_validator(mode="after")
    def _run_is_known(self) -> EvaluationConfig:
        require_known("evaluation.run", self.run, self.sets)
        if len(probes := self.of_role("probes")) > 1:
            raise ValueError(
                f"evaluation.run names {', '.join(probes)}, which have the role probes: one set can have it"
            )
        return self

    def of_role(self, role: str) -> list[str]:
        """The names of `run` whose sets have this role, in order."""
        return [name for name in self.run if self.sets[name].role == role]

    @property
    def probes(self) -> str | None:
        """The set of probes of this run; None: there is none."""
        return next(iter(self.of_role("probes")), None)
