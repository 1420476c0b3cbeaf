"""What somebody else has made is never deleted, whatever directory we are given."""

import json
import os
import subprocess
import sys

import pytest

from vrm.config import ConfigError
from vrm.ours import MADE_FROM, foreign, place, remove_ours, require_ours

RECORD = {"settings": {}, "processes": 1, "files": []}


def a_file(directory):
    (directory / "a").write_text("1")


def dead_process():
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def test_a_finished_directory_is_ours_until_somebody_adds_to_it(tmp_path):
    model = tmp_path / "model"
    place(model, lambda directory: [(directory / "sub").mkdir(), (directory / "sub" / "w").touch(), a_file(directory)])
    (model / "backbone.provenance.json").write_text("{}")  # what the command line writes beside
    assert foreign(model) == []
    place(model, a_file)
    assert not (model / "sub").exists()
    (model / "notes.txt").write_text("mine")
    (model / "sub").mkdir()
    (model / "sub" / "w").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt, sub/w"):
        place(model, a_file)
    assert (model / "notes.txt").read_text() == (model / "sub" / "w").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["thesis.tex", "config.json", "checkpoint-5", ".made_by_vrm.json", "made_from.json"])
def test_a_directory_without_our_marker_stays_whole(tmp_path, name):
    theirs = tmp_path / "theirs"
    (theirs / "deep").mkdir(parents=True)
    (theirs / "deep" / "file").write_text("mine")
    (theirs / name).write_text('{"settings": "of somebody else"}')
    for act in (require_ours, lambda directory: place(directory, a_file)):
        with pytest.raises(ConfigError, match="theirs"):
            act(theirs)
    remove_ours(theirs)
    assert (theirs / "deep" / "file").read_text() == "mine"
    assert (theirs / name).is_file()


def test_of_a_working_directory_our_names_are_removed_and_the_rest_stays(tmp_path, capsys):
    (tmp_path / MADE_FROM).write_text(json.dumps(RECORD))
    for name in ("checkpoint-5", "damaged-checkpoint-4", "checkpoint-of-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    for name in ("answers.jsonl", "training.csv", "notes.txt"):
        (tmp_path / name).touch()
    require_ours(tmp_path)
    remove_ours(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-of-mine", "notes.txt"]
    assert "notes.txt" in capsys.readouterr().out


def test_an_empty_directory_may_be_used_and_removed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    require_ours(tmp_path / "a", tmp_path / "missing")
    place(tmp_path / "a", a_file)
    remove_ours(tmp_path / "b")
    remove_ours(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_link_leads_to_stays(tmp_path):
    theirs, working = tmp_path / "theirs", tmp_path / "working"
    theirs.mkdir()
    a_file(theirs)
    working.mkdir()
    (working / MADE_FROM).write_text(json.dumps(RECORD))
    (working / "checkpoint-1").symlink_to(theirs)
    remove_ours(working)
    assert not working.exists()
    (tmp_path / "model").symlink_to(theirs)
    with pytest.raises(ConfigError):
        place(tmp_path / "model", a_file)
    (theirs / "a").unlink()
    with pytest.raises(ConfigError, match="link"):
        place(tmp_path / "model", a_file)


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path):
    a_file(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        place(tmp_path / "a", a_file)
    assert (tmp_path / "a").read_text() == "1"


def test_a_directory_comes_into_place_whole_or_not_at_all(tmp_path):
    def half(directory):
        a_file(directory)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        place(tmp_path / "model", half)
    assert not (tmp_path / "model").exists()
    place(tmp_path / "model", a_file)
    assert (tmp_path / "model" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_job_has_left_aside_is_removed(tmp_path):
    dead = dead_process()
    leftover, other = tmp_path / f".model.{dead}", tmp_path / f".model.{os.getppid()}"
    kept = [other, tmp_path / ".model.safetensors", tmp_path / f".models.{dead}"]
    for directory in (leftover, *kept):
        directory.mkdir()
        (directory / "weights").touch()
    for directory in (leftover, other):
        (directory / ".made_by_vrm.json").write_text("[]")
    place(tmp_path / "model", a_file)
    assert not leftover.exists()
    assert all((directory / "weights").exists() for directory in kept)  # of a running process, or of something else


def test_what_only_looks_like_something_left_aside_stays(tmp_path):
    theirs = [tmp_path / f".model.{dead_process()}", tmp_path / f".model.{os.getpid()}"]
    theirs[0].mkdir()
    a_file(theirs[0])
    place(tmp_path / "model", a_file)
    theirs[1].mkdir()
    a_file(theirs[1])
    with pytest.raises(ConfigError, match="in the way"):
        place(tmp_path / "model", a_file)
    assert all((directory / "a").is_file() for directory in theirs)
