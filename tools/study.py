"""The study without Snakemake and within a given time: as many of its models as fit, in several processes.

    python tools/study.py run --processes 2 --seconds 3600 --config config.yaml workflow/presets/study.yaml
    python tools/study.py report --out docs/results --config config.yaml workflow/presets/study.yaml

`run` calls the commands of the workflow's rules on the same files, so that Snakemake can go on from there; each process
imports once and trains one model after the other. Points stand in the order of the configuration, a seed of all
variants before the next seed. What is there is not made again; when time is up, what is unfinished is given up.
`report` writes the figure and the table of the points and variants that have all of their seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrm.cli import main as vrm
from vrm.config import Config, dump, load
from vrm.config.study import BASE, StudyCell
from vrm.provenance import provenance
from vrm.records import write_json, write_whole

READY = "{}.provenance.json"
"""What a finished world of the study has, by its name."""


def main() -> None:
    """Read the arguments and do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--config", nargs="+", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--out", type=Path, help="where `report` writes; without it, results/<run>/")
    options = parser.parse_args()
    config = load(options.config)
    results = Path("results") / config.run
    if options.action == "report":
        return report(config, results, options.out)
    write_whole(results / "config.yaml", dump(config))
    run(config, results, options.processes, time.time() + options.seconds)


def run(config: Config, results: Path, processes: int, until: float) -> None:
    """Make the data and the backbone, then one model after the other until the time is up."""
    prepare(config, results)
    todo = multiprocessing.get_context("spawn").Queue()
    for cell in ordered(config):
        if not (results / cell.file).exists():
            todo.put(cell)
    new = multiprocessing.get_context("spawn").Process
    workers = [new(target=work, args=(results, todo)) for _ in range(processes)]
    workers.append(new(target=make_worlds, args=(config, results)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    for worker in workers:
        worker.start()
    try:
        while time.time() < until and any(worker.is_alive() for worker in workers):
            time.sleep(1)
    finally:  # however this one ends, nobody goes on without it
        for worker in workers:
            worker.terminate()
    cells = list(ordered(config))
    print(f"{sum((results / cell.file).exists() for cell in cells)} of {len(cells)} models are there")


def ordered(config: Config) -> Iterator[StudyCell]:
    """Every model of the study once."""
    study = config.study
    points = [*((point, study.variants) for point in study.sweep()), ((BASE, study.ablation_pairs), study.ablation)]
    each = ((*point, seed, name) for point, names in points for seed in study.seeds for name in names)
    return iter(dict.fromkeys(StudyCell(world, name, pairs, seed) for world, pairs, seed, name in each))


def prepare(config: Config, results: Path) -> None:
    """The stages before the models."""
    own, data = ["--config", str(results / "config.yaml")], results / "data"
    stages = [
        (results / "world/statistics.csv", ["world", *own, "--out", results / "world"]),
        (data / "scored.jsonl", ["read-scored", *own, "--out", data]),
        (data / "raw_pairs/train.jsonl", ["make-pairs", *own, "--out", data]),
        (data / "pairs/train.jsonl", ["normalise", *own, "--out", data]),
    ]
    for name in config.evaluation.run:
        sets = results / "evaluation/sets"
        command = ["evaluation-set", *own, "--name", name, "--pairs", data / "pairs", "--out", sets]
        stages.append((sets / f"{name}.jsonl", command))
    backbone, checkpoints = results / "backbone", results / "checkpoints/backbone"
    command = ["backbone", *own, "--pairs", data / "pairs", "--checkpoints", checkpoints, "--out", backbone]
    stages.append((backbone / "config.json", command))
    for made, command in stages:
        if not made.exists():
            call(command)


def call(command: list) -> None:
    """One command of ours; ends the program where that fails."""
    if vrm([str(part) for part in command]):
        raise SystemExit(1)


def make_worlds(config: Config, results: Path) -> None:
    """Worlds of other annotators, beside the first models, which need none of them."""
    for name in config.study.worlds:
        place = results / "study/worlds" / name
        if not (place / READY.format(name)).exists():
            call(["study-world", "--config", results / "config.yaml", "--name", name, "--out", place])


def work(results: Path, todo: multiprocessing.Queue) -> None:
    """Train and score what is next until nothing is."""
    import torch

    torch.set_num_threads(1)
    while not todo.empty():
        cell = todo.get()
        place = results if cell.world == BASE else results / "study/worlds" / cell.world
        sets = place / ("evaluation/sets" if cell.world == BASE else "sets")
        while cell.world != BASE and not (place / READY.format(cell.world)).exists():
            time.sleep(1)
        config = load([results / "config.yaml"])
        command = ["study-cell", "--config", results / "config.yaml", "--variant", cell.variant]
        command += ["--pairs", cell.pairs, "--seed", cell.seed, "--backbone", results / "backbone"]
        command += ["--data", place / "data/pairs", "--out", results / cell.file]
        command += ["--sets", *(sets / f"{name}.jsonl" for name in config.evaluation.run)]
        started, used = time.time(), time.process_time()
        call(command)
        spent = f"{time.time() - started:.0f} s, {time.process_time() - used:.0f} s of a core"
        print(f"{cell.file}: {spent}", flush=True)


def report(config: Config, results: Path, out: Path | None) -> None:
    """The figure and the table of what is whole."""
    from vrm.reporting.study import ablation_table, power_figure

    study = config.study

    def whole(world: str, pairs: int, variants: list[str]) -> bool:
        return all((results / StudyCell(world, v, pairs, seed).file).exists() for v in variants for seed in study.seeds)

    found = {
        "pairs": [pairs for pairs in study.pairs if whole(BASE, pairs, study.variants)],
        "worlds": {
            name: study.worlds[name]
            for name, pairs in study.sweep()
            if name != BASE and whole(name, pairs, study.variants)
        },
        "ablation": [name for name in study.ablation if whole(BASE, study.ablation_pairs, [name])],
    }
    config = config.model_copy(update={"study": study.model_copy(update=found)})
    write_json((out or results) / "study.provenance.json", record(config, results))
    if found["pairs"]:
        power_figure(config, results, out or results / "figures")
    if found["ablation"]:
        ablation_table(config, results, out or results / "tables")


def record(config: Config, results: Path) -> dict[str, Any]:
    """What was finished, and what the models' own records say of where they come from."""
    cells = list(ordered(config))
    made = [json.loads((results / cell.file).with_suffix(".provenance.json").read_text("utf-8")) for cell in cells]
    backbone = json.loads((results / "backbone/backbone.provenance.json").read_text("utf-8"))
    extra = {
        "models": len(cells),
        "trained_at": sorted({each["commit"] for each in made}),
        "backbone_at": backbone["commit"],
        "seconds": round(sum(each["seconds"] for each in made)),
        "finished": sorted({f"{c.world}: {c.variant}, {c.pairs} pairs" for c in cells}),
        "config": config.model_dump(mode="json"),
    }
    return provenance(dump(config), Path(__file__).resolve().parents[1], extra)


if __name__ == "__main__":
    main()
