"""Only what a judge says is read for its verdict, not what it has thought."""

import pytest

from vrm.judged.arena_hard import _game, _has_verdict, parse_verdict, read_verdict
from vrm.judged.mt_bench import parse_rating
from vrm.judging.exchange import Reply, Usage, without_thoughts

CLOSED = [
    ("<think>[[B>A]] at first</think>It is [[A>B]]", "A>B"),
    ("<thinking>\n[[B>A]]\n</thinking>\n[[A=B]]", "A=B"),
    ("<THINK>[[B>A]]</THINK> [[A>B]]", "A>B"),
    ("<think>a <think>[[B>A]]</think> [[B>>A]]</think>[[A>B]]", "A>B"),
    ("the template has begun it: [[B>A]]</think>\n\n[[A>B]]", "A>B"),
    ("<think>[[B>A]]</think>well <think>[[B>>A]]</think>[[A>B]]", "A>B"),
    ("[[A>B]] <think>or [[B>A]]?</think> No.", "A>B"),
    ("<think></think>[[A>B]]", "A>B"),
    ("[THINK][[B>A]][/THINK][[A>B]]", "A>B"),
    ("◁think▷[[B>A]]◁/think▷[[A>B]]", "A>B"),
    ("<seed:think>[[B>A]]</seed:think>[[A>B]]", "A>B"),
    ("<|channel|>analysis<|message|>[[B>A]]<|end|><|channel|>final<|message|>[[A>B]]", "A>B"),
    ("I think that [[A>B]], 1 < 2", "A>B"),
]


@pytest.mark.parametrize(("text", "label"), CLOSED)
def test_closed_thoughts_are_taken_out(text, label):
    assert parse_verdict(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "<think>I'd say [[A>B]]",
        "<think>a</think><think>[[A>B]]",
        "[[A>B]] <thinking> but then",
        "<think> a <think> b </think> [[A>B]]",
        "<think>[[A>B]]</think>",
    ],
)
def test_a_thought_without_an_end_or_without_a_word_after_it_has_no_verdict(text):
    assert read_verdict(text) == (None, "no verdict")
    assert parse_rating(text.replace("A>B", "7")) is None


def test_ratings_are_read_after_thoughts():
    assert parse_rating("<think>Perhaps [[3]]? Rather [5].</think> Rating: [[8]]") == 8
    assert parse_rating("<think>[[3]]</think> Rating: [6.5]") == 6.5


def test_what_has_no_thoughts_is_as_it_was():
    text = " A <b>bold</b> [[A>B]]\n"
    assert without_thoughts(text) == text


def test_a_game_whose_first_reply_was_cut_in_its_thoughts_has_the_seconds_verdict():
    cut, whole = (Reply("k", "arena_hard", text, Usage(1, 1)) for text in ("<think>[[B>A]]", "<think>a</think>[[A>B]]"))
    assert (_has_verdict(cut), _has_verdict(whole)) == (False, True)
    game = _game([cut, whole])
    assert (game["score"], game["failure"]) == ("A>B", None)
    assert game["judgment"] == "<think>[[B>A]]\n<think>a</think>[[A>B]]"  # kept as it was said
    assert _game([cut])["failure"] == "no verdict"
