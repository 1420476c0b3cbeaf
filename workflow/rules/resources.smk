# What jobs ask a scheduler for, from the same estimates as `vrm plan`: GPUs, memory, time. Small models that are
# made here ask for no GPU.
from vrm.planning.jobs import RuleResources

RESOURCES = RuleResources(CONFIG)


def get_gpus(stage):
    """GPUs of a job of this stage, by its base and method."""

    def gpus(wildcards):
        return RESOURCES.gpus(stage, *get_kind(wildcards))

    return gpus


def get_mem_mb(stage):
    """Memory of the machine; more with every attempt."""

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
    if base and not method:
        selective = CONFIG.policy.trained("selective_dpo")
        method = selective[0] if selective else ""
    return base, method
