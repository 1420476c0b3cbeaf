"""Arena-Hard's judgments as battles: a game is one, or three where its verdict is `>>`; those without one are named.

Source: lmarena/arena-hard-auto v0.1, `show_result.py` (`get_battles_from_row`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from vrm.judging.verdicts import LABELS, read_verdict


def battles(judgments: Iterable[Mapping[str, Any]], baseline: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Games with a verdict, and games without, both in the order of model, question and game.

    Args:
        judgments: upstream's records, one a model and question: `model`, `question_id` and `games`, two of them, each
            with the judge's reply as `judgment`. A game that is absent or None, or whose reply is None or blank, has
            no reply. A stored `score` is not read.
        baseline: the model that is A in game 1 and B in game 2.

    Returns:
        Games played, with `model`, `question_id`, `game` (1 or 2), `label`, `weight` in battles and `baseline_score`
        (1, 0.5 or 0); and games dropped, with `model`, `question_id`, `game` and `reason`.

    Raises:
        ValueError: the baseline is judged against itself, a record has more than two games, or a model's answer to a
            question is judged twice.

    Source: `get_battles_from_row`, with a weight instead of copies.
    """
    played, dropped, seen = [], [], set()
    for record in sorted(judgments, key=lambda record: (record["model"], str(record["question_id"]))):
        key = {"model": record["model"], "question_id": record["question_id"]}
        if record["model"] == baseline:
            raise ValueError(f"{baseline} is the baseline, and judged against itself on {record['question_id']}")
        if tuple(key.values()) in seen:
            raise ValueError(f"{record['model']} is judged twice on {record['question_id']}")
        seen.add(tuple(key.values()))
        games = list(record["games"])
        if len(games) > 2:
            raise ValueError(f"{record['model']} has {len(games)} games on {record['question_id']}, more than two")
        for number, game in enumerate([*games, None, None][:2], start=1):
            label, reason = read_verdict((game or {}).get("judgment"))
            if label is None:
                dropped.append({**key, "game": number, "reason": reason})
                continue
            weight, a_score = LABELS[label]
            score = a_score if number == 1 else 1 - a_score
            played.append({**key, "game": number, "label": label, "weight": weight, "baseline_score": score})
    columns = ["model", "question_id", "game"]
    return (
        pd.DataFrame(played, columns=[*columns, "label", "weight", "baseline_score"]),
        pd.DataFrame(dropped, columns=[*columns, "reason"]),
    )
