"""How a model comes to the disk: an ordinary Hugging Face directory that others may read too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, **options: Any) -> None:
    """Write model (safetensors) and tokenizer, all of it with the permissions that a new file has here.

    Args:
        model: to be saved.
        tokenizer: saved beside it, with its chat template.
        directory: is made if need be.
        options: of `save_pretrained`, e.g. `state_dict`.
    """
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    # safetensors writes by way of a private temporary file (0600), whatever the umask
    mode = (directory / "config.json").stat().st_mode & 0o777
    for path in directory.iterdir():
        if path.is_file():
            path.chmod(mode)
