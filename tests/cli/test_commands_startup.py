"""What commands import: processes of their own, because this one has imported everything."""

import ast
import inspect
import json
import subprocess
import sys
import textwrap

from paths import ROOT

from vrm.cli.commands import COMMANDS

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "scipy")


def imported(code, *arguments):
    """Which of the heavy packages are imported when a process ends."""
    ask = f"import json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    code = f"import sys\n{textwrap.dedent(code)}\n{ask}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def imports_in(function):
    """Import statements of a command's function, as source."""
    tree = ast.parse(inspect.getsource(function))
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_stages_without_models_import_none_of_their_packages():
    stages = [command for command in COMMANDS.values() if command.is_stage and not command.models]
    assert {"world", "normalise", "difficulty", "judge", "table", "figure"} <= {stage.name for stage in stages}
    lines = sorted({line for stage in stages for line in imports_in(stage.function)})
    assert "from vrm.data.pairs import normalise_pairs" in lines
    assert not imported("\n".join(lines))


def test_a_reward_training_without_adapters_imports_neither_trl_nor_peft(tiny_backbone, toy_pairs, tmp_path):
    settings = {
        "data": {"aspects": ["clarity", "accuracy", "candour"]},
        "reward": {"training": {"epochs": 0.5, "evaluations": 1, "max_prompt_length": 64, "max_length": 96}},
    }
    (tmp_path / "small.yaml").write_text(json.dumps(settings))
    options = {
        "--backbone": tiny_backbone,
        "--pairs": toy_pairs,
        "--checkpoints": tmp_path / "c",
        "--out": tmp_path / "o",
    }
    command = ["train-reward", "--config", ROOT / "config.yaml", tmp_path / "small.yaml", "--variant", "rm"]
    command += [part for option in options.items() for part in option]
    found = imported("from vrm.cli import main\nassert main(sys.argv[1:]) == 0", *map(str, command))
    assert {"torch", "transformers"} <= set(found)
    assert not {"trl", "peft", "scipy"} & set(found)
    assert (tmp_path / "o" / "model" / "model.safetensors").is_file()
