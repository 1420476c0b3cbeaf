"""The gold reward of answers that were drawn while proxy rewards were optimised."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vrm.evaluation.score_sets import to_csv
from vrm.models.gold import load_gold
from vrm.records import RecordError, read_jsonl, write_whole


def score_gold(spec: str, samples: Path, out: Path) -> None:
    """Score a `samples.jsonl` by the gold judge.

    Args:
        spec: which judge, see `load_gold`.
        samples: rows with `prompt` (messages) and `response`; see docs/files.md.
        out: CSV with the column `gold`, a row a sample, in their order.

    Raises:
        ConfigError: there is no such judge.
        RecordError: a row lacks its prompt or response; names the file and the row.
    """
    model = load_gold(spec)
    prompts, responses = [], []
    for number, row in read_jsonl(samples):
        try:
            prompts.append(row["prompt"])
            responses.append(row["response"])
        except KeyError as error:
            raise RecordError(f"{samples}, row {number}: has no {error}") from None
    write_whole(out, to_csv(pd.DataFrame({"gold": model.score(prompts, responses).mean})))
