"""Which tables and figures are made, and how sure their intervals are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vrm.config.base import Name, PositiveInt, Section


class ReportConfig(Section):
    """Which tables and figures are made, and of which variants."""

    tables: list[
        Literal[
            "table1",
            "table2",
            "world",
            "latents",
            "training_summary",
            "comparisons",
            "comparisons_judged",
            "bound",
            "ablation",
            "calibration",
            "residual",
            "health",
        ]
    ] = Field(["table2", "health"], description="Tables to make.")
    figures: list[
        Literal[
            "figure1",
            "figure2",
            "figure3",
            "figure4",
            "figure5",
            "figure6",
            "win_rate_length",
            "overoptimisation",
            "bound",
            "power",
            "calibration",
            "residual",
        ]
    ] = Field(["figure1", "figure2", "figure3", "figure4", "figure5"], description="Figures to make.")
    paper: bool = Field(True, description="Make the page that sets the paper's numbers and claims against this run.")
    figure3: list[Name] = Field([], description="Variants of Figure 3: the supervision losses.")
    figure4: list[Name] = Field([], description="Variants of Figure 4: RM and VRM.")
    figure5: list[Name] = Field([], description="Variants of Figure 5: the lambda grid.")
    figure6: list[Name] = Field([], description="Methods of Figure 6: with and without supervision.")
    bound: list[Name] = Field(
        [],
        description="VRMs whose bound of Theorem 5.1 is measured; of these, those of `reward.run`; empty for all.",
    )
    calibration: list[Name] = Field(
        [],
        description="Variants of the figure `calibration`, and those of its table's post hoc rows; of these, those of "
        "`reward.run`.",
    )
    explorer_pairs: PositiveInt = Field(1000, description="Most pairs of an evaluation set that the explorer shows.")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Level of every interval.")
    bootstrap_samples: PositiveInt = Field(2000, description="Resamples behind AlpacaEval's intervals.")
    seed: int = Field(0, description="Seed of those resamples, and of the sign flips in both tables of comparisons.")
