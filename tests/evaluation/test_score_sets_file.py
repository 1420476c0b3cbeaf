"""`vrm score-file`: a trained model and a file of pairs, no workflow."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.cli import main


def test_sections_and_missing_subsets_are_printed(tiny_backbone, tmp_path, capsys):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "model")
    subsets = ["llmbar-natural", "llmbar-natural", "mt-bench-hard", "hep-python"]
    rows = [
        {"prompt": f"p{i}", "chosen": "alpha " * i, "rejected": "beta", "subset": s} for i, s in enumerate(subsets, 1)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["score-file", "--model", tmp_path / "model", "--pairs", tmp_path / "pairs.jsonl"]
    limits = ["--max-prompt-length", "64", "--max-length", "96", "--out", tmp_path / "scores.csv"]
    assert main([str(argument) for argument in [*arguments, *limits]]) == 0

    shown = capsys.readouterr().out
    scores = pd.read_csv(tmp_path / "scores.csv")
    accuracy = (scores.reward_chosen > scores.reward_rejected).groupby(scores.subset).mean()
    # Chat Hard by hand: llmbar-natural weighs 100, mt-bench-hard 37
    chat_hard = (100 * accuracy["llmbar-natural"] + 37 * accuracy["mt-bench-hard"]) / 137
    assert f"Chat Hard    {100 * chat_hard:6.2f}" in shown
    assert "weighted by RewardBench's official subset sizes" in shown
    assert "missing in Reasoning: math-prm" in shown
    assert "alpacaeval-easy" in shown


@pytest.fixture
def arguments(tiny_backbone, tmp_path):
    """The command for a model of its own, which a test may break, and one pair."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "alpha", "rejected": "beta"}) + "\n")
    return ["score-file", "--model", str(tmp_path / "model"), "--pairs", str(tmp_path / "pairs.jsonl")]


def test_a_model_that_diverged_is_named(arguments, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    assert main(arguments) == 1
    assert f"{tmp_path / 'model'}: 1 of 1 pairs have a reward that is not finite" in capsys.readouterr().err


def test_a_forgotten_model_in_the_path_is_one_block_of_words(arguments, tmp_path, capsys):
    arguments[arguments.index("--model") + 1] = str(tmp_path)
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("vrm score-file: ")
    assert f"did you mean {tmp_path / 'model'}?" in shown


def test_limits_without_room_for_a_response_are_named(arguments, capsys):
    assert main([*arguments, "--max-length", "64"]) == 1
    assert "must be below max_length (64)" in capsys.readouterr().err


def test_a_missing_file_is_one_block_of_words(arguments, capsys):
    assert main([*arguments[:-1], "none.jsonl"]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_the_shape_is_named_and_rows_with_several_responses_get_upstreams_numbers(arguments, tmp_path, capsys):
    row = {"prompt": "p", "chosen": ["alpha"], "rejected": ["beta", "gamma", "beta beta"], "subset": "Math"}
    ties = [
        {**row, "id": "ref:1", "subset": "Ties"},
        {**row, "id": "tied:1", "chosen": ["alpha", "mu"], "subset": "Ties", "prompt": "q"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [{**row, "id": "1"}, *ties]))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "RewardBench 2" in shown
    assert {"best_of/Math", "best_of/Ties", "best_of"} <= set(shown.split())


def test_a_file_in_another_encoding_is_named(arguments, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps({"prompt": "p"}).encode("utf-16"))
    assert main(arguments) == 1
    assert "UTF-16" in capsys.readouterr().err
