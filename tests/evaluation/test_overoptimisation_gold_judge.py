"""The gold judge by name: a function of two texts, or a reward model."""

import numpy as np
import pytest
from contract import PROMPTS, RESPONSES
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.config import ConfigError
from vrm.evaluation.overoptimisation import load_gold
from vrm.models.base import RewardModel
from vrm.models.scoring import HuggingFaceRewardModel
from vrm.world.gold import gold_reward

TEXTS = [PROMPTS[0], "mu?", PROMPTS[2], PROMPTS[3]]
JUDGE = "def length(prompt, response):\n    return 100 * len(prompt) + len(response)\n\nnumber = 3\n"


@pytest.fixture(autouse=True)
def judges(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_reads_the_last_user_turn_and_the_response():
    gold = load_gold("my_judges:length")
    assert isinstance(gold, RewardModel)
    output = gold.score(PROMPTS, RESPONSES)
    assert output.mean.tolist() == [1600 + 10, 300 + 48, 3700, 1600 + 10]
    assert not output.truncated.any()
    assert output.weights is None
    assert gold.score([], []).mean.shape == (0,)
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        gold.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="without a user turn"):
        gold.score([[{"role": "system", "content": "alpha"}]], ["c"])


def test_the_worlds_judge_is_such_a_function():
    rewards = load_gold("vrm.world.gold:gold_reward").score(PROMPTS, RESPONSES).mean
    assert rewards.tolist() == [gold_reward(text, answer) for text, answer in zip(TEXTS, RESPONSES, strict=True)]


def test_a_directory_is_a_reward_model(tiny_backbone, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "rm")
    gold = load_gold(str(tmp_path / "rm"))
    assert isinstance(gold, HuggingFaceRewardModel)
    assert np.isfinite(gold.score(PROMPTS, RESPONSES).mean).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:length", "No module named 'no_such_module'"),
        ("my_judges:width", "my_judges has no function 'width'"),
        ("my_judges:number", "my_judges has no function 'number'"),
        ("my_judges", "neither `module:function` nor a directory"),
        ("results/gone", "neither `module:function` nor a directory"),
        (":length", "neither"),
    ],
)
def test_what_does_not_exist_is_named(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_gold(spec)
    assert spec in str(caught.value)
