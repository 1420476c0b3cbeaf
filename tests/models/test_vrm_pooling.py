"""Pooling of a prompt's states, against a loop over its tokens."""

import pytest
import torch

from vrm.models.vrm import attention_pool, prompt_mask

LENGTHS = [(2, 6), (5, 5), (1, 3)]
"""Tokens of the prompt, and of the whole text."""
POSITIONS, CHANNELS = 7, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def padded(side):
    """Attention mask (B, T) and index of each prompt's last token (B,), padded on that side."""
    mask, last = torch.zeros(len(LENGTHS), POSITIONS, dtype=torch.long), []
    for row, (prompt, whole) in enumerate(LENGTHS):
        start = 0 if side == "right" else POSITIONS - whole
        mask[row, start : start + whole] = 1
        last.append(start + prompt - 1)
    return mask, torch.tensor(last)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_holds_the_prompts_tokens_and_no_others(side):
    mask, last = padded(side)
    found = prompt_mask(mask, last)
    for row, (prompt, whole) in enumerate(LENGTHS):
        start = 0 if side == "right" else POSITIONS - whole
        assert found[row].nonzero().flatten().tolist() == list(range(start, start + prompt))


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_the_weighted_mean_of_the_prompts_states_alone(side):
    mask, last = padded(side)
    hidden, query = torch.randn(len(LENGTHS), POSITIONS, CHANNELS), torch.randn(CHANNELS)
    pooled = attention_pool(hidden, prompt_mask(mask, last), query)
    for row, (prompt, _) in enumerate(LENGTHS):
        states = hidden[row, last[row] - prompt + 1 : last[row] + 1]  # (prompt, H)
        shares = [float(torch.exp(query @ state)) for state in states]
        expected = sum(share * state for share, state in zip(shares, states, strict=True)) / sum(shares)
        torch.testing.assert_close(pooled[row], expected)


def test_what_lies_outside_of_the_mask_changes_no_bit_and_gets_no_gradient():
    mask, last = padded("right")
    inside = prompt_mask(mask, last)
    hidden, query = torch.randn(len(LENGTHS), POSITIONS, CHANNELS, requires_grad=True), torch.randn(CHANNELS)
    pooled = attention_pool(hidden, inside, query)
    elsewhere = torch.where(inside.unsqueeze(-1), hidden, 1e3 * torch.randn_like(hidden))
    assert torch.equal(attention_pool(elsewhere, inside, query), pooled)
    pooled.square().sum().backward()
    assert (hidden.grad[~inside] == 0).all()
    assert (hidden.grad[inside].abs().sum(-1) > 0).all()


def test_a_query_of_zeros_is_the_mean_and_learns():
    mask, last = padded("left")
    inside, hidden = prompt_mask(mask, last), torch.randn(len(LENGTHS), POSITIONS, CHANNELS)
    query = torch.zeros(CHANNELS, requires_grad=True)
    pooled = attention_pool(hidden, inside, query)
    means = torch.stack([states[rows].mean(0) for states, rows in zip(hidden, inside, strict=True)])
    torch.testing.assert_close(pooled, means)
    pooled.square().sum().backward()
    assert query.grad.abs().max() > 1e-3
