"""`vrm serve` under load: 64 clients for 60 s, every answer compared with the model's own, and the same one by one.

    python benchmarks/serve.py --model results/demo/reward/vrm/seed1/model
    python benchmarks/serve.py --model DIR --clients 16 --seconds 0 --soak 20000        # is memory flat?

* The server is `vrm serve` in a process of its own, on loopback; clients share this process and keep their connections.
* Each request has one prompt with one response, as trainers send them. Texts differ in length, and each has a number in
  it, so that an answer meant for somebody else is a wrong answer here.
* First all texts are scored directly. What a server answers has to be that, up to `TOLERANCE`: company changes
  the order of additions and nothing else.
* One-by-one is the same server, asked by one client that waits for each answer. The ratio of the two is what batching
  across requests brings. The clients, and whatever else the machine does, share its processors; processor time of the
  server for an answer (`server_ms`) is disturbed less.
* `--soak N`: N requests, and the server's resident memory along them. Flat is when the second half adds little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from side_by_side import report

from vrm.models.scoring import load_reward_model

TOLERANCE = 1e-4
"""How far a served reward may be from the direct one; rewards are of order 1."""
WORDS = [
    "how",
    "do",
    "i",
    "plant",
    "mint",
    "behind",
    "my",
    "house",
    "dig",
    "a",
    "hole",
    "first",
    "water",
    "it",
    "daily",
]


@dataclass
class Load:
    """What clients saw.

    Args:
        rewards: answers, by the number of their text.
        seconds: of each request.
        refused: how often a client was told to come back; it does, until it is answered.
        lost: requests without an answer.
    """

    rewards: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    lost: list[str] = field(default_factory=list)


def main() -> None:
    """Measure, print a table, append it to a CSV file; exit code 1 for a wrong answer or a lost request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--soak", type=int, default=0, help="requests; 0: no soak")
    parser.add_argument("--texts", type=int, default=512, help="different texts")
    parser.add_argument("--words", type=int, default=120, help="the longest response")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/serve.csv"))
    options = parser.parse_args()
    prompts, responses = texts(options)
    direct = load_reward_model(options.model).score(prompts, responses).mean
    server, url = start(options)
    try:
        rows = asyncio.run(measured(options, url, server.pid, prompts, responses, direct))
    finally:
        server.terminate()
        code = server.wait(60)
    setting = {name: str(value) for name, value in vars(options).items() if name != "out"}
    report(rows, setting | {"exit_code": code}, options.out)
    if code or any(row["wrong"] or row["lost"] for row in rows):
        sys.exit(1)


def texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Prompts and responses of different lengths, no two alike."""
    rng = np.random.default_rng(options.seed)
    lengths = rng.integers(1, options.words, options.texts)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(4, 20))) + f" {number}?" for number in range(options.texts)]
    return prompts, [" ".join([*rng.choice(WORDS, length), str(number)]) for number, length in enumerate(lengths)]


def start(options: argparse.Namespace) -> tuple[subprocess.Popen, str]:
    """A server, and where it listens."""
    samples = ["--samples", str(options.samples)]
    command = [sys.executable, "-m", "vrm", "serve", "--model", str(options.model), "--port", "0", *samples]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found = re.search(r"http://\S+:\d+", server.stdout.readline())
    if not found:
        raise SystemExit("the server did not start; its error stands above")
    return server, found[0]


async def measured(
    options: argparse.Namespace,
    url: str,
    pid: int,
    prompts: Sequence[str],
    responses: Sequence[str],
    direct: np.ndarray,
) -> list[dict[str, object]]:
    """One client, many clients, and the soak; a row each."""
    await ask_for(url, 1, 5 if options.seconds else 0, prompts, responses)  # warm
    rows, base = [], None
    for name, clients in (("one by one", 1), ("together", options.clients)):
        if not options.seconds:
            continue
        before = processor_seconds(pid)
        load, seconds = await ask_for(url, clients, options.seconds, prompts, responses)
        found = row(name, clients, load, seconds, direct) | {"resident_mb": resident(pid)}
        found["server_ms"] = round(1000 * (processor_seconds(pid) - before) / found["answers"], 2)
        base = base or found
        found["times_one_by_one"] = round(found["per_second"] / base["per_second"], 2)
        found["by_processor_time"] = round(base["server_ms"] / found["server_ms"], 2)
        rows.append(found)
    done, parts = 0, 8
    for part in range(parts if options.soak else 0):
        load, seconds = await ask_for(url, options.clients, None, prompts, responses, options.soak // parts)
        done += len(load.rewards)
        found = row(f"soak {part + 1}/{parts}", options.clients, load, seconds, direct)
        rows.append(found | {"resident_mb": resident(pid)})
        print(f"{done} requests: {rows[-1]['resident_mb']} MB", flush=True)
    return rows


async def ask_for(
    url: str,
    clients: int,
    seconds: float | None,
    prompts: Sequence[str],
    responses: Sequence[str],
    requests: int | None = None,
) -> tuple[Load, float]:
    """Clients that ask one after another, for so long or so many requests; what they saw, and the time it took."""
    load, number = Load(), 0
    started = time.perf_counter()

    def goes_on() -> bool:
        return number < requests if requests is not None else time.perf_counter() - started < seconds

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal number
        while goes_on():
            which, begun = number % len(prompts), time.perf_counter()
            number += 1
            body = {"prompts": [prompts[which]], "responses": [responses[which]]}
            try:
                while (answer := await http.post(f"{url}/score", json=body)).status_code == 503:
                    load.refused += 1
                    await asyncio.sleep(float(answer.headers["Retry-After"]))
                load.rewards.append((which, answer.raise_for_status().json()["rewards"][0]))
            except httpx2.HTTPError as error:
                load.lost.append(repr(error))
            load.seconds.append(time.perf_counter() - begun)

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(limits=limits, timeout=120) as http:
        await asyncio.gather(*[client(http) for _ in range(clients)])
    return load, time.perf_counter() - started


def row(name: str, clients: int, load: Load, seconds: float, direct: np.ndarray) -> dict[str, object]:
    """One line of the table."""
    which, rewards = np.array([n for n, _ in load.rewards]), np.array([reward for _, reward in load.rewards])
    apart = np.abs(rewards - direct[which])
    for reason in load.lost[:3]:
        print(f"lost: {reason}", file=sys.stderr)
    return {
        "asked": name,
        "clients": clients,
        "answers": len(rewards),
        "wrong": int((apart > TOLERANCE).sum()),
        "lost": len(load.lost),
        "told_to_come_back": load.refused,
        "largest_difference": f"{apart.max():.1e}",
        "per_second": round(len(rewards) / seconds, 1),
        "ms_median": round(1000 * float(np.median(load.seconds)), 1),
        "ms_99": round(1000 * float(np.quantile(load.seconds, 0.99)), 1),
    }


def resident(pid: int) -> float:
    """Memory of a process in MB, as Linux counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def processor_seconds(pid: int) -> float:
    """Processor time of a process until now, as Linux counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
