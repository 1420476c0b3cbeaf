"""How long a run takes on so many GPUs, when every job starts as soon as what it needs is there and a card is free."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from vrm.planning.jobs import Job


def wall_clock(jobs: Sequence[Job], gpus: int) -> float:
    """Hours from the first job to the last; of several that are ready the one with the longest chain behind it starts.

    Args:
        jobs: each after those it needs; jobs without a GPU take no time here.
        gpus: cards.
    """
    chains = _chains(jobs)
    waiting = {job.name: set(job.needs) for job in jobs}
    after: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.needs:
            after[name].append(job.name)
    hours = {job.name: job.hours for job in jobs}
    cards = {job.name: min(job.gpus, gpus) for job in jobs}
    ready = [(-chains[name], name) for name, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now, free = 0.0, gpus
    while ready or running:
        while ready and cards[ready[0][1]] <= free:
            _, name = heapq.heappop(ready)
            free -= cards[name]
            heapq.heappush(running, (now + hours[name], name))
        now, name = heapq.heappop(running)
        free += cards[name]
        for later in after[name]:
            waiting[later].discard(name)
            if not waiting[later]:
                heapq.heappush(ready, (-chains[later], later))
    return now


def longest_chain(jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """Hours of the longest chain of jobs that wait for each other, and their stages: no number of GPUs is faster."""
    chains, by_name = _chains(jobs), {job.name: job for job in jobs}
    if not jobs:
        return 0.0, []
    first = max((job for job in jobs if not job.needs), key=lambda job: chains[job.name])
    stages, step = [first.stage], first
    while later := [job for job in jobs if step.name in job.needs]:
        step = max(later, key=lambda job: chains[job.name])
        stages.append(by_name[step.name].stage)
    return chains[first.name], stages


def _chains(jobs: Sequence[Job]) -> dict[str, float]:
    """By job: its hours and those of the longest chain behind it."""
    behind = {job.name: 0.0 for job in jobs}
    for job in reversed(jobs):
        for name in job.needs:
            behind[name] = max(behind[name], job.hours + behind[job.name])
    return {job.name: job.hours + behind[job.name] for job in jobs}
