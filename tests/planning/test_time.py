import pytest

from vrm.config import Lora
from vrm.planning import time
from vrm.planning.memory import PUBLIC, Precision
from vrm.planning.time import A100, H100, runs

SHAPE = PUBLIC["Qwen/Qwen3-8B"]


@pytest.mark.parametrize("run", runs(), ids=lambda run: run.name)
def test_published_trainings_are_estimated_within_a_factor_of_two(run):
    assert 0.5 < run.estimated / run.taken < 2


def test_a_short_text_costs_two_operations_a_weight():
    weights = SHAPE.matrix_parameters + SHAPE.embedding_parameters
    assert time.forward_operations(SHAPE, 0) == 2 * weights
    assert time.forward_operations(SHAPE, 0, head=False) == 2 * SHAPE.matrix_parameters


def test_forward_operations_are_what_torch_counts():
    pytest.importorskip("torch")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vrm.config import CreatedBackbone
    from vrm.planning.memory import created_shape
    from vrm.training.backbones import create_model, train_tokenizer

    create = CreatedBackbone(hidden_size=32, layers=2, heads=2, key_value_heads=1, intermediate_size=48)
    model = create_model(create, train_tokenizer(["some text"], 300), 64)
    length = 48
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros((1, length), dtype=torch.long), use_cache=False)
    shape = created_shape(create.model_copy(update={"vocabulary_size": model.config.vocab_size}))
    attention = time.forward_operations(shape, length) - time.forward_operations(shape, 0)
    # torch counts the whole square of the attention matrix where causal kernels do half, or not at all on some CPUs
    expected = time.forward_operations(shape, 0) * length
    counted = counter.get_total_flops()
    assert expected / 1.001 <= counted <= (expected + 2 * attention * length) * 1.001


@pytest.mark.parametrize(
    ("precision", "passes"),
    [(Precision(), 3), (Precision(checkpointing=True), 4), (Precision(lora=Lora()), 2)],
)
def test_passes(precision, passes):
    assert time.passes(precision) == passes


def test_unpacking_makes_every_pass_longer():
    packed = Precision(lora=Lora(load_in_4bit=True))
    assert time.passes(packed) == time.passes(Precision(lora=Lora()))
    assert time.unpacking(packed) > time.unpacking(Precision(lora=Lora())) == 1
    # the published run that it is taken from
    (run,) = (run for run in time.runs() if "4-bit" in run.name)
    assert run.estimated == pytest.approx(run.taken, rel=0.02)


def test_decoding_waits_for_memory_or_for_launches():
    sizes = {"answers": 256, "prompt": 100, "new_tokens": 512}
    alone = time.decoding_hours(SHAPE, H100, batch=1, **sizes)
    together = time.decoding_hours(SHAPE, H100, batch=256, **sizes)
    assert alone > 50 * together
    assert time.decoding_hours(SHAPE, H100, batch=1, engine="vllm", **sizes) < together
    slow, fast = (time.decoding_hours(SHAPE, card, batch=1, engine="vllm", **sizes) for card in (A100, H100))
    assert slow / fast == pytest.approx(H100.bandwidth / A100.bandwidth)
    assert time.decoding_hours(SHAPE, H100, batch=4, answers=0, prompt=1, new_tokens=1) == 0
