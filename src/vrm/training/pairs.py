"""Preference pairs on their way into a model: tokenised, counted, batched.

Reward models of one backbone read the same token ids: `write_tokens` makes them once, `read_split` reads them. Every
pair has its row there, with what was cut, or why it has no token ids: so every model finds its own pairs and counts,
among all pairs or the first ones. A training without such files makes the same table itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from vrm.config import RewardTraining, Variant
from vrm.models.checks import checked_tokenizer
from vrm.models.known_texts import lists_of, made_with, read_table, write_table
from vrm.models.shared_prefix import Kernel, by_prompt, pack
from vrm.models.templates import left_out
from vrm.models.text import NO_HEADER, TextEncoder, TokenisedText
from vrm.records import PreferencePair, RecordError, read_pairs
from vrm.watch import Watch

ANNOTATIONS = ("target", "chosen_normalised", "rejected_normalised")
"""Optional parts of a pair, which objectives with ratings use."""

TOKENS = pa.schema(
    {
        "pair_id": pa.string(),
        "chosen_ids": pa.list_(pa.int32()),
        "rejected_ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),  # of the chosen text, 0 where it can't be told
        "identical": pa.bool_(),  # both texts, once they are cut
        "refused": pa.string(),  # why there are no token ids
        **dict.fromkeys(("texts", "prompts_cut", "responses_cut"), pa.int32()),
        **dict.fromkeys(ANNOTATIONS, pa.list_(pa.float64())),
    }
)
"""A split as token ids, one row a pair in the order of its file."""

MADE_FROM = b"made_from"
"""Key of the fingerprint in a file's metadata."""

AT_ONCE = 4096
"""Pairs that are Python objects at a time."""

TRAINED_ON = ("train", "validation")
"""Splits that a reward training reads."""


@dataclass(frozen=True)
class TokenisedPair:
    """A preference pair as token ids; both texts begin with the same prompt."""

    record: PreferencePair
    chosen: TokenisedText
    rejected: TokenisedText


def tokenise_pairs(
    records: list[PreferencePair], encoder: TextEncoder, source: Path, max_length: str
) -> tuple[list[TokenisedPair], dict[str, int]]:
    """The pairs whose texts still differ once they are cut, and what was cut or left out, counted.

    Args:
        records: the pairs.
        encoder: says how they are cut.
        source: the file that they come from, and
        max_length: the key of the configuration that limits them, for the error.

    Raises:
        RecordError: no pair is left.
        Unrenderable: the chat template refuses every one of them.
    """
    chosen, rejected, refused = _both_texts(records, encoder)
    pairs = [TokenisedPair(*row) for row in zip(records, chosen, rejected, strict=True)]
    identical = [_identical(pair.chosen, pair.rejected) for pair in pairs]
    kept, counts = _usable([record.pair_id for record in records], refused, identical, source, max_length)
    return [pairs[place] for place in kept], counts | encoder.truncation.as_dict()


