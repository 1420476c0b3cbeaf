"""The judge's client under load: many requests in flight to an endpoint that misbehaves.

    PYTHONPATH=src:tests/support python tests/faults/load.py --requests 10000 --in-flight 64 --out load.json

The endpoint is `tests/support/server.py`; the client is a process of its own, whose memory is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from judging_jobs import KEY, VARIABLE, config, requests
from server import FAULTS, Server, score

from vrm.judging import Judge, Reply, Store, Unanswered, Unusable

FAULTY = [fault for fault in FAULTS if fault != "slow"]

SHARES = dict.fromkeys(FAULTY, 0.2 / len(FAULTY)) | {"slow": 0.8}
"""A fifth of all tries is faulty; the others take 20 ms, or nothing would be in flight."""

WARM = 0.1
"""Share of the requests after which memory is taken as the beginning."""


def client(url: str, store: str, count: int, in_flight: int, patience: float) -> None:
    """Ask everything, and say how much memory that took."""
    seen: list[int] = []
    page = os.sysconf("SC_PAGE_SIZE")

    def look() -> None:
        seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    settings = config(url, concurrency=in_flight, timeout=patience)
    began = time.monotonic()
    outcomes = Judge(settings, Store(store), on_outcome=look).ask(requests(0, count))
    warm = int(WARM * count)
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - began, 1),
                "replies": sum(isinstance(outcome, Reply) for outcome in outcomes),
                "resident_mib_when_warm": round(seen[warm] / 2**20, 1),
                "resident_mib_at_the_end": round(seen[-1] / 2**20, 1),
                "growth_kib_a_judgment": round((seen[-1] - seen[warm]) / 2**10 / (count - warm), 2),
            }
        )
    )


def load(count: int, in_flight: int, folder: Path, patience: float = 10.0) -> dict[str, float | int | dict[str, int]]:
    """Have a client ask; compare its accounts with the endpoint's."""
    # `late` is longer than the client's patience
    with Server(SHARES, most_faults=4, late=patience + 1) as server:
        command = [
            sys.executable,
            __file__,
            "--client",
            server.url,
            str(folder),
            *map(str, (count, in_flight, patience)),
        ]
        environment = {**os.environ, VARIABLE: KEY, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
    entries = Store(folder).entries()
    replies = [entry for entry in entries if isinstance(entry, Reply)]
    asked = [f"question {number}" for number in range(count)]
    return {
        "requests": count,
        "in_flight": in_flight,
        "most_under_way": server.most_under_way,
        "faults": {str(name): number for name, number in sorted(server.met.items(), key=str) if name},
        "tries": server.tries.total(),
        **json.loads(done.stdout),
        "judgments_stored": len({entry.key for entry in replies}),
        "stored_twice": len(replies) - len({entry.key for entry in replies}),
        "billed_twice": sum(number - 1 for number in server.billed.values()),
        "billed_in_vain": server.in_vain.total(),
        "stored_as_unusable": sum(isinstance(entry, Unusable) for entry in entries),
        "stored_as_unanswered": sum(isinstance(entry, Unanswered) for entry in entries),
        "prompt_tokens": sum(entry.usage.prompt_tokens for entry in replies),
        "prompt_tokens_billed": sum(map(len, asked)),
        "completion_tokens": sum(entry.usage.completion_tokens for entry in replies),
        "completion_tokens_billed": sum(map(score, asked)),
    }


def is_good(found: dict) -> bool:
    """Every judgment once, and every token of it counted.

    A reply that came when the client's patience was at its end is billed again; it has to be counted as unanswered.
    """
    unforeseen = found["stored_as_unanswered"] - found["faults"].get("late", 0) - found["faults"].get("reset", 0)
    return (
        found["replies"] == found["judgments_stored"] == found["requests"]
        and not found["stored_twice"]
        and found["billed_twice"] <= unforeseen
        and found["billed_in_vain"] == found["stored_as_unusable"]
        and found["prompt_tokens"] == found["prompt_tokens_billed"]
        and found["completion_tokens"] == found["completion_tokens_billed"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write what was found to this JSON file")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        url, store, count, in_flight, patience = options.client
        client(url, store, int(count), int(in_flight), float(patience))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = load(options.requests, options.in_flight, Path(folder))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0 if is_good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
