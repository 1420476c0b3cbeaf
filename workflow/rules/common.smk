# The validated configuration, and names for what the stages ask of it.
import json
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# `python -m vrm` must work in conda environments, where the package itself is not installed
SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))
# glibc hands the memory of each large tensor back to the kernel and asks for it again: on a CPU a third of the time
# goes there, unless it may keep it (other allocators ignore this)
ALLOCATOR = "MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296"
# where the rules find accelerate's files; in a rule's parameters a path would retrain everything in a moved checkout
ACCELERATE = Path(workflow.basedir) / "workflow" / "accelerate"
shell.prefix(
    "set -euo pipefail; "
    f"export PYTHONPATH='{SOURCE}' VRM_ACCELERATE='{ACCELERATE}' {ALLOCATOR}; "
)

from vrm import config as vrm_config
from vrm.records import write_whole

try:
    CONFIG = vrm_config.parse(config)
except vrm_config.ConfigError as error:
    raise WorkflowError(str(error))


# Backbones that are taken from the package index, for all runs.
FETCHED = "results/backbones/"
SPLITS = ["train", "validation", "test"]
# Keys of `data` and of `world` that change no pair, and no scored prompt.
NOT_PAIRS = ["label", "benchmarks_dir"]
INSTRUCTIONS = ["instructions", "arena_prompts", "mt_bench_questions"]


wildcard_constraints:
    run=r"[A-Za-z0-9_.-]+",
    variant=r"[a-z][a-z0-9_]*",
    seed=r"\d+",
    base=r"[a-z][a-z0-9_]*",
    method=r"[a-z][a-z0-9_]*",
    halving=r"\d+",
    half=r"[01]",
    benchmark=r"alpaca_eval|arena_hard|mt_bench",


# Commands read this resolved copy; `onstart` runs once per real run and never in a dry run.
onstart:
    write_whole(
        Path("results") / CONFIG.run / "config.yaml", vrm_config.dump(CONFIG)
    )


def get_settings(*keys, exclude=()):
    """The part of the configuration that a job depends on; it is rerun when this changes, and only then.

    Snakemake compares it as text, so that the order of keys must be always the same.
    """
    settings = {}
    for key in keys:
        value = CONFIG.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        if isinstance(value, dict):
            value = {
                name: entry for name, entry in value.items() if name not in exclude
            }
        settings[key] = value
    return json.loads(json.dumps(settings, sort_keys=True))


def get_launcher(training, launch=None):
    """What starts a training: python, or accelerate where `training` wants several processes, one a GPU."""
    if training.processes == 1:
        return "python"
    return (
        f'python -m accelerate.commands.launch --config_file "$VRM_ACCELERATE/{launch or training.launch}.yaml"'
        f" --num_processes {training.processes}"
    )


def get_scored_source(wildcards):
    """The file of scored prompts; a hub dataset is no file."""
    return CONFIG.data.path or []


def get_evaluation_source(wildcards):
    """The file of an evaluation set; a hub dataset is no file."""
    return CONFIG.evaluation.sets[wildcards.set].path or []


def get_evaluation_settings(wildcards):
    return get_settings(f"evaluation.sets.{wildcards.set}", exclude=["label"])


def get_created_backbone(wildcards):
    """The backbone that has to be made or fetched first; any other path, or the hub, has it already."""
    path = CONFIG.backbone.path
    if path is None or CONFIG.backbone.is_gguf:
        return f"results/{wildcards.run}/backbone"
    return path if path.startswith(FETCHED) else []


def get_backbone(wildcards):
    """Directory or hub id of the causal LM under the reward models."""
    return get_created_backbone(wildcards) or CONFIG.backbone.path


def get_training_settings(wildcards):
    """Labels are left out: renaming a row does not retrain its model."""
    return get_settings(
        f"reward.variants.{wildcards.variant}",
        "reward.training",
        "data.aspects",
        "backbone",
        exclude=["label", "ours"],
    )


def get_reward_files(name, variants=None):
    """One file of each trained reward model of this run."""
    return collect(
        "results/{{run}}/reward/{variant}/seed{seed}/{name}",
        variant=CONFIG.reward.run if variants is None else variants,
        seed=CONFIG.reward.seeds,
        name=name,
    )
