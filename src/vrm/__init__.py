"""Variational reward modelling: a workflow-orchestrated reproduction of VRM (arXiv 2603.04974).

Public names, each loaded when it is first asked for, so that `import vrm` costs nothing:

* `RewardModel`: a trained reward model for one's own code, TRL, transformers and RewardBench.
* `RewardOutput`: what its `score` returns.
* `RewardBenchPipeline`: for RewardBench's table of models.

Type checkers read `__init__.pyi`, as these names are not imported here.
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "RewardModel": "vrm.models.reward_model",
    "RewardBenchPipeline": "vrm.models.reward_model",
    "RewardOutput": "vrm.models.base",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name's module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
