"""A trained reward model on every evaluation set: one row a pair, one file a model.

The file holds what the tables and figures need and nothing is aggregated here: rewards of both responses, whether the
prompt also occurs in training, whether a text was cut, and, for a VRM, the learned weights and per-objective scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.data.preference_sets import training_prompt_ids
from vrm.models.base import RewardModel, RewardOutput
from vrm.models.templates import Unrenderable, left_out
from vrm.records import PreferencePair, read_pairs, write_whole


def score_sets(model: RewardModel, sets: Mapping[str, Path], training_pairs: Path, out: Path) -> None:
    """Score every pair of every set and write `out`, a CSV with the columns of `docs/files.md`.

    Args:
        model: what to score with.
        sets: file of `PreferencePair`s, by evaluation set.
        training_pairs: what the model was trained on, to mark leaked prompts.
        out: the CSV.
    """
    pairs = [(name, pair) for name, path in sets.items() for pair in read_pairs(path)]
    table = score_pairs(model, [pair for _, pair in pairs], training_prompt_ids(training_pairs))
    table.insert(0, "evaluation_set", [pairs[place][0] for place in table.index])
    write_whole(out, to_csv(table))


def score_pairs(model: RewardModel, pairs: Sequence[PreferencePair], trained_on: set[str]) -> pd.DataFrame:
    """One row a pair: rewards, flags, and what the model says of weights and objectives.

    Pairs that the model's chat template refuses are left out, and named; the table's index says which remain.

    Raises:
        Unrenderable: it refuses every pair.
    """
    texts = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    # sets overlap (the same responses under another label), and equal texts have equal rewards: score each once
    first: dict[tuple[str, str], int] = {}
    places = np.array([first.setdefault((repr(prompt), text), len(first)) for prompt, text in texts])
    unique = [texts[i] for i in np.unique(places, return_index=True)[1]]
    places = places.reshape(-1, 2)
    try:
        output = model.score(*map(list, zip(*unique, strict=True)))
    except Unrenderable as error:  # says so before it scores anything
        found = {row: [error.rows[p] for p in both if p in error.rows] for row, both in enumerate(places)}
        refused = {row: reasons[0] for row, reasons in found.items() if reasons}
        left_out(refused, [f"pair {pair.pair_id}" for pair in pairs], "pairs to score")
        kept = [row for row in range(len(pairs)) if row not in refused]
        table = score_pairs(model, [pairs[row] for row in kept], trained_on)
        return table.set_axis([kept[place] for place in table.index])
    return _table(pairs, model.aspects, output, *places.T, trained_on)


def to_csv(table: pd.DataFrame) -> str:
    """Nine digits, which tell any two float32 apart: rounding must not make a tie of a win."""
    return table.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def _table(
    pairs: Sequence[PreferencePair],
    aspects: list[str],
    output: RewardOutput,
    chosen: np.ndarray,
    rejected: np.ndarray,
    trained_on: set[str],
) -> pd.DataFrame:
    """The columns; `chosen` and `rejected` are each pair's rows in `output`, shape (N,)."""
    columns: dict[str, object] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "prompt_id": [pair.prompt_id for pair in pairs],
        "subset": [pair.subset for pair in pairs],
        "leaked": [int(pair.prompt_id in trained_on) for pair in pairs],
        "truncated": (output.truncated[chosen] | output.truncated[rejected]).astype(int),
        "reward_chosen": output.mean[chosen],
        "reward_rejected": output.mean[rejected],
    }
    if output.std is not None:
        columns["std_chosen"], columns["std_rejected"] = output.std[chosen], output.std[rejected]
    for k, aspect in enumerate(aspects):
        if output.weights is not None:
            columns[f"weight_{aspect}"] = output.weights[chosen, k]
        if output.per_objective is not None:
            columns[f"chosen_{aspect}"] = output.per_objective[chosen, k]
            columns[f"rejected_{aspect}"] = output.per_objective[rejected, k]
        columns[f"true_weight_{aspect}"] = [pair.true_weights[k] if pair.true_weights else np.nan for pair in pairs]
    return pd.DataFrame(columns)
