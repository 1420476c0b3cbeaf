"""One batch of PPO: what the policy answered, what it was worth, and what each token's advantage is.

Prompts are padded on the left and responses on the right, so that responses of all rows stand in the same columns:
`width` columns of prompt, then T of response.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from trl.trainer.utils import pad

from vrm.models.log_probs import response_outputs
from vrm.models.vrm import positions


@dataclass(frozen=True)
class Texts:
    """B prompts with their responses of up to T tokens.

    Args:
        ids: token ids, shape (B, width + T).
        attention: 1 on real tokens, likewise.
        mask: 1.0 on real response tokens, shape (B, T).
        width: columns of the prompts.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    width: int

    def rows(self, index: Tensor) -> Texts:
        """Some of the rows."""
        return Texts(self.ids[index], self.attention[index], self.mask[index], self.width)


def pad_texts(prompts: list[list[int]], responses: list[list[int]], pad_token_id: int, device: torch.device) -> Texts:
    """B prompts and responses, given as token ids, as `Texts`."""

    def padded(rows: list[list[int]], value: int, side: str) -> Tensor:
        return pad([torch.tensor(row) for row in rows], padding_value=value, padding_side=side).to(device)

    def ones(rows: list[list[int]]) -> list[list[int]]:
        return [[1] * len(row) for row in rows]

    left, right = padded(prompts, pad_token_id, "left"), padded(responses, pad_token_id, "right")
    mask = padded(ones(responses), 0, "right")
    attention = torch.cat([padded(ones(prompts), 0, "left"), mask], dim=1)
    return Texts(torch.cat([left, right], dim=1), attention, mask.float(), left.shape[1])


def token_log_probs(model: torch.nn.Module, texts: Texts) -> tuple[Tensor, Tensor]:
    """log pi of each response token and the policy's entropy before it, nats, both (B, T); `model` has a fused head."""
    response = texts.attention.clone()
    response[:, : texts.width] = 0
    out = response_outputs(model, texts.ids, texts.attention, response)
    # column t of the head's output belongs to token t + 1
    return out.log_probs[:, texts.width - 1 :], out.entropy[:, texts.width - 1 :]


def token_values(critic: torch.nn.Module, texts: Texts) -> Tensor:
    """V(s_t), read one position before response token t, shape (B, T); 0 on padding."""
    out = critic(
        input_ids=texts.ids, attention_mask=texts.attention, position_ids=positions(texts.attention), use_cache=False
    )
    return out.logits.squeeze(-1)[:, texts.width - 1 : -1].float() * texts.mask


@dataclass(frozen=True)
class Experience:
    """B answered prompts with everything that the optimiser steps on them need; the policy's and critic's are old ones.

    Args:
        texts: what was said.
        log_probs: log pi of each token, shape (B, T).
        values: V(s_t), shape (B, T).
        advantages: whitened over the whole batch, shape (B, T).
        returns: what the critic learns, shape (B, T).
    """

    texts: Texts
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Experience:
        """Some of the rows."""
        tensors = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "texts"}
        return replace(self, texts=self.texts.rows(index), **tensors)
