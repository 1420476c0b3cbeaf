"""Log-probabilities from the fused head: brute force, either padding, and generation left alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from vrm.models.policy_scoring import fuse_head, response_outputs


def load(backbone):
    return AutoModelForCausalLM.from_pretrained(backbone)


def test_log_probs_are_aligned_float32_and_have_gradients(tiny_backbone):
    model = fuse_head(load(tiny_backbone).to(torch.bfloat16))
    ids = torch.randint(5, 300, (2, 9))
    mask, response = torch.ones_like(ids), torch.zeros_like(ids)
    response[0, 4:], response[1, 7:] = 1, 1
    log_probs = response_outputs(model, ids, mask, response).log_probs
    assert log_probs.shape == (2, 8)
    assert log_probs.dtype == torch.float32
    assert torch.equal(log_probs != 0, response[:, 1:].bool())
    expected = model(ids).logits[0].float().log_softmax(-1)[3, ids[0, 4]]
    assert log_probs[0, 3].item() == pytest.approx(expected.item(), abs=2e-2)
    log_probs.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_the_head_is_computed_of_response_tokens_alone(tiny_backbone, monkeypatch):
    from trl.trainer import utils

    rows = []
    compute = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction, "apply", lambda hidden, *rest: rows.append(len(hidden)) or compute(hidden, *rest)
    )
    ids, response = torch.randint(5, 300, (2, 9)), torch.zeros(2, 9)
    response[0, 4:], response[1, 7:] = 1, 1
    found = response_outputs(fuse_head(load(tiny_backbone)), ids, torch.ones_like(ids), response)
    assert rows == [7]
    nothing = response_outputs(fuse_head(load(tiny_backbone)), ids, torch.ones_like(ids), torch.zeros(2, 9))
    assert found.log_probs.shape == nothing.log_probs.shape == (2, 8)
    assert not nothing.log_probs.any()


def test_entropy_and_temperature_are_those_of_the_sampling_distribution(tiny_backbone):
    plain, model = load(tiny_backbone), fuse_head(load(tiny_backbone), "entropy", temperature=0.7)
    ids = torch.randint(5, 300, (3, 10))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, 8:] = 0  # padded on either side
    response = mask.clone()
    response[:, :6] = 0
    with torch.no_grad():
        out = response_outputs(model, ids, mask, response)
        for row in range(3):
            real = mask[row].bool()
            log_probs = (plain(ids[row, real][None]).logits[0] / 0.7).log_softmax(-1)  # (R, V)
            for t in torch.arange(10)[response[row].bool()].tolist():
                before = log_probs[int(real[:t].sum()) - 1]
                assert out.log_probs[row, t - 1].item() == pytest.approx(before[ids[row, t]].item(), abs=1e-5)
                assert out.entropy[row, t - 1].item() == pytest.approx(-(before.exp() @ before).item(), abs=1e-5)


def test_generation_and_logits_are_left_alone(tiny_backbone):
    ids = torch.randint(5, 300, (1, 6))
    plain, model = load(tiny_backbone), fuse_head(fuse_head(load(tiny_backbone)), "entropy")
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))
    assert torch.equal(model(ids).logits, plain(ids).logits)
