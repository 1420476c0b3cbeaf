"""One field of a row, in every shape that people have; what can't be used has a reason without the value in it."""

import json

import pytest

from vrm.data.fields import Unusable, parse_number, parse_numbers, parse_prompt, parse_row_prompt, parse_text

TURNS = [
    {"role": "user", "content": "How do I plant mint?"},
    {"role": "assistant", "content": "In a pot."},
    {"role": "user", "content": "Why?"},
]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]} for t in TURNS]
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]
TRANSCRIPT = "\n\nHuman: How do I plant mint?\n\nAssistant: In a pot.\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        SHAREGPT,
        PARTS,
        {"messages": TURNS},
        TRANSCRIPT,
        json.dumps(TURNS),
        str(TURNS),
        [{"role": "system", "content": ""}, *TURNS],
        [{**turn, "name": "x"} for turn in TURNS],
    ],
    ids=["messages", "sharegpt", "parts", "mapping", "transcript", "json", "python", "empty system turn", "other keys"],
)
def test_every_spelling_of_a_conversation_is_the_same_prompt(value):
    assert parse_prompt(value, "prompt") == TURNS


def test_a_rows_earlier_turns_and_system_text_come_first():
    row = {"instruction": "Why?", "history": [["How do I plant mint?", "In a pot."]], "system": "Be brief."}
    assert parse_row_prompt(row, ["prompt", "instruction"]) == [{"role": "system", "content": "Be brief."}, *TURNS]


@pytest.mark.parametrize(
    ("parse", "values"),
    [
        (parse_text, [" ", "\n"]),
        (parse_text, ["a\ud800", "\udfff"]),
        (parse_number, ["N/A", "nan", True, [4], "inf"]),
        (parse_prompt, [TURNS[:2], SHAREGPT[:2]]),
        (parse_prompt, ["[{'role': 'user', 'content': x}", '[{"role": "user", "content": "cut']),
    ],
    ids=["empty", "half a surrogate pair", "no number", "the assistant has the last word", "messages that are cut"],
)
def test_equal_faults_have_one_reason(parse, values):
    reasons = set()
    for value in values:
        with pytest.raises(Unusable, match=r"^a field ") as error:
            parse(value, "a field")
        reasons.add(str(error.value))
    assert len(reasons) == 1


def test_numbers_are_one_an_aspect_or_none():
    assert parse_numbers(None, 2, "scores") is None
    assert parse_numbers(["4", 3.5], 2, "scores") == [4.0, 3.5]
    with pytest.raises(Unusable, match="2 numbers"):
        parse_numbers([1, 2, 3], 2, "scores")
