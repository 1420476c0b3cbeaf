"""What the workflow's rules ask a scheduler for, from the same estimates as `vrm plan`."""

from __future__ import annotations

from functools import cache
from math import ceil

from vrm.config import Config
from vrm.planning.jobs import Job, Setting, estimate

SMALL_MEMORY, SMALL_MINUTES = 3000, 120
"""MiB and minutes of a job without a GPU: importing torch alone takes 1,500 MiB."""
LONGER = 2.0
"""How much longer than its estimate a job may take before the scheduler ends it."""


class RuleResources:
    """RuleResources of the rules of a run.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        setting = Setting(config)
        self._job = cache(lambda stage, base, method: estimate(setting, stage, base, method))

    def job(self, stage: str, base: str = "", method: str = "") -> Job:
        """The estimate behind the numbers."""
        return self._job(stage, base, method)

    def gpus(self, stage: str, base: str = "", method: str = "") -> int:
        """GPUs that a job asks for; 0 for a small model that is made here."""
        return self.job(stage, base, method).gpus

    def mem_mb(self, stage: str, base: str = "", method: str = "", attempt: int = 1) -> int:
        """Memory of the machine in MiB; half as much again with every further attempt."""
        job = self.job(stage, base, method)
        needed = ceil(job.host * 1024) if job.gpus else max(SMALL_MEMORY, ceil(job.host * 1024))
        return ceil(needed * (1 + (attempt - 1) / 2))

    def runtime(self, stage: str, base: str = "", method: str = "", attempt: int = 1) -> int:
        """Minutes; a job that ran out of time goes on from its checkpoint, with as much again."""
        job = self.job(stage, base, method)
        return (ceil(job.hours * 60 * LONGER) + SMALL_MINUTES) * attempt
