"""Low-rank adapters (LoRA): put on a model before its training, merged into its weights after it.

* Adapters are float32, like all weights that are trained; with `bf16` the frozen weights below them are bfloat16, and
  a backbone that was published in float32 stays rounded to that.
* A layer that is trained whole beside them, a reward model's head or a critic's, is in every checkpoint with them.
* Whatever was trained, a finished model is an ordinary Hugging Face directory in float32.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; the adapters are PEFT's.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from vrm.config import Lora, Optimisation


def weight_dtype(training: Optimisation) -> torch.dtype:
    """Weights that are trained are float32, whatever the checkpoint's; those below adapters may be bfloat16."""
    return torch.bfloat16 if training.lora and training.bf16 else torch.float32


def with_adapters(
    model: PreTrainedModel, lora: Lora | None, exclude: str, train_excluded: bool = False
) -> PreTrainedModel:
    """Low-rank adapters on every linear layer but the head's; until they are trained they change nothing.

    Args:
        model: the model; it is returned as it is where `lora` is None.
        lora: rank and scale.
        exclude: name of the head, a layer or a module of several, which gets no adapters.
        train_excluded: whether the head is trained in full; otherwise it is frozen like all other weights.
    """
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rsplit(".", 1)[-1]
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and exclude not in name.split(".")
    }
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(linear),
        modules_to_save=[exclude] if train_excluded else None,
    )
    model.enable_input_require_grads()  # or activation checkpointing has nothing to pass back
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapters merged into its weights, in float32; one without adapters as it is."""
    if not hasattr(model, "merge_and_unload"):
        return model
    # merged into bfloat16 weights, a small change would be rounded away
    whole = model.float().merge_and_unload()
    for part in whole.modules():
        if isinstance(part, PreTrainedModel):
            part.config.dtype = torch.float32  # a backbone's own configuration still says bfloat16
    return whole
