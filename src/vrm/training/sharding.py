"""FSDP2: what our trainings do besides what transformers and accelerate do, so that a sharded one equals a plain one.

* A model is sharded as soon as its trainer exists: what it is compared with is measured before there is an optimiser.
* bfloat16 is autocast on float32 weights, as in a single process, and not FSDP2's own mixed precision, which casts a
  VRM's head and its outputs as well: digamma differences have no digits left in bfloat16. The price: weights
  travel between GPUs in float32.
* A finished model is gathered in the main process's memory, and is an ordinary directory on disk.

Without FSDP, everything here does nothing.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import fsdp2_prepare_model

from vrm.config import ConfigError


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether models are spread over the processes.

    Raises:
        ConfigError: the launch asks for it and does not get it, or asks for the first FSDP.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not sharded:
        raise ConfigError(
            "the launch asks for FSDP, which accelerate does between several GPUs only; launch it with "
            "workflow/accelerate/ddp.yaml"
        )
    if sharded and not accelerator.is_fsdp2:
        raise ConfigError("the launch asks for FSDP version 1; set fsdp_version: 2, as workflow/accelerate/fsdp2.yaml")
    return sharded


def shard(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Spread a model over the processes in place, if the launch asks for that; all processes call it together."""
    if not is_sharded(accelerator):
        return
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if accelerator.mixed_precision == "bf16":
        # without the cache, which would hold a whole bfloat16 model
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16, cache_enabled=False)
        model.forward = autocast(model.forward)
    fsdp2_prepare_model(accelerator, model)
    accelerator._models.append(model)  # or the trainer would prepare it again, for its first measurement


def whole_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """All weights of a sharded model, in the main process's memory; None: the model is whole as it is.

    All processes call it together; the others get an empty dictionary.
    """
    return accelerator.get_state_dict(model) if is_sharded(accelerator) else None
