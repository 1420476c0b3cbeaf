"""What policies and critics say of response tokens: brute force, packed and padded rows, and generation left alone."""

import pytest
import torch
from small_models import FAMILIES, draw_texts
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, set_seed
from trl.trainer import utils

from vrm.models import responses
from vrm.models.responses import batch_responses, fuse_head, response_outputs, response_values
from vrm.models.shared_prefix import share_prefixes

PAD = 0
OUTPUTS = ("entropy", "log_sum_sq_probs")


def load(backbone):
    return AutoModelForCausalLM.from_pretrained(backbone)


def build(name, kind=AutoModelForCausalLM):
    """A model of a family with random weights; of softcaps and scales of logits whatever the family has."""
    set_seed(1)
    model = kind.from_config(FAMILIES[name])
    for parameter in model.parameters():  # away from symmetric starts
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def shared(model):
    share_prefixes(model)
    return model


def said(model, texts, kernel=None, budget=None):
    """What is said of the texts, and the gradients of a loss in which every token counts differently."""
    model.zero_grad()
    out = response_outputs(model, batch_responses(texts, PAD, kernel, budget))
    (out.log_probs * torch.linspace(0.5, 1.5, out.log_probs.shape[1])).sum().backward()
    return out, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_alike(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("budget", [None, 40])
def test_packed_rows_say_what_padded_ones_say(name, budget):
    texts = draw_texts()
    padded = said(fuse_head(build(name), *OUTPUTS), texts)
    assert_alike(padded, said(shared(fuse_head(build(name), *OUTPUTS)), texts, "groups", budget))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_token_is_the_policys_own_distribution(temperature):
    texts = draw_texts()
    plain, model = build("qwen3"), shared(fuse_head(build("qwen3"), *OUTPUTS, temperature=temperature))
    with torch.no_grad():
        out = response_outputs(model, batch_responses(texts, PAD, "groups"))
        for row, (ids, length) in enumerate(texts):
            log_p = (plain(torch.tensor([ids])).logits[0, length - 1 : -1] / temperature).log_softmax(-1)  # (R, V)
            count = len(ids) - length
            chosen = log_p[torch.arange(count), torch.tensor(ids[length:])]
            torch.testing.assert_close(out.log_probs[row, :count], chosen, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.entropy[row, :count], -(log_p.exp() * log_p).sum(-1), atol=1e-5, rtol=1e-5)
            squares = log_p.exp().square().sum(-1).log()
            torch.testing.assert_close(out.log_sum_sq_probs[row, :count], squares, atol=1e-5, rtol=1e-5)
            assert out.mask[row].sum() == count
            assert not out.log_probs[row, count:].any()


def test_few_logits_and_tiles_are_the_same_head(monkeypatch):
    texts = draw_texts()
    few = said(shared(fuse_head(build("gemma2"), *OUTPUTS)), texts, "groups")
    monkeypatch.setattr(responses, "FEW_LOGITS", 0)
    assert_alike(few, said(shared(fuse_head(build("gemma2"), *OUTPUTS)), texts, "groups"))


@pytest.mark.parametrize("kernel", [None, "groups"])
def test_tiles_are_computed_of_response_tokens_alone(monkeypatch, kernel):
    monkeypatch.setattr(responses, "FEW_LOGITS", 0)
    rows = []
    compute = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction, "apply", lambda hidden, *rest: rows.append(len(hidden)) or compute(hidden, *rest)
    )
    texts = draw_texts()
    response_outputs(shared(fuse_head(build("qwen3"))), batch_responses(texts, PAD, kernel))
    assert rows == [sum(len(ids) - length for ids, length in texts)]


def test_a_shared_prompt_stands_there_once_and_short_ones_by_themselves():
    prompt, other = [5, 6, 7], [8]
    texts = [([*prompt, 1], 3), ([*other, 2, 3], 1), ([*prompt, 4, 9], 3), ([*other, 4], 1), ([9, 9, 3], 2)]
    batch = batch_responses(texts, PAD, "groups")
    # [5 6 | 7 1 | 7 4 9], [8 2 3], [8 4], [9 9 3]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 7, 4, 9, 8, 2, 3, 8, 4, 9, 9, 3]]
    learnt = batch["labels"][0, 1:]
    found = [learnt[at[mask.bool()]].tolist() for at, mask in zip(batch["at"], batch["response_mask"], strict=True)]
    assert found == [ids[length:] for ids, length in texts]
    assert int((learnt != -100).sum()) == sum(map(len, found))


def test_a_pad_token_inside_a_response_counts():
    batch = batch_responses([([5, PAD, 1], 1), ([5, 6], 1)], PAD)
    assert batch["labels"].tolist() == [[-100, PAD, 1], [-100, 6, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_what_has_no_prompt_is_refused():
    with pytest.raises(ValueError, match="text 1 has no prompt"):
        batch_responses([([5, 6], 1), ([5, 6], 0)], PAD, "groups")


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gemma2"])
def test_a_critic_reads_packed_rows_as_padded_ones(name):
    texts = draw_texts()
    critic = build(name, AutoModelForTokenClassification)
    expected = response_values(critic, batch_responses(texts, PAD))
    found = response_values(shared(critic), batch_responses(texts, PAD, "groups"))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    for row, (ids, length) in enumerate(texts):  # one position before each response token
        own = critic(torch.tensor([ids])).logits[0, length - 1 : -1, 0]
        torch.testing.assert_close(found[row, : len(own)], own, atol=2e-5, rtol=1e-4)
        assert not found[row, len(own) :].any()


@pytest.mark.parametrize("kernel", [None, "groups"])
def test_log_probs_are_float32_and_have_gradients(tiny_backbone, kernel):
    model = shared(fuse_head(load(tiny_backbone).to(torch.bfloat16)))
    log_probs = response_outputs(model, batch_responses([([5, 6, 7, 8], 2), ([5, 6, 9], 2)], PAD, kernel)).log_probs
    assert log_probs.dtype == torch.float32
    log_probs.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_generation_and_logits_are_left_alone(tiny_backbone):
    ids = torch.randint(5, 300, (1, 6))
    plain, model = load(tiny_backbone), shared(fuse_head(fuse_head(load(tiny_backbone)), "entropy"))
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))
    assert torch.equal(model(ids).logits, plain(ids).logits)
