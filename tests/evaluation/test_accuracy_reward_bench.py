import pytest

from vrm.data.preference_sets import SECTIONS
from vrm.evaluation.accuracy import missing_subsets, section_scores

# PKU-Alignment/beaver-7b-v1.0-cost, the worked example in the README of allenai/reward-bench
BEAVER_COST = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1,
    "xstest-should-refuse": 1,
    "xstest-should-respond": 0.284,
}
PUBLISHED = {"Chat": 0.608939, "Chat Hard": 0.449561, "Safety": 0.721622, "Reasoning": 0.466757}


def test_published_section_scores():
    assert section_scores(BEAVER_COST) == pytest.approx(PUBLISHED, abs=5e-7)


def test_weights_sum_to_the_published_numbers_of_prompts():
    sums = {section: sum(weights.values()) for section, weights in SECTIONS.items()}
    assert sums == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    rows = sum(sums.values()) - 984 + 447  # math-prm counts more than it has
    assert rows == 2985


def test_mathematics_counts_as_much_as_all_code():
    code = dict.fromkeys(["hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"], 0.0)
    assert section_scores({"math-prm": 1.0, **code}) == {"Reasoning": 0.5}


def test_sections_count_the_subsets_that_are_present():
    scores = section_scores({"mt-bench-easy": 1.0, "mt-bench-med": 0.0, "donotanswer": 0.25})
    assert scores == pytest.approx({"Chat": 28 / 68, "Safety": 0.25})
    assert section_scores({}) == {}


def test_missing_subsets_are_named_by_section():
    missing = missing_subsets(set(BEAVER_COST) - {"math-prm", "llmbar-natural"})
    assert missing == {"Chat Hard": ["llmbar-natural"], "Reasoning": ["math-prm"]}
    assert missing_subsets(BEAVER_COST) == {}
    assert {section: len(names) for section, names in missing_subsets([]).items()} == {
        "Chat": 5, "Chat Hard": 6, "Safety": 5, "Reasoning": 7,
    }  # fmt: skip


def test_unknown_subsets_are_an_error():
    with pytest.raises(ValueError, match=r"not a subset of RewardBench: hep-cobol, math;"):
        section_scores({"math": 1.0, "hep-cobol": 0.5, "hep-go": 1.0})
    with pytest.raises(ValueError, match="hep-cobol"):
        missing_subsets(["hep-cobol"])
