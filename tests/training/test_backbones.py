"""A small backbone from nothing."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vrm.config import CreatedBackbone
from vrm.models.templates import TEMPLATES
from vrm.models.text import TextEncoder
from vrm.training import backbones
from vrm.training.backbones import pretrain_backbone

SIZE = {"vocabulary_size": 320, "hidden_size": 32, "layers": 1, "intermediate_size": 64}
CONFIG = CreatedBackbone(**SIZE, pretraining_steps=30, pretraining_batch_size=8)
LIMITS = (64, 96)


@pytest.fixture(scope="module")
def backbone(toy_pairs, tmp_path_factory):
    place = tmp_path_factory.mktemp("pretraining")
    pretrain_backbone(CONFIG, *LIMITS, toy_pairs / "train.jsonl", place / "checkpoints", place / "backbone")
    return place / "backbone"


def test_it_is_an_ordinary_causal_lm(backbone):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert (
        tokenizer.decode(tokenizer("alpha ünïcode 字")["input_ids"]) == "alpha ünïcode 字"
    )  # bytes: nothing is unknown
    assert model(torch.tensor([tokenizer("alpha beta")["input_ids"]])).logits.shape[-1] == len(tokenizer)


def test_it_learns_the_text(backbone):
    log = pd.read_csv(backbone / "pretraining.csv")
    loss = log[log.metric == "loss"].value
    assert loss.iloc[-1] < 0.8 * loss.iloc[0]


def test_the_same_seed_gives_the_same_weights(backbone, toy_pairs, tmp_path):
    pretrain_backbone(CONFIG, *LIMITS, toy_pairs / "train.jsonl", tmp_path / "checkpoints", tmp_path / "backbone")
    first, second = (load_file(place / "model.safetensors") for place in (backbone, tmp_path / "backbone"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_steps_it_is_only_initialised(toy_pairs, tmp_path):
    config = CONFIG.model_copy(update={"pretraining_steps": 0})
    pretrain_backbone(config, *LIMITS, toy_pairs / "train.jsonl", tmp_path / "checkpoints", tmp_path / "backbone")
    assert (tmp_path / "backbone" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("architecture", "template", "model_type"),
    [("qwen2", "qwen2.5", "qwen2"), ("qwen3", "qwen3", "qwen3"), ("qwen2", "chatml", "qwen2")],
)
def test_architecture_and_template_are_those_of_the_configuration(
    toy_pairs, tmp_path, architecture, template, model_type
):
    config = CONFIG.model_copy(update={"architecture": architecture, "template": template, "pretraining_steps": 2})
    out = tmp_path / "backbone"
    pretrain_backbone(config, *LIMITS, toy_pairs / "train.jsonl", tmp_path / "checkpoints", out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.model_type == model_type
    assert tokenizer.chat_template == TEMPLATES[template]
    assert model.config.vocab_size == len(tokenizer)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )


def test_template_arguments_reach_the_encoder(toy_pairs, tmp_path, monkeypatch):
    given = []

    class Encoder(TextEncoder):
        def __post_init__(self):
            super().__post_init__()
            given.append(self.chat_template_kwargs)

    monkeypatch.setattr(backbones, "TextEncoder", Encoder)
    config = CONFIG.model_copy(update={"template": "qwen3", "pretraining_steps": 0})
    out, kwargs = tmp_path / "backbone", {"enable_thinking": False}
    pretrain_backbone(config, *LIMITS, toy_pairs / "train.jsonl", tmp_path / "checkpoints", out, kwargs)
    assert given == [kwargs]
