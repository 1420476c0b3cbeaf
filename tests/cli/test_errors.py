"""Errors of others become one line with cause, file and remedy; a bug keeps its traceback."""

import errno
import os
from importlib import import_module

import jinja2
import pytest
from safetensors import SafetensorError, safe_open

from vrm.cli.errors import OWN, REMEDIES, explain
from vrm.records import RecordError


@pytest.mark.parametrize("name", [*OWN, *REMEDIES])
def test_every_class_of_the_table_exists(name):
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(import_module(module), kind), Exception)


def test_errors_of_ours_are_said_as_they_are():
    assert explain(RecordError("pairs.jsonl, row 3: no prompt"), {}) == "pairs.jsonl, row 3: no prompt"


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), KeyError("x"), ValueError("x"), Exception("x")])
def test_a_bug_is_not_explained_away(error):
    assert explain(error, {"model": "m"}) is None


def test_half_a_safetensors_names_the_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(SafetensorError) as found:
        safe_open(tmp_path / "model.safetensors", "pt")
    said = explain(found.value, {"model": tmp_path, "policy": None})
    assert said.startswith(f"{tmp_path}: ")
    assert "git lfs pull" in said
    assert "\n" not in said


def test_a_template_that_refuses_is_one_line():
    with pytest.raises(jinja2.TemplateError) as found:
        jinja2.Template("{{ 1 ").render()
    said = explain(found.value, {"models": ["vrm=somewhere"]})
    assert said.startswith("vrm=somewhere: ")
    assert "chat_template" in said


def test_a_broken_tokenizer_file_is_one_line(tmp_path):
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(Exception) as found:
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert explain(found.value, {"model": tmp_path}).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOENT, "correct the path"), (errno.EACCES, "permissions"), (errno.ENOSPC, "where")]
)
def test_a_file_that_fails_is_named(number, remedy):
    said = explain(OSError(number, os.strerror(number), "some/file.csv"), {"model": "m"})
    assert said.startswith(f"some/file.csv: {os.strerror(number)}; ")
    assert remedy in said


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("VRM_TRACEBACK", "1")
    assert explain(OSError("x"), {}) is None
