"""From numbers to tables and figures, a subject a file; and the paper's own numbers, which they stand beside.

Source: VRM (arXiv 2603.04974), Tables 1 and 2, typed off once (`table1.csv`, `table2.csv`); a test counts and compares
them.
"""

from __future__ import annotations

import csv
from importlib.resources import files


def published(table: str) -> list[dict[str, str]]:
    """The rows of the paper's `table1` or `table2`, as text."""
    text = files("vrm.reporting").joinpath(f"{table}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
