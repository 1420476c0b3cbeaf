"""The formulas against what autograd really saves, and against published rules of thumb."""

from dataclasses import replace

import pytest

from vrm.config import CreatedBackbone, Lora
from vrm.planning import memory
from vrm.planning.memory import GIB, PUBLIC, Precision, Shape

TINY = Shape(64, 64, 1, 4, 2, 32, 160)
FULL, MIXED, ADAPTED = Precision(), Precision(bf16=True), Precision(bf16=True, lora=Lora(rank=4))
PACKED = replace(ADAPTED, lora=Lora(rank=4, load_in_4bit=True))


def _saved_bytes(layers, precision, tokens):
    """Bytes that autograd keeps of one forward pass of a small Qwen3, weights left out."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from vrm.models.shared_prefix import PromptGroup, pack

    model = Qwen3Model(
        Qwen3Config(
            vocab_size=64,
            hidden_size=TINY.hidden,
            intermediate_size=TINY.intermediate,
            num_hidden_layers=layers,
            num_attention_heads=TINY.heads,
            num_key_value_heads=TINY.key_value_heads,
            head_dim=TINY.head_dim,
        )
    )
    if precision.lora:
        from vrm.training.trainer import with_adapters

        model = with_adapters(model.bfloat16(), precision.lora, exclude="none")
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, or its address is used again
        return tensor

    ids = torch.randint(0, 64, (2, tokens // 2))
    inputs = {"input_ids": ids, "use_cache": False}
    if precision.by_group:
        model.set_attn_implementation("shared_prefix_sdpa")
        groups = [PromptGroup([1], [[2] * 15, [3] * 16])] * (tokens // 32)
        inputs = pack(groups, 0).inputs() | {"attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool)}
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision.bf16):
        model(**inputs)
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize(
    "precision",
    [FULL, MIXED, ADAPTED, PACKED, replace(FULL, by_group=True), replace(MIXED, by_group=True)],
    ids=["float32", "mixed", "adapters", "4-bit", "packed", "packed mixed"],
)
def test_activations_are_what_autograd_saves(precision):
    pytest.importorskip("bitsandbytes" if precision.packed else "torch")

    def of_a_block(tokens):
        return _saved_bytes(3, precision, tokens) - _saved_bytes(1, precision, tokens)

    # the difference of differences: two blocks, 64 tokens; casts of weights cancel out
    measured = (of_a_block(128) - of_a_block(64)) / 2 / 64
    assert memory.activation_bytes(TINY, precision) == pytest.approx(measured, rel=0.12)


def test_full_training_takes_sixteen_bytes_a_parameter():
    # Rajbhandari et al. 2020: 4 + 4 + 8 in float32
    shape = PUBLIC["Qwen/Qwen3-4B"]
    parts = memory.states(shape, FULL)
    assert sum(parts.values()) == pytest.approx(16 * shape.parameters / GIB)


def test_adapters_leave_two_bytes_a_frozen_weight_and_sixteen_a_trained_one():
    shape = PUBLIC["Qwen/Qwen3-8B"]
    total = sum(memory.states(shape, ADAPTED).values()) * GIB
    assert total == pytest.approx(2 * shape.parameters + 16 * shape.adapter_parameters(4))


def test_four_bit_weights_are_as_large_as_planned():
    """What bitsandbytes holds of a block's seven matrices, scales included, beside the formula."""
    pytest.importorskip("bitsandbytes")
    from vrm.training.backbones import create_model, train_tokenizer
    from vrm.training.trainer import with_adapters

    create = CreatedBackbone(hidden_size=256, layers=2, heads=4, key_value_heads=2, intermediate_size=512)
    tokenizer = train_tokenizer(["some text"], 300)
    model = with_adapters(create_model(create, tokenizer, 64).bfloat16(), PACKED.lora, exclude="lm_head")
    held = 0
    for parameter in model.parameters():
        held += parameter.nbytes
        if state := getattr(parameter, "quant_state", None):
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    shape = replace(memory.created_shape(create), vocabulary=len(tokenizer))
    assert memory.states(shape, PACKED)["weights"] * GIB == pytest.approx(held, rel=1e-4)


def test_four_bit_weights_take_a_quarter_and_are_merged_elsewhere():
    # Dettmers et al. 2023: 4 bits, and 0.127 of scales
    assert pytest.approx(4.127, abs=1e-3) == memory.PACKED * 8
    shape = PUBLIC["Qwen/Qwen3-8B"]
    whole, packed = (memory.training(shape, how, 2, 16) for how in (ADAPTED, PACKED))
    saved = (2 - memory.PACKED) * shape.matrix_parameters / GIB
    assert whole.parts["weights"] - packed.parts["weights"] == pytest.approx(saved)
    assert "float32 copy while merging" in whole.parts
    assert "float32 copy while merging" not in packed.parts
    assert packed.parts["unpacked layer"] < 0.2
    assert packed.total < whole.total / 2


def test_checkpointing_saves_activations_and_nothing_else():
    shape = PUBLIC["Qwen/Qwen3-8B"]
    checkpointed = Precision(bf16=True, checkpointing=True)
    full, less = memory.training(shape, MIXED, 2, 1024), memory.training(shape, checkpointed, 2, 1024)
    assert less.parts["activations"] < full.parts["activations"] / 5
    assert {**less.parts, "activations": 0} == {**full.parts, "activations": 0}


def test_cache_of_an_8b_model():
    # 36 layers x 8 key-value heads x 128, twice, 2 bytes: 144 KiB a token
    assert memory.key_value_cache(PUBLIC["Qwen/Qwen3-8B"], 1, 1) * GIB == 144 * 1024


def test_ppo_holds_four_models_and_without_adapters_a_reference():
    policy, reward = PUBLIC["Qwen/Qwen3-8B"], PUBLIC["Qwen/Qwen3-4B"]
    sizes = {"rows": 1, "length": 64, "generated": 1, "scored": 1, "scored_length": 64}
    full = memory.ppo(policy, reward, MIXED, **sizes)
    assert full.parts["reference"] == pytest.approx(4 * policy.parameters / GIB)
    assert full.parts["weights"] == pytest.approx(4 * (policy.parameters + policy.body_parameters) / GIB)
    assert full.parts["reward model"] == pytest.approx(4 * reward.body_parameters / GIB)
    adapted = memory.ppo(policy, reward, ADAPTED, **sizes)
    assert adapted.parts["reference"] == 0
    assert adapted.total < full.total / 4


def test_ppo_peaks_in_the_larger_of_rollout_and_step():
    policy, reward = PUBLIC["Qwen/Qwen3-8B"], PUBLIC["Qwen/Qwen3-4B"]
    sizes = {"rows": 1, "length": 2048, "scored": 1, "scored_length": 64}
    few, many = (memory.ppo(policy, reward, ADAPTED, generated=n, **sizes) for n in (512, 1024))
    assert many.total - few.total == pytest.approx(memory.key_value_cache(policy, 512, 2048) * 1.05)
