"""The load and the soak, small; `tools/reliability.py` runs them large."""

from load import is_good, load
from soak import soak


def test_every_judgment_comes_once_under_load(tmp_path):
    found = load(400, 64, tmp_path, patience=2.0)
    assert is_good(found), found
    assert found["most_under_way"] > 16
    assert len(found["faults"]) > 6
    assert found["growth_kib_a_judgment"] < 100


def test_ppo_closes_its_files(tmp_path):
    found = soak(10, tmp_path)
    assert found["open_files_at_the_end"] <= found["open_files_when_warm"]
