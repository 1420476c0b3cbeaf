"""Builders of UltraFeedback-shaped records, shared by the tests of data preparation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vrm.config import DataConfig

ASPECTS = ["helpfulness", "honesty"]


@pytest.fixture
def completion() -> Callable[..., dict[str, Any]]:
    """Builds one completion; a rating of None leaves the aspect out."""

    def build(text: str, *ratings: Any, overall: Any = None) -> dict[str, Any]:
        annotations = {a: {"Rating": r} for a, r in zip(ASPECTS, ratings, strict=True) if r is not None}
        return {"model": "m", "response": text, "annotations": annotations, "overall_score": overall}

    return build


@pytest.fixture
def record(completion) -> Callable[..., dict[str, Any]]:
    """Builds one record from an instruction and (text, rating, rating) tuples."""

    def build(instruction: Any, *responses: tuple, **more: Any) -> dict[str, Any]:
        return {"instruction": instruction, "completions": [completion(*r) for r in responses], **more}

    return build


@pytest.fixture
def many_records(record) -> list[dict[str, Any]]:
    """200 prompts x 4 responses with random ratings, ties among them."""
    rng = np.random.default_rng(0)
    return [
        record(f"Question {p}?", *((f"answer {p}.{r}", *map(str, rng.integers(1, 6, size=2))) for r in range(4)))
        for p in range(200)
    ]


@pytest.fixture
def write_rows(tmp_path) -> Callable[..., Path]:
    """Writes rows as JSON lines; a text is written as it stands."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    """Builds a data configuration with two aspects."""

    def build(path: Path | str, **more: Any) -> DataConfig:
        return DataConfig(path=str(path), label="test", **{"aspects": ASPECTS, **more})

    return build
