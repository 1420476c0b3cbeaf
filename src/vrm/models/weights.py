"""How a model's weights come from the disk and go there: every one from the checkpoint, and readable by others.

Weights are read from safetensors alone: a pickle (`pytorch_model.bin`) can run code when it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vrm.records import RecordError

AGAIN = "fetch or copy the model again"


def checked_weights(
    kind: type, model: str | Path, *, fresh: Collection[str] = (), remedy: str = "name another model", **options: Any
) -> PreTrainedModel:
    """`kind.from_pretrained(model)` with every weight from the checkpoint.

    Args:
        kind: a model class or one of the auto classes.
        model: directory or hub id.
        fresh: names of modules that a checkpoint need not have, because they are trained from nothing.
        remedy: what to do about weights that are missing, for the error.
        options: of `from_pretrained`.

    Raises:
        RecordError: weights are missing, of another shape, or can't be read.
    """
    try:
        # a pickle can run code when it is read; safetensors are numbers and names
        options = {"use_safetensors": True} | options
        loaded, found = kind.from_pretrained(str(model), output_loading_info=True, **options)
    # a RuntimeError of torch about shapes or a broken archive; the last three where JSON of another form is read
    except (
        *(OSError, ValueError, RuntimeError, SafetensorError, ImportError),
        *(TypeError, KeyError, AttributeError),
    ) as error:
        raise RecordError(f"{model}: its weights can't be loaded ({one_line(error)}); {AGAIN}") from None
    lacking = [key for key in sorted(found["missing_keys"]) if key.split(".")[0] not in fresh]
    shapes = [key for key, *_ in found["mismatched_keys"] if key.split(".")[0] not in fresh]
    if lacking or shapes:
        unknown = sorted(found["unexpected_keys"])
        has = f", and has {some_of(unknown)} instead" if unknown else ""
        what = (
            f"lacks the weights {some_of(lacking)}" if lacking else f"has weights of another shape: {some_of(shapes)}"
        )
        raise RecordError(f"{model}: {what} of a {type(loaded).__name__}{has}; they would be random numbers: {remedy}")
    return loaded


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


def some_of(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
