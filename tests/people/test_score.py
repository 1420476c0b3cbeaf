"""`vrm score`: a trained model over files and pipes."""

import gzip
import io
import json
import shutil
import sys
from codecs import BOM_UTF8

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.cli import main
from vrm.models.scoring import load_reward_model
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.people import score as module
from vrm.watch import Watch


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
    arguments = ["score", "--model", tmp_path / "model", "--data", tmp_path / "pairs.jsonl"]
    limits = ["--max-prompt-length", "64", "--max-length", "96", "--out", tmp_path / "scores.csv"]
    assert main([str(argument) for argument in [*arguments, *limits]]) == 0

    shown = capsys.readouterr().out
    scores = pd.read_csv(tmp_path / "scores.csv")
    accuracy = (scores.reward_chosen > scores.reward_rejected).groupby(scores.subset).mean()
    # Chat Hard by hand: llmbar-natural weighs 100, mt-bench-hard 37
    chat_hard = (100 * accuracy["llmbar-natural"] + 37 * accuracy["mt-bench-hard"]) / 137
    assert f"Chat Hard    {100 * chat_hard:6.2f}" in shown
    assert "weighted by the official subset sizes" in shown
    assert "missing in Reasoning: math-prm" in shown
    assert "alpacaeval-easy" in shown


