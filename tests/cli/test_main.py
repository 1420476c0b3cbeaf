"""The command line: quick to answer, one block of words for a user's mistake."""

import os
import platform
import resource
import subprocess
import sys

import pytest
from paths import ROOT

from vrm import __version__
from vrm.cli import main
from vrm.cli.commands import COMMANDS


def test_help_imports_nothing_heavy():
    code = (
        "import sys, vrm.cli\n"
        "try: vrm.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in COMMANDS)
    assert shown.index("  score ") < shown.index("stages of the workflow") < shown.index("train-reward")


def test_help_answers_at_once():
    def seconds():
        """Processor time, not the clock's: others may use this machine meanwhile."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vrm", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, said, *_ = capsys.readouterr().out.split("\n\n")
    assert said.endswith(".")


def test_a_mistake_of_the_users_is_one_block_and_exit_code_1(capsys, tmp_path):
    assert main(["world", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("vrm world: ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-preference", "--method", "selective_dpo"], "selective_dpo needs it"),
        (["train-preference", "--method", "ppo"], "policy.methods.ppo is ppo: another stage trains that"),
        (["train-preference", "--method", "orpo"], "there is no policy method 'orpo'; known are: dpo, ipo"),
        (["sft", "--base", "llama"], "there is no policy base 'llama'; known are: qwen2_5, qwen3"),
    ],
    ids=["no difficulties", "PPO in the wrong stage", "unknown method", "unknown base"],
)
def test_a_policy_stage_names_what_is_wrong(arguments, message, capsys, tmp_path):
    common = {"--base": "qwen3", "--policy": "p", "--pairs": "d", "--checkpoints": "c", "--out": str(tmp_path)}
    given = [part for pair in common.items() if pair[0] not in arguments for part in pair]
    assert main([*arguments, "--config", str(ROOT / "config.yaml"), *given]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_directory_is_named_with_its_option(capsys, tmp_path):
    pairs = tmp_path / "pairs"
    common = ["--config", str(ROOT / "config.yaml"), "--base", "qwen3", "--checkpoints", "c", "--out", str(tmp_path)]
    start = ["train-ppo", "--method", "ppo", "--model", "results/demo/rm/model", "--policy", "results/demo/sft/model"]
    assert main([*start, *common, "--pairs", str(pairs)]) == 1
    assert f"--pairs {pairs}: there is no train.jsonl" in capsys.readouterr().err
    pairs.mkdir()
    (pairs / "train.jsonl").touch()
    assert main([*start, *common, "--pairs", str(pairs)]) == 1
    assert "--policy results/demo/sft/model: there is no such directory" in capsys.readouterr().err


def test_models_of_a_wrong_form_are_the_users_mistake(capsys, tmp_path):
    common = ["--config", str(ROOT / "config.yaml"), "--out", str(tmp_path)]
    best = ["best-of-n", "--base", "qwen3", "--policy", "p", "--models", "vrm", "--pairs", "d"]
    assert main([*best, *common]) == 1
    assert "--models vrm" in capsys.readouterr().err


def test_an_unknown_shape_is_named_before_anything_is_read(capsys):
    assert main(["score", "--model", "owner/name", "--data", "absent.jsonl", "--shape", "sharegpt2"]) == 1
    shown = capsys.readouterr().err
    assert "sharegpt2" in shown
    assert "helpsteer3" in shown


STEPS = """
import ctypes, resource, sys
from vrm.cli import keep_freed_memory
if sys.argv[1:] == ["kept"]:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    blocks = [libc.malloc(20 << 20) for _ in range(5)]
    for block in blocks:
        libc.memset(block, 1, 20 << 20)
    for block in blocks:
        libc.free(block)

step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such setting")
def test_memory_that_a_step_frees_is_there_for_the_next_one():
    """Pages of 4 KiB that a step of 100 MiB had to fetch, huge ones at most a five-hundredth of that."""

    def fetched(*words, **more):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | more
        command = [sys.executable, "-c", STEPS, *words]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    given_back, kept = fetched(), fetched("kept")
    assert kept < given_back / 10
    assert fetched("kept", MALLOC_TRIM_THRESHOLD_=str(1 << 20)) > 10 * kept  # whoever sets it has it so
