"""The trainings that examples/ shows, rewarded by a server on loopback."""

import asyncio
import importlib.util
import json
import subprocess
import sys

import pytest
from paths import ROOT
from served import ASPECTS, Started, load, save_vrm

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def served(tiny_backbone, tmp_path_factory):
    """A server, and the model that it serves."""
    directory = save_vrm(tiny_backbone, tmp_path_factory.mktemp("vrm"))
    with Started("--model", directory, "--samples", 16) as server:
        yield server, load(directory)


@pytest.mark.slow
def test_grpo_over_http(served, tiny_backbone, toy_pairs, tmp_path):
    server, _ = served
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.loads(line) for line in (toy_pairs / "train.jsonl").read_text().splitlines()[:8]]
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    words = ["--url", server.url, "--policy", tiny_backbone, "--prompts", prompts, "--out", tmp_path / "out"]
    subprocess.run([sys.executable, EXAMPLES / "grpo_over_http.py", *map(str, words)], check=True, timeout=500)
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in log if "rewards/vrm/mean" in entry]
    assert len(steps) == 2
    assert all(entry["rewards/vrm/std"] > 0 and entry["vrm/std"] > 0 for entry in steps)
    assert all(abs(sum(entry[f"vrm/weight/{aspect}"] for aspect in ASPECTS) - 1) < 1e-5 for entry in steps)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_verls_reward_function(served, monkeypatch):
    server, model = served
    monkeypatch.setenv("VRM_SERVE_URL", server.url)
    spec = importlib.util.spec_from_file_location("verl_reward", EXAMPLES / "verl_reward.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    prompt = [{"role": "user", "content": "alpha?"}]
    found = asyncio.run(example.compute_score("source", "good alpha", None, {"prompt": prompt, "index": 3}))
    direct = model.score([prompt], ["good alpha"])
    assert found == pytest.approx({"score": direct.mean[0], "vrm_std": direct.std[0]}, abs=1e-5)
    with pytest.raises(RuntimeError, match="422"):
        asyncio.run(example.compute_score("source", "good alpha", None, {"prompt": [{"role": 1}]}))
