"""A file of preference pairs and a trained reward model, no workflow: what `vrm score-file` prints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from vrm.config import EvaluationSet
from vrm.data.preference_sets import read_preference_set
from vrm.evaluation.preference_accuracy import wins
from vrm.evaluation.reward_bench import SUBSETS, missing_subsets, section_scores
from vrm.evaluation.score_sets import score_pairs, to_csv
from vrm.models.scoring import load_reward_model
from vrm.records import RecordError, read_pairs, write_whole


def score_file(
    model_path: str | Path, pairs_path: Path, max_prompt_length: int | None, max_length: int | None, out: Path | None
) -> None:
    """Score a file of pairs and print accuracy, by subset and, for RewardBench's subsets, by section.

    Args:
        model_path: directory or hub id of a reward model.
        pairs_path: RewardBench's columns, or plain prompt, chosen, rejected.
        max_prompt_length, max_length: limits in tokens; None takes those the model was trained with.
        out: CSV for one row a pair; None writes none.

    Raises:
        RecordError: there is no such model, its rewards are not finite, or the pairs can't be used.
    """
    model = load_reward_model(model_path, max_prompt_length=max_prompt_length, max_length=max_length, progress=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = EvaluationSet(label=pairs_path.stem, path=str(pairs_path))
        read_preference_set("pairs", source, None, Path(scratch), model.aspects)
        table = score_pairs(model, read_pairs(Path(scratch) / "pairs.jsonl"), set())
    try:
        won = pd.Series(wins(table.reward_chosen, table.reward_rejected))
    except ValueError as error:
        raise RecordError(f"{model_path}: {error}") from None
    print(f"\n{len(table)} pairs, {int(table.truncated.sum())} of them cut, accuracy {100 * won.mean():.2f}")
    by_subset = won.groupby(table.subset).agg(["mean", "size"])
    for subset, row in by_subset.iterrows():
        print(f"  {subset or '(no subset)':32s} {100 * row['mean']:6.2f}   n = {int(row['size'])}")
    present = {subset: share for subset, share in by_subset["mean"].items() if subset in SUBSETS}
    if present:
        print("\nRewardBench sections (weighted by RewardBench's official subset sizes; math-prm counts 984)")
        for section, value in section_scores(present).items():
            print(f"  {section:12s} {100 * value:6.2f}")
        for section, absent in missing_subsets(present).items():
            print(f"  missing in {section}: {', '.join(absent)}")
    if out:
        write_whole(out, to_csv(table))
