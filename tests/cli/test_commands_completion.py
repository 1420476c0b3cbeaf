"""Completion in the shells themselves: what each offers when a key is pressed."""

import shutil
import subprocess
import sys

import pytest

from vrm.cli import main
from vrm.cli.commands import COMMANDS, parser
from vrm.config.reward import PRESETS

BASH = """
source "$1"; shift
complete -p vrm > /dev/null
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_vrm vrm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH = """
zmodload zsh/zpty
zpty -b shell "TERM=dumb zsh -f -i"
zpty -w shell "fpath=(${1:h} \\$fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word; echo READ''Y"
zpty -r -m shell seen '*READY*'
zpty -n -w shell "vrm $2"$'\\t'"--END"$'\\x01'"echo "$'\\r'
zpty -r -m shell seen '*END*END*'
print -r -- "$seen"
"""


@pytest.fixture
def script(tmp_path, capsys):
    """Writes a shell's script; the path."""

    def write(shell):
        assert main(["completion", shell]) == 0
        path = tmp_path / "_vrm"
        path.write_text(capsys.readouterr().out)
        return path

    return write


def has(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def said(command, **options):
    return subprocess.run([str(w) for w in command], capture_output=True, text=True, check=True, timeout=60, **options)


@has("bash")
def test_bash_completes_commands_options_values_and_files(script, tmp_path):
    (tmp_path / "mine.jsonl").touch()
    path = script("bash")

    def offered(*words):
        found = said(["bash", "-c", BASH, "bash", path, *words], cwd=tmp_path).stdout
        return set(found.split())

    assert offered("vrm", "") >= set(COMMANDS)
    assert offered("vrm", "train", "--") >= {"--data", "--backbone", "--kind", "--learning-rate"}
    assert offered("vrm", "train", "--kind", "") == set(PRESETS)
    assert offered("vrm", "completion", "") == {"bash", "zsh", "fish"}
    assert offered("vrm", "train", "--data", "mi") == {"mine.jsonl"}


@has("fish")
def test_fish_completes_the_same(script, tmp_path):
    path = script("fish")

    def offered(line):
        found = said(["fish", "-c", f"source {path}; complete -C '{line}'"]).stdout
        return {row.split("\t")[0] for row in found.splitlines()}

    assert offered("vrm ") >= set(COMMANDS)
    assert offered("vrm train --kind ") == set(PRESETS)
    assert "--learning-rate" in offered("vrm train --le")


@has("zsh")
def test_zsh_completes_the_same(script):
    path = script("zsh")
    said(["zsh", "-n", path])
    for typed, completed in (("comple", "completion"), ("train --kind resid", "train --kind residual")):
        assert f"vrm {completed} " in said(["zsh", "-f", "-c", ZSH, "zsh", path, typed]).stdout.replace("\b", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_in_the_script(shell, script):
    text = script(shell).read_text()
    (commands,) = (action.choices for action in parser()._actions if action.dest == "command")
    for name, command in commands.items():
        assert name in text
        for option in command._option_string_actions:
            assert option in text or option.lstrip("-") in text


def test_a_shell_that_is_none_of_them_is_a_mistake(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "cmd"])
    assert "cmd" in capsys.readouterr().err


def test_no_command_is_slower_for_it():
    code = "import sys, vrm.cli; vrm.cli.parser(); assert 'shtab' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
