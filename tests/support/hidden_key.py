"""The judge's key is in the environment, and whatever a test leaves behind is searched for it."""

import pytest
from judging_jobs import KEY, VARIABLE


@pytest.fixture(autouse=True)
def key_stays_hidden(monkeypatch, tmp_path, capfd, caplog):
    """Fails a test that leaves the key in its output or in a file."""
    monkeypatch.setenv(VARIABLE, KEY)
    yield
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err + caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
