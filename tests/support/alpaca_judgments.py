"""AlpacaEval's judgments made by hand."""

import hashlib

import numpy as np
import pandas as pd

from vrm.config import JudgedPolicy
from vrm.judged import length_control as alpaca_lc
from vrm.records import write_json


def judgments(preferences, ours, reference, generator="gpt4_1106_preview"):
    """Annotations; a preference of None failed."""
    return [
        {
            "instruction": f"instruction {i}",
            "output_1": them,
            "generator_1": generator,
            "output_2": us,
            "generator_2": "qwen3.ppo_vrm.seed1",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": preference,
            "failure": None if preference is not None else "timed out",
        }
        for i, (preference, us, them) in enumerate(zip(preferences, ours, reference, strict=True))
    ]


def random_judgments(number=60, seed=0):
    """The longer an output, the better it is liked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 200, (2, number))
    liked = 1 / (1 + np.exp(-(lengths[0] - lengths[1]) / 40 - rng.standard_normal(number)))
    return judgments((1 + liked).tolist(), *(["x" * int(n) for n in row] for row in lengths))


def place(results, rows, gamed=None):
    """A run's directory with the set and one policy's judgments."""
    sets = results / "judged" / "sets" / "alpaca_eval"
    reference = [
        {"dataset": "d", "instruction": row["instruction"], "output": row["output_1"], "generator": row["generator_1"]}
        for row in rows
    ]
    write_json(sets / "reference_outputs.json", reference)
    if gamed is not None:
        gamed.to_csv(sets / "df_gamed.csv", index=False)
    write_json(results / JudgedPolicy("qwen3", "ppo_vrm", 1).folder / "judgments" / "alpaca_eval.json", rows)
    return results


def gamed(rows, seed=0):
    """A stand-in of df_gamed.csv: two gamed baselines and made-up difficulties."""
    rng = np.random.default_rng(seed)
    difficulty = rng.standard_normal(len(rows))
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": name,
                    "preference": rng.random(len(rows)),
                    "index": range(len(rows)),
                    "std_delta_len": shift + rng.standard_normal(len(rows)),
                    "instruction_difficulty": difficulty,
                    "not_gamed_baseline": False,
                }
            )
            for name, shift in (("concise", 1.0), ("verbose", -1.0))
        ]
    )


def accept(monkeypatch, rows, table, results):
    """Let the stand-ins pass for the official set."""
    text = "\x1e".join(row["instruction"] for row in rows)
    file = results / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv"
    monkeypatch.setattr(alpaca_lc, "OFFICIAL_ROWS", len(rows))
    monkeypatch.setattr(alpaca_lc, "OFFICIAL_INSTRUCTIONS", hashlib.sha256(text.encode()).hexdigest())
    place(results, rows, table)
    monkeypatch.setattr(alpaca_lc, "DF_GAMED", hashlib.sha256(file.read_bytes()).hexdigest())
