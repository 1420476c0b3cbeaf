"""What the policy that trainings start from says of the pairs: token ids and log-probabilities, once for all methods.

Every preference method asks its reference for the same texts, and Selective DPO's reference runs ask again. A file of
`write_reference` holds the answers, a row a text, known by a hash of prompt and response; `read_reference` refuses one
that another policy has given, in another precision, or of texts that were cut otherwise. Who makes such a file is
`vrm.training.preference.make_reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrm.checkpoints import model_files, model_name
from vrm.models.known_texts import TEXTS, KnownTexts, as_table, from_table, made_with, read_table, text_key, write_table
from vrm.models.text import PolicyEncoder
from vrm.records import RecordError
from vrm.training.pairs import TokenisedPair
from vrm.training.policies import PolicyJob
from vrm.training.trainer import weight_dtype

REFERENCE = TEXTS.append(pa.field("log_prob", pa.float32()))  # nats, summed over the response; null: was not asked
"""A row a text."""

MADE_FROM = b"made_from"
"""Key of `_made_from` in a file's metadata."""

COMMAND = "vrm reference-log-probs"


@dataclass(frozen=True)
class Reference:
    """A file of `write_reference`.

    Args:
        path: the file.
        texts: knows the token ids.
        log_probs: nats, summed over each response, by the key of its text.
    """

    path: Path
    texts: KnownTexts
    log_probs: Mapping[bytes, float]

    def encoder(self) -> KnownTexts:
        """An encoder that knows the texts, and counts what it meets from here on."""
        return KnownTexts.of(self.texts, self.texts.known)

    def of(self, pairs: Sequence[TokenisedPair]) -> NDArray[np.float32]:
        """log pi_ref of the chosen and the rejected responses of N pairs, shape (N, 2).

        Raises:
            RecordError: one of them is not in the file.
        """
        found = np.empty((len(pairs), 2), dtype=np.float32)
        for row, pair in enumerate(pairs):
            for side, text in enumerate((pair.record.chosen, pair.record.rejected)):
                value = self.log_probs.get(text_key(pair.record.prompt, text))
                if value is None:
                    raise RecordError(
                        f"{self.path}: no log-probability of pair {pair.record.pair_id}, so it was made of other "
                        f"pairs; run `{COMMAND}` again"
                    )
                found[row, side] = value
        return found


def write_reference(
    job: PolicyJob, texts: KnownTexts, pairs: Sequence[TokenisedPair], log_probs: NDArray[np.float32], out: Path
) -> None:
    """Write all that is known of texts, and what was found of some pairs.

    Args:
        job: whose policy was asked.
        texts: has encoded them.
        pairs: N of them, and
        log_probs: of their chosen and rejected responses, shape (N, 2).
        out: the Parquet file, `REFERENCE`.
    """
    found = {}
    for pair, both in zip(pairs, log_probs.tolist(), strict=True):
        for text, value in zip((pair.record.chosen, pair.record.rejected), both, strict=True):
            found[text_key(pair.record.prompt, text)] = value
    column = pa.array([found.get(key) for key in texts.known], REFERENCE.field("log_prob").type)
    table = as_table(texts.known).append_column(REFERENCE.field("log_prob"), column)
    write_table(out, table, MADE_FROM, _made_from(job, texts))


def read_reference(path: Path, job: PolicyJob, encoder: PolicyEncoder) -> Reference:
    """Read a file of `write_reference`.

    Args:
        path: the file.
        job: starts from the policy that must have been asked, in its precision.
        encoder: what texts must have been encoded with.

    Raises:
        RecordError: the file is missing, damaged or made from something else.
    """
    table = read_table(path, REFERENCE, MADE_FROM, _made_from(job, encoder), COMMAND)
    keys, values = table["key"].to_pylist(), table["log_prob"].to_pylist()
    known = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    return Reference(path, KnownTexts.of(encoder, from_table(table)), known)


def _made_from(job: PolicyJob, encoder: PolicyEncoder | KnownTexts) -> dict[str, Any]:
    """What log-probabilities depend on: `made_with`, the policy, and the precision in which it is asked."""
    found, training = made_with(encoder, model_files(job.policy)), job.training
    asked = {
        "policy": model_name(job.policy),
        "revision": job.revision,
        "bf16": training.bf16,
        "weights": str(weight_dtype(training)),
        "load_in_4bit": training.lora is not None and training.lora.load_in_4bit,
    }
    return found | {"settings": found["settings"] | asked}
