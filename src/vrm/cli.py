"""`vrm <stage>`: parses, calls one function, writes provenance. Every rule of the workflow is one of these commands.

Nothing heavy is imported before a stage is chosen: `vrm --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPILOG = """examples:
  vrm world      --config config.yaml --out results/demo/world
  vrm train-reward --config config.yaml --variant vrm --seed 1 --backbone results/demo/backbone \\
                 --pairs results/demo/data/pairs --checkpoints /tmp/ckpt --out results/demo/reward/vrm/seed1
  vrm train-ppo  --config config.yaml --base qwen3 --method ppo_vrm --seed 1 \\
                 --policy results/demo/policy/qwen3/sft/seed1/model --model results/demo/reward/vrm/seed1/model \\
                 --pairs results/demo/data/pairs --checkpoints /tmp/ckpt --out results/demo/policy/qwen3/ppo_vrm/seed1
  vrm score-file --model results/demo/reward/vrm/seed1/model --pairs my_pairs.jsonl

Every command takes what the workflow's rule of that name takes; `snakemake -n -p` prints them all. There they read
results/<run>/config.yaml, which a real run writes; before that, name your own YAML files."""


TRAINING = ("seed", "pairs", "checkpoints")
"""Options of every training."""

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "name": ("--name", {"required": True, "help": "which one"}),
    "variant": ("--variant", {"required": True, "help": "a key of reward.variants"}),
    "base": ("--base", {"help": "a key of policy.bases; without it, the reward models' backbone"}),
    "of_base": ("--base", {"required": True, "help": "a key of policy.bases"}),
    "method": ("--method", {"required": True, "help": "a key of policy.methods"}),
    "seed": ("--seed", {"type": int, "default": 0, "help": "seed of this training (default: 0)"}),
    "backbone": ("--backbone", {"required": True, "help": "directory or hub id of a causal LM"}),
    "policy": ("--policy", {"required": True, "help": "directory or hub id of the policy to start from, or to score"}),
    "reference": ("--reference", {"required": True, "help": "directory or hub id of the policy it was trained from"}),
    "difficulty": ("--difficulty", {"type": Path, "help": "difficulty.csv; selective_dpo needs it"}),
    "halving": ("--run", {"type": int, "required": True, "help": "number of the halving"}),
    "half": ("--half", {"type": int, "choices": (0, 1), "required": True, "help": "which half is trained on"}),
    "losses": ("--losses", {"type": Path, "nargs": "+", "required": True, "help": "what the reference runs wrote"}),
    "pairs": ("--pairs", {"type": Path, "required": True, "help": "directory of normalised pairs by split"}),
    "checkpoints": ("--checkpoints", {"type": Path, "required": True, "help": "where resumable state lives"}),
    "model": ("--model", {"required": True, "help": "directory or hub id of a trained reward model"}),
    "models": (
        "--models",
        {"nargs": "+", "required": True, "metavar": "VARIANT=DIRECTORY", "help": "trained reward models"},
    ),
    "samples": ("--samples", {"type": Path, "required": True, "help": "a samples.jsonl"}),
    "sets": ("--sets", {"type": Path, "nargs": "+", "required": True, "help": "files of evaluation sets"}),
    "judged_sets": (
        "--sets",
        {"type": Path, "nargs": "+", "required": True, "help": "directories that `vrm benchmark-set` filled"},
    ),
    "answers": ("--answers", {"type": Path, "required": True, "help": "directory that `vrm answer` filled"}),
    "scores": (
        "--scores",
        {"type": Path, "nargs": "+", "required": True, "help": "<variant or method>/seed<seed>/scores.csv files"},
    ),
    "results": ("--results", {"type": Path, "required": True, "help": "results/<run>"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 1 after an error of the user's input, said in one block."""
    options = _parser().parse_args(arguments)
    # a reproduction must not talk to the network unless it is asked to fetch something
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    started = time.time()
    from vrm import stages
    from vrm.config import ConfigError
    from vrm.judging import JudgeError, StoreError
    from vrm.records import RecordError
    from vrm.training.watchdog import TrainingError

    try:
        getattr(stages, options.command.replace("-", "_"))(options)
        main_process = os.environ.get("RANK", "0") == "0"  # of those that accelerate launch or torchrun started
        if "config" in options and options.out is not None and main_process:
            _write_provenance(options, time.time() - started)
    except (ConfigError, RecordError, TrainingError, JudgeError, StoreError, FileNotFoundError) as error:
        print(f"vrm {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Stage:
    """A command that a rule of the workflow calls; `vrm.stages` has the function of its name.

    Args:
        name: the command.
        text: what it does, in a sentence.
        options: keys of `OPTIONS`.
        out: what `--out` is.
    """

    name: str
    text: str
    options: tuple[str, ...]
    out: str


FILL, MAKE, CSV = "directory to fill", "directory to make", "CSV to write"
STAGES = (
    Stage("world", "Write the offline preference world.", (), FILL),
    Stage("read-scored", "Read scored prompts; set aside what can't be used.", (), FILL),
    Stage("make-pairs", "Split prompts and make preference pairs.", (), "directory that holds scored.jsonl"),
    Stage("normalise", "Normalise scores by the training split.", (), "directory that holds paired/"),
    Stage("evaluation-set", "Read one evaluation set and audit its leakage.", ("name", "pairs"), FILL),
    Stage("backbone", "Make and pretrain a small causal LM.", ("base", "pairs", "checkpoints"), MAKE),
    Stage("train-reward", "Train a reward model.", ("variant", "seed", "backbone", "pairs", "checkpoints"), FILL),
    Stage("pac-bayes", "Compute every term of Theorem 5.1 on a trained VRM.", ("model", "pairs", "seed"), CSV),
    Stage("score", "Score every evaluation set with a reward model.", ("model", "sets", "pairs", "seed"), CSV),
    Stage("sft", "Fine-tune a policy base on chosen responses.", ("of_base", "policy", *TRAINING), FILL),
    Stage(
        "train-preference",
        "Train a policy on preference pairs.",
        ("of_base", "method", "policy", "difficulty", *TRAINING),
        FILL,
    ),
    Stage(
        "difficulty-run",
        "Train a reference run on half of the pairs; score the others.",
        ("of_base", "method", "policy", "halving", "half", *TRAINING),
        CSV,
    ),
    Stage("difficulty", "Average the reference runs' losses and select pairs.", ("losses",), CSV),
    Stage("train-ppo", "Train a policy by PPO.", ("of_base", "method", "policy", "model", *TRAINING), FILL),
    Stage(
        "score-policy",
        "Score every evaluation set with a policy.",
        ("of_base", "method", "policy", "reference", "sets", "pairs"),
        CSV,
    ),
    Stage(
        "best-of-n",
        "Draw many answers to each prompt and score them.",
        ("of_base", "policy", "models", "pairs", "seed"),
        "JSONL to write",
    ),
    Stage("gold", "Score a file of samples by the gold judge.", ("samples",), CSV),
    Stage("world-benchmarks", "Write the world's benchmark files.", (), FILL),
    Stage("benchmark-set", "Fetch or copy one judged benchmark's files, and check them.", ("name",), FILL),
    Stage(
        "answer",
        "Answer every judged benchmark with a policy.",
        ("of_base", "method", "seed", "policy", "judged_sets", "checkpoints"),
        FILL,
    ),
    Stage(
        "judge",
        "Have a policy's answers to one benchmark judged; what was paid for is never asked again.",
        ("name", "of_base", "method", "seed", "answers", "judged_sets"),
        FILL,
    ),
    Stage("judged-scores", "Score every judged policy on one benchmark.", ("name", "results"), CSV),
    Stage("evaluate", "Point estimates of every scorer.", ("scores",), CSV),
    Stage("table", "Make one table.", ("name", "results"), FILL),
    Stage("figure", "Draw one figure.", ("name", "results"), FILL),
    Stage("explorer", "Make the page to read pairs, weights and contributions in.", ("results",), FILL),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vrm",
        description="Variational reward modelling, stage by stage.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="STAGE")
    for stage in STAGES:
        sub = commands.add_parser(stage.name, help=stage.text, description=stage.text)
        sub.add_argument("--config", nargs="+", required=True, metavar="YAML", help="configuration; later files win")
        for option in stage.options:
            flag, settings = OPTIONS[option]
            sub.add_argument(flag, **settings)
        sub.add_argument("--out", type=Path, required=True, help=stage.out)
    text = "Score a file of pairs with a trained reward model; prints a table."
    sub = commands.add_parser("score-file", help=text, description=text)
    sub.add_argument("--model", required=True, help="directory or hub id of a reward model")
    sub.add_argument("--pairs", type=Path, required=True, help=".jsonl or .parquet with prompt, chosen, rejected")
    sub.add_argument("--max-prompt-length", type=int, help="tokens kept of a prompt (default: as trained)")
    sub.add_argument("--max-length", type=int, help="tokens kept in all (default: as trained)")
    sub.add_argument("--out", type=Path, help="also write one row a pair to this CSV")
    text = "Print what a run will take; once it has begun, also what judging is left."
    sub = commands.add_parser("plan", help=text, description=text)
    sub.add_argument("--config", nargs="+", required=True, metavar="YAML", help="configuration; later files win")
    sub.add_argument("--gpu-memory", type=float, default=80.0, help="GiB of a card (default: 80)")
    sub.add_argument("--gpus", type=int, default=1, help="how many cards (default: 1)")
    sub.add_argument("--data-scale", type=float, default=1.0, help="what if there were so many times the data")
    sub.set_defaults(out=None)
    text = "Print the JSON schema of config.yaml."
    sub = commands.add_parser("schema", help=text, description=text)
    sub.add_argument("--out", type=Path, help="write it to this file instead")
    return parser


def _write_provenance(options: argparse.Namespace, seconds: float) -> None:
    """Leave `<what>.provenance.json` in an output directory or beside an output file."""
    from vrm.config import dump, load
    from vrm.records import write_json
    from vrm.reporting import lineage
    from vrm.reporting.provenance import provenance

    arguments = {name: value for name, value in vars(options).items() if name != "command"}
    config = load(options.config)
    extra = {
        "stage": options.command,
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "seed": arguments.get("seed"),
        "inputs": lineage.inputs(arguments),
        "data": lineage.data(config),
        "judge": lineage.judge(config),
        "device": _device(),
        "seconds": round(seconds, 2),
        "config": config.model_dump(mode="json"),
    }
    if "results" in options:
        extra["run"] = lineage.run(options.results)
    name = getattr(options, "name", None) or options.command
    inside = options.out / f"{name}.provenance.json"  # named: several stages share a directory
    target = inside if options.out.is_dir() else options.out.with_suffix(".provenance.json")
    write_json(target, provenance(dump(config), Path(__file__).parents[2], extra))


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _device() -> str:
    """The device in use, without importing torch where the stage did not."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu"
