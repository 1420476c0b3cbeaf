"""Blocks of docs/scale.md: what `vrm plan` says of the paper's study."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vrm.config import Config, load
from vrm.planning import time
from vrm.planning.jobs import Job, Setting, jobs
from vrm.planning.plan import longest_chain, plan, wall_clock

ROOT = Path(__file__).resolve().parents[1]
CARDS = (1, 8, 64)
MANY = 10
"""How many times the data the second column has."""
CARD = 80.0
"""GiB."""


def said() -> str:
    """The plan for eight cards, without what it says of this machine."""
    lines = plan(_config(), CARD, gpus=8).rstrip().splitlines()
    return "\n".join(["```text", *(line for line in lines if "environment variable" not in line), "```"])


def hours() -> str:
    """Hours by number of cards, and with more data."""
    once, often = (_jobs(scale) for scale in (1, MANY))
    lines = [f"| | the paper's data | {MANY} times the data |", "|:--|--:|--:|"]
    lines.append(f"| GPU hours | {_sum(once):,.0f} | {_sum(often):,.0f} |")
    ppo = [[job for job in todo if job.stage == "train_ppo"] for todo in (once, often)]
    lines.append(f"| of them PPO | {_sum(ppo[0]):,.0f} | {_sum(ppo[1]):,.0f} |")
    for cards in CARDS:
        found = [f"{wall_clock(todo, cards):,.1f}" for todo in (once, often)]
        lines.append(f"| hours on {cards} GPU{'s' if cards > 1 else ''} | " + " | ".join(found) + " |")
    found = [f"{longest_chain(todo)[0]:,.1f}" for todo in (once, often)]
    lines.append("| the longest chain: no number of cards is faster | " + " | ".join(found) + " |")
    return "\n".join(lines)


@cache
def _jobs(scale: float) -> list[Job]:
    return list(jobs(Setting(_config(), time.H100, CARD, scale)))


@cache
def _config() -> Config:
    return load([ROOT / "config.yaml", ROOT / "workflow" / "presets" / "paper.yaml"])


def _sum(todo: list[Job]) -> float:
    return sum(job.gpu_hours for job in todo)
