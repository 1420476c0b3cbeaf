"""A long PPO run on a tiny policy: does it keep its memory and its open files?

python tests/faults/soak.py --updates 500 --out soak.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from policy_jobs import policy_job
from ppo_settings import LENGTH, PPO, SHORT

from vrm.config import CreatedBackbone
from vrm.records import PreferencePair, prompt_id, write_jsonl
from vrm.training.backbones import create_model, save_backbone, train_tokenizer
from vrm.training.ppo import PpoRun, train_ppo

WARM = 0.2
"""Share of the updates after which memory should be flat: caches are full by then."""

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def write_pairs(directory: Path, rng: np.random.Generator) -> list[str]:
    """Both splits; returns all texts."""
    directory.mkdir()
    texts = []
    for split, count in (("train", 96), ("validation", 24)):
        pairs = []
        for number in range(count):
            prompt = [{"role": "user", "content": " ".join(rng.choice(WORDS, 8))}]
            chosen, rejected = (" ".join(rng.choice(WORDS, 6)) for _ in range(2))
            pairs.append(PreferencePair(str(number), prompt_id(prompt), prompt, chosen, rejected))
            texts += [chosen, rejected]
        write_jsonl(directory / f"{split}.jsonl", pairs)
    return texts


def soak(updates: int, folder: Path) -> dict[str, float | int]:
    """Run PPO and look at the process after each update."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(write_pairs(folder / "pairs", np.random.default_rng(0)), 320)
    config = CreatedBackbone(hidden_size=32, layers=1, heads=2, key_value_heads=1, intermediate_size=64)
    save_backbone(create_model(config, tokenizer, 128), tokenizer, folder / "backbone")
    seen: list[tuple[int, int]] = []
    update = PpoRun.update

    def looked_at(self: PpoRun, number: int) -> dict[str, float]:
        measures = update(self, number)
        seen.append((resident(), open_files()))
        return measures

    PpoRun.update = looked_at
    began = time.monotonic()
    ppo = PPO.model_copy(update={"updates": updates, "evaluations": 10, "checkpoints": 10})
    train_ppo(policy_job(folder / "backbone", folder / "pairs", folder), ppo, SHORT, LENGTH)
    PpoRun.update = update
    warm = int(WARM * updates)
    return {
        "updates": updates,
        "seconds": round(time.monotonic() - began, 1),
        "resident_mib_when_warm": round(seen[warm][0] / 2**20, 1),
        "resident_mib_at_the_end": round(seen[-1][0] / 2**20, 1),
        "growth_kib_an_update": round((seen[-1][0] - seen[warm][0]) / 2**10 / (updates - warm), 2),
        "open_files_when_warm": seen[warm][1],
        "open_files_at_the_end": seen[-1][1],
        "most_open_files": max(count for _, count in seen),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--out", type=Path, help="write what was found to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(options.updates, Path(folder))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
