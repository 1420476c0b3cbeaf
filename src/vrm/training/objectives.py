"""What a preference method makes of the log-probabilities of two texts a row: its loss, its reward, whole pairs.

The methods themselves are the pure functions of `preference_losses`; here they are chosen by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vrm.config import PreferenceMethod
from vrm.training import preference_losses as losses
from vrm.training.preference_rows import SIDES

EVIDENCE = ("total", "length", "exponent")


@dataclass(frozen=True)
class Responses:
    """What the policy and its reference say of B responses, end tokens included.

    Args:
        total: log pi, summed over the response, nats, shape (B,).
        length: its tokens, shape (B,).
        exponent: mean over its tokens of log p - log sum_v p_v^2, WPO's weight, shape (B,).
        reference: log pi_ref, summed, shape (B,).
    """

    total: Tensor
    length: Tensor
    exponent: Tensor
    reference: Tensor

    @property
    def logratio(self) -> Tensor:
        """log pi - log pi_ref, shape (B,)."""
        return self.total - self.reference

    def select(self, rows: slice) -> Responses:
        """Some of the rows."""
        return Responses(self.total[rows], self.length[rows], self.exponent[rows], self.reference[rows])


def row_losses(
    method: PreferenceMethod, first: Responses, second: Responses, desirable: Tensor | None, kl: Tensor | None
) -> Tensor:
    """The method's loss of each of B rows, in its own unit, shape (B,); WPO's without its weights.

    Args:
        method: the objective and its coefficients.
        first: chosen responses; KTO's responses.
        second: rejected responses; KTO's mismatched ones.
        desirable: KTO's labels, shape (B,).
        kl: KTO's estimate of the KL, a scalar.
    """
    match method.method:
        case "dpo" | "selective_dpo" | "wpo":
            return losses.dpo(first.logratio, second.logratio, method.beta)
        case "ipo":
            return losses.ipo(first.logratio, second.logratio, first.length, second.length, method.beta)
        case "simpo":
            return losses.simpo(
                first.total, second.total, first.length, second.length, method.beta, method.gamma_over_beta
            )
        case "kto":
            weights = method.desirable_weight, method.undesirable_weight
            return losses.kto(first.logratio, desirable, kl, method.beta, *weights)


def rewards(method: PreferenceMethod, responses: Responses) -> Tensor:
    """The method's own reward of B responses, shape (B,): implicit, or SimPO's length-normalised one."""
    return method.beta * (responses.logratio if method.needs_reference else responses.total / responses.length)


def read_responses(side: str, evidence: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Responses:
    """The first or second texts of a batch of rows: what the policy says of them, and the known reference."""
    return Responses(*(evidence[f"{side}_{name}"] for name in EVIDENCE), known[f"{side}_reference"])


def pair_table(
    method: PreferenceMethod, evidence: Mapping[str, ArrayLike], known: Mapping[str, ArrayLike]
) -> pd.DataFrame:
    """Loss, margin and log ratios of whole pairs.

    Args:
        method: the objective.
        evidence: what a policy says of N rows, as `PreferenceTrainer.observe` returns it.
        known: their references, and KTO's labels: rows of a pair side by side, as `unpaired_rows` without a seed.

    Returns:
        One row a pair: loss, margin, chosen_logratio, rejected_logratio; see docs/files.md.
    """
    tensors = {name: torch.as_tensor(value) for name, value in {**evidence, **known}.items()}
    first, second = (read_responses(side, tensors, tensors) for side in SIDES)
    kl = losses.kto_kl(second.logratio) if method.method == "kto" else None
    loss = row_losses(method, first, second, tensors.get("desirable"), kl)
    if method.method == "kto":
        loss = loss.reshape(-1, 2).mean(1)
        first, second = first.select(slice(0, None, 2)), first.select(slice(1, None, 2))
    columns = {
        "loss": loss,
        "margin": rewards(method, first) - rewards(method, second),
        "chosen_logratio": first.logratio,
        "rejected_logratio": second.logratio,
    }
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})
