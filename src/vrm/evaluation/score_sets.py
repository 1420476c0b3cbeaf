"""A trained reward model on preference pairs: one row a pair, one file a model.

The file holds what the tables and figures need and nothing is aggregated here: rewards of both responses, how long they
are, the chance that the chosen one wins, whether the prompt also occurs in training, whether a text was cut, and, for a
VRM, the learned weights and per-objective scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import BackboneConfig, RewardTraining
from vrm.data.preference_sets import training_prompt_ids
from vrm.evaluation.accuracy import length_correlation
from vrm.evaluation.calibration import pair_probability
from vrm.models.base import RewardModel, RewardOutput
from vrm.models.checks import checked_tokenizer
from vrm.models.known_texts import write_texts
from vrm.models.templates import Unrenderable, left_out
from vrm.models.text import TextEncoder
from vrm.records import PreferencePair, Prompt, both_texts, read_pairs, write_jsonl
from vrm.runfiles import CHOSEN, LEARNED_WEIGHT, REFUSED_PAIRS, REJECTED, SCORES, TRUE_WEIGHT, VALIDATION_SCORES
from vrm.training.symptoms import LENGTH_CORRELATION, say_symptoms

VALIDATION = ""
"""Stands for the validation pairs among names of evaluation sets, none of which is empty."""


def tokenise_sets(
    backbone: str, settings: BackboneConfig, training: RewardTraining, sets: Sequence[Path], out: Path
) -> None:
    """Write the token ids of all texts of some files of pairs, once for all models of a backbone.

    Args:
        backbone: directory or hub id of a causal LM.
        settings: its revision and chat template.
        training: limits in tokens.
        sets: files of `PreferencePair`s.
        out: the Parquet file, `vrm.models.known_texts.TEXTS`.

    Raises:
        ConfigError, RecordError: the backbone or the pairs can't be used.
    """
    limit, template = training.max_length, settings.chat_template
    tokenizer = checked_tokenizer(backbone, max_length=limit, revision=settings.revision, chat_template=template)
    found = write_texts(TextEncoder(tokenizer, training.max_prompt_length, limit), texts_of(sets), out)
    print(f"{out}: {found.truncation.as_dict()}")


def texts_of(sets: Sequence[Path]) -> list[tuple[Prompt, str]]:
    """Prompts and responses of some files of pairs, chosen and rejected ones."""
    return both_texts(pair for path in sets for pair in read_pairs(path))


def score_sets(
    model: RewardModel,
    sets: Mapping[str, Path],
    training_pairs: Path,
    out: Path,
    validation: Path | None = None,
) -> None:
    """Score every pair of every set; write `out`, a CSV (docs/files.md), and `REFUSED_PAIRS` beside it.

    Args:
        model: what to score with.
        sets: file of `PreferencePair`s, by evaluation set.
        training_pairs: what the model was trained on, to mark leaked prompts.
        out: the CSV.
        validation: the validation pairs, whose scores go into `VALIDATION_SCORES` beside it: temperatures and standard
            deviations are fitted there, never on a set.
    """
    files = [*sets.items(), *([(VALIDATION, validation)] if validation else [])]
    pairs = [(name, pair) for name, path in files for pair in read_pairs(path)]
    table, refused = score_or_refuse(model, [pair for _, pair in pairs], training_prompt_ids(training_pairs))
    table.insert(0, "evaluation_set", [pairs[place][0] for place in table.index])
    named = [(*pairs[place], reason) for place, reason in sorted(refused.items())]
    rows = [{"evaluation_set": name, "pair_id": pair.pair_id, "reason": reason} for name, pair, reason in named if name]
    write_jsonl(out.with_name(REFUSED_PAIRS), rows)
    held_out = table["evaluation_set"] == VALIDATION
    if validation:
        _say_length(table[held_out])
        VALIDATION_SCORES.write(out.with_name(VALIDATION_SCORES.name), table[held_out].drop(columns="evaluation_set"))
    SCORES.write(out, table[~held_out])


def _say_length(scores: pd.DataFrame) -> None:
    say_symptoms({LENGTH_CORRELATION: length_correlation(scores)})


def score_pairs(model: RewardModel, pairs: Sequence[PreferencePair], trained_on: set[str]) -> pd.DataFrame:
    """The table of `score_or_refuse`."""
    return score_or_refuse(model, pairs, trained_on)[0]


def score_or_refuse(
    model: RewardModel, pairs: Sequence[PreferencePair], trained_on: set[str]
) -> tuple[pd.DataFrame, dict[int, str]]:
    """One row a pair, with rewards, flags, and what the model says of weights and objectives; and what it refuses.

    Args:
        model: what to score with.
        pairs: N of them.
        trained_on: ids of the prompts that it was trained on.

    Returns:
        The table, whose index is the pair's place in `pairs`, and the reason by the place of each pair that can't be
        rendered, which is named on the way.

    Raises:
        Unrenderable: every pair is refused.
    """
    texts = both_texts(pairs)
    # sets overlap (the same responses under another label), and equal texts have equal rewards: score each once
    first: dict[tuple[str, str], int] = {}
    places = np.array([first.setdefault((repr(prompt), text), len(first)) for prompt, text in texts])
    unique = [texts[i] for i in np.unique(places, return_index=True)[1]]
    places = places.reshape(-1, 2)
    try:
        output = model.score(*map(list, zip(*unique, strict=True)))
    except Unrenderable as error:  # which says so before it scores anything
        found = {row: [error.rows[place] for place in both if place in error.rows] for row, both in enumerate(places)}
        refused = {row: reasons[0] for row, reasons in found.items() if reasons}
        left_out(refused, [f"pair {pair.pair_id}" for pair in pairs], "pairs to score")
        kept = [row for row in range(len(pairs)) if row not in refused]
        table, more = score_or_refuse(model, [pairs[row] for row in kept], trained_on)
        return table.set_axis([kept[row] for row in table.index]), refused | {kept[row]: r for row, r in more.items()}
    return _table(pairs, model.aspects, output, *places.T, trained_on), {}


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
        "length_chosen": [len(pair.chosen) for pair in pairs],
        "length_rejected": [len(pair.rejected) for pair in pairs],
    }
    probability = pair_probability(output, chosen, rejected)
    if probability is not None:
        columns["probability"] = probability
    if output.std is not None:
        columns["std_chosen"], columns["std_rejected"] = output.std[chosen], output.std[rejected]
    for k, aspect in enumerate(aspects):
        if output.weights is not None:
            columns[LEARNED_WEIGHT + aspect] = output.weights[chosen, k]
        if output.per_objective is not None:
            columns[CHOSEN + aspect] = output.per_objective[chosen, k]
            columns[REJECTED + aspect] = output.per_objective[rejected, k]
        columns[TRUE_WEIGHT + aspect] = [pair.true_weights[k] if pair.true_weights else np.nan for pair in pairs]
    if output.rated is not None and output.residual is not None:
        for part, values in (("rated", output.rated), ("residual", output.residual)):
            columns[f"{part}_chosen"], columns[f"{part}_rejected"] = values[chosen], values[rejected]
        columns["rated_probability"] = pair_probability(output, chosen, rejected, rated=True)
    return pd.DataFrame(columns)
