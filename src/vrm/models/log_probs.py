"""Log-probabilities of responses, from TRL's fused head: the (B, T, V) logits are never in memory.

A causal LM is patched once; it then answers `model(..., labels=..., fused_lm_head=True)` with what was asked for a
token, and everything else, generation included, as before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from vrm.models.vrm import positions


def fuse_head(model: PreTrainedModel, *outputs: str, temperature: float = 1.0) -> PreTrainedModel:
    """Give a causal LM the fused head; adapters may be on it, the head itself is never adapted.

    Args:
        model: the model; it is returned.
        outputs: what is computed a token beside `log_probs`: `entropy`, `log_sum_sq_probs`.
        temperature: what logits are divided by.
    """
    add_fused_lm_head(_inner(model), temperature=temperature, outputs=("log_probs", *outputs))
    return model


def ensure_fused_head(model: PreTrainedModel) -> PreTrainedModel:
    """Give a causal LM the fused head, unless its trainer has: that one may compute more, and is not taken away."""
    return model if "forward" in vars(_inner(model)) else fuse_head(model)


def _inner(model: PreTrainedModel) -> PreTrainedModel:
    """The model below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def response_outputs(model: torch.nn.Module, ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> object:
    """What the fused head says of each response token given what is before it; 0 elsewhere.

    Args:
        model: with a fused head, wrapped or not.
        ids: token ids, shape (B, T), padded on either side or both.
        attention_mask: 1 on real tokens, shape (B, T).
        response_mask: 1 or True on the tokens that count, shape (B, T).

    Returns:
        `log_probs` in nats, and the other outputs, each of shape (B, T - 1); column t belongs to token t + 1.
    """
    return model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        labels=ids.masked_fill(~response_mask.bool(), -100),
        fused_lm_head=True,
    )
