"""examples/tutorial.ipynb: its cells are plain Python, and run here one after the other without a network."""

import json
import socket
import tempfile

import numpy as np
import pytest
from paths import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_nothing_in_it_is_an_output_of_another_day():
    assert CODE
    assert [cell for cell in CODE if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.slow
def test_it_runs_offline_and_what_it_shows_is_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("the notebook asked the network")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = {}
    for cell in CODE:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), found)
    held_out = found["held_out"]
    assert held_out["accuracy"]["low"] > 0.5
    assert held_out["accuracy"]["estimate"] > held_out["longer_is_better"]["estimate"]
    assert found["weights"].shape == (4, 4)
    np.testing.assert_allclose(found["weights"].sum(axis=1), 1, atol=0.01)
    best_of_4 = found["best_of_4"]
    assert best_of_4["random answer"] < best_of_4["best of 4"] <= best_of_4["best there was"]
    assert (found["work"] / "explained.html").stat().st_size > 1000
    np.testing.assert_allclose(found["paid"], found["output"].mean[:2], atol=1e-5)
