"""The plug for TRL: what docs/plug.md says is what runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from contract import PROMPTS, RESPONSES
from transformers import AutoTokenizer

from vrm.cli import main
from vrm.config import CreatedBackbone
from vrm.models.backbones import create_model, save_backbone, train_tokenizer
from vrm.models.base import RewardOutput
from vrm.models.reward_function import RewardFunction
from vrm.models.text import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import RecordError

PLUG = Path(__file__).parents[2] / "docs" / "plug.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PLUG.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def vrm(tiny_backbone, tmp_path_factory):
    """Directory of an untrained VRM."""
    torch.manual_seed(0)
    directory, tokenizer = tmp_path_factory.mktemp("vrm"), AutoTokenizer.from_pretrained(tiny_backbone)
    model = VrmForSequenceClassification.from_backbone(
        str(tiny_backbone), aspects=["clarity", "candour"], generation_prompt_ids=generation_prompt_ids(tokenizer)
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Directory of a policy of another family, with a tokenizer and a template of its own."""
    tokenizer = train_tokenizer(["iota kappa lambda mu"], 280, "qwen2.5")
    size = {"hidden_size": 16, "layers": 1, "heads": 1, "key_value_heads": 1, "intermediate_size": 32}
    directory = tmp_path_factory.mktemp("policy")
    save_backbone(create_model(CreatedBackbone(architecture="qwen2", **size), tokenizer, 256), tokenizer, directory)
    return directory


@pytest.fixture
def run(vrm, policy, toy_pairs, tmp_path, monkeypatch):
    """A working directory with what the page names under results/demo."""
    places = {
        "reward/vrm/seed1/model": vrm,
        "policy/qwen2_5/sft/seed1/model": policy,
        "data/pairs": toy_pairs,
        "world/reward_bench.jsonl": toy_pairs / "validation.jsonl",
    }
    for name, target in places.items():
        place = tmp_path / "results" / "demo" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    monkeypatch.chdir(tmp_path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # TRL trains in bfloat16, and that would outlive the test


@pytest.mark.usefixtures("run")
def test_the_page_runs(capsys):
    grpo, own_code = blocks("python")
    names = {}
    exec(compile(grpo, PLUG, "exec"), names)
    logged = [entry for entry in names["trainer"].state.log_history if "rewards/vrm/mean" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(np.isfinite(entry["rewards/vrm/mean"]) and entry["rewards/vrm/std"] > 0 for entry in logged)

    exec(compile(own_code, PLUG, "exec"), names)
    output = names["output"]
    assert output.mean.shape == output.std.shape == output.truncated.shape == (2,)
    assert output.weights.shape == output.per_objective.shape == (2, 2)

    (command,) = blocks("sh")
    capsys.readouterr()
    assert main(shlex.split(command.removeprefix("python -m vrm"))) == 0
    assert "24 pairs" in capsys.readouterr().out


class Echo:
    """A reward model that keeps what it was asked."""

    aspects = ()

    def score(self, prompts, responses):
        self.asked = list(zip(prompts, responses, strict=True))
        return RewardOutput(np.arange(len(responses), dtype=np.float32), np.zeros(len(responses), dtype=bool))


def test_messages_and_plain_text_ask_the_same():
    function = RewardFunction(Echo(), name="echo")
    assert function.__name__ == "echo"
    rewards = function(prompts=PROMPTS, completions=RESPONSES, completion_ids=[[1]] * 4, trainer_state=None)
    assert rewards == [0.0, 1.0, 2.0, 3.0]
    assert all(type(reward) is float for reward in rewards)
    plain = function.model.asked
    function(PROMPTS, [[{"role": "assistant", "content": text}] for text in RESPONSES])
    assert function.model.asked == plain
    assert plain[0] == ([{"role": "user", "content": PROMPTS[0]}], RESPONSES[0])


def test_a_call_of_a_tool_is_part_of_what_was_asked():
    function = RewardFunction(Echo())
    call = [{"role": "assistant", "content": "look"}, {"role": "tool", "content": "3"}]
    function([[{"role": "user", "content": "how many?"}]], [[*call, {"role": "assistant", "content": "three"}]])
    assert function.model.asked == [([{"role": "user", "content": "how many?"}, *call], "three")]


def test_a_directory_that_is_not_there_is_named():
    with pytest.raises(RecordError, match="results/run/reward/none: there is no such directory"):
        RewardFunction("results/run/reward/none")


def test_the_rated_part_alone_can_be_the_reward(vrm, tmp_path):
    model = VrmForSequenceClassification.from_pretrained(vrm, residual=True)
    torch.nn.init.normal_(model.head.residual.weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(vrm).save_pretrained(tmp_path)
    whole, rated = (RewardFunction(tmp_path, reward=part)(PROMPTS, RESPONSES) for part in ("full", "rated"))
    without = RewardFunction(vrm)(PROMPTS, RESPONSES)
    assert rated == pytest.approx(without, abs=1e-5)
    assert np.abs(np.subtract(whole, rated)).max() > 0.1


def test_options_go_with_a_directory(vrm):
    assert RewardFunction(vrm, batch_size=3, max_length=96, max_prompt_length=64).model.batch_size == 3
    with pytest.raises(TypeError, match="batch_size: only for a model that is loaded here"):
        RewardFunction(Echo(), batch_size=3)
