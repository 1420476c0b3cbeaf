"""A run as the explorer reads it: texts of two evaluation sets and scores that are a known function of the texts."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from example_run import make_raw

from vrm.records import PreferencePair, prompt_id, write_jsonl

ASPECTS = ["clarity", "truth_told"]
VARIANTS = {
    "rm": {"label": "RM", "kind": "scalar"},
    "vrm": {"label": "VRM"},
    "vrm_mlp": {"label": "VRM (MLP)", "decoder": "mlp"},
}
SEEDS = [2, 1]
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\"><b id='ran'>&amp; $data \u2028 \ud7ff"


def make_explorer_raw(sets=("uf_c", "noise_free"), **changed):
    raw = make_raw(variants=VARIANTS, seeds=SEEDS, aspects=ASPECTS, sets=sets, policy={})
    raw["report"] |= changed
    return raw


def make_sets(prompts=40):
    """uf_c, and noise_free: the same pairs, every fourth of them labelled the other way round; two prompts occur twice.

    The first prompt is a conversation, and its texts hold what must not become markup.
    """
    rng = np.random.default_rng(5)
    uf_c, noise_free = [], []
    for number in range(prompts + 2):
        topic = number % prompts
        prompt = [{"role": "user", "content": f"Question {topic} about tides."}]
        texts = [f"Answer {number}{side}, {'long ' * int(rng.integers(1, 6))}one." for side in "ab"]
        if topic == 0:
            prompt = [*prompt, {"role": "assistant", "content": "What?"}, {"role": "user", "content": HOSTILE}]
            texts[0] += HOSTILE
        pair = PreferencePair(
            pair_id=f"row{number}",
            prompt_id=prompt_id(prompt),
            prompt=prompt,
            chosen=texts[0],
            rejected=texts[1],
            subset=("how_to", "facts")[topic % 2],
            chosen_scores=[4.0, 3.5],
            rejected_scores=[2.0, 3.0],
            true_weights=[0.25, 0.75] if topic % 2 else [0.625, 0.375],
        )
        uf_c.append(pair)
        swapped = {"chosen": texts[1], "rejected": texts[0]} if number % 4 == 3 else {}
        noise_free.append(PreferencePair(**{**vars(pair), **swapped, "pair_id": f"truth{number}"}))
    return {"uf_c": uf_c, "noise_free": noise_free}


def score(variant, seed, pair):
    """One row of scores.csv, but for the set: the same for equal prompts and texts, whatever they are called."""
    row = {
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "subset": pair.subset,
        "leaked": int("Question 3 " in pair.prompt[0]["content"]),
        "truncated": 0,
    }
    weights = _random(variant, seed, pair.prompt_id).dirichlet([4.0] * len(ASPECTS))
    scores = {side: _random(variant, seed, getattr(pair, side)).normal(0, 1, 2) for side in ("chosen", "rejected")}
    for side, g in scores.items():
        row[f"reward_{side}"] = 0.5 if variant == "rm" and pair.pair_id == "row1" else float(weights @ g)  # a tie
    for k, aspect in enumerate(ASPECTS):
        row[f"true_weight_{aspect}"] = pair.true_weights[k] if pair.true_weights else None
        if variant != "rm":
            row[f"weight_{aspect}"] = weights[k]
        if variant == "vrm":
            row |= {f"{side}_{aspect}": g[k] for side, g in scores.items()}
    return row


def write_explorer_run(root: Path, sets) -> Path:
    """The files of a run that the explorer reads."""
    for name, pairs in sets.items():
        write_jsonl(root / "evaluation" / "sets" / f"{name}.jsonl", pairs)
    for variant in VARIANTS:
        for seed in SEEDS:
            rows = [{"evaluation_set": n, **score(variant, seed, pair)} for n, pairs in sets.items() for pair in pairs]
            path = root / "reward" / variant / f"seed{seed}" / "scores.csv"
            path.parent.mkdir(parents=True)
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.9g")
    return root


def _random(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))
