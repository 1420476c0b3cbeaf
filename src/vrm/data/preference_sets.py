"""Evaluation sets of preference pairs in the public shapes, and how much of them occurs in training.

The shapes are those of `vrm.data.shapes`. Of rated responses, every two of a prompt with unequal overall scores
(without these: unequal means of their ratings) are a pair. Of our own `PreferencePair` the normalised scores are left
behind: they belong to training. `chosen_scores`, `rejected_scores` and `true_weights`, K numbers each, are kept where
present.

A row with several chosen or rejected responses becomes all their pairs, `<id>/<chosen>-<rejected>`, both counted from
0; `vrm.evaluation.accuracy` puts them together again.

A benchmark is taken as it is defined: two identical texts stay in the set and are counted (a tie is a loss). Refused
are only rows that can't be scored: a text is missing or empty, or nothing is preferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

from vrm.config import EvaluationSet
from vrm.data.fields import Unusable, parse_label, parse_text
from vrm.data.readers import ComparedRow, Ratings
from vrm.data.scored import ScoredPrompts, annotated_aspects
from vrm.data.shapes import COMPARED, RATED, Shape, read_as, recognise
from vrm.data.sources import describe, read_rows
from vrm.records import (
    PreferencePair,
    Quarantine,
    RecordError,
    ScoredPrompt,
    ScoredResponse,
    prompt_id,
    read_jsonl,
    write_json,
    write_jsonl,
    write_quarantine,
)
from vrm.watch import format_counts


def read_preference_set(
    name: str, set_config: EvaluationSet, training_pairs: Path | None, out_dir: Path, aspects: Sequence[str]
) -> dict[str, Any]:
    """Read an evaluation set into `out_dir`: <name>.jsonl, <name>.json (counts, leakage), <name>.quarantine.jsonl.

    Args:
        name: name of the set, and of its files.
        set_config: where it is, and its format.
        training_pairs: the training split, whose prompts the leakage audit compares with; None: no audit.
        out_dir: where the files go.
        aspects: names of the K aspects; with none, annotated scores and true weights are not read.

    Returns:
        The content of <name>.json.

    Raises:
        ConfigError: the source is missing or of an unsupported kind.
        RecordError: no row can be used, or the format is RewardBench's and a subset is not; says why.
    """
    refused, set_aside = Quarantine(describe(set_config)), Quarantine(describe(set_config))
    shape, example, rows = recognise(read_rows(set_config, refused), set_config.shape, (*COMPARED, *RATED), "pairs")
    columns: dict[str, None] = {}
    rows = _noting(rows, columns)
    if shape.compare is not None:
        pairs, more = _read_compared(rows, shape, aspects, set_config.format, refused)
    else:
        pairs, more = _read_rated(rows, shape, example, aspects, refused, set_aside)

    counts = {
        "source": refused.source,
        "read_as": read_as(shape, example, shape.aspects or aspects, shape.rating_range),
        "columns_not_read": shape.unread(columns, example, shape.aspects),
        "format": set_config.format,
        "rows": more.pop("rows_used") + len(refused.rows),
        "rows_quarantined": len(refused.rows),
        "rows_quarantined_because": refused.counts(),
        **more,
        **_numbers(pairs),
    }
    if training_pairs is not None:
        counts |= audit(pairs, training_prompt_ids(training_pairs))
    write_quarantine(out_dir / f"{name}.quarantine.jsonl", refused, set_aside)
    write_json(out_dir / f"{name}.json", counts)
    if not pairs:
        found = ", ".join(columns) or "none"
        raise refused.none_usable(
            "expected columns: prompt, chosen, rejected (and subset in RewardBench's format), or those of another "
            f"shape of docs/cases.md; found: {found}",
        )
    if set_config.format == "reward_bench":
        _require_subsets(refused.source, pairs)
    write_jsonl(out_dir / f"{name}.jsonl", pairs)
    print(format_counts(f"Evaluation set {name} ({set_config.label})", counts))
    return counts


def training_prompt_ids(training_pairs: Path) -> set[str]:
    """Ids of all prompts of a file of preference pairs."""
    return {row["prompt_id"] for _, row in read_jsonl(training_pairs)}


def audit(pairs: Iterable[PreferencePair], training: set[str]) -> dict[str, int]:
    """How many prompts and pairs of a set occur in training (equal after normalisation).

    Args:
        pairs: the evaluation set.
        training: prompt ids of the training split.
    """
    leaked = [pair.prompt_id for pair in pairs if pair.prompt_id in training]
    return {"training_prompts": len(training), "leaked_prompts": len(set(leaked)), "leaked_pairs": len(leaked)}


def compared_pairs(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    shape: Shape,
    aspects: Sequence[str],
    form: str,
    refused: Quarantine,
    ids: set[str],
) -> Iterator[tuple[str, list[PreferencePair]]]:
    """The pairs of each row that is a comparison, with the row's id.

    Args:
        rows: (number, row) of each row.
        shape: how they are read.
        aspects: names of the K aspects; with none, scores are not read.
        form: `reward_bench` needs a subset.
        refused: takes the rows that can't be used.
        ids: those that are taken; gets each row's.
    """
    for number, row in rows:
        try:
            if form == "reward_bench":
                parse_text(row.get("subset"), "subset")
            row_id = _row_id(row, number, ids)
            found = list(_pairs_of(shape.compare(row, aspects), row_id))
        except Unusable as error:
            refused.add(number, str(error), row)
            continue
        ids.add(row_id)
        yield row_id, found


def _read_compared(
    rows: Iterable[tuple[int, Mapping[str, Any]]], shape: Shape, aspects: Sequence[str], form: str, refused: Quarantine
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """The pairs of rows that are comparisons, and how many rows were used."""
    ids: set[str] = set()
    pairs = [pair for _, found in compared_pairs(rows, shape, aspects, form, refused, ids) for pair in found]
    return pairs, {"rows_used": len(ids)}


def _read_rated(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    shape: Shape,
    example: Mapping[str, Any],
    aspects: Sequence[str],
    refused: Quarantine,
    set_aside: Quarantine,
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """The pairs of rows that hold rated responses, and counts of rows, ties and responses set aside."""
    # a model's aspects need not be the file's: the overall scores must do then
    present = shape.aspects or [name for name in aspects if name in {*annotated_aspects(example), *example}]
    names = shape.aspects or (aspects if len(present) == len(aspects) and shape.name != "distilabel" else ())
    read = ScoredPrompts(refused, set_aside)
    for number, row in rows:
        read.read(number, row, shape, Ratings(names, None, overall=not names))
    read.finish()
    prompts = read.prompts.values()
    keep = list(names) == list(aspects)
    numbered: Counter[str] = Counter()
    pairs = []
    for pair in (pair for prompt in prompts for pair in _better_and_worse(prompt, keep)):
        pairs.append(replace(pair, pair_id=f"{pair.prompt_id}-{numbered[pair.prompt_id]}"))
        numbered[pair.prompt_id] += 1
    counts = {
        "rows_used": read.used_rows,
        "responses_set_aside": len(set_aside.rows),
        "responses_set_aside_because": set_aside.counts(),
        "ties_dropped": sum(comb(len(prompt.responses), 2) for prompt in prompts) - len(pairs),
    }
    return pairs, counts


def _pairs_of(row: ComparedRow, row_id: str) -> Iterator[PreferencePair]:
    """Each chosen against each rejected response of a row."""
    several = len(row.chosen) > 1 or len(row.rejected) > 1
    for i, chosen in enumerate(row.chosen):
        for j, rejected in enumerate(row.rejected):
            yield PreferencePair(
                pair_id=f"{row_id}/{i}-{j}" if several else row_id,
                prompt_id=prompt_id(row.prompt),
                prompt=row.prompt,
                chosen=chosen,
                rejected=rejected,
                subset=row.subset,
                chosen_scores=row.chosen_scores,
                rejected_scores=row.rejected_scores,
                true_weights=row.true_weights,
            )


def _better_and_worse(prompt: ScoredPrompt, keep_scores: bool) -> Iterator[PreferencePair]:
    """Every two responses of a prompt of which one is better; without an id."""

    def value(response: ScoredResponse) -> float:
        return round(fmean(response.scores), 9) if response.overall is None else response.overall

    for first, second in combinations(prompt.responses, 2):
        if value(first) == value(second):
            continue
        better, worse = (first, second) if value(first) > value(second) else (second, first)
        yield PreferencePair(
            pair_id="",
            prompt_id=prompt.prompt_id,
            prompt=prompt.prompt,
            chosen=better.text,
            rejected=worse.text,
            chosen_scores=better.scores if keep_scores else None,
            rejected_scores=worse.scores if keep_scores else None,
            true_weights=prompt.true_weights if keep_scores else None,
        )


def _numbers(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    subsets = Counter(pair.subset for pair in pairs if pair.subset)
    return {
        "pairs": len(pairs),
        "pairs_with_identical_texts": sum(pair.chosen == pair.rejected for pair in pairs),
        "pairs_with_true_weights": sum(pair.true_weights is not None for pair in pairs),
        "prompts": len({pair.prompt_id for pair in pairs}),
        "subsets": dict(sorted(subsets.items())),
    }


def _require_subsets(source: str, pairs: Sequence[PreferencePair]) -> None:
    """Stop where a subset is none of RewardBench's: the table would, after all trainings."""
    unknown = Counter(pair.subset for pair in pairs if pair.subset not in SUBSETS)
    if unknown:
        found = ", ".join(f"{subset} ({count} x)" for subset, count in sorted(unknown.items()))
        raise RecordError(
            f"{source}: not subsets of RewardBench: {found}; correct them, or set `format: pairs`, which takes any "
            f"subset (RewardBench 2 too). Known are: {', '.join(sorted(SUBSETS))}"
        )


def _noting(rows: Iterable[tuple[int, Mapping[str, Any]]], columns: dict[str, None]) -> Iterator[tuple[int, Mapping]]:
    """The rows, with their columns noted."""
    for number, row in rows:
        columns.update(dict.fromkeys(row))
        yield number, row


def _row_id(row: Mapping[str, Any], number: int, taken: set[str]) -> str:
    """The row's own id where it has one that is still free, else one made of the row number."""
    row_id = parse_label(row.get("pair_id", row.get("id")), "id") or f"row{number}"
    while row_id in taken:
        row_id += f"-row{number}"
    return row_id


# RewardBench's sections, and the weight of each subset in its section.
#
# `math-prm` weighs 984 instead of its 447 rows, so that mathematics and code count alike in Reasoning; the other
# weights are the subsets' numbers of prompts. Upstream's table of them swaps two at commit a32e272b (250 for
# xstest-should-refuse, 154 for xstest-should-respond); the worked example of its README needs those below.
#
# Source: allenai/reward-bench, `EXAMPLE_COUNTS` and `SUBSET_MAPPING`.

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Weight of each subset in its section."""

SUBSETS = frozenset(subset for weights in SECTIONS.values() for subset in weights)
"""All of them."""
