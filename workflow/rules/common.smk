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
shell.prefix(f"set -euo pipefail; export PYTHONPATH='{SOURCE}' {ALLOCATOR}; ")

from vrm import config as vrm_config

try:
    CONFIG = vrm_config.parse(config)
except vrm_config.ConfigError as error:
    raise WorkflowError(str(error))


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
    path = Path("results") / CONFIG.run / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(vrm_config.dump(CONFIG), encoding="utf-8")


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
    folder = Path(workflow.basedir) / "workflow" / "accelerate"
    return (
        f"python -m accelerate.commands.launch --config_file '{folder}/{launch or training.launch}.yaml'"
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
    """The backbone that has to be made first; one from a path or the hub is there already."""
    return f"results/{wildcards.run}/backbone" if CONFIG.backbone.create else []


def get_backbone(wildcards):
    """Directory or hub id of the causal LM under the reward models."""
    return CONFIG.backbone.path or f"results/{wildcards.run}/backbone"


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


def get_bounds():
    """The terms of Theorem 5.1 for every trained VRM."""
    kinds = CONFIG.reward.variants
    vrms = [name for name in CONFIG.reward.run if kinds[name].kind == "variational"]
    return get_reward_files("pac_bayes.csv", vrms)


def get_table_inputs(wildcards):
    """Files that a table is made of."""
    needs = {
        "table1": get_judged_scores(),
        "table2": [*get_policy_scores(), *get_reward_files("scores.csv")],
        "comparisons": get_reward_files("scores.csv"),
        "bound": get_bounds(),
        "training_summary": [*get_held_out(), *get_samples(CONFIG.policy.ppo_run)],
        "world": [
            "results/{run}/world/statistics.csv",
            *get_reward_files("scores.csv"),
        ],
        "latents": [*get_reward_files("scores.csv"), *get_reward_files("training.csv")],
    }
    return [path.format(run=wildcards.run) for path in needs[wildcards.table]]


# What a report calls the tables and figures that are not the paper's own.
TITLES = {
    "world": "the synthetic world, and probes",
    "latents": "latents of every VRM",
    "training_summary": "what each policy training did",
    "comparisons": "differences between reward models",
    "bound": "the bound of Theorem 5.1",
    "overoptimisation": "over-optimisation",
    "win_rate_length": "win rate against length",
}


def get_title(name):
    """Table 1 for table1."""
    return TITLES.get(name, f"{name[:-1].capitalize()} {name[-1]}")


def get_table_labels(wildcards):
    return {"table": get_title(wildcards.table)}


def get_figure_labels(wildcards):
    return {"figure": get_title(wildcards.figure)}


def get_pages():
    """Pages beside tables and figures; the explorer compares a plain reward model with variational ones."""
    kinds = {CONFIG.reward.variants[name].kind for name in CONFIG.reward.run}
    pages = ["tables/paper.md"] if CONFIG.report.paper else []
    pages += ["explorer/explorer.html"] if len(kinds) == 2 else []
    return [f"results/{CONFIG.run}/{page}" for page in pages]


def get_paper_page_inputs(wildcards):
    """All tables and figures that the paper's claims are looked up in."""
    read = ["table1", "table2", "comparisons", "bound"]
    drawn = ["figure3", "figure4", "figure5", "figure6", "overoptimisation"]
    folder = f"results/{wildcards.run}"
    return [
        *[
            f"{folder}/tables/{name}.csv"
            for name in CONFIG.report.tables
            if name in read
        ],
        *[
            f"{folder}/figures/{name}.csv"
            for name in CONFIG.report.figures
            if name in drawn
        ],
    ]


def get_curve_variants(wildcards):
    return getattr(CONFIG.report, wildcards.figure)


def get_curve_inputs(wildcards):
    """Training logs of the variants that a figure compares."""
    logs = get_reward_files("training.csv", get_curve_variants(wildcards))
    return [path.format(run=wildcards.run) for path in logs]
