import json

import pytest

from vrm.config import EvaluationSet
from vrm.data.preference_sets import read_preference_set
from vrm.records import PreferencePair, RecordError, prompt_id, read_jsonl, read_pairs, write_jsonl

ASPECTS = ["a", "b"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def read(write_rows, tmp_path):
    """Reads rows as the evaluation set `s`, with training on `trained_on`."""

    def run(rows, trained_on=(), aspects=ASPECTS, **more):
        training = tmp_path / "train.jsonl"
        pairs = [PreferencePair(f"t{i}", prompt_id([user(t)]), [user(t)], "x", "y") for i, t in enumerate(trained_on)]
        write_jsonl(training, pairs)
        source = EvaluationSet(path=str(write_rows(rows)), label="Set", **more)
        counts = read_preference_set("s", source, training, tmp_path / "sets", aspects)
        assert counts == json.loads((tmp_path / "sets" / "s.json").read_text())
        refused = [(entry["row"], entry["reason"]) for _, entry in read_jsonl(tmp_path / "sets" / "s.quarantine.jsonl")]
        return counts, read_pairs(tmp_path / "sets" / "s.jsonl"), refused

    return run


def test_reward_bench_columns(read):
    row = {"id": 7, "prompt": "Q", "chosen": "yes", "rejected": "no", "subset": "hep-go", "chosen_model": "m"}
    counts, pairs, _ = read([row, {**row, "id": 8, "subset": "math-prm"}], format="reward_bench")
    assert pairs[0] == PreferencePair("7", prompt_id([user("Q")]), [user("Q")], "yes", "no", "hep-go")
    assert counts["subsets"] == {"hep-go": 1, "math-prm": 1}


def test_reward_bench_format_needs_a_subset(read):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    _, pairs, refused = read([{**row, "subset": "hep-go"}, row], format="reward_bench")
    assert len(pairs) == 1
    assert refused == [(2, "subset is missing")]
    assert read([row])[1][0].subset == ""


def test_ids_are_unique_whatever_the_file_says(read):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    _, pairs, _ = read([{**row, "id": 1}, {**row, "id": 1}, row, {**row, "id": None}, {**row, "id": "row3"}])
    assert [p.pair_id for p in pairs] == ["1", "1-row2", "row3", "row4", "row3-row5"]


def test_conversations_share_their_beginning_with_the_prompt(read):
    history = [user("Q"), assistant("A"), user("R")]
    shapes = [
        {"chosen": [*history, assistant("yes")], "rejected": [*history, assistant("no")]},
        {"prompt": "Q", "chosen": [*history, assistant("yes")], "rejected": [*history, assistant("no")]},
        {"prompt": history, "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"prompt": history, "chosen": "yes", "rejected": "no"},
    ]
    _, pairs, _ = read(shapes)
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(history, "yes", "no")] * 4


def test_own_pairs_are_read_back(read):
    prompt = [user("Q")]
    pair = PreferencePair(
        "own", prompt_id(prompt), prompt, "yes", "no", "sub", [1.0, 2.0], [2.0, 1.0], true_weights=[0.1, 0.9]
    )
    normalised = {"chosen_normalised": [0.0, 0.0], "target": [0.5, 0.5]}
    row = {k: v for k, v in vars(pair).items() if v is not None}
    assert read([{**row, **normalised}])[1] == [pair]


def test_without_aspects_scores_are_not_read(read):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", "chosen_scores": [1, 2, 3], "true_weights": [1]}
    _, (pair,), _ = read([row], aspects=[])
    assert pair.chosen_scores is None
    assert pair.true_weights is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": None}, "prompt is missing"),
        ({"chosen": ""}, "chosen is empty"),
        ({"rejected": 3}, "rejected is not text"),
        ({"chosen": [user("Q"), assistant("a")]}, "one of chosen and rejected is a conversation, the other is not"),
        (
            {"chosen": [user("Q"), assistant("a")], "rejected": [user("R"), assistant("b")]},
            "chosen and rejected differ before their last message",
        ),
        ({"chosen": [user("Q")], "rejected": [user("Q")]}, "chosen does not end with a message of the assistant"),
        ({"chosen": [], "rejected": []}, "chosen is empty"),
        ({"chosen_scores": [1, 2, 3]}, "chosen_scores is not a list of 2 numbers, one an aspect"),
        ({"true_weights": [0.5, "?"]}, "true_weights is not a number"),
        ({"subset": "\ud800"}, "subset is not valid Unicode"),
    ],
)
def test_rows_that_cannot_be_scored_are_quarantined(read, fault, reason):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    counts, pairs, refused = read([row, "{broken", {**row, **fault}])
    assert len(pairs) == 1
    assert refused == [(2, "not valid JSON"), (3, reason)]
    assert counts["rows"] == 3
    assert counts["rows_quarantined"] == 2


def test_identical_texts_stay_and_are_counted(read):
    counts, pairs, _ = read([{"prompt": "Q", "chosen": "same", "rejected": "same"}])
    assert len(pairs) == 1
    assert counts["pairs_with_identical_texts"] == 1


def test_leakage_is_counted_by_prompt_and_by_pair(read, capsys):
    texts = ["  is IT\ntrue?", "Is it true?", "Another", "Fresh"]
    rows = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in texts]
    counts, _, _ = read(rows, trained_on=["Is it true?", "another", "unused"])
    assert (counts["pairs"], counts["prompts"], counts["training_prompts"]) == (4, 3, 3)
    assert (counts["leaked_prompts"], counts["leaked_pairs"]) == (2, 3)
    assert "leaked pairs                3" in capsys.readouterr().out


def test_without_training_there_is_no_audit(write_rows, tmp_path):
    source = EvaluationSet(path=str(write_rows([{"prompt": "Q", "chosen": "a", "rejected": "b"}])), label="Set")
    counts = read_preference_set("s", source, None, tmp_path / "sets", ASPECTS)
    assert "leaked_pairs" not in counts


def test_no_usable_row_says_why(read):
    with pytest.raises(RecordError, match="none of its 1 rows can be used:\n  1 x prompt is missing\nexpected columns"):
        read([{"answer": "Q"}])
