r"""What a judge's reply says: Arena-Hard's label, MT-Bench's rating.

Source: lmarena/arena-hard-auto v0.1, `gen_judgment.py` (`get_score`), of which later code takes the last verdict;
lm-sys/FastChat, `fastchat/llm_judge/common.py` (`one_score_pattern`, `one_score_pattern_backup`, `run_judge_single`).
"""

from __future__ import annotations

import re

VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")

LABELS: dict[str, tuple[int, float]] = {
    "A>>B": (3, 1.0),
    "A>B": (1, 1.0),
    "A=B": (1, 0.5),
    "B>A": (1, 0.0),
    "B>>A": (3, 0.0),
}
"""Number of battles of a verdict, and A's score in each. Other labels (B=A, A<B) drop the game, as in v0.1."""

REASONS = ("no reply", "no verdict", "contradictory verdicts", "unknown label")
"""Why a game is dropped."""

RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")


def parse_verdict(text: str) -> str | None:
    """The label of a judge's reply, one of `LABELS`; None if there is none, an unknown one, or several that disagree.

    Args:
        text: the reply; where the judge was asked twice, both replies joined by a line break, as upstream stores them.

    Source: `get_score` with v0.1's pattern; later code takes the last verdict.
    """
    return read_verdict(text)[0]


def read_verdict(text: str | None) -> tuple[str | None, str]:
    """The label or None, and why it is None: one of `REASONS`, or "" for a label."""
    if text is None or not text.strip():
        return None, "no reply"
    found = set(VERDICT.findall(text))
    if not found:
        return None, "no verdict"
    if len(found) > 1:
        return None, "contradictory verdicts"
    (label,) = found
    return (label, "") if label in LABELS else (None, "unknown label")


def parse_rating(text: str) -> float | None:
    """The rating in a judge's reply: the first `[[rating]]`, else the first `[rating]`; None when there is neither.

    Source: FastChat `run_judge_single`, whose -1 is None here.
    """
    match = RATING.search(text) or RATING_BACKUP.search(text)
    return float(match.group(1)) if match else None
