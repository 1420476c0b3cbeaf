"""The tables of the report by name; each takes (config, results, out) and returns the files it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vrm.config import Config
from vrm.reporting.paper.page import paper_page
from vrm.reporting.tables.bound import bound
from vrm.reporting.tables.comparisons import comparisons
from vrm.reporting.tables.comparisons_judged import comparisons_judged
from vrm.reporting.tables.latents import latents_table
from vrm.reporting.tables.table1 import table1
from vrm.reporting.tables.table2 import table2
from vrm.reporting.tables.training_summary import training_summary
from vrm.reporting.tables.world import world_table

TABLES: dict[str, Callable[[Config, Path, Path], list[Path]]] = {
    "table1": table1,
    "table2": table2,
    "comparisons": comparisons,
    "comparisons_judged": comparisons_judged,
    "bound": bound,
    "world": world_table,
    "latents": latents_table,
    "training_summary": training_summary,
    "paper": paper_page,
}

__all__ = [
    "TABLES",
    "bound",
    "comparisons",
    "comparisons_judged",
    "latents_table",
    "paper_page",
    "table1",
    "table2",
    "training_summary",
    "world_table",
]
