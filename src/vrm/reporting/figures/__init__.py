"""The figures of the report by name; each takes (config, results, out) and returns the files it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vrm.config import Config
from vrm.reporting.figures.bound import bound_figure
from vrm.reporting.figures.curves import figure3, figure4, figure5
from vrm.reporting.figures.figure6 import figure6
from vrm.reporting.figures.overoptimisation import overoptimisation
from vrm.reporting.figures.schematics import figure1, figure2
from vrm.reporting.figures.win_rate_length import win_rate_length

FIGURES: dict[str, Callable[[Config, Path, Path], list[Path]]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "win_rate_length": win_rate_length,
    "overoptimisation": overoptimisation,
    "bound": bound_figure,
}

__all__ = [
    "FIGURES",
    "bound_figure",
    "figure1",
    "figure2",
    "figure3",
    "figure4",
    "figure5",
    "figure6",
    "overoptimisation",
    "win_rate_length",
]