def _both_texts(
    records: list[PreferencePair], encoder: TextEncoder
) -> tuple[list[TokenisedText | None], list[TokenisedText | None], dict[int, str]]:
    """Chosen and rejected texts of the pairs, and by a pair's place why the chat template refuses it."""
    # side by side, so that the template writes the prompt once for both
    prompts = [record.prompt for record in records for _ in range(2)]
    texts, refused = encoder.try_encode(prompts, [text for each in records for text in (each.chosen, each.rejected)])
    return texts[::2], texts[1::2], {place // 2: refused[place] for place in sorted(refused)}


def _identical(chosen: TokenisedText | None, rejected: TokenisedText | None) -> bool:
    return chosen is not None and rejected is not None and chosen.ids == rejected.ids


def _usable(
    names: Sequence[str], refused: Mapping[int, str], identical: Sequence[bool], source: Path, max_length: str
) -> tuple[list[int], dict[str, int]]:
    """Places of the pairs that are neither refused nor identical, and how many are which."""
    left_out(refused, [f"{source}, pair {name}" for name in names], f"pairs of {source}")
    kept = [place for place, same in enumerate(identical) if not same and place not in refused]
    lost = len(names) - len(refused) - len(kept)
    if not kept:
        raise RecordError(
            f"{source}: no pair to train or measure on ({lost} identical after truncation); raise "
            f"data.{source.stem}_fraction or {max_length}"
        )
    return kept, {"pairs": len(kept), "identical_after_truncation": lost, "refused_by_template": len(refused)}


def tokenise_split(
    path: Path, encoder: TextEncoder, variant: Variant, most: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """A split as the columns that the collators read, and what was cut or left out, counted.

    Args:
        path: the split's file.
        encoder: says how texts are cut.
        variant: what is trained on it.
        most: how many of its pairs are used, the first ones; None: all.

    Raises:
        RecordError: no pair is left, or the variant needs annotated scores that some pairs lack.
        Unrenderable: the chat template refuses every one of them.
    """
    records = read_pairs(path)[:most]
    _require_scores(path, variant, all(record.target is not None for record in records))
    return _trained_on(_encoded(records, encoder), path, variant)


def _require_scores(path: Path, variant: Variant, annotated: bool) -> None:
    if variant.needs_scores and not annotated:
        keys = " and ".join(variant.score_keys)
        raise RecordError(
            f"{path}: {keys} of {variant.label} need annotated scores, and some pairs have none; set weights to 0, or "
            "leave the variant out of reward.run"
        )


def _encoded(records: list[PreferencePair], encoder: TextEncoder) -> pa.Table:
    """N pairs as a table of `TOKENS`."""
    parts = [TOKENS.empty_table()]
    with Watch("tokenising", "pairs", len(records), quiet=len(records) < AT_ONCE) as watch:
        for first in range(0, len(records), AT_ONCE):
            parts.append(_table(records[first : first + AT_ONCE], encoder))
            watch.add(len(parts[-1]))
    return pa.concat_tables(parts)


def _table(some: list[PreferencePair], encoder: TextEncoder) -> pa.Table:
    chosen, rejected, refused = _both_texts(some, encoder)
    rows = [_row(*row, refused.get(place)) for place, row in enumerate(zip(some, chosen, rejected, strict=True))]
    return pa.Table.from_pylist(rows, schema=TOKENS)


def _row(
    record: PreferencePair, chosen: TokenisedText | None, rejected: TokenisedText | None, refused: str | None
) -> dict[str, Any]:
    texts = [text for text in (chosen, rejected) if text is not None]
    return {
        "pair_id": record.pair_id,
        "chosen_ids": chosen and chosen.ids,
        "rejected_ids": rejected and rejected.ids,
        "prompt_length": chosen and chosen.prompt_length,
        "identical": _identical(chosen, rejected),
        "refused": refused,
        "texts": len(texts),
        "prompts_cut": sum(text.prompt_cut for text in texts),
        "responses_cut": sum(text.response_cut for text in texts),
        **{name: getattr(record, name) for name in ANNOTATIONS},
    }


def _trained_on(table: pa.Table, path: Path, variant: Variant) -> tuple[Dataset, dict[str, int]]:
    """The rows and columns of a table of `TOKENS` that a variant is trained on, and the counts of all its rows."""
    annotated = table["target"].null_count == 0
    _require_scores(path, variant, annotated)
    reads_prompts = variant.kind != "scalar"
    kept, counts = _rows(table, path, reads_prompts)
    counts |= {name: sum(table[name].to_pylist()) for name in ("texts", "prompts_cut", "responses_cut")}
    columns = ["chosen_ids", "rejected_ids", "prompt_length", *(ANNOTATIONS if reads_prompts and annotated else ())]
    return Dataset(table.select(columns).take(kept).replace_schema_metadata()), counts


def _rows(table: pa.Table, path: Path, reads_prompts: bool) -> tuple[list[int], dict[str, int]]:
    """Places of the rows of `TOKENS` that a model is trained on, and how many are left out; see `_usable`."""
    refused = {place: reason for place, reason in enumerate(table["refused"].to_pylist()) if reason is not None}
    if reads_prompts:
        refused |= {place: NO_HEADER for place, end in enumerate(table["prompt_length"].to_pylist()) if end == 0}
    names, identical = table["pair_id"].to_pylist(), table["identical"].to_pylist()
    return _usable(names, refused, identical, path, "reward.training.max_length")


def write_tokens(
    backbone: str, revision: str | None, chat_template: str | None, training: RewardTraining, pairs: Path, out: Path
) -> None:
    """Tokenise both splits that reward models are trained on, once for all models of a backbone.

    Args:
        backbone: directory or hub id of a causal LM.
        revision: commit of the hub model.
        chat_template: instead of the backbone's own, its text or a file.
        training: limits in tokens.
        pairs: directory with `train.jsonl` and `validation.jsonl`.
        out: gets `train.parquet` and `validation.parquet`, tables of `TOKENS`.

    Raises:
        ConfigError, RecordError: the backbone or the pairs can't be used.
    """
    limit = training.max_length
    tokenizer = checked_tokenizer(backbone, max_length=limit, revision=revision, chat_template=chat_template)
    for split in TRAINED_ON:
        encoder = TextEncoder(tokenizer, training.max_prompt_length, limit)
        source = pairs / f"{split}.jsonl"
        table = _encoded(read_pairs(source), encoder)
        write_table(out / f"{split}.parquet", table, MADE_FROM, made_with(encoder, [source]))
        print(f"{out / split}.parquet: {table.num_rows} pairs, {encoder.truncation.as_dict()}")


def read_split(
    path: Path, tokens: Path, encoder: TextEncoder, variant: Variant, most: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """As `tokenise_split`, from what `write_tokens` has written.

    Args:
        path: the split's file of pairs.
        tokens: directory that `write_tokens` has filled.
        encoder: what it must have been made with.
        variant: what is trained on it.
        most: how many of its pairs are used, the first ones; None: all.

    Raises:
        RecordError: the file is missing, damaged or made from something else; or as `tokenise_split`.
        Unrenderable: as `tokenise_split`.
    """
    return _trained_on(_read(path, tokens, encoder).slice(0, most), path, variant)


def read_texts(
    path: Path, tokens: Path, encoder: TextEncoder, most: int | None = None
) -> list[tuple[TokenisedText, TokenisedText]]:
    """Chosen and rejected texts of the pairs that a VRM is trained on, in their order; as `read_split`."""
    table = _read(path, tokens, encoder).slice(0, most)
    table = table.take(_rows(table, path, reads_prompts=True)[0])
    lengths = table["prompt_length"].to_pylist()
    sides = (lists_of(table[name]) for name in ("chosen_ids", "rejected_ids"))
    chosen, rejected = ([TokenisedText(*row) for row in zip(ids, lengths, strict=True)] for ids in sides)
    return list(zip(chosen, rejected, strict=True))


def _read(path: Path, tokens: Path, encoder: TextEncoder) -> pa.Table:
    """The table of `TOKENS` of a split."""
    file = tokens / f"{path.stem}.parquet"
    return read_table(file, TOKENS, MADE_FROM, made_with(encoder, [path]), "vrm tokenise")


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
