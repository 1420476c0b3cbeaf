"""A frozen backbone in the workflow: features come before heads, once for all of them; nothing else does."""

from collections import Counter

import yaml
from paths import ROOT
from runs import DEFAULT, snakemake

PRESETS = ROOT / "workflow" / "presets"
LAPTOP = (DEFAULT, PRESETS / "own_data.yaml", PRESETS / "laptop.yaml")


def rules(output):
    """How often each rule is planned."""
    return Counter(
        line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith(("rule ", "localrule "))
    )


def planned(tmp_path, *config, configs=LAPTOP):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    return snakemake("-n", "--config", "data={path: mine.jsonl}", *config, directory=tmp_path, configs=configs)


def test_features_are_computed_once_a_set_for_all_heads(tmp_path):
    found = rules(planned(tmp_path))
    heads = 5 * len(yaml.safe_load((PRESETS / "laptop.yaml").read_text())["reward"]["run"])
    assert (found["fetch_backbone"], found["features"]) == (1, 3)  # of training, validation and held-out pairs
    assert (found["train_reward"], found["score"]) == (heads, heads)
    assert not {"backbone", "tokenise", "tokenise_sets"} & found.keys()


def test_every_head_and_every_score_reads_them(tmp_path):
    output = planned(tmp_path, "reward={seeds: [1], run: [rm, vrm_lambda0, vrm]}")
    trained = output.split("rule train_reward:")[1].split("output:")[0]
    scored = output.split("rule score:")[1].split("output:")[0]
    for split in ("train", "validation"):
        assert f"results/laptop/features/pairs/{split}" in trained
    assert "results/laptop/features/sets/held_out" in scored


def test_a_trained_backbone_has_no_features_and_a_gguf_file_is_made_into_a_directory(tmp_path):
    found = rules(planned(tmp_path, configs=LAPTOP[:2]))
    assert ("features" in found, found["tokenise"]) == (False, 1)
    (tmp_path / "tiny.gguf").write_text("")
    found = rules(planned(tmp_path, "backbone={path: tiny.gguf}"))
    assert found["backbone"] == 1
    assert "fetch_backbone" not in found
