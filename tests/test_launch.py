"""A training's processes on several nodes: from a job's environment to what accelerate is told on each node."""

import shlex

import pytest
from accelerate.commands.launch import launch_command_parser

from vrm import launch

ACCELERATES = [
    "--config_file",
    "ddp.yaml",
    "--num_processes",
    "6",
    "-m",
    "vrm",
    "sft",
    "--nodes",
    "9",
    "--",
    "--seed=1",
]
"""What accelerate is given; options of the training that are called as ours are its own."""


class Became(Exception):
    """The process is another command now."""


@pytest.fixture
def become(monkeypatch):
    """What `python -m vrm.launch` becomes, by its arguments, in an environment of these variables of SLURM."""

    def execvp(program, command):
        assert program == command[0]
        raise Became(command)

    def become(*arguments, **variables):
        with monkeypatch.context() as patch:
            for name in ("JOB_ID", "NODEID", "NNODES", "LAUNCH_NODE_IPADDR"):
                patch.delenv(f"SLURM_{name}", raising=False)
            for name, value in variables.items():
                patch.setenv(f"SLURM_{name}", value)
            patch.setattr(launch.os, "execvp", execvp)
            with pytest.raises(Became) as became:
                launch.main(arguments)
        return became.value.args[0]

    return become


def ours(command):
    """Arguments of the `python -m vrm.launch` in a command."""
    return command[command.index("vrm.launch") + 1 :]


def accelerates(command):
    """A command as accelerate reads it."""
    assert tuple(command[:3]) == launch.ACCELERATE
    return launch_command_parser().parse_args(command[3:])


def test_a_job_becomes_a_task_a_node_and_each_task_a_machine_of_accelerates(become):
    step = become("--nodes", "3", "--threads", "4", "--", *ACCELERATES, JOB_ID="1234567")
    assert step[0] == "srun"
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=4", "--kill-on-bad-exit=1"} < set(step)
    job = {"JOB_ID": "1234567", "NNODES": "3", "LAUNCH_NODE_IPADDR": "10.0.0.7"}
    told = [accelerates(become(*ours(step), NODEID=str(node), **job)) for node in range(3)]
    assert [machine.machine_rank for machine in told] == [0, 1, 2]
    for machine in told:
        assert (machine.num_machines, machine.num_processes, machine.config_file) == (3, 6, "ddp.yaml")
        assert (machine.main_process_ip, machine.main_process_port) == ("10.0.0.7", 24567)
        assert (machine.module, machine.training_script) == (True, "vrm")
        assert machine.training_script_args == ACCELERATES[6:]


def test_without_slurm_the_error_has_what_each_node_is_to_start(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert launch.main(["--nodes", "2", "--", *ACCELERATES, "a b"]) == 1
    command = shlex.split(capsys.readouterr().err.splitlines()[-1])
    values = {"RANK": "1", "FIRST": "10.0.0.7"}
    machine = accelerates([values.get(word, word) for word in command])
    assert (machine.num_machines, machine.machine_rank, machine.main_process_ip) == (2, 1, "10.0.0.7")
    assert machine.training_script_args == [*ACCELERATES[6:], "a b"]


def test_a_job_of_another_number_of_nodes_is_an_error(monkeypatch, capsys):
    for name, value in {"JOB_ID": "1", "NNODES": "1", "NODEID": "0", "LAUNCH_NODE_IPADDR": "10.0.0.7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert launch.main(["--nodes", "2", "--in-task", "--", *ACCELERATES]) == 1
    assert "`nodes`" in capsys.readouterr().err
