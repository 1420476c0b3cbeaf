"""Files that people have: a few dozen prompts in public shapes, whose better response holds the word `good`."""

import json

import numpy as np

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def _texts(rng):
    prompt = " ".join(rng.choice(WORDS, 8))
    good, bad = (" ".join([*rng.choice(WORDS, int(rng.integers(4, 12))), end]) for end in ("good", "bad"))
    return prompt, good, bad


def helpsteer(prompts=60, seed=0):
    """Rows of HelpSteer2's shape, two a prompt."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(prompts):
        prompt, good, bad = _texts(rng)
        for text, low in ((good, 2), (bad, 0)):
            ratings = rng.integers(low, low + 3, 5).tolist()
            names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
            rows.append({"prompt": prompt, "response": text, **dict(zip(names, ratings, strict=True))})
    return rows


def ultrafeedback(prompts=60, seed=0):
    """Rows of UltraFeedback's shape with two aspects of one's own, and a third that most responses lack."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(prompts):
        prompt, good, bad = _texts(rng)
        entries = []
        for text, low in ((good, 3), (bad, 1)):
            ratings = {name: {"Rating": str(int(rng.integers(low, low + 3)))} for name in ("clarity", "accuracy")}
            if number < 5:
                ratings["rare"] = {"Rating": "3"}
            entries.append({"model": "m", "response": text, "annotations": ratings})
        rows.append({"instruction": prompt, "completions": entries})
    return rows


def pairs(prompts=60, seed=0):
    """Plain pairs."""
    rng = np.random.default_rng(seed)
    return [dict(zip(("prompt", "chosen", "rejected"), _texts(rng), strict=True)) for _ in range(prompts)]


def write(path, rows):
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
