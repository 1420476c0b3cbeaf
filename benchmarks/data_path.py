"""From raw records to normalised pairs: our three stages beside a pandas implementation, time and memory by size.

    python benchmarks/data_path.py                            # 16k, 32k and 64k prompts with 4 responses each
    python benchmarks/data_path.py --prompts 1000 2000        # a try

* Raw records are UltraFeedback's shape: random words, 60 a prompt, 200 a response, 20 a rationale; four rated aspects.
* `ours` is `vrm read-scored`, `make-pairs` and `normalise`, a process each, as the workflow starts them: every row is
  checked, merged, quarantined where need be, counted, and written whole.
* `pandas` reads the same file into one frame and does the bare minimum: mean of the ratings, the best response against
  a random worse one, a split by prompt, normalisation by the training split. It checks and counts nothing.
* Seconds by the clock and of the processors, and the largest process's memory; each size in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASPECTS = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
DEFAULT = Path(__file__).parents[1] / "config.yaml"
STAGES = ("read-scored", "make-pairs", "normalise")


def main() -> None:
    """Write the records, run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16_000, 32_000, 64_000])
    parser.add_argument("--responses", type=int, default=4, help="of each prompt")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_path.csv")
    parser.add_argument("--pandas", nargs=2, type=Path, metavar=("RAW", "OUT"), help="only the pandas implementation")
    options = parser.parse_args()
    if options.pandas:
        return with_pandas(*options.pandas)
    rows = []
    for prompts in options.prompts:
        with tempfile.TemporaryDirectory() as directory:
            rows += measured(Path(directory), prompts, options.responses)
            print(*(f"{row['contestant']} {row['seconds']} s" for row in rows[-2:]), flush=True)
    from side_by_side import report  # last: a process's peak counts what its parent had in memory

    report(rows, {"responses_per_prompt": options.responses}, options.out)


def measured(directory: Path, prompts: int, responses: int) -> list[dict[str, object]]:
    """A row for ours and one for pandas, on fresh records in `directory`."""
    raw, config = directory / "raw.jsonl", directory / "config.yaml"
    write_records(raw, prompts, responses)
    data = {"path": str(raw), "label": "made-up records", "aspects": ASPECTS}
    config.write_text(json.dumps({"data": data}))
    files = ["--config", DEFAULT, config, "--out", directory / "ours"]
    ours = [[sys.executable, "-m", "vrm", stage, *files] for stage in STAGES]
    theirs = [[sys.executable, __file__, "--pandas", raw, directory / "pandas"]]
    found = []
    for name, commands in (("ours", ours), ("pandas", theirs)):
        parts = [run([str(part) for part in command]) for command in commands]
        seconds, processor, memory = (list(column) for column in zip(*parts, strict=True))
        found.append(
            {
                "contestant": name,
                "scored_responses": prompts * responses,
                "raw_mib": raw.stat().st_size >> 20,
                "seconds": round(sum(seconds), 1),
                "processor_seconds": round(sum(processor), 1),
                "peak_mib": max(memory),
                "responses_per_processor_second": round(prompts * responses / sum(processor)),
                "pairs": sum(1 for path in (directory / name / "pairs").glob("*.jsonl") for _ in path.open()),
            }
        )
    return found


def run(command: list[str]) -> tuple[float, float, int]:
    """Seconds by the clock, of the processors, and MiB at the peak, of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss >> 10


def write_records(path: Path, prompts: int, responses: int) -> None:
    """Raw records with random words and ratings, seeded."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    tens = [" ".join(rng.choices(words, k=10)) for _ in range(5000)]

    def text(length: int) -> str:
        return " ".join(rng.choices(tens, k=length // 10))

    def completion(number: int) -> dict[str, object]:
        ratings = {aspect: {"Rating": str(rng.randint(1, 5)), "Rationale": text(20)} for aspect in ASPECTS}
        annotated = {"annotations": ratings, "overall_score": rng.randint(1, 10)}
        return {"model": f"model{number}", "response": text(200), **annotated}

    with path.open("w", encoding="utf-8") as file:
        for _ in range(prompts):
            row = {"source": "x", "instruction": text(60), "completions": [completion(i) for i in range(responses)]}
            file.write(json.dumps(row) + "\n")


def with_pandas(raw: Path, out: Path) -> None:
    """The same pairs up to the random choices, as a notebook would make them."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.read_json(raw, lines=True).reset_index(names="prompt").explode("completions", ignore_index=True)
    flat = pd.json_normalize(frame.completions)
    ratings = [f"annotations.{aspect}.Rating" for aspect in ASPECTS]
    scores = flat[ratings].astype(float).set_axis(ASPECTS, axis=1)
    rows = pd.concat([frame[["prompt", "instruction"]], flat.response, scores], axis=1)
    rows["mean"] = scores.mean(axis=1).round(9)
    rows = rows.iloc[rng.permutation(len(rows))].sort_values(["prompt", "mean"], ascending=[True, False], kind="stable")
    best = rows.groupby("prompt").head(1).set_index("prompt")
    others = rows[rows["mean"] < rows.prompt.map(best["mean"])]
    rival = others.sample(frac=1, random_state=0).groupby("prompt").head(1).set_index("prompt")
    pairs = best.join(rival.add_suffix("_r"), how="inner")
    split = pd.Series(rng.random(len(pairs)), pairs.index)
    names = np.select([split < 0.1, split < 0.2], ["test", "validation"], "train")
    train = pairs[names == "train"]
    both = np.concatenate([train[ASPECTS], train[[f"{aspect}_r" for aspect in ASPECTS]]])
    mean, std = both.mean(axis=0), both.std(axis=0)
    for side in ("", "_r"):
        columns = [f"{aspect}{side}" for aspect in ASPECTS]
        pairs[[f"{column}_normalised" for column in columns]] = (pairs[columns] - mean) / std
    (out / "pairs").mkdir(parents=True)
    for name in ("train", "validation", "test"):
        pairs[names == name].to_json(out / "pairs" / f"{name}.jsonl", orient="records", lines=True)


if __name__ == "__main__":
    main()
