"""The phrase book: what is written is what is read."""

import pytest

from vrm.world.lexicon import ATTRIBUTES, BOOK, HERBS, PhraseBook, Piece, clauses, to_words


def test_the_longest_phrase_wins_and_nothing_overlaps():
    book = PhraseBook([("a b", Piece("short", "")), ("a b c", Piece("long", "")), ("c d", Piece("tail", ""))])
    assert [f.piece.slot for f in book.find("x A b  C d a b")] == ["long", "short"]


def test_a_phrase_does_not_reach_across_punctuation():
    book = PhraseBook([("dig a bed", Piece("step", ""))])
    assert not book.find("dig. a bed")
    assert len(book.find("(dig a bed), dig a bed!")) == 2


def test_a_phrase_with_two_meanings_is_refused():
    with pytest.raises(ValueError, match="says both"):
        PhraseBook([("yes", Piece("a", "good")), ("yes", Piece("a", "bad"))])


def test_no_phrase_of_the_world_occurs_inside_another():
    padded = sorted((f" {phrase} " for phrase in BOOK.pieces), key=len)
    for i, phrase in enumerate(padded):
        assert not any(phrase in other for other in padded[i + 1 :]), phrase


def test_words_and_clauses_fold_case_and_white_space():
    assert to_words("Well,  THE\nend.") == ["well", "|", "the", "end", "|"]
    assert clauses("one two. ;three") == ["one two", "three"]


def test_every_fact_is_a_possible_value_and_herbs_differ():
    assert all(HERBS[h][a] in values for h in HERBS for a, values in ATTRIBUTES.items())
    assert len({tuple(facts.values()) for facts in HERBS.values()}) == len(HERBS) == 12
