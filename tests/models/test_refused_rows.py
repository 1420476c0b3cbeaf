"""A conversation that a chat template refuses is a row's fault: left out, counted and named, wherever rows are read."""

import dataclasses
import json

import pandas as pd
import pytest
from families import make_tokenizer, save_backbone, save_reward_model

from vrm.cli import main
from vrm.config import PolicyTraining, SftTraining, Variant
from vrm.evaluation.score_sets import score_sets
from vrm.models.scoring import load_reward_model
from vrm.models.templates import Unrenderable
from vrm.models.text import PolicyEncoder, TextEncoder, prepare_tokenizer
from vrm.records import PreferencePair, prompt_id, read_jsonl, read_pairs, write_jsonl
from vrm.training.pairs import tokenise_pairs, tokenise_split
from vrm.training.policies import PolicyJob, train_sft
from vrm.training.rollout import read_questions

LIMITS = {"max_prompt_length": 64, "max_length": 128}


def pair(number, prompt):
    return PreferencePair(f"row{number}", prompt_id(prompt), prompt, f"good {number}", f"bad {number}")


@pytest.fixture
def pairs(tmp_path):
    """Ten pairs; a Gemma-like template refuses the fourth and the eighth. Directory with both splits."""
    prompts = [[{"role": "user", "content": f"alpha {number}"}] for number in range(10)]
    prompts[3] = [{"role": "system", "content": "be good"}, *prompts[3]]
    prompts[7] = prompts[7] * 2
    rows = [pair(number, prompt) for number, prompt in enumerate(prompts)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "pairs" / f"{split}.jsonl", rows)
    return tmp_path / "pairs"


@pytest.fixture
def tokenizer():
    return prepare_tokenizer(make_tokenizer("gemma"))


def test_pairs_to_train_on(pairs, tokenizer, capsys):
    path = pairs / "train.jsonl"
    found, counts = tokenise_pairs(read_pairs(path), TextEncoder(tokenizer, 64, 128), path, "max_length")
    assert [p.record.pair_id for p in found] == [f"row{i}" for i in range(10) if i not in (3, 7)]
    assert counts["refused_by_template"] == 2
    shown = capsys.readouterr().err
    assert "pair row3: the chat template refuses the turns system, user: no system turn" in shown
    assert "pair row7" in shown
    assert "2 of 10 pairs" in shown


def test_questions_to_a_policy(pairs, tokenizer):
    questions = read_questions(pairs / "train.jsonl", PolicyEncoder(tokenizer, 64, 128))
    assert len(questions) == 8


