"""Evaluation sets of preference pairs in the public shapes, and how much of them occurs in training.

Read are, row by row:
* RewardBench's columns: prompt, chosen, rejected, subset, id;
* plain prompt, chosen, rejected;
* chosen and rejected as conversations (UltraFeedback binarized): what comes before the last message is the prompt, the
  last message, the assistant's, is the response; or, with the prompt in its own column, that one message alone;
* our own `PreferencePair` (its normalised scores are left behind: they belong to training).
`chosen_scores`, `rejected_scores` and `true_weights`, K numbers each, are kept where present.

A benchmark is taken as it is defined: two identical texts stay in the set and are counted (a tie is a loss). Refused
are only rows that can't be scored: a text is missing or empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vrm.config import EvaluationSet
from vrm.data.sources import (
    Unusable,
    describe,
    format_counts,
    none_usable,
    parse_label,
    parse_messages,
    parse_numbers,
    parse_prompt,
    parse_text,
    read_rows,
    write_quarantine,
)
from vrm.records import PreferencePair, Prompt, Quarantine, prompt_id, read_jsonl, write_json, write_jsonl


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
        RecordError: no row can be used; says why.
    """
    refused = Quarantine(describe(set_config))
    pairs: dict[str, PreferencePair] = {}
    for number, row in read_rows(set_config, refused):
        try:
            if set_config.format == "reward_bench":
                parse_text(row.get("subset"), "subset")
            pair_id = _pair_id(row, number, pairs)
            pairs[pair_id] = parse_pair(row, pair_id, len(aspects))
        except Unusable as error:
            refused.add(number, str(error), row)

    counts = {
        "source": refused.source,
        "format": set_config.format,
        "rows": len(pairs) + len(refused.rows),
        "rows_quarantined": len(refused.rows),
        "rows_quarantined_because": refused.counts(),
        **_numbers(list(pairs.values())),
    }
    if training_pairs is not None:
        counts |= audit(pairs.values(), training_prompt_ids(training_pairs))
    write_quarantine(out_dir / f"{name}.quarantine.jsonl", refused)
    write_json(out_dir / f"{name}.json", counts)
    if not pairs:
        raise none_usable(refused, "expected columns: prompt, chosen, rejected (and subset in RewardBench's format)")
    write_jsonl(out_dir / f"{name}.jsonl", pairs.values())
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


def parse_pair(row: dict[str, Any], pair_id: str, aspects: int) -> PreferencePair:
    """One row in any of the shapes above.

    Args:
        row: the row.
        pair_id: its id, unique in its file.
        aspects: K, the length of its scores and true weights where it has them; 0 leaves them unread.

    Raises:
        Unusable: a text is missing or empty, or the two conversations differ before their last message.
    """
    prompt, chosen, rejected = _texts(row)
    numbers = {
        name: parse_numbers(row.get(name), aspects, name) if aspects else None
        for name in ("chosen_scores", "rejected_scores", "true_weights")
    }
    return PreferencePair(
        pair_id=pair_id,
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        subset=parse_label(row.get("subset"), "subset"),
        **numbers,
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


def _texts(row: dict[str, Any]) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected text of a row."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, list) and not isinstance(rejected, list):
        prompt = parse_prompt(row.get("prompt"), "prompt")
        return prompt, parse_text(chosen, "chosen"), parse_text(rejected, "rejected")
    histories, texts = [], []
    for value, what in ((chosen, "chosen"), (rejected, "rejected")):
        if not isinstance(value, list):
            raise Unusable("one of chosen and rejected is a conversation, the other is not")
        *history, last = parse_messages(value, what)
        if last["role"] != "assistant":
            raise Unusable(f"{what} does not end with a message of the assistant")
        histories.append(history)
        texts.append(last["content"])
    if histories[0] != histories[1]:
        raise Unusable("chosen and rejected differ before their last message")
    # UltraFeedback binarized repeats the user's first message in `prompt`: the conversation says more
    prompt = parse_prompt(histories[0] or row.get("prompt"), "prompt")
    return prompt, texts[0], texts[1]


def _pair_id(row: dict[str, Any], number: int, taken: dict[str, PreferencePair]) -> str:
    """The row's own id where it has one that is still free, else one made of the row number."""
    pair_id = parse_label(row.get("pair_id", row.get("id")), "id") or f"row{number}"
    while pair_id in taken:
        pair_id += f"-row{number}"
    return pair_id
