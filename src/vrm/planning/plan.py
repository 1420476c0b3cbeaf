"""`vrm plan`: what a run will take, printed before anything runs. Every number is an estimate, and says from what.

* A run's time on so many GPUs: every job starts as soon as what it needs is there and a card is free.
* Of a run that has begun, the command prints what is judged and what is left to pay as well
  (`vrm.planning.judge_cost`).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from pathlib import Path

from vrm.config import BackboneConfig, Config
from vrm.data.benchmark_files import FOLDERS, not_fetchable
from vrm.planning import time
from vrm.planning.jobs import Job, Setting, jobs
from vrm.planning.judge_cost import judge_costs, price
from vrm.planning.memory import largest
from vrm.planning.time import Gpu


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


NARROW = 0.92
"""Share of a card above which a job may not fit after all."""


def plan(config: Config, gpu_memory: float = 80.0, gpus: int = 1, data_scale: float = 1.0, gpu: Gpu = time.H100) -> str:
    """The plan of a run, as text.

    Args:
        config: the run's.
        gpu_memory: GiB of a card.
        gpus: how many there are.
        data_scale: what if there were so many times the training data.
        gpu: how fast they are.
    """
    setting = Setting(config, gpu, gpu_memory, data_scale)
    todo = list(jobs(setting))
    sections = [
        _head(setting, gpus),
        _table(todo),
        _totals(todo, gpus),
        _judging(config),
        _warnings(setting, todo, gpus),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def open_revisions(config: Config) -> list[str]:
    """Keys of the models and datasets that are fetched from the hub without a pinned commit."""
    policy, evaluation = config.policy, config.evaluation
    models = {"backbone": config.backbone} | {f"policy.bases.{base}": policy.bases[base] for base in policy.run_bases}
    sources = {"data": config.data} | {f"evaluation.sets.{name}": evaluation.sets[name] for name in evaluation.run}
    found = [f"{key}.revision ({model.path})" for key, model in models.items() if _is_open(model)]
    for key, source in sources.items():
        if source.hub and source.hub.revision is None and not Path(source.hub.dataset).is_dir():
            found.append(f"{key}.hub.revision ({source.hub.dataset})")
    return found


def _is_open(model: BackboneConfig) -> bool:
    return model.path is not None and model.revision is None and not Path(model.path).is_dir()


def _head(setting: Setting, gpus: int) -> str:
    config, data, gpu = setting.config, setting.data, setting.gpu
    texts = (
        f"{data.rows:,} prompts, {setting.every_pair:,} training pairs at most; {data.prompt:.0f} tokens a prompt and "
        f"{data.response:.0f} a response on average"
        if data.known
        else "not here yet: times are left out"
    )
    cards = (
        f"Cards: {gpus} x {gpu.name}, {setting.capacity:g} GiB, {gpu.peak / 1e12:.0f} TFLOP/s in bfloat16 at "
        f"{gpu.efficiency:.0%}; one job a card{_several(config)}."
    )
    return f"Plan of {config.run}: estimates, not measurements.\n{cards}\nData: {texts}."


def _several(config: Config) -> str:
    """Which trainings take more than a card each."""
    sections = {"reward": config.reward.training, "policy": config.policy.training}
    found = [
        f"{n.processes} a training of {key} ({n.launch}{f', on {n.nodes} nodes' if n.nodes > 1 else ''})"
        for key, n in sections.items()
        if n.processes > 1
    ]
    return ", " * bool(found) + ", ".join(found)


def _table(todo: Sequence[Job]) -> str:
    lines = [f"{'stage':18} {'jobs':>5} {'GPU h each':>11} {'GPU h':>8} {'peak GiB':>9} {'left GiB':>9}"]
    for stage in dict.fromkeys(job.stage for job in todo):
        own = [job for job in todo if job.stage == stage]
        spent = [job.gpu_hours for job in own]
        each = f"{min(spent):.1f}" if max(spent) - min(spent) < 0.05 else f"{min(spent):.1f}-{max(spent):.1f}"
        if not any(job.gpus for job in own):
            lines.append(f"{stage:18} {len(own):>5} {'CPU':>11} {'':>8} {'':>9} {'':>9}")
            continue
        known = [job.memory for job in own if job.memory is not None]
        peak = f"{largest(known).total:.0f}" if known else "unknown"
        left = sum(job.disk for job in own)
        lines.append(f"{stage:18} {len(own):>5} {each:>11} {sum(spent):>8.1f} {peak:>9} {left:>9.0f}")
    return "\n".join(lines)


def _totals(todo: Sequence[Job], gpus: int) -> str:
    if not any(job.gpus for job in todo):
        return "No job needs a GPU: the models are small ones that are made here; their time is not estimated."
    chain, stages = longest_chain(todo)
    working = sum(sorted((job.working for job in todo), reverse=True)[:gpus])
    return (
        f"In all {sum(job.gpu_hours for job in todo):.0f} GPU hours; {wall_clock(todo, gpus):.1f} hours on {gpus} "
        f"GPU{'s' * (gpus > 1)}. The longest chain is {chain:.1f} hours: {' > '.join(stages)}.\n"
        f"Disk: {sum(job.disk for job in todo):.0f} GiB of finished models, up to {working:.0f} GiB of checkpoints "
        "while they train; the hub's own cache comes on top."
    )


def _judging(config: Config) -> str:
    costs = judge_costs(config)
    if not costs:
        return ""
    judge = config.judge
    missing = config.data.benchmarks_dir is not None and not Path(config.data.benchmarks_dir).is_dir()
    lines = [f"Judge {judge.model}, {len(config.judged_policies)} policies:"]
    if missing:
        lines.append(
            f"  {config.data.benchmarks_dir} is not here yet, so how large its sets are is not known: counted are the "
            "official ones, and smaller sets ask less"
        )
    for cost in costs:
        tokens = f"{cost.prompt_tokens / 1e6:.1f} M tokens in, {cost.completion_tokens / 1e6:.1f} M out"
        lines.append(f"  {cost.benchmark:12} {cost.requests:>7,} requests, {tokens}, {price(judge, cost.dollars)}")
    if judge.prices:
        lines.append(f"  together ${sum(cost.dollars for cost in costs):,.2f}, if each is answered at the first try")
    return "\n".join(lines)


def _warnings(setting: Setting, todo: Sequence[Job], gpus: int) -> str:
    lines = []
    for stage in dict.fromkeys(job.stage for job in todo):
        own = [job for job in todo if job.stage == stage]
        if any(job.memory is None for job in own):
            lines.append(f"{stage}: a model's size is not known; download its config.json and name that directory")
        worst = largest(job.memory for job in own if job.memory is not None)
        parts = ", ".join(f"{name} {size:.0f}" for name, size in worst.parts.items() if size >= 0.5)
        if (cards := max(job.gpus for job in own)) > gpus:
            lines.append(f"{stage}: a job takes {cards} cards, and the plan has {gpus}")
        if worst.total > setting.capacity:
            lines.append(f"{stage}: needs {worst.total:.0f} GiB and does not fit a card ({parts})")
        elif worst.total > NARROW * setting.capacity:
            lines.append(f"{stage}: {worst.total:.0f} of {setting.capacity:g} GiB is narrow ({parts})")
    lines += _judge_without_key(setting.config)
    lines += [f"not pinned: {key}" for key in open_revisions(setting.config)]
    lines += _files_to_be_given(setting.config)
    return "\n".join(["Open points:", *(f"  {line}" for line in lines)]) if lines else "No open points."


def _judge_without_key(config: Config) -> list[str]:
    """What judging would stop for, after everything has been trained."""
    name = config.judge.api_key_env if config.judge and config.benchmarks.run else None
    if not name or os.environ.get(name):
        return []
    return [f"judge: the environment variable {name} is not set here; judging needs the key in it"]


def _files_to_be_given(config: Config) -> list[str]:
    """What a run would stop for in its first minute: official files that can't be fetched."""
    if config.data.benchmarks_dir is not None:
        return []
    missing = [f"{FOLDERS[n]}/{path}" for n in config.benchmarks.run for path in not_fetchable(n, config.benchmarks)]
    return [
        f"{path}: has no pinned hash; put it, with that benchmark's other files, into a directory, and name it in "
        "data.benchmarks_dir (docs/data.md)"
        for path in missing
    ]