def test_where_none_is_left_it_is_an_error(pairs, tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    write_jsonl(path, [read_pairs(pairs / "train.jsonl")[3]])
    with pytest.raises(Unrenderable, match="no system turn"):
        tokenise_pairs(read_pairs(path), TextEncoder(tokenizer, 64, 128), path, "max_length")


def test_sft(pairs, tmp_path):
    job = PolicyJob(
        policy=str(save_backbone("gemma", tmp_path / "base")),
        training=PolicyTraining(batch_size=4, evaluation_pairs=4, evaluations=1, checkpoints=0, **LIMITS),
        seed=1,
        pairs=pairs,
        checkpoints=tmp_path / "checkpoints",
        out=tmp_path / "out",
    )
    train_sft(job, SftTraining(epochs=1.0))
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert counts["train"]["refused_by_template"] == 2
    assert counts["train"]["texts"] == 8
    assert "row3" not in set(pd.read_csv(tmp_path / "out" / "held_out.csv").item_id)


@pytest.mark.parametrize("kind", ["scalar", "mixture"])
def test_pairs_to_score(pairs, tmp_path, kind):
    model = load_reward_model(save_reward_model(kind, "gemma", tmp_path / "model"), **LIMITS)
    sets = {"one": pairs / "train.jsonl", "two": pairs / "validation.jsonl"}
    score_sets(model, sets, pairs / "train.jsonl", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table.groupby("evaluation_set").size().to_dict() == {"one": 8, "two": 8}
    assert table[table.evaluation_set == "two"].pair_id.tolist() == [f"row{i}" for i in range(10) if i not in (3, 7)]
    kept = [p for p in read_pairs(pairs / "train.jsonl") if p.pair_id in set(table.pair_id)]
    expected = model.score([p.prompt for p in kept], [p.chosen for p in kept]).mean
    assert table.reward_chosen[:8].to_numpy() == pytest.approx(expected, abs=1e-5)
    refused = [row for _, row in read_jsonl(tmp_path / "refused.jsonl")]
    assert [(row["evaluation_set"], row["pair_id"]) for row in refused] == [
        *(("one", "row3"), ("one", "row7"), ("two", "row3"), ("two", "row7")),
    ]
    assert "no system turn" in refused[0]["reason"]


def test_a_set_that_is_refused_as_a_whole_leaves_the_others(pairs, tmp_path):
    model = load_reward_model(save_reward_model("scalar", "gemma", tmp_path / "model"), **LIMITS)
    write_jsonl(tmp_path / "odd.jsonl", [read_pairs(pairs / "train.jsonl")[row] for row in (3, 7)])
    sets = {"odd": tmp_path / "odd.jsonl", "two": pairs / "validation.jsonl"}
    score_sets(model, sets, pairs / "train.jsonl", tmp_path / "scores.csv")
    assert set(pd.read_csv(tmp_path / "scores.csv").evaluation_set) == {"two"}
    refused = [row for _, row in read_jsonl(tmp_path / "refused.jsonl") if row["evaluation_set"] == "odd"]
    assert [row["pair_id"] for row in refused] == ["row3", "row7"]


@pytest.mark.parametrize(("kind", "left"), [("scalar", 10), ("variational", 9), ("gated", 9)])
def test_a_prompt_whose_end_is_unknown_is_a_rows_fault_where_prompts_are_read(tmp_path, kind, left, monkeypatch):
    rows = [pair(number, [{"role": "user", "content": f"alpha {number}"}]) for number in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    encoder = TextEncoder(prepare_tokenizer(make_tokenizer("gemma")), 64, 128)
    encode = encoder.try_encode

    def without_header(prompts, responses):
        texts, refused = encode(prompts, responses)
        texts[4] = dataclasses.replace(texts[4], prompt_length=0)
        return texts, refused

    monkeypatch.setattr(encoder, "try_encode", without_header)
    variant = Variant(label=kind, kind=kind) if kind != "variational" else Variant(label=kind, supervision_weight=0)
    if kind == "gated":
        monkeypatch.setattr(Variant, "needs_scores", property(lambda _: False))
    found, counts = tokenise_split(tmp_path / "train.jsonl", encoder, variant)
    assert len(found) == left == 10 - counts["refused_by_template"]


def test_a_file_to_score(tmp_path, capsys):
    path = save_reward_model("scalar", "gemma", tmp_path / "model")
    rows = [{"prompt": "alpha", "chosen": "good", "rejected": "bad"}]
    system = [{"role": "system", "content": "be good"}, {"role": "user", "content": "alpha"}]
    rows += [{"prompt": system, "chosen": "good", "rejected": "bad"}]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    arguments = ["score", "--model", str(path), "--data", str(tmp_path / "pairs.jsonl")]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "1 pairs" in shown.out
    assert "1 of 2 pairs" in shown.err
    write_jsonl(tmp_path / "pairs.jsonl", rows[1:])
    assert main(arguments) == 1
    assert "no system turn" in capsys.readouterr().err


def test_another_template_can_be_given(pairs, tmp_path):
    job = PolicyJob(
        policy=str(save_backbone("gemma", tmp_path / "base")),
        training=PolicyTraining(**LIMITS),
        seed=1,
        pairs=pairs,
        checkpoints=tmp_path / "checkpoints",
        out=tmp_path / "out",
        chat_template="{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}",
    )
    encoder = job.encoder(job.tokenizer())
    assert len(read_questions(pairs / "train.jsonl", encoder)) == 10
    assert job.made_from({})["settings"]["chat_template"].startswith("{% for m in messages %}")
