"""Commands as declared: what the rules of the workflow type, what the help text shows, what a parameter becomes."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import pytest
from paths import ROOT

from vrm.cli import parser
from vrm.cli.commands import COMMANDS, Option, add_options

RULES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))}
SHELL = re.compile(r'^    shell:\n((?:        (?:#.*|".*")\n)+)', re.MULTILINE)
FILLED = {"share": "0", "shares": "4", "half": "0", "seed": "1", "halving": "1", "packaged": "smollm2", "pairs": "64"}
"""What stands for a wildcard whose option wants a number or a known name; every other one becomes a text."""
MAY_BE_EMPTY = {
    "which": "--base qwen3",
    "difficulty": "--difficulty d.csv",
    "features": "--features f",
    "tokens": "--tokens t",
    "texts": "--texts t",
    "reference": "--reference-log-probs r",
    "scorer": "--model m --seed 1",
    "reward": "--model m",
}
"""Parameters that hold a whole option, or nothing."""


def shell_lines():
    """(rule file, shell command) of every rule that runs `vrm`."""
    for path, text in RULES.items():
        for found in SHELL.finditer(text):
            command = "".join(re.findall(r'^        "(.*)"$', found[1], re.MULTILINE))
            if " -m vrm " in command:
                yield path.name, command


LINES = list(shell_lines())


def typed(command, options=MAY_BE_EMPTY):
    """The words after `vrm`, wildcards filled in."""

    def fill(found):
        name = found[1].split(".")[-1]
        return options.get(name, FILLED.get(name, name)) if name in options else FILLED.get(name, name or "x")

    words = re.sub(r"\{([^{}]*)\}", fill, command.split(" -m vrm ")[1]).split(" > ")[0]
    return shlex.split(words)


def words_of(example):
    """An example as a shell splits it: a backslash at a line's end goes on in the next one."""
    return shlex.split(example.replace("\\\n", " "))


def test_every_shell_line_is_found():
    run = "".join(RULES.values())
    assert len(LINES) == run.count(" -m vrm ")
    assert any(command.startswith("{params.launcher}") for _, command in LINES)
    in_rules = {typed(command)[0] for _, command in LINES}
    assert in_rules == {command.name for command in COMMANDS.values() if command.is_stage} | {"fetch-backbone"}


@pytest.mark.parametrize("options", [MAY_BE_EMPTY, dict.fromkeys(MAY_BE_EMPTY, "")], ids=["all", "empty"])
@pytest.mark.parametrize(("file", "command"), LINES, ids=[typed(command)[0] for _, command in LINES])
def test_what_a_rule_types_is_understood(file, command, options):
    words = typed(command, options)
    flags = {word for word in words if word.startswith("--")}
    known = {f"--{name.replace('_', '-')}" for name in vars(parser().parse_args(words))}
    assert flags <= known, f"{file}: abbreviated or unknown {flags - known}"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_example_is_shown_and_parses(command, capsys):
    with pytest.raises(SystemExit) as done:
        parser().parse_args([command.name, "--help"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.split("\nexample:\n")[1].replace("\\\n", " ").strip().splitlines()
    for line in lines:
        words = shlex.split(line.split(" | ")[-1])
        assert words[:2] == ["vrm", command.name]
        assert parser().parse_args(words[1:]).command == command.name


def test_a_stage_has_what_its_provenance_record_needs():
    for command in COMMANDS.values():
        if command.is_stage:
            options = vars(parser().parse_args(words_of(command.example)[1:]))
            assert isinstance(options["out"], Path)
            assert options["config"]


def test_a_parameter_becomes_an_option():
    def function(
        where: Annotated[Path, Option("", positional=True)],
        number: Annotated[int, Option("")],
        kind: Annotated[Literal["a", "b"], Option("")] = "a",
        some_files: Annotated[list[Path], Option("")] = (),
        limit: Annotated[float | None, Option("")] = None,
        loud: Annotated[bool, Option("")] = False,
    ): ...

    built = argparse.ArgumentParser(exit_on_error=False)
    add_options(built, function)
    given = built.parse_args(["here", "--number", "3", "--some-files", "x", "y", "--limit", "0.5", "--loud"])
    assert vars(given) == {
        "where": Path("here"),
        "number": 3,
        "kind": "a",
        "some_files": [Path("x"), Path("y")],
        "limit": 0.5,
        "loud": True,
    }
    left_out = built.parse_args(["here", "--number", "3"])
    assert (left_out.some_files, left_out.limit, left_out.loud) == ([], None, False)
    with pytest.raises(argparse.ArgumentError):
        built.parse_args(["here", "--number", "3", "--kind", "c"])
