"""The tables and figures of the report by name; each takes (config, results, out) and returns the files it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vrm.config import Config
from vrm.reporting.bound import bound_figure, bound_table
from vrm.reporting.calibration import calibration_figure, calibration_table
from vrm.reporting.comparisons import comparisons_judged, comparisons_table
from vrm.reporting.curves import figure3, figure4, figure5
from vrm.reporting.figure6 import figure6
from vrm.reporting.latents import latents_table, residual_figure, residual_table
from vrm.reporting.overoptimisation import overoptimisation
from vrm.reporting.paper_page import paper_page
from vrm.reporting.schematics import figure1, figure2
from vrm.reporting.study import ablation_table, power_figure
from vrm.reporting.table1 import table1
from vrm.reporting.table2 import table2
from vrm.reporting.trainings import health_table, training_summary
from vrm.reporting.win_rate_length import win_rate_length
from vrm.reporting.world import world_table

Maker = Callable[[Config, Path, Path], list[Path]]

TABLES: dict[str, Maker] = {
    "table1": table1,
    "table2": table2,
    "comparisons": comparisons_table,
    "comparisons_judged": comparisons_judged,
    "bound": bound_table,
    "calibration": calibration_table,
    "residual": residual_table,
    "health": health_table,
    "world": world_table,
    "latents": latents_table,
    "training_summary": training_summary,
    "ablation": ablation_table,
    "paper": paper_page,
}
"""Written as CSV, Markdown, LaTeX and HTML by `vrm table --name`."""

FIGURES: dict[str, Maker] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "win_rate_length": win_rate_length,
    "overoptimisation": overoptimisation,
    "bound": bound_figure,
    "power": power_figure,
    "calibration": calibration_figure,
    "residual": residual_figure,
}
"""Drawn as PDF and PNG, with their numbers as CSV, by `vrm figure --name`."""
