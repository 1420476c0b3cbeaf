"""What is declared is what is imported, and what the wheel lays out runs outside of the repository."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from paths import ROOT

from vrm.cli import main

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CALLED = {"yaml": "pyyaml", "alpaca_eval": "alpaca-eval", "sklearn": "scikit-learn"}
"""Packages whose import has another name."""
OPTIONAL = {"bitsandbytes", "flash_attn", "vllm"}
"""What is looked for and done without."""

NOT_LOCKED = {"low-memory", "vllm"}
"""Extras whose packages depend on the card."""
OF_VLLM = {"numpy", "setuptools", "fastapi"}
"""What vLLM wants in other versions than requirements.lock has."""


def declared(lines):
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}


def imported():
    """Packages by the files that import them."""
    found = {}
    for path in sorted((ROOT / "src" / "vrm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"vrm"}:
                package = CALLED.get(name, name).lower().replace("_", "-")
                found.setdefault(package, set()).add(path.relative_to(ROOT / "src" / "vrm").as_posix())
    return {package: files for package, files in found.items() if package not in OPTIONAL}


def test_every_import_is_declared():
    extras = PROJECT["optional-dependencies"]
    known = declared(PROJECT["dependencies"]) | declared(line for lines in extras.values() for line in lines)
    assert not imported().keys() - known


def test_what_people_need_does_not_need_the_extras():
    base = declared(PROJECT["dependencies"])
    beyond = {package: files for package, files in imported().items() if package not in base}
    rooms = {file.split("/")[0] for files in beyond.values() for file in files}
    assert rooms <= {"reporting", "judged", "judging", "planning", "world", "serving"}
    assert "snakemake" not in base


def test_torch_and_trl_are_ranges():
    for line in PROJECT["dependencies"]:
        assert "==" not in line


def locked(name):
    """Versions by package."""
    pins = dict(line.split("==") for line in (ROOT / name).read_text().split())
    return {package.lower().replace("_", "-"): version for package, version in pins.items()}


def outside(pins, lines):
    """Requirements that some pins do not meet."""
    wanted = [requirement for requirement in map(Requirement, lines) if requirement.name != "vrm"]
    return [str(each) for each in wanted if not each.specifier.contains(pins[each.name.lower().replace("_", "-")])]


def test_the_lock_is_inside_of_the_ranges():
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name not in NOT_LOCKED]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    assert outside(locked("requirements.lock"), lines) == []


def test_extras_have_names_that_any_pip_finds():
    """Metadata has a hyphen for an underscore, and pip 23.2, which Python 3.11 brings, takes the two for different."""
    assert not [name for name in PROJECT["optional-dependencies"] if not re.fullmatch(r"[a-z-]+", name)]


def test_vllms_lock_is_inside_of_the_ranges_and_differs_where_vllm_wants_it():
    extras = PROJECT["optional-dependencies"]
    pins, tested = locked("requirements-vllm.lock"), locked("requirements.lock")
    lines = [*PROJECT["dependencies"], *(line for name in ("vllm", "workflow", "judge") for line in extras[name])]
    assert outside(pins, lines) == []
    assert {name for name, version in pins.items() if tested.get(name, version) != version} == OF_VLLM


@pytest.mark.slow
def test_a_bound_that_cannot_be_reached_is_named():
    """What `make ranges` finds, of what uv would have resolved."""
    spec = importlib.util.spec_from_file_location("ranges", ROOT / "tools" / "ranges.py")
    ranges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranges)
    found = {"torch": Version("2.13.0"), "pydantic-core": Version("2.41.1"), "tiktoken": Version("0.12.0")}
    wanted = [Requirement(line) for line in ("torch>=2.13,<3", "pydantic_core>=2.40", "tiktoken", "numpy>=2")]
    (fault,) = ranges.out_of_reach(found, iter(wanted))
    assert "pydantic_core>=2.40" in fault
    assert "2.41.1" in fault
    own = {name: {requirement.name for requirement in ranges.direct(name)} for name in ((), ("workflow",))}
    assert "torch" in own[()]
    assert own["workflow",] == {"snakemake"}
    together = ranges.combinations()
    for name, others in ranges.APART.items():
        assert name not in together["all extras"]
        assert not others & {*together[f"{name} and what goes with it"]}


def test_the_workflow_runs_where_it_was_laid_out(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["init", str(out)]) == 0
    assert "snakemake" in capsys.readouterr().out
    command = ["snakemake", "-n", "--quiet", "all", "--configfile", "config.yaml", "workflow/presets/smoke.yaml"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(["init", str(out)]) == 1
    assert "study" in capsys.readouterr().err
