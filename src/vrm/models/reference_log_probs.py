"""What a policy that others start from says of texts, asked once: token ids and log-probabilities, in a file.

Every preference method asks its reference for the same texts, and so does whoever scores with such a policy. A file of
`write_reference` holds the answers, a row a text, known by a hash of prompt and response; `read_reference` refuses one
that another policy has given, in another precision, or of texts that were cut otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrm.checkpoints import model_files, model_name
from vrm.models.known_texts import TEXTS, KnownTexts, as_table, from_table, made_with, read_table, text_key, write_table
from vrm.models.text import TextEncoder
from vrm.records import Prompt, RecordError

REFERENCE = TEXTS.append(pa.field("log_prob", pa.float32()))  # nats, summed over the response; null: was not asked
"""A row a text."""

MADE_FROM = b"made_from"
"""Key of `asked_of` in a file's metadata."""

COMMAND = "vrm reference-log-probs"


@dataclass(frozen=True)
class Reference:
    """A file of `write_reference`.

    Args:
        path: the file.
        texts: knows the token ids.
        log_probs: nats, summed over each response, its end token included, by the key of its text.
    """

    path: Path
    texts: KnownTexts
    log_probs: Mapping[bytes, float]

    def encoder(self) -> KnownTexts:
        """An encoder that knows the texts, and counts what it meets from here on."""
        return KnownTexts.of(self.texts, self.texts.known)

    def said(self, texts: Iterable[tuple[Prompt, str]]) -> NDArray[np.float32]:
        """The log-probabilities of N responses to their prompts, shape (N,).

        Raises:
            RecordError: one of them is not in the file.
        """
        found = []
        for prompt, response in texts:
            value = self.log_probs.get(text_key(prompt, response))
            if value is None:
                raise RecordError(
                    f"{self.path}: no log-probability of the response {response[:40]!r}, so it was made of other "
                    f"texts; run `{COMMAND}` again"
                )
            found.append(value)
        return np.array(found, dtype=np.float32)


def asked_of(
    policy: str | Path, revision: str | None, encoder: TextEncoder, precision: dict[str, Any]
) -> dict[str, Any]:
    """What log-probabilities depend on: how texts are encoded, the policy, and the precision in which it is asked."""
    found = made_with(encoder, model_files(policy))
    settings = {"policy": model_name(policy), "revision": revision} | precision
    return found | {"settings": found["settings"] | settings}


def write_reference(texts: KnownTexts, said: Mapping[bytes, float], made_from: dict[str, Any], out: Path) -> None:
    """Write all that is known of texts, and what was said of some of them.

    Args:
        texts: has encoded them.
        said: log-probabilities by `text_key`.
        made_from: see `asked_of`.
        out: the Parquet file, `REFERENCE`.
    """
    column = pa.array([said.get(key) for key in texts.known], REFERENCE.field("log_prob").type)
    table = as_table(texts.known).append_column(REFERENCE.field("log_prob"), column)
    write_table(out, table, MADE_FROM, made_from)


def read_reference(path: Path, encoder: TextEncoder, made_from: dict[str, Any]) -> Reference:
    """Read a file of `write_reference`.

    Args:
        path: the file.
        encoder: what its texts were encoded with.
        made_from: what it must have been made from, see `asked_of`.

    Raises:
        RecordError: the file is missing, damaged or made from something else.
    """
    table = read_table(path, REFERENCE, MADE_FROM, made_from, COMMAND)
    keys, values = table["key"].to_pylist(), table["log_prob"].to_pylist()
    said = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    return Reference(path, KnownTexts.of(encoder, from_table(table)), said)
