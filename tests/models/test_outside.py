"""Outside reward models behind the contract: one with code of its own and a gate over aspects, as ArmoRM has."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from vrm import RewardModel
from vrm.records import RecordError

CODE = """
from dataclasses import dataclass
import torch
from transformers import Qwen3Model, Qwen3PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Gated(ModelOutput):
    rewards: torch.Tensor = None
    gating_output: torch.Tensor = None
    score: torch.Tensor = None
    logits: torch.Tensor = None


class Qwen3Gated(Qwen3PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = Qwen3Model(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.reward_transform_matrix = torch.nn.Parameter(torch.eye(config.num_labels) * 2)
        self.gate = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        final = hidden[torch.arange(len(hidden)), last].float()
        rewards, gate = self.regression_layer(final), self.gate(final).softmax(-1)
        score = (gate * (rewards @ self.reward_transform_matrix)).sum(-1)
        return Gated(rewards=rewards, gating_output=gate, score=score, logits=score)
"""


@pytest.fixture
def gated(tiny_backbone, tmp_path):
    """Directory of such a model with three aspects."""
    (tmp_path / "modeling_custom.py").write_text(CODE)
    config = AutoConfig.from_pretrained(tiny_backbone)
    config.auto_map = {"AutoModelForSequenceClassification": "modeling_custom.Qwen3Gated"}
    config.id2label = {0: "help", 1: "truth", 2: "length"}
    config.label2id = {name: k for k, name in config.id2label.items()}
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(tmp_path), trust_remote_code=True, code_revision=None
    )
    made.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"auto_map": config.auto_map}))
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    return tmp_path


def test_a_gate_over_aspects_is_read_as_weights_and_scores(gated):
    model = RewardModel.from_pretrained(gated, trust_remote_code=True, max_prompt_length=48, max_length=96)
    output = model.score(["alpha", "alpha", "mu nu"], ["good", "bad beta", "eta"])
    assert model.aspects == ["help", "truth", "length"]
    np.testing.assert_allclose(output.weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose((output.weights * output.per_objective).sum(1), output.mean, atol=1e-5)
    alone = model.score(["mu nu"], ["eta"])
    np.testing.assert_allclose(alone.mean, output.mean[2:], atol=1e-5)


def test_code_of_its_own_is_not_run_unless_that_is_asked(gated):
    with pytest.raises(RecordError, match=r"one label.*--trust-remote-code"):
        RewardModel.from_pretrained(gated, max_prompt_length=48, max_length=96)
