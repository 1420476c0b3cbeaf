"""Preference pairs as the rows that the preference methods train on.

A row is two texts. For the paired methods they are the chosen and the rejected response. For KTO, which is unpaired,
they are one response, desirable or not, and a mismatched one: another response of the same batch below this prompt,
which estimates the KL term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.utils import pad

from vrm.training.pairs import TokenisedPair

SIDES = ("first", "second")
REFERENCES = ("first_reference", "second_reference")


def paired_rows(pairs: list[TokenisedPair]) -> Dataset:
    """One row a pair: chosen, rejected."""
    return Dataset.from_list([_row(pair.chosen.ids, pair.rejected.ids, pair.chosen.prompt_length) for pair in pairs])


def unpaired_rows(pairs: list[TokenisedPair], batch_size: int, orders: int = 1, seed: int | None = None) -> Dataset:
    """Two rows a pair, each with a mismatched response, in batches of both kinds.

    Within each batch of the given order the responses are moved on by one, so that the mismatched responses of a batch
    are the very ones that it learns from (Ethayarajh et al. 2024); rows must therefore be read in this order.

    Args:
        pairs: N pairs.
        batch_size: rows a batch.
        orders: how often all rows are dealt out, each time in a new order: passes over the data.
        seed: seed of those orders; None keeps chosen and rejected of a pair side by side, for measuring.

    Returns:
        2N rows an order.
    """
    texts = [(pair.chosen, True) for pair in pairs] + [(pair.rejected, False) for pair in pairs]
    rows = []
    for order in _orders(len(pairs), orders, seed):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for here, other in zip(batch, np.roll(batch, 1), strict=True):
                text, desirable = texts[here]
                mismatched = text.ids[: text.prompt_length] + texts[other][0].ids[texts[other][0].prompt_length :]
                rows.append(_row(text.ids, mismatched, text.prompt_length) | {"desirable": desirable})
    return Dataset.from_list(rows)


def _orders(pairs: int, orders: int, seed: int | None) -> list[np.ndarray]:
    if seed is None:
        return [np.arange(2 * pairs).reshape(2, pairs).T.ravel()]  # chosen 0, rejected 0, chosen 1, ...
    rng = np.random.default_rng(seed)
    return [rng.permutation(2 * pairs) for _ in range(orders)]


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
