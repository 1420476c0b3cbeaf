"""What a command need not import: optional packages that transformers takes in wherever they are installed.

scipy is there for losses of object detection, scikit-learn for a kind of assisted generation, PEFT for adapters: a
second and a half of processor time a job, and no reward model needs any of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

UNUSED = ("scipy", "sklearn")
"""Nothing of ours needs these through transformers; whoever imports them by name still gets them."""


def hide(*packages: str) -> None:
    """Have transformers take packages for missing, in this process; one that is imported already changes nothing."""
    from transformers.utils import import_utils

    for package in packages:
        if package in sys.modules:
            continue
        available = getattr(import_utils, f"is_{package}_available")
        available.cache_clear()
        sys.modules[package] = None  # Python's own way to say that a module can't be imported
        try:
            available()  # is asked once, and remembered
        finally:
            del sys.modules[package]


def hide_peft(backbone: str) -> None:
    """Do without PEFT in a training without adapters, unless the backbone itself is published as an adapter."""
    if Path(backbone).is_dir() and not (Path(backbone) / "adapter_config.json").exists():
        hide("peft")
