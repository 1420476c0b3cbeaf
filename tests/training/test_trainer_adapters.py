"""Adapters of reward models: where they sit, what they leave alone, and what is left once they are merged."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from reward_jobs import ASPECTS, LIMITS, SCALAR, TRAINING, VRM, quick, scores, train_adapters
from safetensors.torch import load_file

from vrm.config import Lora
from vrm.models.scoring import HuggingFaceRewardModel, load_reward_model
from vrm.records import read_pairs
from vrm.training.reward import RewardJob, make_trainer

RANK = 4
KINDS = {
    "scalar": (SCALAR, False),
    "scalar_bf16": (SCALAR, True),
    "variational": (VRM, False),
    "variational_bf16": (VRM, True),
}


def reward_job(backbone, pairs, directory, variant=VRM, training=TRAINING, **changes):
    """A job with adapters; `changes` replace fields of its training."""
    training = training.model_copy(update={"lora": Lora(rank=RANK, alpha=8), **changes})
    places = {"checkpoints": directory / "checkpoints", "out": directory / "out"}
    return RewardJob(variant, training, ASPECTS, 1, str(backbone), None, pairs, **places)


def fresh_scores(job, pairs):
    """What a model says before its first step."""
    trainer, _ = make_trainer(job)
    model = trainer.model.get_base_model() if job.training.lora else trainer.model
    return scores(HuggingFaceRewardModel(model, trainer.processing_class, **LIMITS), pairs)


def fresh_weights(job):
    """Weights before the first step, named as in a finished model."""
    plain = dataclasses.replace(job, training=job.training.model_copy(update={"lora": None, "bf16": False}))
    return {name: weight.clone() for name, weight in make_trainer(plain)[0].model.state_dict().items()}


@pytest.fixture(scope="module", autouse=True)
def _no_precision_for_the_next_test():
    """Accelerate keeps that of the last training in a process."""
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def trained(request, tiny_backbone, toy_pairs, tmp_path_factory):
    """A finished job, its weights at the start and at the end, its scores right before the merge and from the disk."""
    variant, bf16 = request.param
    job = reward_job(tiny_backbone, toy_pairs, tmp_path_factory.mktemp("adapted"), variant, bf16=bf16)
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    before = train_adapters(job, pairs)
    model = load_reward_model(job.out / "model")
    end = load_file(job.out / "model" / "model.safetensors")
    return SimpleNamespace(
        job=job, bf16=bf16, start=fresh_weights(job), end=end, model=model, before=before, after=scores(model, pairs)
    )


def test_the_directory_scores_as_the_adapted_model_did(trained):
    chosen, rejected = trained.after.reshape(2, -1)
    assert (chosen > rejected).mean() > 0.9  # it has learnt, so the comparison says something
    tolerance = 0.1 * float(trained.after.std()) if trained.bf16 else 1e-5
    assert trained.after == pytest.approx(trained.before, abs=tolerance)


def test_the_directory_is_a_whole_model_in_float32(trained):
    assert trained.end.keys() == trained.start.keys()
    assert {weight.dtype for weight in trained.end.values()} == {torch.float32}
    assert {weight.dtype for weight in trained.model.model.parameters()} == {torch.float32}
    directory = trained.job.out / "model"
    assert "bfloat16" not in (directory / "config.json").read_text()
    assert {path.suffix for path in directory.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_linear_layers_move_by_low_rank_changes_the_head_freely_and_nothing_else(trained):
    moved = 0
    for name, end in trained.end.items():
        start = trained.start[name]
        if not name.startswith("model."):
            assert not torch.equal(end, start), name  # the head
            continue
        if trained.bf16:
            start = start.bfloat16().float()  # what lies frozen below the adapters
        if name.endswith("_proj.weight"):
            singular = torch.linalg.svdvals(end - start)
            assert singular[0] > 1e-3, name
            assert singular[RANK] < 1e-4 * singular[0], name
            moved += 1
        else:
            assert torch.equal(end, start), name
    assert moved == 7  # of one block: q, k, v, o, gate, up, down


@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["scalar", "variational"])
def test_what_is_trained_is_float32_and_lies_beside_bfloat16(tiny_backbone, toy_pairs, tmp_path, variant):
    model = make_trainer(reward_job(tiny_backbone, toy_pairs, tmp_path, variant, bf16=True))[0].model
    head = "score" if variant is SCALAR else "head"
    assert any(f".{head}.modules_to_save." in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        in_head = f".{head}." in name
        assert parameter.requires_grad == ("lora_" in name or (in_head and "modules_to_save" in name)), name
        assert not (in_head and "lora_" in name)
        if not in_head:
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        elif parameter.requires_grad:
            assert parameter.dtype == torch.float32, name


@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["scalar", "variational"])
def test_adapters_start_at_nothing_on_the_head_that_a_full_training_starts_from(
    tiny_backbone, toy_pairs, tmp_path, variant
):
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    adapted, full = (reward_job(tiny_backbone, toy_pairs, tmp_path, variant, lora=lora) for lora in (Lora(), None))
    assert fresh_scores(adapted, pairs) == pytest.approx(fresh_scores(full, pairs), abs=1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_checkpointed_activations_are_recomputed_and_change_nothing(tiny_backbone, toy_pairs, tmp_path, bf16):
    passes, trained = [], []
    for checkpointed in (False, True):
        job = reward_job(
            tiny_backbone, toy_pairs, tmp_path, training=quick(), bf16=bf16, gradient_checkpointing=checkpointed
        )
        trainer, _ = make_trainer(job)
        calls = []
        block = trainer.model.get_base_model().model.layers[0].mlp
        # before and not after it: a recomputation stops as soon as it has what it needs
        block.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(module.training))
        trainer.train()
        passes.append(sum(calls))
        trained.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert passes[1] == 2 * passes[0]
    for name, weight in trained[0].items():
        assert torch.allclose(weight, trained[1][name], atol=1e-6), name
