import hashlib
import subprocess
import sys

import pytest
from paths import ROOT

import vrm.provenance
from vrm import __version__
from vrm.provenance import OWN_FILE, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "requirements.lock").write_text("numpy==2\n")
    (tmp_path / OWN_FILE).parent.mkdir(parents=True)
    (tmp_path / OWN_FILE).touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_commit_hashes_versions_and_extra(repository):
    record = provenance("run: demo\n", repository, {"seed": 3, "device": "cpu"})
    assert len(record["commit"]) == 40
    assert record["dirty"] is False
    assert record["config_sha256"] == hashlib.sha256(b"run: demo\n").hexdigest()
    assert record["lock_sha256"] == hashlib.sha256(b"numpy==2\n").hexdigest()
    assert record["packages"]["numpy"][0].isdigit()
    assert (record["seed"], record["device"]) == (3, "cpu")


def test_changed_file_makes_it_dirty(repository):
    (repository / "requirements.lock").write_text("numpy==3\n")
    assert provenance("", repository, {})["dirty"] is True


def test_outside_git_and_without_lock(tmp_path):
    record = provenance("", tmp_path, {})
    assert (record["commit"], record["dirty"], record["lock_sha256"]) == (None, None, None)


def test_a_repository_around_the_package_is_not_its_own(repository):
    installed = repository / "venv" / "lib"
    installed.mkdir(parents=True)
    record = provenance("", installed, {})
    assert (record["commit"], record["dirty"], record["version"]) == (None, None, __version__)
    git(repository, "rm", "-q", "--cached", OWN_FILE)  # somebody's repository that does not track this package
    assert provenance("", repository, {})["commit"] is None


def test_own_file_is_where_the_repository_has_it():
    assert (ROOT / OWN_FILE).samefile(vrm.provenance.__file__)


def test_extra_may_not_overwrite(tmp_path):
    with pytest.raises(ValueError, match="commit"):
        provenance("", tmp_path, {"commit": "mine"})


def test_no_environment_variable_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t-value")
    assert "s3cr3t-value" not in str(provenance("", tmp_path, {}))


def test_import_loads_no_heavy_package():
    code = "import sys, vrm.provenance; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
