"""Preference pairs as the rows that the preference methods train on.

A row is two texts. For the paired methods they are the chosen and the rejected response. For KTO, which is unpaired,
they are one response, desirable or not, and a mismatched one: another response of the same batch below this prompt,
which estimates the KL term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.utils import pad

from vrm.models.text import TokenisedText
from vrm.training.pairs import TokenisedPair

SIDES = ("first", "second")
REFERENCES = ("first_reference", "second_reference")


def paired_rows(pairs: list[TokenisedPair]) -> Dataset:
    """One row a pair: chosen, rejected."""
    return Dataset.from_list([_row(pair.chosen.ids, pair.rejected.ids, pair.chosen.prompt_length) for pair in pairs])


def unpaired_rows(pairs: list[TokenisedPair], batch_size: int, seed: int) -> Dataset:
    """Two rows a pair in a new order, each with a mismatched response, in batches of both kinds; to be read in order.

    The mismatched responses of a batch are the very ones that it learns from, moved on by one row (Ethayarajh et al.
    2024), or by more where the next row has the same prompt. A long prompt with a long mismatched response is cut to
    the longest text of the batch, so that it takes no more memory; that is not counted, and only the KL term sees it.

    Args:
        pairs: N pairs.
        batch_size: rows a batch of all processes, at least 2.
        seed: seed of the order.

    Returns:
        2N rows.
    """
    order = np.random.default_rng(seed).permutation(2 * len(pairs))
    texts = _responses(pairs)
    shuffled = [texts[place] for place in order]
    starts = range(0, len(shuffled), batch_size)
    return Dataset.from_list([row for start in starts for row in _mismatched(shuffled[start : start + batch_size])])


def measured_rows(pairs: list[TokenisedPair]) -> Dataset:
    """As `unpaired_rows`, in one batch and with the chosen and the rejected response of a pair side by side."""
    return Dataset.from_list(list(_mismatched(_responses(pairs))))


@dataclass(frozen=True)
class _Response:
    prompt_id: str
    text: TokenisedText
    desirable: bool


def _responses(pairs: list[TokenisedPair]) -> list[_Response]:
    """Chosen and rejected of the first pair, of the second, ..."""
    sides = ((pair, side) for pair in pairs for side in ("chosen", "rejected"))
    return [_Response(pair.record.prompt_id, getattr(pair, side), side == "chosen") for pair, side in sides]


def _mismatched(batch: list[_Response]) -> Iterator[dict[str, Any]]:
    longest = max(len(response.text.ids) for response in batch)
    for place, response in enumerate(batch):
        earlier = [batch[place - step] for step in range(1, len(batch))]
        # a last batch of one prompt alone has no better one
        other = next((o for o in earlier if o.prompt_id != response.prompt_id), earlier[0] if earlier else response)
        start = response.text.prompt_length
        mismatched = response.text.ids[:start] + other.text.ids[other.text.prompt_length :]
        yield _row(response.text.ids, mismatched[:longest], start) | {"desirable": response.desirable}


def _row(first: list[int], second: list[int], prompt_length: int) -> dict[str, Any]:
    return {"first_ids": first, "second_ids": second, "prompt_length": prompt_length}


@dataclass
class RowCollator:
    """B rows as a batch of 2B right-padded texts: first the first ones, then the second ones."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Ids, attention mask and labels of shape (2B, T), labels -100 but on responses; references, (B,)."""
        texts = [torch.tensor(row[f"{side}_ids"]) for side in SIDES for row in rows]
        starts = [row["prompt_length"] for _ in SIDES for row in rows]
        labels = [torch.cat([torch.full((n,), -100), text[n:]]) for text, n in zip(texts, starts, strict=True)]
        batch = {
            "input_ids": pad(texts, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(text) for text in texts], padding_value=0),
            "labels": pad(labels, padding_value=-100),
        }
        for name in ("desirable", *REFERENCES):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch
