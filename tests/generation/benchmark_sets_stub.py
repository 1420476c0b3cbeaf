"""Stands in for `vrm.data.benchmark_sets` until it is here; to be deleted then, with its import in test_answers.py."""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

from vrm.records import read_jsonl

if importlib.util.find_spec("vrm.data.benchmark_sets") is None:
    stub = ModuleType("vrm.data.benchmark_sets")

    def read_alpaca_eval(directory, base, settings):
        """The reference rows."""
        return json.loads((directory / "reference_outputs.json").read_text())

    def read_arena_hard(directory):
        """The questions."""
        rows = [row for _, row in read_jsonl(directory / "question.jsonl")]
        return [SimpleNamespace(question_id=row["question_id"], prompt=row["turns"][0]["content"]) for row in rows]

    def read_mt_bench(directory):
        """The questions."""
        return [SimpleNamespace(**row) for _, row in read_jsonl(directory / "question.jsonl")]

    for reader in (read_alpaca_eval, read_arena_hard, read_mt_bench):
        setattr(stub, reader.__name__, reader)
    sys.modules[stub.__name__] = stub
