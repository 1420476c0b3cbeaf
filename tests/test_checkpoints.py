"""Which checkpoint may be continued."""

import json
import os
import subprocess
import sys

import pytest

from vrm.checkpoints import fingerprint, model_files, of_no_effect, place, resumable


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    return path


def save(directory, step, whole=True):
    checkpoint = directory / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}) if whole else '{"global')


def test_the_newest_whole_checkpoint_is_taken(tmp_path, data):
    made_from = fingerprint({"lr": 1}, [data])
    assert resumable(tmp_path / "c", made_from) is None
    for step, whole in [(5, True), (20, True), (100, False)]:
        save(tmp_path / "c", step, whole)
    assert resumable(tmp_path / "c", made_from) == str(tmp_path / "c" / "checkpoint-20")


@pytest.mark.parametrize("change", ["settings", "data"])
def test_checkpoints_made_from_something_else_are_discarded(tmp_path, data, change):
    resumable(tmp_path / "c", fingerprint({"lr": 1}, [data]))
    save(tmp_path / "c", 5)
    if change == "data":
        data.write_text('{"other": 1}\n')
    assert resumable(tmp_path / "c", fingerprint({"lr": 2 if change == "settings" else 1}, [data])) is None
    assert not list((tmp_path / "c").glob("checkpoint-*"))


def test_a_directory_comes_into_place_whole_or_not_at_all(tmp_path):
    def half(directory):
        (directory / "a").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        place(tmp_path / "model", half)
    assert not (tmp_path / "model").exists()
    place(tmp_path / "model", lambda directory: (directory / "a").write_text("2"))
    assert (tmp_path / "model" / "a").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_job_has_left_aside_is_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    leftover, other = tmp_path / f".model.{int(dead.stdout)}", tmp_path / f".model.{os.getppid()}"
    kept = [other, tmp_path / ".model.safetensors", tmp_path / f".models.{int(dead.stdout)}"]
    for directory in (leftover, *kept):
        directory.mkdir()
        (directory / "weights").touch()
    place(tmp_path / "model", lambda directory: (directory / "a").touch())
    assert not leftover.exists()
    assert all((directory / "weights").exists() for directory in kept)  # of a running process, or of something else


def test_how_processes_share_a_model_matters_to_several_alone(monkeypatch):
    assert of_no_effect() == {"processes", "launch"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert of_no_effect() == {"processes"}


def test_another_number_of_processes_is_another_training(data, monkeypatch):
    alone = fingerprint({}, [data])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fingerprint({}, [data]) != alone


def test_a_model_is_its_weights_its_configuration_and_its_tokenizer(tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "backbone.provenance.json").write_text("when and where")
    names = [path.name for path in model_files(tmp_path)]
    assert len(names) == 5
    assert "backbone.provenance.json" not in names
    assert model_files("Qwen/Qwen3-0.6B") == []  # known by its revision
