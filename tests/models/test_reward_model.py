"""The plug for TRL: what docs/plug.md says is what runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from contract import PROMPTS, RESPONSES
from transformers import AutoTokenizer

import vrm as vrm_package
from vrm.cli import main
from vrm.config import CreatedBackbone
from vrm.models.base import RewardOutput, as_prompt
from vrm.models.reward_model import RewardBenchPipeline, RewardModel
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import RecordError
from vrm.training.backbones import create_model, save_backbone, train_tokenizer

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
    function = RewardModel(Echo(), name="echo")
    assert function.__name__ == "echo"
    rewards = function(prompts=PROMPTS, completions=RESPONSES, completion_ids=[[1]] * 4, trainer_state=None)
    assert rewards == [0.0, 1.0, 2.0, 3.0]
    assert all(type(reward) is float for reward in rewards)
    plain = function.model.asked
    function(PROMPTS, [[{"role": "assistant", "content": text}] for text in RESPONSES])
    assert function.model.asked == plain
    assert plain[0] == ([{"role": "user", "content": PROMPTS[0]}], RESPONSES[0])


def test_a_call_of_a_tool_is_part_of_what_was_asked():
    function = RewardModel(Echo())
    call = [{"role": "assistant", "content": "look"}, {"role": "tool", "content": "3"}]
    function([[{"role": "user", "content": "how many?"}]], [[*call, {"role": "assistant", "content": "three"}]])
    assert function.model.asked == [([{"role": "user", "content": "how many?"}, *call], "three")]


def test_a_directory_that_is_not_there_is_named():
    with pytest.raises(RecordError, match="results/run/reward/none: there is no such directory"):
        RewardModel.from_pretrained("results/run/reward/none")


def test_the_rated_part_alone_can_be_the_reward(vrm, tmp_path):
    model = VrmForSequenceClassification.from_pretrained(vrm, residual=True)
    torch.nn.init.normal_(model.head.residual)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(vrm).save_pretrained(tmp_path)
    whole, rated = (
        RewardModel.from_pretrained(tmp_path, reward=part)(PROMPTS, RESPONSES) for part in ("full", "rated")
    )
    without = RewardModel.from_pretrained(vrm)(PROMPTS, RESPONSES)
    assert rated == pytest.approx(without, abs=1e-5)
    assert np.abs(np.subtract(whole, rated)).max() > 0.1


def test_options_go_with_a_directory(vrm):
    assert RewardModel.from_pretrained(vrm, batch_size=3, max_length=96, max_prompt_length=64).model.batch_size == 3
    with pytest.raises(TypeError, match="from_pretrained"):
        RewardModel(str(vrm))


class Logged:
    """What TRL gives reward functions to log with."""

    def __init__(self):
        self.metrics, self.columns = {}, {}

    def log_metric(self, name, value):
        self.metrics[name] = value

    def log_extra(self, column, values):
        self.columns[column] = values


def test_weights_and_std_are_logged_by_trls_own_means(vrm):
    model, logged = RewardModel.from_pretrained(vrm, name="mine"), Logged()
    model(PROMPTS, RESPONSES, log_metric=logged.log_metric, log_extra=logged.log_extra)
    output = model.score(PROMPTS, RESPONSES)
    assert logged.metrics["mine/std"] == pytest.approx(output.std.mean())
    assert logged.columns["mine/weight_clarity"] == pytest.approx(output.weights[:, 0])
    assert all(len(values) == len(RESPONSES) for values in logged.columns.values())


def test_a_pipeline_of_transformers_gives_the_same_rewards(vrm):
    model = RewardModel.from_pretrained(vrm)
    pipe, output = model.pipeline(), model.score(PROMPTS, RESPONSES)
    rows = pipe([{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    assert [row["score"] for row in rows] == pytest.approx(output.mean)
    assert rows[0]["weights"].keys() == {"clarity", "candour"}
    assert pipe({"prompt": PROMPTS[0], "response": RESPONSES[0]})["score"] == pytest.approx(output.mean[0], abs=1e-5)
    with pytest.raises(TypeError, match="Echo"):
        RewardModel(Echo()).pipeline()


def test_rewardbench_hands_over_rendered_texts(vrm):
    model, tokenizer = RewardModel.from_pretrained(vrm), AutoTokenizer.from_pretrained(vrm)
    pipe = RewardBenchPipeline("text-classification", model.model.model, tokenizer)
    conversations = [
        [*as_prompt(p), {"role": "assistant", "content": r}] for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    rewards = pipe(texts, batch_size=2, truncation=True, padding=True, function_to_apply="none")
    assert rewards.float().cpu().numpy() == pytest.approx(model.score(PROMPTS, RESPONSES).mean, abs=1e-5)


def test_draws_of_one_prompt_share_their_weights(vrm):
    model = RewardModel.from_pretrained(vrm, posterior_samples=50).model
    draws = model.draws(PROMPTS, RESPONSES, 50)
    assert draws.shape == (50, len(RESPONSES))
    assert draws.std(0) == pytest.approx(model.score(PROMPTS, RESPONSES).std, rel=1e-5)
    assert (draws[:, 0] == draws[:, 3]).all()  # the same prompt and response


def test_import_is_cheap_and_public_names_are_lazy():
    code = (
        "import sys, vrm; assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules); "
        "from vrm import RewardModel; assert RewardModel.__module__ == 'vrm.models.reward_model'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonsense"):
        vrm_package.nonsense  # noqa: B018
