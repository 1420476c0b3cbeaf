"""The shared engine of reward models against the padded one: the same losses, measurements and models."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from trl import RewardConfig, RewardTrainer

from vrm.config import Lora, RewardTraining, Variant
from vrm.training.engine import KERNELS
from vrm.training.pairs import PackedPairCollator, PairCollator
from vrm.training.reward import RewardJob, make_trainer, train_reward_model

ASPECTS = ["clarity", "accuracy", "candour"]
TRAINING = RewardTraining(
    epochs=2, learning_rate=5e-3, max_prompt_length=64, max_length=96, evaluations=6, evaluation_pairs=20, checkpoints=0
)
VARIANTS = {
    "rm": Variant(label="RM", kind="scalar"),
    "vrm": Variant(label="VRM", latent_dim=4, score_anchor_weight=0.1, beta_w=0.1, beta_z=0.1),
    "vrm_attention": Variant(
        label="VRM", latent_dim=4, score_anchor_weight=0.1, prompt_pooling="attention", concentration="scaled"
    ),
}


@pytest.fixture
def job(tiny_backbone, toy_pairs, tmp_path):
    return RewardJob(
        VARIANTS["vrm"], TRAINING, ASPECTS, 1, str(tiny_backbone), None, toy_pairs, tmp_path / "c", tmp_path / "o"
    )


def trained(job, name, **changes):
    """Its log, without counts that flip with a last digit, and its weights."""
    place = {"checkpoints": job.checkpoints / name, "out": job.out / name}
    job = dataclasses.replace(job, training=job.training.model_copy(update=changes), **place)
    train_reward_model(job)
    log = pd.read_csv(job.out / "training.csv").set_index(["step", "split", "metric"]).value
    return log[log.index.get_level_values("metric") != "active_units"], load_file(
        job.out / "model" / "model.safetensors"
    )


CASES = {
    "rm": ("rm", {}),
    "vrm": ("vrm", {}),
    "vrm_attention": ("vrm_attention", {}),
    "rm_adapters": ("rm", {"lora": Lora(rank=4)}),
    "vrm_adapters": ("vrm_attention", {"lora": Lora(rank=4)}),
    "checkpointing": ("vrm_attention", {"gradient_checkpointing": True}),
    "rows": ("vrm", {"tokens_per_row": 60}),
    "accumulation": ("vrm", {"batch_size": 8, "gradient_accumulation": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_both_engines_have_one_loss_curve(job, case):
    """Latents are drawn in the same order; what is left is rounding, which a training makes larger."""
    variant, how = CASES[case]
    job = dataclasses.replace(job, variant=VARIANTS[variant])
    expected, weights = trained(job, "padded", engine="padded", **how)
    found, same = trained(job, "shared", engine="shared", **how)
    assert list(found.index) == list(expected.index)
    assert expected.xs("loss", level="metric").nunique() > 3
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-3, atol=1e-4)
    assert weights.keys() == same.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, rtol=1e-2, atol=1e-3)


def test_a_step_has_the_loss_and_the_gradients_of_trls_trainer(job, tmp_path):
    """The padded engine against `RewardTrainer`, to the last bit."""
    job = dataclasses.replace(
        job, variant=VARIANTS["rm"], training=TRAINING.model_copy(update={"engine": "padded", "batch_size": 8})
    )
    trainer, _ = make_trainer(job)
    rows = trainer.train_dataset.select(range(8)).select_columns(["chosen_ids", "rejected_ids"])
    theirs = RewardTrainer(
        model=copy.deepcopy(trainer.model),
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"), max_length=None, bf16=False, use_cpu=True, report_to="none"
        ),
        processing_class=trainer.processing_class,
        train_dataset=rows,
    )
    batch = theirs.data_collator(list(rows))
    ours = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    for name, value in batch.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    losses = []
    for each, inputs in ((trainer, ours), (theirs, batch)):
        each.model.train()
        inputs = {name: value.to(each.model.device) for name, value in inputs.items()}
        losses.append(each.compute_loss(each.model, inputs))
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    expected = dict(theirs.model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=0, atol=0, msg=name)


def test_mixed_precision_rounds_both_engines_alike(job):
    """Each engine's curve is as far from float32's as the other's is: bfloat16 has three digits."""
    job = dataclasses.replace(job, variant=VARIANTS["rm"])
    whole, padded, shared = (
        trained(job, name, engine=engine, bf16=bf16)[0].xs("preference_loss", level="metric")
        for name, engine, bf16 in (("a", "padded", False), ("b", "padded", True), ("c", "shared", True))
    )
    assert whole.max() - whole.min() > 0.1  # it learns, so that there is something to compare
    assert (padded - whole).abs().max() < 0.03
    assert (shared - whole).abs().max() < 0.03


def test_the_shared_engine_is_the_default_and_holds_each_prompt_once(job):
    trainer, _ = make_trainer(job)
    assert isinstance(trainer.data_collator, PackedPairCollator)
    examples = [trainer.train_dataset[i] for i in range(8)]
    batch = trainer.data_collator(examples)
    tokens = sum(len(e["chosen_ids"]) + len(e["rejected_ids"]) - e["prompt_length"] for e in examples)
    assert batch["input_ids"].shape == (1, tokens)
    assert next(iter(batch.values())).shape == (16,)  # where the trainer reads a batch's size, as from a padded one
    assert batch["target"].shape == (8, 3)


def test_a_backbone_that_cannot_share_pads_and_says_so(job, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(job.backbone)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**size, pad_token_id=tokenizer.pad_token_id)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    other = dataclasses.replace(job, backbone=str(tmp_path / "gpt2"), variant=VARIANTS["rm"])
    trainer, _ = make_trainer(other)
    assert isinstance(trainer.data_collator, PairCollator)
    assert "gpt2" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["shared_flex", "shared_varlen"])
def test_kernels_of_cuda_are_not_taken_without_it(job, capsys, engine):
    asked = dataclasses.replace(job, training=TRAINING.model_copy(update={"engine": engine}))
    trainer, _ = make_trainer(asked)
    cuda = torch.cuda.is_available()
    assert trainer.data_collator.kernel == (KERNELS[engine] if cuda else "groups")
    assert (engine in capsys.readouterr().err) != cuda
