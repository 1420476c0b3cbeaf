"""Preference pairs on their way into a model: tokenised, counted, batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.reward_trainer import DataCollatorForPreference

from vrm.config import Variant
from vrm.models.templates import left_out
from vrm.models.text import TextEncoder, TokenisedText, located
from vrm.records import PreferencePair, RecordError, read_pairs

ANNOTATIONS = ("target", "chosen_normalised", "rejected_normalised")
"""Optional parts of a pair that the variational objective uses."""


@dataclass(frozen=True)
class TokenisedPair:
    """A preference pair as token ids; both texts begin with the same prompt."""

    record: PreferencePair
    chosen: TokenisedText
    rejected: TokenisedText


def tokenise_pairs(
    records: list[PreferencePair], encoder: TextEncoder, source: Path, max_length: str
) -> tuple[list[TokenisedPair], dict[str, int]]:
    """The pairs whose texts still differ once they are cut, and what was cut or had to go, counted.

    Args:
        records: the pairs.
        encoder: says how they are cut.
        source: the file that they come from, and
        max_length: the key of the configuration that limits them, for the error.

    Raises:
        RecordError: no pair is left.
        Unrenderable: the chat template refuses every one of them.
    """
    prompts = [record.prompt for record in records]
    chosen, refused = encoder.try_encode(prompts, [record.chosen for record in records])
    rejected, refused_too = encoder.try_encode(prompts, [record.rejected for record in records])
    refused |= refused_too
    left_out(refused, [f"{source}, pair {record.pair_id}" for record in records], f"pairs of {source}")
    rows = [row for place, row in enumerate(zip(records, chosen, rejected, strict=True)) if place not in refused]
    pairs = [pair for pair in (TokenisedPair(*row) for row in rows) if pair.chosen.ids != pair.rejected.ids]
    identical = len(rows) - len(pairs)
    if not pairs:
        raise RecordError(
            f"{source}: no pair to train or measure on ({identical} identical after truncation); raise "
            f"data.{source.stem}_fraction or {max_length}"
        )
    counts = {"pairs": len(pairs), "identical_after_truncation": identical, "refused_by_template": len(refused)}
    return pairs, counts | encoder.truncation.as_dict()


def tokenise_split(path: Path, encoder: TextEncoder, variant: Variant) -> tuple[Dataset, dict[str, int]]:
    """A split as the columns that TRL and `PairCollator` read, and `tokenise_pairs`' counts.

    Raises:
        RecordError: no pair is left, or the variant needs annotated scores that some pairs lack.
    """
    records = read_pairs(path)
    annotated = variant.kind == "variational" and all(record.target is not None for record in records)
    if variant.needs_scores and not annotated:
        raise RecordError(
            f"{path}: supervision_weight and score_anchor_weight need annotated scores, and some pairs have none; set "
            "both weights to 0"
        )
    pairs, counts = tokenise_pairs(records, encoder, path, "reward.training.max_length")
    if variant.kind == "variational":
        located([pair.chosen for pair in pairs])
    return Dataset.from_list([_row(pair, annotated) for pair in pairs]), counts


def _row(pair: TokenisedPair, annotated: bool) -> dict[str, Any]:
    row = {
        "chosen_ids": pair.chosen.ids,
        "rejected_ids": pair.rejected.ids,
        "prompt_length": pair.chosen.prompt_length,
    }
    return row | {name: getattr(pair.record, name) for name in ANNOTATIONS} if annotated else row


class PairCollator(DataCollatorForPreference):
    """TRL's batch, with prompt lengths of both halves and the pair's annotations."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack B pairs; ids and lengths have 2B rows, annotations B."""
        batch = super().torch_call(examples)
        batch["prompt_lengths"] = torch.tensor([example["prompt_length"] for example in examples]).repeat(2)
        for name in ANNOTATIONS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch
