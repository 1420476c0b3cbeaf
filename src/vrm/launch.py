"""Starts a training's processes on several nodes of a SLURM job; on one node a rule starts accelerate itself.

    rule: python -m vrm.launch --nodes 2 -- <accelerate's arguments>, once, on the job's first node
      -> srun, a task a node: python -m vrm.launch --nodes 2 --in-task -- <accelerate's arguments>
        -> accelerate launch --num_machines 2 --machine_rank ... <accelerate's arguments>, and its processes

* Each arrow is an exec: no process of ours stands between SLURM's signals and accelerate.
* All that is needed of the job is what srun tells its tasks. Before it, Snakemake's plugin has taken every other SLURM_
  variable away, SLURM_CONF too.
* srun ends all tasks when one has failed: the others would wait for it in their next exchange of gradients.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")

FIRST_PORT, PORTS = 20_000, 10_000
"""Where processes meet: a port by the job's number, below 32768, where the ports begin that Linux gives away by itself.
Jobs that share a node have other numbers; accelerate says so where a port is taken."""


class LaunchError(RuntimeError):
    """Processes can't be started on several nodes; the message says what to do."""


def step(nodes: int, threads: int, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command that starts one task on each node of a job.

    Args:
        nodes: how many.
        threads: processors of a task.
        arguments: accelerate's, and what it starts.
        environment: that of the job.

    Raises:
        LaunchError: this is no SLURM job.
    """
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError(_by_hand(nodes, arguments))
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"),
        "--kill-on-bad-exit=1",
        *(sys.executable, "-m", "vrm.launch", f"--nodes={nodes}", "--in-task", "--", *arguments),
    ]


def task(nodes: int, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command that starts a node's share of the processes.

    Args:
        nodes: how many.
        arguments: accelerate's, and what it starts.
        environment: that of a task: SLURM_NODEID counts the job's nodes, and srun was started on the first of them.

    Raises:
        LaunchError: SLURM gave another number of nodes.
    """
    if (given := environment["SLURM_NNODES"]) != str(nodes):
        raise LaunchError(f"SLURM gave {given} nodes, and the training's key `nodes` is {nodes}: give the job as many")
    port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
    return machine(nodes, environment["SLURM_NODEID"], environment["SLURM_LAUNCH_NODE_IPADDR"], port, arguments)


def machine(nodes: int, rank: int | str, address: str, port: int, arguments: Sequence[str]) -> list[str]:
    """accelerate's command on one node.

    Args:
        nodes: how many.
        rank: which of them, from 0.
        address: where the others reach the first.
        port: likewise.
        arguments: accelerate's, and what it starts.
    """
    return [
        *(*ACCELERATE, "--num_machines", str(nodes), "--machine_rank", str(rank)),
        *("--main_process_ip", address, "--main_process_port", str(port), *arguments),
    ]


def _by_hand(nodes: int, arguments: Sequence[str]) -> str:
    command = shlex.join(machine(nodes, "RANK", "FIRST", FIRST_PORT, arguments))
    return (
        f"a training on {nodes} nodes has to be a SLURM job: run snakemake with --workflow-profile "
        "workflow/profiles/slurm (docs/cluster.md), or set the training's key `nodes` to 1. Without SLURM this is what "
        f"each node has to start, at once, in a directory that all see, with its RANK from 0 to {nodes - 1} and the "
        f"first one's address as FIRST; the next run of the workflow takes the result:\n{command}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the next command of the chain; returns 1 where there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m vrm.launch", description="A training's processes on several nodes."
    )
    parser.add_argument("--nodes", type=int, required=True, help="how many")
    parser.add_argument("--threads", type=int, default=1, help="processors of a node's processes together")
    parser.add_argument("--in-task", action="store_true", help="this is a task of srun")
    parser.add_argument("arguments", nargs="+", help="after `--`: those of accelerate launch, and what it starts")
    given = parser.parse_args(arguments)
    try:
        if given.in_task:
            command = task(given.nodes, given.arguments, os.environ)
        else:
            command = step(given.nodes, given.threads, given.arguments, os.environ)
    except LaunchError as error:
        print(f"vrm.launch: {error}", file=sys.stderr)
        return 1
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
