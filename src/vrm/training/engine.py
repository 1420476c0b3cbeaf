"""How a training puts its texts into rows: packed, a prompt once for its responses, or padded.

Which kernel computes attention in packed rows, and what a model is trained with that can't have them.
"""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel

from vrm.config import Optimisation
from vrm.models.scoring import own_device
from vrm.models.shared_prefix import Kernel, share_prefixes, shares_prefixes, unsupported

KERNELS: dict[str, Kernel] = {"shared": "groups", "shared_flex": "blocks", "shared_varlen": "varlen"}
"""How attention is computed in each engine that shares prefixes."""


def prepare_rows(model: PreTrainedModel, training: Optimisation, name: str, section: str) -> None:
    """Prepare a model without adapters for packed rows, or say why it pads.

    Args:
        model: what is trained, or scores beside it.
        training: asks for an engine.
        name: of the model, and
        section: of the configuration, for what is said.
    """
    if training.engine == "padded":
        return
    reason = unsupported(model)
    if reason is None:
        share_prefixes(model)
    else:
        print(f"{section}.engine: padded, as {name} cannot share prefixes: {reason}", file=sys.stderr)


def kernel_of(model: torch.nn.Module, training: Optimisation, section: str) -> Kernel | None:
    """The kernel of a prepared model's packed rows; None: it pads."""
    if training.engine == "padded" or not shares_prefixes(model):
        return None
    kernel = KERNELS[training.engine]
    if kernel != "groups" and own_device().type != "cuda":
        print(f"{section}.engine: shared, as {training.engine} trains on CUDA alone", file=sys.stderr)
        return "groups"
    return kernel
