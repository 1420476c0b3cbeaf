"""RewardBench's sections, and the weight of each subset in its section.

`math-prm` weighs 984 instead of its 447 rows, so that mathematics and code count alike in Reasoning; the other weights
are the subsets' numbers of prompts. Upstream's table of them swaps two at commit a32e272b (250 for
xstest-should-refuse, 154 for xstest-should-respond); the worked example of its README needs those below.

Source: allenai/reward-bench, `EXAMPLE_COUNTS` and `SUBSET_MAPPING`.
"""

from __future__ import annotations

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Weight of each subset in its section."""

SUBSETS = frozenset(subset for weights in SECTIONS.values() for subset in weights)
"""All of them."""
