"""The figures of the report by name; each takes (config, results, out) and returns the files it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vrm.config import Config

from .curves import figure3, figure4, figure5
from .diagrams import figure1, figure2
from .overoptimisation import overoptimisation

FIGURES: dict[str, Callable[[Config, Path, Path], list[Path]]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "overoptimisation": overoptimisation,
}

__all__ = ["FIGURES", "figure1", "figure2", "figure3", "figure4", "figure5", "overoptimisation"]