@pytest.fixture
def arguments(tiny_backbone, tmp_path):
    """The command for a model of its own, which a test may break, and one pair."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "alpha", "rejected": "beta"}) + "\n")
    return ["score", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "pairs.jsonl")]


def test_a_model_that_diverged_is_named(arguments, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    assert main(arguments) == 1
    assert "a reward is not finite" in capsys.readouterr().err


def test_a_forgotten_model_in_the_path_is_one_block_of_words(arguments, tmp_path, capsys):
    arguments[arguments.index("--model") + 1] = str(tmp_path)
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert "vrm score: " in shown
    assert f"did you mean {tmp_path / 'model'}?" in shown


def test_limits_without_room_for_a_response_are_named(arguments, capsys):
    assert main([*arguments, "--max-prompt-length", "64", "--max-length", "64"]) == 1
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


@pytest.fixture(scope="module")
def vrm(tiny_backbone, tmp_path_factory):
    """Directory of an untrained VRM."""
    torch.manual_seed(0)
    directory, tokenizer = tmp_path_factory.mktemp("vrm"), AutoTokenizer.from_pretrained(tiny_backbone)
    VrmForSequenceClassification.from_backbone(
        str(tiny_backbone), aspects=["clarity", "candour"], generation_prompt_ids=generation_prompt_ids(tokenizer)
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


SEVERAL = [{"prompt": f"alpha {i}", "responses": ["mu", "nu " * (i % 3 + 1), "beta"][: 2 + i % 2]} for i in range(7)]
LIMITS = ["--max-prompt-length", "48", "--max-length", "96"]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(vrm, data, *more):
    return main(["score", "--model", str(vrm), "--data", str(data), *LIMITS, *map(str, more)])


def test_each_response_has_what_the_model_knows_of_it(vrm, tmp_path):
    data = lines(tmp_path / "prompts.jsonl", SEVERAL)
    assert run(vrm, data, "--out", tmp_path / "out.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["response"]) for row in rows] == [
        (i, k) for i, entry in enumerate(SEVERAL, 1) for k in range(len(entry["responses"]))
    ]
    model = load_reward_model(vrm, max_prompt_length=48, max_length=96)
    flat = [(entry["prompt"], text) for entry in SEVERAL for text in entry["responses"]]
    output = model.score(*map(list, zip(*flat, strict=True)))
    assert [row["reward"] for row in rows] == pytest.approx(output.mean, abs=1e-5)
    assert all(row["std"] > 0 for row in rows)
    parts = [sum(row[f"weight_{a}"] * row[f"score_{a}"] for a in ("clarity", "candour")) for row in rows]
    assert parts == pytest.approx([row["rated"] for row in rows], abs=1e-4)
    best = {row["row"]: row["reward"] for row in rows if row["rank"] == 1}
    assert all(best[row["row"]] >= row["reward"] for row in rows)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_formats_hold_the_same(ending, vrm, tmp_path):
    frame = pd.DataFrame([{"prompt": f"alpha {i}", "response": "mu nu"} for i in range(5)])
    {"csv": frame.to_csv, "parquet": frame.to_parquet, "jsonl": frame.to_json}[ending](
        tmp_path / f"in.{ending}",
        **({"index": False} if ending != "jsonl" else {"orient": "records", "lines": True}),
    )
    out = tmp_path / f"out.{ending}"
    assert run(vrm, tmp_path / f"in.{ending}", "--out", out) == 0
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda path: pd.read_json(path, lines=True)}
    table = read[ending](out)
    assert len(table) == 5
    output = load_reward_model(vrm, max_prompt_length=48, max_length=96).score(frame.prompt.tolist(), ["mu nu"] * 5)
    np.testing.assert_allclose(table.reward, output.mean, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {f"in.{ending}", out.name}


def test_the_best_of_each_prompt(vrm, tmp_path):
    data = lines(tmp_path / "prompts.jsonl", SEVERAL)
    assert run(vrm, data, "--pick", "--out", tmp_path / "best.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert len(rows) == len(SEVERAL)
    assert all(row["response"] == entry["responses"][row["picked"]] for row, entry in zip(rows, SEVERAL, strict=True))
    assert all(row["margin"] >= 0 for row in rows)


class Pipe:
    """Standard input that is no file."""

    def __init__(self, content):
        self.buffer = io.BufferedReader(io.BytesIO(content))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_through_a_pipe(form, vrm, monkeypatch, capsys):
    rows = pd.DataFrame([{"prompt": "alpha", "chosen": "mu", "rejected": "nu"}] * 3)
    text = rows.to_csv(index=False) if form == "csv" else rows.to_json(orient="records", lines=True)
    monkeypatch.setattr(sys, "stdin", Pipe(text.encode()))
    assert run(vrm, "-", "--out", "-") == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["truncated"] for line in shown.out.splitlines()] == [0, 0, 0]  # rows and nothing else
    assert "3 pairs" in shown.err


def _kill_at_the_third_piece(monkeypatch):
    """Pieces of two rows from here on; returns what scores them unharmed."""
    monkeypatch.setattr(module, "PIECE", 2)
    real, calls = module._responses, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_responses", killed)
    return real


def test_a_killed_job_goes_on_and_gives_the_same(vrm, tmp_path, monkeypatch, capsys):
    data = lines(tmp_path / "prompts.jsonl", SEVERAL)
    assert run(vrm, data, "--out", tmp_path / "whole.csv") == 0
    real = _kill_at_the_third_piece(monkeypatch)
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(vrm, data, "--out", out)
    assert not out.exists()
    with open(tmp_path / "out.csv.partial.jsonl", "a") as file:
        file.write('{"half a row')
    assert run(vrm, data, "--out", out, "--resume", "--samples", "3") == 1
    assert "other samples" in capsys.readouterr().err
    monkeypatch.setattr(module, "_responses", real)
    seen, several = [], module._several
    monkeypatch.setattr(module, "_several", lambda piece, refused: seen.extend(piece) or several(piece, refused))
    assert run(vrm, data, "--out", out, "--resume") == 0
    assert [number for number, _ in seen] == [5, 6, 7]  # four were done
    pd.testing.assert_frame_equal(pd.read_csv(out), pd.read_csv(tmp_path / "whole.csv"), rtol=1e-4)


def test_what_is_continued_is_of_the_same_model_and_counts_all_that_was_left_out(vrm, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": "alpha", "responses": [""]}, "no object", *SEVERAL, {"prompt": "beta", "responses": [""]}]
    data, model, out = lines(tmp_path / "prompts.jsonl", rows), tmp_path / "model", tmp_path / "out.jsonl"
    shutil.copytree(vrm, model)
    real = _kill_at_the_third_piece(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, "--out", out)
    monkeypatch.setattr(module, "_responses", real)
    card, was = model / "config.json", (model / "config.json").read_text()
    card.write_text(was + "\n")
    assert run(model, data, "--out", out, "--resume") == 1
    assert "other model's content" in capsys.readouterr().err
    card.write_text(was)
    assert run(model, data, "--out", out, "--resume") == 0
    left_out = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert [line.split(", row ")[1].split(":")[0] for line in left_out] == ["1", "2", str(len(rows))]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pipe_may_begin_with_a_bom_or_be_packed(compressed, vrm, monkeypatch, capsys):
    text = (json.dumps({"prompt": "alpha", "chosen": "mu", "rejected": "nu"}) + "\n") * 2
    packed = gzip.compress(text.encode()) if compressed else BOM_UTF8 + text.encode()
    monkeypatch.setattr(sys, "stdin", Pipe(packed))
    assert run(vrm, "-", "--out", "-") == 0
    assert "2 pairs" in capsys.readouterr().err


def test_what_is_read_is_never_written_over(vrm, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = lines(tmp_path / "data" / "pairs.jsonl", [{"prompt": "alpha", "chosen": "mu", "rejected": "nu"}])
    before = data.read_text()
    assert run(vrm, data, "--out", data) == 1
    assert "is what --data names" in capsys.readouterr().err
    assert run(vrm, data.parent, "--out", data.parent / "scores.jsonl") == 1
    assert "lies in the directory" in capsys.readouterr().err
    assert main(["explain", "--model", str(vrm), "--data", str(data), "--html", str(data)]) == 1
    assert main(["export", "--model", str(vrm), "--out", str(vrm)]) == 1
    assert data.read_text() == before
    assert [path.name for path in data.parent.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--samples", "-1", "0 or more"), ("--seed", "-1", "0 or more"), ("--max-length", "0", "1 or more")],
)
def test_numbers_that_can_not_be_are_named(option, value, message, vrm, tmp_path, capsys):
    data = lines(tmp_path / "pairs.jsonl", [{"prompt": "alpha", "chosen": "mu", "rejected": "nu"}])
    assert run(vrm, data, option, value) == 1
    assert f"{option} {value}: must be {message}" in capsys.readouterr().err


def test_long_texts_come_in_smaller_pieces_and_a_shared_prompt_counts_once():
    def sizes(rows):
        return [len(piece) for piece in module._pieces(enumerate(rows, 1))]

    half = module.PIECE_CHARACTERS // 2
    assert sizes([{"prompt": f"{i}" * half, "responses": ["a", "b"]} for i in range(5)]) == [2, 2, 1]
    assert sizes([{"prompt": "p" * half, "responses": [f"{i}"]} for i in range(5)]) == [5]
    assert sizes([{"prompt": "p", "response": "r"}] * (module.PIECE + 1)) == [module.PIECE, 1]


@pytest.mark.parametrize("kind", ["pairs", "responses"])
def test_progress_ends_where_it_said_that_it_would(kind, vrm, tmp_path, monkeypatch):
    """Rated responses are as many rows as there are, and another number of pairs."""
    rows = [
        {"prompt": f"alpha {i // 3}", "response": f"mu {i}", "clarity": 1 + i % 3, "candour": 1 + (i + 1) % 4}
        for i in range(9)
    ]
    seen = []
    monkeypatch.setattr(module, "Watch", lambda *given: seen.append(Watch(*given, quiet=True)) or seen[-1])
    assert run(vrm, lines(tmp_path / "rated.jsonl", rows), "--rows", kind, "--shape", "rated_responses") == 0
    assert seen[0].done == seen[0].total > 0
    assert (seen[0].total == len(rows)) == (kind == "responses")


def test_rows_that_can_not_be_used_are_named(vrm, tmp_path, capsys):
    data = lines(tmp_path / "prompts.jsonl", [*SEVERAL, {"prompt": "alpha", "responses": [""]}])
    assert run(vrm, data) == 0
    shown = capsys.readouterr()
    assert "row 8" in shown.err
    assert f"of {len(SEVERAL)} rows" in shown.out


def test_memory_does_not_grow_with_the_input(vrm, monkeypatch):
    """Rows are taken one piece at a time: what lies ahead is not read."""
    monkeypatch.setattr(module, "PIECE", 2)
    taken = []

    def endless():
        for number in range(1, 10**9):
            taken.append(number)
            yield number, SEVERAL[0]

    model = load_reward_model(vrm, max_prompt_length=48, max_length=96)
    pieces = module._scored(model, endless(), None, "responses", False, module.Quarantine("x"))
    next(pieces)
    assert len(taken) == 2
