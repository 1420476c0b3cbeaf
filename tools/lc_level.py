"""Level of the test of two policies' official LC, simulated with AlpacaEval's own fit.

    .venv/bin/python tools/lc_level.py --times 300

prints the table of docs/decisions.md, "Statistics"; seeded, and slow: two fits with cross-validation a simulation. The
official set can't be had without a network, so instructions, difficulties and gamed baselines are made up:

* 805 instructions; a policy wins by a logistic law in tanh of the standardised length difference, the difficulty and a
  constant, and the instruction adds noise that both policies share half of;
* two equal policies, equal ones of which the second writes longer by a standard deviation of the length differences,
  and two that differ, which shows what the test can find.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from vrm.judged.alpaca_eval import package
from vrm.judged.length_control import _difficulty, _length_difference, _package, terms
from vrm.statistics.logistic import sigmoid
from vrm.statistics.paired_tests import sign_flip

NUMBER, LENGTH, DIFFICULTY = 805, -1.0, 0.5
CASES = {
    "equal, LC about 25": (-1.2, -1.2, 0.0),
    "equal, LC about 50": (0.0, 0.0, 0.0),
    "equal, the second longer": (-1.2, -1.2, 1.0),
    "4 points apart": (-1.2, -0.98, 0.0),
}
"""Constants of both policies, and by how many standard deviations the second is longer."""


def gamed(difficulty: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Two baselines that differ from the reference in length alone."""
    parts = []
    for name, shift in (("concise", 1.0), ("verbose", -1.0)):
        length = shift + rng.normal(size=NUMBER)
        won = sigmoid(LENGTH * np.tanh(length) + DIFFICULTY * difficulty)
        parts.append(
            pd.DataFrame(
                {
                    "model": name,
                    "preference": won,
                    "index": range(NUMBER),
                    "std_delta_len": length,
                    "instruction_difficulty": difficulty,
                    "not_gamed_baseline": False,
                }
            )
        )
    return pd.concat(parts)


def judged(
    constant: float, longer: float, difficulty: np.ndarray, shared: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    """A policy's judgments; of texts only the lengths matter."""
    difference = np.round(60 * rng.normal(size=NUMBER) - 60 * longer).astype(int)
    x = LENGTH * np.tanh(difference / difference.std(ddof=1)) + DIFFICULTY * difficulty + constant
    noise = np.sqrt(0.5) * (shared + rng.normal(size=NUMBER))
    uniform = np.array([NormalDist().cdf(value) for value in noise])
    wins = np.log(uniform / (1 - uniform)) + x > 0
    return pd.DataFrame(
        {
            "instruction": [f"instruction {i}" for i in range(NUMBER)],
            "output_1": ["x" * (500 + value) for value in difference],
            "output_2": ["x" * 500] * NUMBER,
            "generator_1": "reference",
            "generator_2": "policy",
            "annotator": "made up",
            "preference": 1.0 + wins,
        }
    )


def main() -> None:
    """Simulate each case and print the share of rejections at 5 % and 1 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=300)
    times = parser.parse_args().times
    print(f"| case ({times} times) | below 5 % | below 1 % | mean difference |\n|---|--:|--:|--:|")
    for case, (first, second, longer) in CASES.items():
        rng = np.random.default_rng(0)
        p_values, differences = [], []
        for _ in range(times):
            difficulty, shared = rng.normal(size=(2, NUMBER))
            with tempfile.TemporaryDirectory() as scratch, package():
                path = Path(scratch) / "df_gamed.csv"
                gamed(difficulty, rng).to_csv(path, index=False)
                found = []
                for constant, more in ((first, 0.0), (second, longer)):
                    frame = judged(constant, more, difficulty, shared, rng)
                    with _package(path) as (fit, fits):
                        value = fit(frame, None)["length_controlled_winrate"]
                    apart = terms(
                        fits[0], _length_difference(frame).to_numpy(), _difficulty(path), np.ones(NUMBER, bool)
                    )
                    found.append(value + 100 * apart)
            p_values.append(sign_flip(found[0] - found[1], rng, 999))
            differences.append((found[0] - found[1]).mean())
        below = [100 * np.mean(np.array(p_values) < level) for level in (0.05, 0.01)]
        print(f"| {case} | {below[0]:.1f} % | {below[1]:.1f} % | {np.mean(differences):+.2f} |", flush=True)


if __name__ == "__main__":
    main()
