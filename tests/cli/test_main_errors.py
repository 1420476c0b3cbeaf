"""Errors of others become one line with cause, file and remedy; a bug keeps its traceback."""

import errno
import os
from importlib import import_module

import jinja2
import pytest
from safetensors import SafetensorError, safe_open

from vrm.cli import OWN, REMEDIES, explain
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
    ("number", "remedy"), [(errno.ENOENT, "correct the path"), (errno.EACCES, "permissions"), (errno.ENXIO, "where")]
)
def test_a_file_that_fails_is_named(number, remedy):
    said = explain(OSError(number, os.strerror(number), "some/file.csv"), {"model": "m"})
    assert said.startswith(f"some/file.csv: {os.strerror(number)}; ")
    assert remedy in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE])
def test_what_the_system_refuses_is_no_damaged_model(number):
    said = explain(OSError(number, os.strerror(number), "out/model.safetensors"), {"model": "m"})
    assert said.startswith(f"out/model.safetensors: {os.strerror(number)}; ")
    assert "git lfs" not in said


@pytest.mark.parametrize("kind", [RuntimeError, SafetensorError])
def test_a_full_disk_is_known_in_the_words_of_libraries(kind):
    assert "make room" in explain(kind("Error while serializing: I/O error: No space left on device (os error 28)"), {})


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("VRM_TRACEBACK", "1")
    assert explain(OSError("x"), {}) is None
