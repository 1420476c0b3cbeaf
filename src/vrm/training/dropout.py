"""Dropout is off in every training: the numbers that a method starts from are then exact.

With dropout on, a policy in training mode is not the policy that was measured: the first DPO loss is not log 2, and
PPO clips ratios of a policy that has not moved yet. Reward models are trained without it too, so that what is
trained and what is evaluated agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig

MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NAMES = re.compile(r"drop_?out|pdrop$|layer_?drop|drop_path|drop_prob|jitter_noise")
"""Names of shares and of noise that act in training mode alone: attention_dropout, resid_pdrop, router_jitter_noise."""


def switch_off_dropout(model: nn.Module) -> None:
    """Set every kind of dropout of a model to 0: modules, their numbers, and fields of its configurations.

    Attention reads its share from a number of its own (`self.attention_dropout`) or from the configuration, not from
    a module, so switching modules off is not enough. The configuration is saved with the model and says what it was
    trained with.

    Args:
        model: changed in place; adapters, if any, included.
    """
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, MODULES):
            module.p = 0.0
        _zero(vars(module))
        configs |= {id(c): c for c in vars(module).values() if isinstance(c, PreTrainedConfig)}
    for config in configs.values():
        for part in _with_parts(config):
            for name in _shares(vars(part)):
                setattr(part, name, 0.0)


def drop_adapters(model: nn.Module, share: float) -> None:
    """Give the inputs of every low-rank adapter dropout, the one training in which its authors have some.

    Args:
        model: changed in place; one without adapters stays as it is.
        share: of the inputs that are dropped, in 0..1.
    """
    for module in model.modules():
        found = getattr(module, "lora_dropout", None)  # an identity where adapters were made without dropout
        if isinstance(found, nn.ModuleDict):
            found.update({name: nn.Dropout(share) for name in found})


def _zero(values: dict[str, object]) -> None:
    for name in _shares(values):
        values[name] = 0.0


def _shares(values: dict[str, object]) -> list[str]:
    """Names of the shares that are above 0; booleans and modules of such names are something else."""
    return [name for name, value in values.items() if NAMES.search(name) and type(value) in (int, float) and value > 0]


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it: of the text, of the vision tower."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _with_parts(value)
