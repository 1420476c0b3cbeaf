"""Texts that have been encoded once, for every model with the same tokenizer: in memory, or in a file.

A text's key is a hash of its prompt and response. What token ids depend on beside these, tokenizer, chat template and
limits, is `made_with`; a file that was made with others is refused. A text that is not known is encoded as
always, one that the template refuses every time, so that a scorer says of it what it always says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vrm.checkpoints import changes_of, fingerprint
from vrm.models.text import PolicyEncoder, TextEncoder, TokenisedText
from vrm.records import Prompt, RecordError, write_whole

TEXTS = pa.schema(
    {
        "key": pa.binary(16),
        "ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),  # 0 where it can't be told
        "prompt_cut": pa.bool_(),
        "response_cut": pa.bool_(),
    }
)
"""A row a text, in the order in which they were first met."""

MADE_WITH = b"made_with"
"""Key of `made_with` in a file's metadata."""


@dataclass
class KnownTexts(TextEncoder):
    """A `TextEncoder` that encodes a text once and remembers it; the other arguments are `TextEncoder`'s.

    Args:
        known: the texts, by key.
    """

    known: dict[bytes, TokenisedText] = field(default_factory=dict)

    @staticmethod
    def of(encoder: TextEncoder, known: dict[bytes, TokenisedText] | None = None) -> KnownTexts:
        """An encoder with the settings of another one, which knows these texts and counts for itself."""
        kind = KnownPolicyTexts if isinstance(encoder, PolicyEncoder) else KnownTexts
        settings = {own.name: getattr(encoder, own.name) for own in fields(encoder) if own.name not in NO_SETTINGS}
        return kind(**settings, known={} if known is None else known)

    def try_encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> tuple[list[TokenisedText | None], dict[int, str]]:
        """See `TextEncoder.try_encode`; what was cut is counted every time."""
        keys = [text_key(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        for text in (self.known[key] for key in keys if key in self.known):
            self.truncation.add(text.prompt_cut, text.response_cut)
        refused: dict[int, str] = {}
        if new:
            texts, refused = super().try_encode([prompts[i] for i in new], [responses[i] for i in new])
            self.known |= {keys[i]: text for i, text in zip(new, texts, strict=True) if text is not None}
        return [self.known.get(key) for key in keys], {new[place]: reason for place, reason in refused.items()}


@dataclass
class KnownPolicyTexts(KnownTexts, PolicyEncoder):
    """The same of a `PolicyEncoder`."""


NO_SETTINGS = {"truncation", "known"}
"""Fields of an encoder that say what it has met."""


def text_key(prompt: Prompt, response: str) -> bytes:
    """16 bytes of a hash of a prompt and a response."""
    return hashlib.blake2b(json.dumps([prompt, response], sort_keys=True).encode(), digest_size=16).digest()


def made_with(encoder: TextEncoder, sources: Iterable[Path] = ()) -> dict[str, Any]:
    """A `fingerprint` of what token ids depend on: these files, and the encoder.

    Of a tokenizer its rules count, not where its files lie, nor what padding it was last asked for.
    """
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        rules = [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map]
    else:
        rules = json.loads(backend.to_str()) | dict.fromkeys(("padding", "truncation"))
    settings = {
        "tokenizer": _digest(rules),
        "chat_template": _digest([tokenizer.chat_template, dict(encoder.chat_template_kwargs)]),
        "max_prompt_length": encoder.max_prompt_length,
        "max_length": encoder.max_length,
    }
    if isinstance(encoder, PolicyEncoder):
        settings["ends"] = sorted(encoder.ends)
    return fingerprint(settings, sources) | {"processes": 1}  # by how many processes they are read is no part of it


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_texts(encoder: TextEncoder, texts: Iterable[tuple[Prompt, str]], out: Path) -> KnownTexts:
    """Encode texts and write them to `out`, a Parquet file of `TEXTS`, without those that the template refuses."""
    known = encoded_once(encoder, texts)
    write_table(out, as_table(known.known), MADE_WITH, made_with(encoder))
    return known


def encoded_once(encoder: TextEncoder, texts: Iterable[tuple[Prompt, str]]) -> KnownTexts:
    """An encoder that knows these texts and has counted each once, without those that the template refuses."""
    known = KnownTexts.of(encoder)
    found = {text_key(prompt, response): (prompt, response) for prompt, response in texts}
    known.try_encode([prompt for prompt, _ in found.values()], [response for _, response in found.values()])
    return known


def as_table(known: Mapping[bytes, TokenisedText]) -> pa.Table:
    """Texts by their keys as a table of `TEXTS`."""
    columns = [[*known], *([getattr(text, name) for text in known.values()] for name in TEXTS.names[1:])]
    return pa.table(dict(zip(TEXTS.names, columns, strict=True)), TEXTS)


def from_table(table: pa.Table) -> dict[bytes, TokenisedText]:
    """The texts of a table that has the columns of `TEXTS`, by their keys."""
    columns = (lists_of(table["ids"]) if name == "ids" else table[name].to_pylist() for name in TEXTS.names)
    return {key: TokenisedText(*rest) for key, *rest in zip(*columns, strict=True)}


def read_texts(path: Path, encoder: TextEncoder) -> KnownTexts:
    """An encoder that knows the texts of a file of `write_texts`.

    Args:
        path: the file.
        encoder: what it must have been made with.

    Raises:
        RecordError: the file is missing, damaged or made with something else.
    """
    table = read_table(path, TEXTS, MADE_WITH, made_with(encoder), "vrm tokenise-sets")
    return KnownTexts.of(encoder, from_table(table))


def lists_of(column: pa.ChunkedArray) -> list[list[int]]:
    """A column of lists without nulls, in a tenth of the time of `to_pylist`."""
    found: list[list[int]] = []
    for chunk in column.chunks:
        ends, values = chunk.offsets.to_pylist(), chunk.values.to_numpy().tolist()
        found += [values[start:end] for start, end in pairwise(ends)]
    return found


def write_table(path: Path, table: pa.Table, key: bytes, record: dict[str, Any]) -> None:
    """Write a table of texts whole or not at all, with what it was made from, or with, for `read_table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({key: json.dumps(record)}), sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def read_table(path: Path, schema: pa.Schema, key: bytes, wanted: dict[str, Any], command: str) -> pa.Table:
    """A table of texts, if it was made as is `wanted`.

    Args:
        path: the Parquet file.
        schema: of the table.
        key: of what it was made from, or with, in the file's metadata.
        wanted: what that has to be.
        command: what makes the file.

    Raises:
        RecordError: the file is missing, damaged or made from something else.
    """
    try:
        table = pq.read_table(path, partitioning=None)  # names in its path are no columns
        found = json.loads((table.schema.metadata or {})[key])
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such file; run `{command}` first") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise RecordError(f"{path}: no table of `{command}` ({error}); run it again") from None
    changes = list(changes_of(found, wanted))
    if not table.schema.equals(schema):
        changes.append("it has the columns of another version")
    if changes:
        raise RecordError(f"{path}: made from something else: {'; '.join(changes)}; run `{command}` again")
    return table
