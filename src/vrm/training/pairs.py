"""Preference pairs on their way into a model: tokenised, counted, batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from vrm.config import Variant
from vrm.models.shared_prefix import Kernel, by_prompt, pack
from vrm.models.templates import left_out
from vrm.models.text import TextEncoder, TokenisedText, without_prompt
from vrm.records import PreferencePair, RecordError, read_pairs

ANNOTATIONS = ("target", "chosen_normalised", "rejected_normalised")
"""Optional parts of a pair, which objectives with ratings use."""


@dataclass(frozen=True)
class TokenisedPair:
    """A preference pair as token ids; both texts begin with the same prompt."""

    record: PreferencePair
    chosen: TokenisedText
    rejected: TokenisedText


def tokenise_pairs(
    records: list[PreferencePair], encoder: TextEncoder, source: Path, max_length: str, reads_prompts: bool = False
) -> tuple[list[TokenisedPair], dict[str, int]]:
    """The pairs whose texts still differ once they are cut, and what was cut or left out, counted.

    Args:
        records: the pairs.
        encoder: says how they are cut.
        source: the file that they come from, and
        max_length: the key of the configuration that limits them, for the error.
        reads_prompts: whether a prompt's end must be known; a pair without is left out like one that is refused.

    Raises:
        RecordError: no pair is left.
        Unrenderable: the chat template refuses every one of them.
    """
    prompts = [record.prompt for record in records]
    chosen, refused = encoder.try_encode(prompts, [record.chosen for record in records])
    rejected, refused_too = encoder.try_encode(prompts, [record.rejected for record in records])
    refused |= refused_too
    if reads_prompts:
        refused |= without_prompt(chosen)
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


def tokenise_split(
    path: Path, encoder: TextEncoder, variant: Variant, most: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """A split as the columns that the collators read, and `tokenise_pairs`' counts.

    Args:
        path: the split's file.
        encoder: says how texts are cut.
        variant: what is trained on it.
        most: how many of its pairs are used, the first ones; None: all.

    Raises:
        RecordError: no pair is left, or the variant needs annotated scores that some pairs lack.
    """
    records = read_pairs(path)[:most]
    annotated = variant.kind != "scalar" and all(record.target is not None for record in records)
    if variant.needs_scores and not annotated:
        keys = " and ".join(variant.score_keys)
        raise RecordError(
            f"{path}: {keys} of {variant.label} need annotated scores, and some pairs have none; set weights to 0, or "
            "leave the variant out of reward.run"
        )
    limit, reads_prompts = "reward.training.max_length", variant.kind != "scalar"
    pairs, counts = tokenise_pairs(records, encoder, path, limit, reads_prompts)
    return Dataset.from_list([_row(pair, annotated) for pair in pairs]), counts


def _row(pair: TokenisedPair, annotated: bool) -> dict[str, Any]:
    row = {
        "chosen_ids": pair.chosen.ids,
        "rejected_ids": pair.rejected.ids,
        "prompt_length": pair.chosen.prompt_length,
    }
    return row | {name: getattr(pair.record, name) for name in ANNOTATIONS} if annotated else row


@dataclass
class PairCollator:
    """The batch of TRL's `RewardTrainer`, with prompt lengths of both halves and the pair's annotations.

    Args:
        pad_token_id: fills texts up, on the right.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack B pairs; ids and lengths have 2B rows, the chosen ones first, annotations B."""
        texts = [torch.tensor(example[side]) for side in ("chosen_ids", "rejected_ids") for example in examples]
        batch = {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
            "prompt_lengths": torch.tensor([example["prompt_length"] for example in examples]).repeat(2),
        }
        return batch | annotations(examples)


@dataclass
class PackedPairCollator:
    """The same batch as rows in which a prompt stands once for both of its responses; see `vrm.models.shared_prefix`.

    Pairs whose two texts do not begin with the same prompt, token by token, stand there as two groups of one text.

    Args:
        pad_token_id: fills rows up.
        tokens_per_row: budget of a row, and
        kernel: how attention is computed; see `pack`.
    """

    pad_token_id: int
    tokens_per_row: int | None = None
    kernel: Kernel = "groups"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack B pairs; the layout has 2B texts, the chosen ones first, annotations B rows."""
        sides = ("chosen_ids", "rejected_ids")
        texts = [(example[side], example["prompt_length"]) for side in sides for example in examples]
        groups, order = by_prompt(texts)
        # first, because the trainer reads the size of a batch from its first tensor: 2B, as of a padded one
        lengths = {"prompt_lengths": torch.tensor([length for _, length in texts])}
        packed = pack(groups, self.pad_token_id, self.tokens_per_row, order, self.kernel)
        return lengths | packed.inputs() | annotations(examples)


def annotations(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The annotations that B pairs have, one row a pair."""
    present = (name for name in ANNOTATIONS if name in examples[0])
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float32) for name in present}
