"""From the states of a prompt's tokens to one vector: pure functions of tensors, for any engine that has the states.

B texts of T positions, H channels. In a causal LM no state of a prompt's token has seen the response, so whatever is
made of these alone depends on the prompt alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prompt_mask(attention_mask: Tensor, last_prompt_token: Tensor) -> Tensor:
    """Which positions hold the prompt's tokens, for either padding side.

    Args:
        attention_mask: 1 on real tokens, shape (B, T).
        last_prompt_token: index of the prompt's last token, shape (B,).

    Returns:
        Bool, shape (B, T).
    """
    steps = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return attention_mask.bool() & (steps <= last_prompt_token.unsqueeze(-1))


def attention_pool(hidden: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Mean of the states that the mask lets through, each weighted by softmax_t(query . hidden_t).

    Args:
        hidden: states, shape (B, T, H).
        mask: True on the positions that count, at least one in each row, shape (B, T), bool.
        query: shape (H,); zeros give the plain mean.

    Returns:
        Shape (B, H).
    """
    scores = (hidden @ query).masked_fill(~mask, -torch.inf)  # (B, T)
    return torch.einsum("bt,bth->bh", scores.softmax(-1), hidden)
