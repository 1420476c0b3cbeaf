import json

import pytest

from vrm.data.scored import read_scored_prompts
from vrm.records import RecordError, read_jsonl, read_scored

GOOD = (("yes", "4", 5), ("no", 2.5, " 1 "))


def run(config, path, tmp_path, **more):
    counts = read_scored_prompts(config(path, **more), tmp_path / "out")
    return counts, read_scored(tmp_path / "out" / "scored.jsonl"), quarantine(tmp_path)


def quarantine(tmp_path):
    return [row for _, row in read_jsonl(tmp_path / "out" / "quarantine.jsonl")]


def test_ratings_come_as_text_or_numbers_and_keep_the_configured_order(record, write_rows, config, tmp_path, capsys):
    path = write_rows([record("Is it?", *GOOD, true_weights=[0.25, 0.75])])
    counts, (scored,), refused = run(config, path, tmp_path)
    assert [r.scores for r in scored.responses] == [[4.0, 5.0], [2.5, 1.0]]
    assert scored.true_weights == [0.25, 0.75]
    assert scored.prompt == [{"role": "user", "content": "Is it?"}]
    assert refused == []
    assert counts == json.loads((tmp_path / "out" / "counts.json").read_text())
    assert "  prompts with true weights         1\n" in capsys.readouterr().out


def test_conversations_are_prompts_too(record, write_rows, config, tmp_path):
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Hello", "name": "dropped"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And?"},
    ]
    _, (scored,), _ = run(config, write_rows([record(turns, *GOOD)]), tmp_path)
    assert [m["content"] for m in scored.prompt] == ["Hello", "Hi", "And?"]
    assert all(set(m) == {"role", "content"} for m in scored.prompt)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (("x", "N/A", 3), "rating of helpfulness is not a number"),
        (("x", 3, None), "rating of honesty is missing"),
        (("x", 3, ""), "rating of honesty is missing"),
        (("x", 3, float("nan")), "rating of honesty is not a number"),
        (("x", 3, True), "rating of honesty is not a number"),
        (("x", 3, 10**400), "rating of honesty is not a number"),
        ((" \n", 3, 3), "response is empty"),
        ((None, 3, 3), "response is missing"),
        (("\ud800", 3, 3), "response is not valid Unicode"),
    ],
)
def test_a_response_that_cannot_be_used_is_set_aside(record, write_rows, config, tmp_path, response, reason):
    path = write_rows([record("Q", *GOOD), record("R", *GOOD, response)])
    counts, scored, refused = run(config, path, tmp_path)
    assert [len(s.responses) for s in scored] == [2, 2]
    assert counts["responses_set_aside_because"] == {reason: 1}
    assert counts["rows_quarantined"] == 0
    assert [(entry["row"], entry["reason"]) for entry in refused] == [(2, reason)]


def test_rows_that_cannot_be_used_are_quarantined_with_row_and_reason(record, write_rows, config, tmp_path):
    bad = [
        record("Q", GOOD[0], ("x", "N/A", 3)),
        record("", *GOOD),
        record([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], *GOOD),
        record([{"role": "judge", "content": "a"}], *GOOD),
        record([{"role": "system", "content": ""}], *GOOD),
        {"instruction": "Q", "completions": "text"},
        record("Q", *GOOD, true_weights=[1.0]),
        "{broken",
        record("Q"),
    ]
    counts, scored, refused = run(config, write_rows([record("fine", *GOOD), *bad]), tmp_path)
    assert len(scored) == 1
    assert counts["rows"] == 10
    assert counts["rows_quarantined"] == 9
    assert [(entry["row"], entry["reason"]) for entry in refused] == [
        (2, "fewer than 2 usable responses, mostly: rating of helpfulness is not a number"),
        (3, "instruction is empty"),
        (4, "instruction does not end with a message of the user"),
        (5, "instruction has a message whose role is none of system, user, assistant"),
        (6, "instruction is empty"),
        (7, "completions is not a list"),
        (8, "true_weights is not a list of 2 numbers, one an aspect"),
        (9, "not valid JSON"),
        (10, "fewer than 2 usable responses"),
    ]
    assert refused[0]["record"] == bad[0]


