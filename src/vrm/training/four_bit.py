"""QLoRA: the frozen linear layers below adapters as 4-bit numbers, and back again.

* A weight becomes one of the 16 numbers of NF4, in blocks of 64 with a scale each, and the scales 8-bit numbers in
  blocks of 256 with a float32 scale each ("double quantisation"). For each product a layer is unpacked to the precision
  that is computed in; there is no gradient of it.
* Embedding, norms and the head stay what they are without it: the first two frozen in the precision that is computed
  in (norms are published in bfloat16, and compute in float32), the head trained whole in float32.
* Layers are packed here and not by transformers' loader, because a VRM's backbone lies inside of a model that the
  loader knows nothing of. They are packed one at a time on the device that trains, which never holds a whole model in
  16 bits; the main memory does.
* The packed weights are a function of the checkpoint, so that resumable state needs the adapters and the head alone.
* A finished model is the one that was trained: adapters are added to the unpacked 4-bit weights, not to those that
  the backbone came with, which the adapters have never seen.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3; the layers are bitsandbytes'.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from vrm.config import ConfigError

BLOCK = 64
"""Weights that share a scale."""


def require_bitsandbytes() -> None:
    """Raise ConfigError where the package that packs weights is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("lora.load_in_4bit needs bitsandbytes: pip install 'vrm[low-memory]'")


def pack_linear_layers(model: nn.Module, exclude: str, device: torch.device) -> None:
    """Replace every linear layer but the head's by one of 4-bit weights, in place.

    Args:
        model: its weights are of the precision that is computed in, and on whatever device.
        exclude: name of the head, a layer or a module of several.
        device: where the layers are packed, and stay.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    require_bitsandbytes()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and exclude not in name.split("."):
            model.set_submodule(name, _packed(layer, device))


def is_packed(model: nn.Module) -> bool:
    """Whether some of its layers are of 4-bit weights."""
    return any(_is_packed(layer) for layer in model.modules())


def unpack_linear_layers(model: nn.Module) -> None:
    """Put float32 layers in the place of 4-bit ones, in place; the whole model is on the CPU then.

    One at a time, because the card that trained on 4-bit weights need not have room for eight times as much.
    """
    for name, layer in list(model.named_modules()):
        if _is_packed(layer):
            model.set_submodule(name, _unpacked(layer))
    model.cpu()


def _packed(layer: nn.Linear, device: torch.device) -> nn.Module:
    import bitsandbytes

    with torch.device("meta"):  # the weights are there already: none have to be made up
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, quant_type="nf4"
        )
    made.weight = bitsandbytes.nn.Params4bit(
        layer.weight.data, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", module=made
    ).to(device)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data.to(device), requires_grad=False)
    # on some CPUs it would repack the weights at the first measurement, into a form without a backward pass
    made.support_avx512bf16_for_cpu = False
    return made


def _unpacked(layer: Any) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # of the precision that it was computed in
    made.weight = nn.Parameter(weight.float().cpu(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data.float().cpu(), requires_grad=False)
    return made


def _is_packed(layer: nn.Module) -> bool:
    # of its own: the adapters around it show their layer's as theirs
    return getattr(layer._parameters.get("weight"), "quant_state", None) is not None
