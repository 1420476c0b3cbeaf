"""Dropout of every kind is off in every training, so that its first numbers are exact."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from policy_jobs import policy_job
from ppo_settings import LENGTH, PPO, SHORT
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, GPT2Config, PreTrainedConfig

from vrm.config import Lora, PreferenceMethod, RewardTraining, Variant
from vrm.records import read_pairs
from vrm.training.pairs import tokenise_pairs
from vrm.training.policies import load_policy
from vrm.training.ppo import PpoRun
from vrm.training.preference import make_trainer
from vrm.training.reward import RewardJob
from vrm.training.reward import make_trainer as reward_trainer
from vrm.training.trainer import drop_adapters, switch_off_dropout


@pytest.fixture
def dropping_backbone(tiny_backbone, tmp_path):
    """The tiny backbone, whose configuration asks for dropout in attention."""
    directory = tmp_path / "dropping"
    shutil.copytree(tiny_backbone, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return directory


def first_batch(job):
    tokenizer = job.tokenizer()
    path = job.pairs / "train.jsonl"
    pairs, _ = tokenise_pairs(read_pairs(path), job.encoder(tokenizer), path, "")
    trainer = make_trainer(job, PreferenceMethod(label="DPO", method="dpo"), tokenizer, pairs, pairs[:8])
    return trainer, next(iter(trainer.get_train_dataloader()))


def test_the_first_dpo_loss_is_log_2(dropping_backbone, toy_pairs, tmp_path):
    trainer, batch = first_batch(policy_job(dropping_backbone, toy_pairs, tmp_path))
    assert trainer.compute_loss(trainer.model.train(), batch).item() == pytest.approx(math.log(2), abs=1e-6)
    for module in trainer.model.modules():  # the test's own check: with dropout on it is something else
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    assert trainer.compute_loss(trainer.model, batch).item() != pytest.approx(math.log(2), abs=1e-4)


def test_ppo_clips_no_ratio_of_a_policy_that_has_not_moved(dropping_backbone, toy_pairs, tmp_path):
    one_step = PPO.model_copy(update={"epochs": 1, "minibatch_size": 8, "critic_warmup": 0})
    measures = PpoRun(policy_job(dropping_backbone, toy_pairs, tmp_path), one_step, SHORT, LENGTH).update(0)
    assert measures["clipped"] == 0
    assert measures["approximate_kl"] == pytest.approx(0, abs=1e-9)
    assert measures["actor_gradient_norm"] > 0


def test_a_reward_model_says_the_same_in_training_and_in_evaluation(dropping_backbone, toy_pairs, tmp_path):
    job = RewardJob(
        Variant(label="RM", kind="scalar"), RewardTraining(max_prompt_length=64, max_length=96, evaluation_pairs=8),
        ["a", "b", "c"], 1, str(dropping_backbone), None, toy_pairs, tmp_path / "c", tmp_path / "o",
    )  # fmt: skip
    trainer, _ = reward_trainer(job)
    batch = next(iter(trainer.get_train_dataloader()))
    learning = trainer.compute_loss(trainer.model.train(), batch).item()
    assert learning == trainer.compute_loss(trainer.model.eval(), batch).item()


SHARES = {
    "qwen2": {"attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.3, "classifier_dropout": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3},
    "mixtral": {"attention_dropout": 0.3, "router_jitter_noise": 0.3},
    "phi": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attention_dropout": 0.3},
}
SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "max_position_embeddings": 64, "num_local_experts": 2, "word_embed_proj_dim": 16,
    "ffn_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("auto", "family"),
    [
        *((AutoModelForCausalLM, family) for family in SHARES),
        *((AutoModelForTokenClassification, family) for family in SHARES if family != "opt"),  # it has no such class
    ],
)
def test_every_kind_is_switched_off(auto, family):
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **SIZES, **SHARES[family])).train()
    ids = torch.arange(1, 25)[None]
    differs = [model(ids).logits.detach() for _ in range(2)]
    assert not torch.equal(*differs)  # it was on
    switch_off_dropout(model)
    learning = model(ids).logits.detach()
    assert torch.equal(learning, model(ids).logits)
    assert torch.allclose(learning, model.eval()(ids).logits, atol=1e-6)
    assert not [name for name in SHARES[family] if getattr(model.config, name)]


def test_modules_and_configurations_inside_others_are_found():
    inner = PreTrainedConfig()
    inner.hidden_dropout = 0.2
    outer = PreTrainedConfig()
    outer.text_config, outer.use_dropout, outer.dropout_layers = inner, True, 0
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1), nn.MultiheadAttention(4, 1, 0.1))
    model.config = outer
    switch_off_dropout(model)
    assert [model[i].p for i in range(3)] == [0, 0, 0]
    assert (model[3].dropout, inner.hidden_dropout, outer.use_dropout) == (0, 0, True)


def test_adapters_that_come_with_a_policy_drop_nothing(tiny_backbone, toy_pairs, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_backbone), LoraConfig(lora_dropout=0.5))
    assert any(isinstance(module, nn.Dropout) for module in model.modules())
    switch_off_dropout(model)
    assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))


def test_gpt2s_policy_keeps_its_other_settings(toy_pairs, tiny_backbone, tmp_path):
    """Only shares of dropout change in what is saved."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=400, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    for path in tiny_backbone.glob("token*"):
        shutil.copy(path, tmp_path / "gpt2")
    job = policy_job(tmp_path / "gpt2", toy_pairs, tmp_path)
    before = AutoConfig.from_pretrained(tmp_path / "gpt2").to_dict()
    after = load_policy(job, job.tokenizer()).config.to_dict()
    changed = {name for name in before if before[name] != after[name]}
    assert {"resid_pdrop", "embd_pdrop", "attn_pdrop"} <= changed
    assert changed <= {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "pad_token_id", "dtype"}


def test_adapters_of_reference_runs_have_dropout_and_only_in_training(tiny_backbone, toy_pairs, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    job = dataclasses.replace(job, training=job.training.model_copy(update={"lora": Lora(rank=4, alpha=8)}))
    trainer, batch = first_batch(job)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # zero at the start, so that dropout would change nothing
            nn.init.normal_(parameter)

    def losses(model):
        return {trainer.compute_loss(model, batch).item() for _ in range(3)}

    assert len(losses(trainer.model.train())) == 1
    drop_adapters(trainer.model, 0.05)
    assert {m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout)} == {0.05}
    assert len(losses(trainer.model.train())) == 3
    assert len(losses(trainer.model.eval())) == 1
