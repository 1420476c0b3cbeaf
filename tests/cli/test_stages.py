"""Stages from their command lines: an outside reward model as a row of Table 2, in best-of-n, as PPO's reward."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from example_run import make_raw
from ppo_settings import PPO, SHORT
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm import RewardModel
from vrm.cli import main
from vrm.models.text import TextEncoder
from vrm.records import read_jsonl, read_pairs


@pytest.fixture(scope="module")
def classifiers(tiny_backbone, tmp_path_factory):
    """Directories of two stock classifiers with random weights: one that stands for a training's, one for others'."""
    made = {}
    for seed, name in enumerate(("rm", "theirs")):
        torch.manual_seed(seed)
        made[name] = tmp_path_factory.mktemp(name)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1)
        torch.nn.init.normal_(model.score.weight, std=1.0)
        model.save_pretrained(made[name])
        AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(made[name])
    return made


@pytest.fixture
def config(classifiers, tiny_backbone, tmp_path):
    """A configuration file with the outside model as a row, and as PPO's reward."""
    entry = {"label": "Theirs", "path": str(classifiers["theirs"]), "chat_template": TEMPLATE}
    raw = make_raw({"rm": {"label": "RM", "kind": "scalar"}}, seeds=[1], sets=("uf_c",), policy={})
    raw["reward"] |= {"outside": {"theirs": entry | {"max_length": 96}}, "run_outside": ["theirs"]}
    raw["reward"]["training"] = {"max_prompt_length": 64, "max_length": 96}
    raw["policy"] = {
        "bases": {
            "tiny": {"label": "Tiny", "path": str(tiny_backbone), "sft": False},
            "marked": {"label": "Marked", "path": str(tiny_backbone), "sft": False, "chat_template": TEMPLATE},
        },
        "run_bases": ["tiny"],
        "methods": {
            "ppo": {"label": "PPO", "method": "ppo", "reward": "theirs"},
            "dpo": {"label": "DPO", "method": "dpo"},
        },
        "run": ["ppo"],
        "training": {"max_prompt_length": 64, "max_length": 96},
        "ppo": PPO.model_copy(update={"updates": 2, "checkpoints": 0}).model_dump(),
        "generation": SHORT.model_dump(),
        "best_of_n": {"samples": 2, "prompts": 2},
    }
    raw["report"] |= {"figures": [], "tables": ["table2"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
"""Another one than the tokenizer brings."""


def rewards(classifiers, prompts, responses):
    """What the outside model says by its own class."""
    model = RewardModel.from_pretrained(classifiers["theirs"], chat_template=TEMPLATE, max_length=96)
    return model.score(prompts, responses).mean


def run(*words):
    assert main([str(word) for word in words]) == 0


def test_an_outside_model_is_a_row_of_table_2(config, classifiers, toy_pairs, tmp_path):
    results, sets = tmp_path / "results", tmp_path / "uf_c.jsonl"
    sets.write_bytes((toy_pairs / "validation.jsonl").read_bytes())
    common = ("--config", config, "--sets", sets, "--pairs", toy_pairs)
    theirs = results / "outside" / "theirs" / "scores.csv"
    ours = results / "reward" / "rm" / "seed1" / "scores.csv"
    run("score-reward", *common, "--outside", "theirs", "--out", theirs)
    run("score-reward", *common, "--model", classifiers["rm"], "--seed", 1, "--out", ours)
    pairs = list(read_pairs(sets))
    expected = rewards(classifiers, [pair.prompt for pair in pairs], [pair.chosen for pair in pairs])
    np.testing.assert_allclose(pd.read_csv(theirs).reward_chosen, expected, atol=1e-5)
    run("table", "--config", config, "--name", "table2", "--results", results, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "table2.csv").set_index("variant")
    assert table.index.tolist() == ["rm", "theirs", "length alone"]
    row = table.loc["theirs"]
    assert (row.label, row.group, row.n_seeds) == ("Theirs (outside model)", "outside model", 0)
    assert row.low < row.estimate < row.high
    scores = pd.read_csv(theirs)
    assert row.estimate == pytest.approx(100 * (scores.reward_chosen > scores.reward_rejected).mean(), rel=1e-6)
    record = json.loads((theirs.parent / "scores.provenance.json").read_text())["outside"]
    assert record["theirs"]["files"].keys() >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_sets_that_are_tokenised_once_have_the_same_scores(
    config, classifiers, tiny_backbone, toy_pairs, tmp_path, monkeypatch
):
    sets, texts = tmp_path / "uf_c.jsonl", tmp_path / "texts.parquet"
    sets.write_bytes((toy_pairs / "train.jsonl").read_bytes())
    common = ("--config", config, "--sets", sets, "--pairs", toy_pairs)
    score = ("score-reward", *common, "--model", classifiers["rm"], "--out")
    run(*score, tmp_path / "once" / "scores.csv")
    run("tokenise-sets", *common, "--backbone", tiny_backbone, "--out", texts)
    monkeypatch.setattr(TextEncoder, "try_encode", None)  # nothing is tokenised anew
    run(*score, tmp_path / "again" / "scores.csv", "--texts", texts)
    for name in ("scores.csv", "validation.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


@pytest.mark.parametrize("base", ["tiny", "marked"])  # the latter with another template than its tokenizer's
def test_a_reference_that_is_asked_once_gives_the_same_policy_and_scores(
    base, config, tiny_backbone, toy_pairs, tmp_path, monkeypatch
):
    common, once = ("--config", config, "--base", base), tmp_path / "once"
    ask = ("reference-log-probs", *common, "--policy", tiny_backbone, "--out")
    run(*ask, once / "pairs.parquet", "--pairs", toy_pairs)
    run(*ask, once / "sets.parquet", "--sets", toy_pairs / "validation.jsonl")
    train = ("train-preference", *common, "--method", "dpo", "--policy", tiny_backbone, "--pairs", toy_pairs)
    score = ("score-policy", *common, "--method", "dpo", "--reference", tiny_backbone, "--pairs", toy_pairs)
    found = []
    for number, known in enumerate([False, True]):
        out = tmp_path / str(number)
        if known:
            monkeypatch.setattr(TextEncoder, "try_encode", None)  # nothing is tokenised anew
        asked = ("--reference-log-probs", once / "pairs.parquet") if known else ()
        run(*train, *asked, "--checkpoints", tmp_path / "checkpoints", "--out", out)
        asked = ("--reference-log-probs", once / "sets.parquet") if known else ()
        run(*score, *asked, "--policy", out / "model", "--sets", toy_pairs / "validation.jsonl", "--out", out / "s.csv")
        found.append(pd.read_csv(out / "s.csv"))
    columns = ["reward_chosen", "reward_rejected"]
    assert found[0].drop(columns=columns).equals(found[1].drop(columns=columns))
    np.testing.assert_allclose(found[0][columns], found[1][columns], atol=1e-3)
    assert (found[0].reward_chosen > found[0].reward_rejected).mean() > 0.9


def test_an_outside_model_pays_ppo_and_best_of_n(config, classifiers, tiny_backbone, toy_pairs, tmp_path):
    common = ("--config", config, "--base", "tiny", "--policy", tiny_backbone, "--pairs", toy_pairs)
    out, checkpoints = tmp_path / "ppo", tmp_path / "checkpoints"
    run("train-ppo", *common, "--method", "ppo", "--checkpoints", checkpoints, "--out", out)
    run("best-of-n", *common, "--models", "theirs", f"rm={classifiers['rm']}", "--out", tmp_path / "samples.jsonl")
    for rows, key in (
        (read_jsonl(out / "samples.jsonl"), "reward"),
        (read_jsonl(tmp_path / "samples.jsonl"), "rewards"),
    ):
        rows = [row for _, row in rows]
        found = [row[key]["theirs"] if key == "rewards" else row[key] for row in rows]
        expected = rewards(classifiers, [row["prompt"] for row in rows], [row["response"] for row in rows])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score-reward --sets x --pairs x --out x", "give --model"),
        ("score-reward --sets x --pairs x --out x --outside their", "known are: theirs"),
        ("score-reward --sets x --pairs x --out x --outside theirs --texts x", "--texts"),
        (
            "train-ppo --base tiny --method ppo --policy x --pairs x --checkpoints x --out x --model x",
            "leave --model out",
        ),
        ("reference-log-probs --base tiny --policy x --out x", "give --pairs"),
        ("reference-log-probs --base tiny --policy x --out x --pairs x --sets x", "give --pairs"),
        ("best-of-n --base tiny --policy x --pairs x --out x --models theirs=x", "--models theirs=x"),
        ("best-of-n --base tiny --policy x --pairs x --out x --models rm", "--models rm"),
    ],
)
def test_what_is_named_wrongly_is_said_before_anything_loads(words, message, config, capsys):
    assert main([*words.split(), "--config", str(config)]) == 1
    assert message in capsys.readouterr().err
