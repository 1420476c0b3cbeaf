"""Records survive their files, and prompts that are equal are one prompt."""

import datetime
import json

import pytest

from vrm.records import (
    PreferencePair,
    Quarantine,
    RecordError,
    ScoredPrompt,
    ScoredResponse,
    normalise_text,
    prompt_id,
    read_jsonl,
    read_pairs,
    read_scored,
    write_json,
    write_jsonl,
    write_quarantine,
    write_whole,
)

PROMPT = [{"role": "user", "content": "Wie geht's?\u2028Ünïcode"}]


def test_half_a_surrogate_pair_survives(tmp_path):
    """JSON may hold it, UTF-8 may not."""
    odd = {"\ud800": ["ü\udfff", "\\ud800"]}
    write_json(tmp_path / "odd.json", odd)
    write_jsonl(tmp_path / "odd.jsonl", [odd])
    assert json.loads((tmp_path / "odd.json").read_text(encoding="utf-8")) == odd
    assert list(read_jsonl(tmp_path / "odd.jsonl")) == [(1, odd)]


def test_records_survive_their_files(tmp_path):
    pairs = [
        PreferencePair("a", "p", PROMPT, "x\ny", "z", target=[0.5, 0.5]),
        PreferencePair("b", "q", PROMPT, "", "y"),
    ]
    scored = [ScoredPrompt("p", PROMPT, [ScoredResponse("m", "t", [1.0, 2.5], 7.0), ScoredResponse("", "u", [3.0, 1])])]
    assert write_jsonl(tmp_path / "pairs.jsonl", pairs) == 2
    write_jsonl(tmp_path / "scored.jsonl", scored)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    assert read_scored(tmp_path / "scored.jsonl") == scored


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2: not valid JSON"),
        ("[1]", "row 2: expected a JSON object, found list"),
        ('{"pair_id": "a"}', "row 2: not a preference pair"),
        ('{"pair_id": "a", "prompt_id": "b", "prompt": [], "chosen": "", "rejected": "", "x": 1}', "row 2"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    write_jsonl(tmp_path / "pairs.jsonl", [PreferencePair("a", "p", PROMPT, "x", "y")])
    with open(tmp_path / "pairs.jsonl", "a") as handle:
        handle.write(line + "\n")
    with pytest.raises(RecordError, match=message) as error:
        read_pairs(tmp_path / "pairs.jsonl")
    assert "pairs.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_id": "p", "prompt": PROMPT}, "'responses'"),
        ({"prompt_id": "p", "responses": []}, "'prompt'"),
        ({"prompt_id": "p", "prompt": PROMPT, "responses": [{"model": "", "text": "t"}]}, "'scores'"),
        ({"prompt_id": "p", "prompt": PROMPT, "responses": ["t"]}, ""),
    ],
)
def test_a_bad_scored_prompt_is_named(tmp_path, row, message):
    write_jsonl(tmp_path / "scored.jsonl", [row])
    with pytest.raises(RecordError, match=rf"scored\.jsonl, row 1: not a scored prompt \(.*{message}"):
        read_scored(tmp_path / "scored.jsonl")


def test_blank_lines_are_passed_over_but_counted_in_row_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [number for number, _ in read_jsonl(tmp_path / "a.jsonl")] == [2, 4]


@pytest.mark.parametrize("other", ["what is  IT ?", "  What is it ?\n", "Ｗｈａｔ is it ?"])
def test_prompts_equal_after_normalisation_share_an_id(other):
    first = prompt_id([{"role": "user", "content": "What is it ?"}])
    assert prompt_id([{"role": "user", "content": other}]) == first
    assert prompt_id([{"role": "system", "content": other}]) != first
    assert normalise_text(normalise_text(other)) == normalise_text(other)


def test_turns_are_not_run_together():
    one = [{"role": "user", "content": "a b"}]
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert prompt_id(one) != prompt_id(two)


def test_quarantine_counts_by_reason():
    quarantine = Quarantine("file.jsonl")
    for row, reason in [(1, "no prompt"), (4, "no prompt"), (9, "bad rating")]:
        quarantine.add(row, reason, {"row": row})
    assert quarantine.counts() == {"no prompt": 2, "bad rating": 1}
    assert quarantine.rows[1] == {"source": "file.jsonl", "row": 4, "reason": "no prompt", "record": {"row": 4}}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_whole(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}


def test_quarantine_holds_whatever_a_row_held(tmp_path):
    refused, set_aside = Quarantine("x"), Quarantine("x")
    refused.add(2, "late", {"when": datetime.date(2026, 1, 1), "text": "\ud800"})
    set_aside.add(1, "early", {})
    write_quarantine(tmp_path / "quarantine.jsonl", refused, set_aside)
    rows = [row for _, row in read_jsonl(tmp_path / "quarantine.jsonl")]
    assert [row["row"] for row in rows] == [1, 2]
    assert rows[1]["record"] == {"when": "2026-01-01", "text": "\ud800"}
