"""Prompts: what is drawn is what is parsed, and the weights are a function of the text."""

from collections import Counter

import numpy as np
import pytest

from vrm.world import prompts
from vrm.world.prompts import ASPECTS, KINDS, OTHER_CENTRE


@pytest.mark.parametrize("kind", KINDS)
def test_parse_recovers_what_was_drawn(kind):
    rng = np.random.default_rng(1)
    for _ in range(150):
        request = prompts.draw(rng, kind)
        assert prompts.parse(request.text) == request
        assert 10 <= len(request.text.split()) <= 40


@pytest.mark.parametrize(
    "text", ["", "   ", "Who are you?", "écris-moi 3 lignes!", "marlow " * 500, "{herb} \x00 (?P<a>"]
)
def test_any_text_is_a_prompt(text):
    request = prompts.parse(text)
    assert request.kind is None
    assert prompts.true_weights(request).sum() == pytest.approx(1)
    np.testing.assert_allclose(prompts.centre(request), OTHER_CENTRE)


def test_shares_of_kinds_add_up_and_are_kept():
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)
    assert all(sum(kind.centre) == pytest.approx(1) for kind in KINDS.values())
    rng = np.random.default_rng(2)
    drawn = Counter(prompts.draw(rng).kind for _ in range(2000))
    for name, kind in KINDS.items():
        assert drawn[name] / 2000 == pytest.approx(kind.share, abs=0.04)


def test_true_weights_depend_on_the_normalised_text_alone():
    request = prompts.draw(np.random.default_rng(3), "facts")
    shouted = prompts.parse("  " + request.text.upper().replace(" ", "  "))
    weights = prompts.true_weights(request)
    np.testing.assert_array_equal(weights, prompts.true_weights(shouted))
    assert weights.shape == (4,)
    assert (weights >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_spread_around_the_kinds_centre(kind):
    rng = np.random.default_rng(4)
    requests = [prompts.draw(rng, kind) for _ in range(400)]
    plain = np.array([prompts.true_weights(r) for r in requests if r.cue is None])
    np.testing.assert_allclose(plain.mean(0), KINDS[kind].centre, atol=0.03)
    assert plain.std(0).min() > 0.01


def test_a_cue_raises_the_weight_of_its_objective():
    rng = np.random.default_rng(5)
    cued = [r for r in (prompts.draw(rng) for _ in range(300)) if r.cue]
    for request in cued:
        k = ASPECTS.index(request.cue)
        assert prompts.centre(request)[k] > KINDS[request.kind].centre[k]
    assert {r.cue for r in cued} == set(ASPECTS)


@pytest.mark.parametrize(
    ("text", "start", "answer"),
    [
        ("anna has three pots of marlow and buys four more pots, how many are there", "three", "seven"),
        ("boris had five pots of orrin and sold two of them, how many are left", "five", "three"),
        ("the orrin is in the sack and the sack is in the barn, where is it", "sack", "barn"),
        ("anna gave the orrin to ella who passed it to frank, who has it now", "ella", "frank"),
        ("clara picked orrin before david and david before anna, who was last", "david", "anna"),
        ("a sack of orrin costs two coins but a crate costs five, what is the sack worth", "sack", "two"),
        ("the orrin pot is grey and its lid is pink, what is the shade of the lid", "grey", "pink"),
    ],
)
def test_puzzles_have_the_answer_that_they_should(text, start, answer):
    puzzle = prompts.find_puzzle(text)
    assert (puzzle.start, puzzle.answer) == (start, answer)
    assert answer not in puzzle.wrong("answer")


def test_a_broken_chain_is_no_puzzle():
    assert prompts.find_puzzle("the orrin is in the sack and the crate is in the barn, where is it") is None
