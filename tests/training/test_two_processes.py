"""Two processes train one model: their weights agree, one of them writes, and nothing waits for ever."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from paths import ROOT

HERE = Path(__file__).parent


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "ppo"])
def test_both_end_with_the_same_weights(method, tiny_backbone, toy_pairs, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    search = [ROOT / "src", ROOT / "tests", HERE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search)), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, HERE / "two_processes.py", method, tiny_backbone, toy_pairs, tmp_path],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    norms = dict(re.findall(r"rank (\d) of 2: ([\d.]+)", done.stdout))
    assert norms.keys() == {"0", "1"}
    assert norms["0"] == norms["1"]
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    table = pd.read_csv(tmp_path / "out" / "held_out.csv")
    assert not table.duplicated(["item_id", "metric"]).any()
    if method != "ppo":
        assert table[table.metric == "loss"].eval("end < start").mean() > 0.6
    assert not (tmp_path / "checkpoints").exists()
