"""The tables of the report by name; each takes (config, results, out) and returns the files it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vrm.config import Config

from .latents_table import latents_table
from .table2 import table2
from .training_summary import training_summary
from .world_table import world_table

TABLES: dict[str, Callable[[Config, Path, Path], list[Path]]] = {
    "table2": table2,
    "world": world_table,
    "latents": latents_table,
    "training_summary": training_summary,
}

__all__ = ["TABLES", "latents_table", "table2", "training_summary", "world_table"]
