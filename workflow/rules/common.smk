# The validated configuration, and names for what the stages ask of it.
import json
import os
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# `python -m vrm` must work in conda environments, where the package itself is not installed. What `vrm init` has laid out
# has no source beside it: there the installed package is used
SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))
# variables that every job gets
EXPORTS = {
    **({"PYTHONPATH": str(SOURCE)} if SOURCE.is_dir() else {}),
    # where the rules find accelerate's files; in a rule's parameters a path would retrain everything in a moved checkout
    "VRM_ACCELERATE": str(Path(workflow.basedir) / "workflow" / "accelerate"),
}
shell.prefix(
    "set -euo pipefail; export "
    + " ".join(f"{name}='{value}'" for name, value in EXPORTS.items())
    + "; "
)

from vrm import alive
from vrm import config as vrm_config
from vrm import warm
from vrm.config import dependencies
from vrm.records import write_whole

try:
    CONFIG = vrm_config.parse(config)
    # a killed run leaves a lock; where nobody is at work any more, it is removed before Snakemake looks
    hint = alive.begin(Path.cwd()) if workflow.is_main_process else ""
except vrm_config.ConfigError as error:
    raise WorkflowError(str(error))
if hint:
    print(hint, file=sys.stderr)
os.environ[alive.ALIVE] = str(Path.cwd() / ".snakemake" / alive.NAME)


wildcard_constraints:
    run=r"[A-Za-z0-9_.-]+",
    variant=r"[a-z][a-z0-9_]*",
    outside=r"[a-z][a-z0-9_]*",
    seed=r"\d+",
    base=r"[a-z][a-z0-9_]*",
    method=r"[a-z][a-z0-9_]*",
    halving=r"\d+",
    half=r"[01]",
    share=r"\d+",
    shares=r"\d+",
    benchmark=r"alpaca_eval|arena_hard|mt_bench",
    kind=r"pairs|sets",
    packaged=r"smollm2",


# Commands read this resolved copy; `onstart` runs once per real run and never in a dry run.
onstart:
    alive.started(Path.cwd(), CONFIG.run, workflow.local_exec)
    write_whole(
        Path("results") / CONFIG.run / "config.yaml", vrm_config.dump(CONFIG)
    )
    # jobs on this machine share one interpreter's imports; a scheduler's jobs, and those of conda, are plain
    if workflow.is_main_process and workflow.local_exec:
        # what limits submissions to a scheduler makes each finished job another timer here, which looks at all jobs
        # that are ready once a second until the end
        workflow.scheduler.job_rate_limiter = None
        warm.start(EXPORTS, Path("results") / CONFIG.run / "logs" / "warm.log")


def depends_on(stage, *names, **given):
    """What jobs depend on: `stage` of the wildcards of these names. A job is rerun when this changes, and only then.

    Snakemake compares it as text, so that the order of keys must be always the same; and asks for it whenever it looks
    for a next job, of every job that is ready, so that it is worked out once.
    """

    @cache
    def settings_of(*values):
        return json.loads(json.dumps(stage(CONFIG, *values, **given), sort_keys=True))

    return lambda wildcards: settings_of(*(wildcards[name] for name in names))


def get_launcher(training, launch=None):
    """What starts a training: python, or accelerate where `training` wants several processes, one a GPU."""
    if training.processes == 1:
        return "python"
    arguments = (
        f'--config_file "$VRM_ACCELERATE/{launch or training.launch}.yaml"'
        f" --num_processes {training.processes}"
    )

    # what is made of threads or resources is no reason to run a job again, and where processes are must be none
    def launcher(wildcards, threads):
        if training.nodes == 1:
            return f"python -m accelerate.commands.launch {arguments}"
        return f"python -m vrm.launch --nodes {training.nodes} --threads {threads} -- {arguments}"

    return launcher


# What jobs ask a scheduler for, from the same estimates as `vrm plan`. Small models that are made here ask for no GPU.
from vrm.planning.jobs import RuleResources

RESOURCES = RuleResources(CONFIG)


def get_gpus(stage):
    """GPUs of a job of this stage, by its base and method."""

    def gpus(wildcards):
        return RESOURCES.gpus(stage, *get_kind(wildcards))

    return gpus


def get_placement(training, stage):
    """What a training on several nodes asks SLURM for beside its GPUs: a task a node, and on each as many GPUs."""
    if training.nodes == 1:
        return {}

    def gpus_per_node(wildcards):
        gpus = RESOURCES.gpus(stage, *get_kind(wildcards))
        return f"--gpus-per-node={gpus // training.nodes}" if gpus else None

    return {
        "nodes": training.nodes,
        "tasks": training.nodes,
        # without it the executor asks for as many tasks a GPU
        "tasks_per_gpu": 0,
        # the executor then leaves it to the rule to start srun
        "mpi": "srun",
        "slurm_extra": gpus_per_node,
    }


def get_mem_mb(stage):
    """Memory of a machine; more with every attempt."""

    def mem_mb(wildcards, attempt):
        return RESOURCES.mem_mb(stage, *get_kind(wildcards), attempt=attempt)

    return mem_mb


def get_runtime(stage):
    """Minutes until a scheduler ends the job; more with every attempt."""

    def runtime(wildcards, attempt):
        return RESOURCES.runtime(stage, *get_kind(wildcards), attempt=attempt)

    return runtime


def get_kind(wildcards):
    """What the estimate of a job depends on; without these wildcards it is about the reward models."""
    base, method = wildcards.get("base", ""), wildcards.get("method", "")
    method = wildcards.get("outside", method)
    if base and not method:
        selective = CONFIG.policy.trained("selective_dpo")
        method = selective[0] if selective else ""
    return base, method
