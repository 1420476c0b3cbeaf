"""`vrm doctor`: what it finds agrees with what is here, and no secret is shown."""

import json
from importlib.metadata import version

import pytest
import torch
from paths import ROOT

from vrm.cli import doctor, main


def test_json_and_lines_and_exit_code(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]["version"] == version("torch")
    assert found["packages"]["transformers"]["fits"] is True
    assert found["packages"]["transformers"]["required"]
    assert len(found["gpus"]["devices"]) == torch.cuda.device_count()
    assert found["machine"]["cores"] >= 1
    assert main(["doctor"]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"torch", "vLLM", "conda", "slurm", "chromium", "OPENAI_API_KEY", "cores"} <= names


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_a_key_is_named_and_its_value_never_shown(arguments, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cr3t-value")
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "OPENAI_API_KEY" in shown
    assert "s3cr3t-value" not in shown


def test_a_configurations_own_key_is_looked_for(monkeypatch, tmp_path):
    extra = tmp_path / "judge.yaml"
    extra.write_text("judge: {api_key_env: MY_JUDGE_KEY}\n")
    monkeypatch.setenv("MY_JUDGE_KEY", "x")
    assert doctor.examine([ROOT / "config.yaml", extra])["keys"]["MY_JUDGE_KEY"] is True


def test_a_version_outside_the_range_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: {"torch": "<1", "trl": ">=0"})
    packages = doctor.examine()["packages"]
    assert packages["torch"]["fits"] is False
    assert packages["trl"]["fits"] is True
    assert packages["peft"] == {"version": version("peft"), "required": None, "fits": None}


def test_a_missing_package_and_an_extra_in_the_requirements(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.examine()["packages"]["no-such-package"]["version"] is None
    assert doctor._requirements()["transformers"].startswith(">=")
