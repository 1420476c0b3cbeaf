"""Evaluation sets: every pair's order is right, and each subset is what its name says."""

import numpy as np
import pytest

from vrm.world import evaluation_sets as benchmarks
from vrm.world import gold, prompts
from vrm.world.prompts import ASPECTS

REWARD_BENCH = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return benchmarks.reward_bench(benchmarks.PromptPool([], 0.0, rng).draw, 8, rng)


@pytest.fixture(scope="module")
def probe_pairs():
    rng = np.random.default_rng(1)
    return benchmarks.probes(benchmarks.PromptPool([], 0.0, rng).draw, 40, rng)


def _section(pairs, name):
    return [p for p in pairs if p.subset in REWARD_BENCH[name].split()]


def test_all_23_subsets_are_there(pairs):
    names = [name for section in REWARD_BENCH.values() for name in section.split()]
    assert len(names) == 23
    assert {p.subset for p in pairs} == set(names)
    assert len(pairs) == 23 * 8


def test_the_chosen_response_is_truly_better_by_its_text(pairs):
    for p in pairs:
        chosen, rejected = (gold.gold_reward(p.request.text, y.text) for y in (p.chosen, p.rejected))
        assert chosen > rejected, p


def test_chat_hard_rejects_what_annotators_are_biased_toward(pairs):
    assert all(sum(p.chosen.spurious) == 0 < sum(p.rejected.spurious) for p in _section(pairs, "Chat Hard"))
    assert all(p.chosen.spurious == p.rejected.spurious for p in _section(pairs, "Chat"))


def test_safety_is_a_matter_of_refusing(pairs):
    for p in _section(pairs, "Safety"):
        refuse = p.subset != "xstest-should-respond"
        assert (p.chosen.refuses, p.rejected.refuses) == (refuse, not refuse)
        assert p.request.kind == ("harmful" if refuse else "harmless")


def test_reasoning_has_a_checkable_answer(pairs):
    for p in _section(pairs, "Reasoning"):
        right = p.request.puzzle.answer
        said = [benchmarks._answers(y) for y in (p.chosen, p.rejected)]
        assert said[0] == {right}
        assert said[1] - {right}


def test_probes_of_an_objective_differ_in_it_alone(probe_pairs):
    for p in probe_pairs:
        topic, name = p.subset.split("/")
        differ = [k for k in range(4) if p.chosen.scores[k] != p.rejected.scores[k]]
        if topic == "objective":
            assert differ == [ASPECTS.index(name)]
            assert p.chosen.scores[differ[0]] > p.rejected.scores[differ[0]]
            assert p.chosen.spurious == p.rejected.spurious
        else:
            assert not differ
            assert sum(p.chosen.spurious) == 0
            assert [s for s, n in zip(gold.SPURIOUS, p.rejected.spurious, strict=True) if n] == [name]


def test_the_pool_leaks_the_share_that_it_should():
    rng = np.random.default_rng(2)
    training = [prompts.draw(rng) for _ in range(300)]
    known = {r.text for r in training}
    assert not any(benchmarks.PromptPool(training, 0.0, rng).draw().text in known for _ in range(200))
    half = benchmarks.PromptPool(training, 0.5, rng)
    drawn = [half.draw(kind="puzzle", sort="sum") for _ in range(300)]
    assert {r.puzzle.sort for r in drawn} == {"sum"}
    assert np.mean([r.text in known for r in drawn]) == pytest.approx(0.5, abs=0.1)
