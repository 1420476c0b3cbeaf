"""What Arena-Hard's style control looks at: length and markdown of an answer.

Source: lmarena/arena-hard-auto v0.1 with style control, `add_markdown_info.py` and `construct_style_matrices` in
`utils_math.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CODE_BLOCK = re.compile(r"```([^`]*)```")
HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
LIST_ITEMS = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))
BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


class Style(NamedTuple):
    """What is controlled for, of one answer; the order is that of `Leaderboard.style_coefficients`."""

    token_len: int
    header_count: int
    list_count: int
    bold_count: int


def count_markdown(text: str) -> tuple[int, int, int]:
    """Numbers of headers, list items and bold spans of an answer, code blocks stripped.

    Upstream strips a block by deleting what stands between its fences from everywhere in the answer; the fences stay.

    Source: `add_markdown_info.py`, `remove_pattern` and `count_markdown_elements`, its sub-counts summed as in
    `construct_style_matrices`.
    """
    for block in CODE_BLOCK.findall(text):
        text = text.replace(block, "")
    lists, bold = (sum(len(pattern.findall(text)) for pattern in patterns) for patterns in (LIST_ITEMS, BOLD))
    return len(HEADER.findall(text)), lists, bold


def style(answer: Mapping[str, Any]) -> Style:
    """Style of one answer, in upstream's record shape; Arena-Hard has one turn.

    Args:
        answer: with `choices[0].turns[0].content`, and `token_len` in that turn or in `conv_metadata`: upstream's
            token count by tiktoken's encoding for gpt-3.5-turbo. It is read, never estimated.

    Raises:
        ValueError: no `token_len`, or no text; names the model and the question.
    """
    name = f"the answer of {answer['model_id']} to {answer['question_id']}"
    tokens = token_len(answer)
    if tokens is None:
        raise ValueError(f"{name} has no token_len, which style control needs")
    text = answer["choices"][0]["turns"][0].get("content")
    if not isinstance(text, str):
        raise ValueError(f"{name} has no text")
    return Style(tokens, *count_markdown(text))


def style_difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(a - b) / (a + b + 1) of each style count, in -1..1; both and the result of shape (..., 4).

    Source: `construct_style_matrices` with `add_one` and a ratio for all four.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a - b) / (a + b + 1)


def token_len(answer: Mapping[str, Any]) -> int | None:
    """Upstream's token count of an answer; None where it has none."""
    tokens = answer["choices"][0]["turns"][0].get("token_len")
    return (answer.get("conv_metadata") or {}).get("token_len") if tokens is None else tokens