def test_equal_prompts_are_merged_and_equal_responses_dropped(record, write_rows, config, tmp_path):
    rows = [record("What now?", *GOOD), record("What now?", GOOD[0], ("new", 1, 1)), record("Other", *GOOD)]
    counts, scored, _ = run(config, write_rows(rows), tmp_path)
    assert [[r.text for r in s.responses] for s in scored] == [["yes", "no", "new"], ["yes", "no"]]
    assert counts["rows_merged_into_an_equal_prompt"] == 1
    assert counts["responses_repeated_and_dropped"] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("What now?", "  WHAT\nnow?"), ("2\u2075", "25"), ("if x:\n    y", "if x:\n        y"), ("\ufb01", "fi")],
)
def test_prompts_that_are_nearly_equal_share_a_split_and_nothing_else(record, write_rows, config, tmp_path, one, other):
    rows = [record(one, *GOOD), record(other, ("thirty-two", 5, 5), ("no", 1, 1))]
    _, scored, _ = run(config, write_rows(rows), tmp_path)
    assert [s.prompt[0]["content"] for s in scored] == [one, other]
    assert [[r.text for r in s.responses] for s in scored] == [["yes", "no"], ["thirty-two", "no"]]
    assert scored[0].prompt_id == scored[1].prompt_id


def test_overall_score_is_needed_only_where_the_preference_comes_from_it(completion, write_rows, config, tmp_path):
    responses = [completion("a", 1, 1, overall="7.5"), completion("b", 1, 1, overall="N/A"), completion("c", 1, 1)]
    path = write_rows([{"instruction": "Q", "completions": responses}])
    counts, (scored,), _ = run(config, path, tmp_path)
    assert [r.overall for r in scored.responses] == [7.5, None, None]
    assert counts["responses_without_overall_score"] == 2
    with pytest.raises(RecordError, match="fewer than 2 usable responses, mostly: overall_score"):
        run(config, path, tmp_path, preference_from="overall_score")


def test_parquet_with_structs_reads_like_json(record, config, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [record("Q", *GOOD), record("R", *GOOD)]
    for row in rows:  # Parquet columns have one type
        for completion in row["completions"]:
            for annotation in completion["annotations"].values():
                annotation["Rating"] = str(annotation["Rating"])
    del rows[1]["completions"][0]["annotations"]["honesty"]  # read back as None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    _, scored, refused = run(config, tmp_path / "x.parquet", tmp_path)
    assert len(scored) == 1
    assert refused[0]["reason"] == "fewer than 2 usable responses, mostly: rating of honesty is missing"


def test_no_usable_row_names_the_aspects_found(record, write_rows, config, tmp_path):
    path = write_rows([record("Q", *GOOD)] * 3)
    with pytest.raises(RecordError) as caught:
        run(config, path, tmp_path, aspects=["honesty", "clarity"])
    assert "none of its 3 rows" in str(caught.value)
    assert "3 x fewer than 2 usable responses, mostly: rating of clarity is missing" in str(caught.value)
    assert "aspects found in the file: helpfulness, honesty; configured but absent: clarity; set data.aspects" in str(
        caught.value
    )
    assert len(quarantine(tmp_path)) == 3
    assert not (tmp_path / "out" / "scored.jsonl").exists()


def test_no_usable_row_names_the_columns_or_the_range(record, write_rows, config, tmp_path):
    with pytest.raises(RecordError, match=r"expected columns: instruction, completions .* found: prompt, chosen"):
        run(config, write_rows([{"prompt": "Q", "chosen": "a"}]), tmp_path)
    with pytest.raises(RecordError, match=r"check data\.preference_from"):
        run(config, write_rows([record("Q", *GOOD[:1])]), tmp_path)
    with pytest.raises(RecordError, match="holds no rows"):
        run(config, write_rows([]), tmp_path)
