"""Is this model fit for what is asked of it? Asked in one place, before any training, scoring or answering.

* `checked_tokenizer` looks at what is cheap: the files, the configuration, positions, vocabulary, chat template.
* What only loading tells is asked by `vrm.models.weights.checked_weights`: a checkpoint without some of the weights
  would be filled up with random ones, and another number come out each time.

Whatever is wrong becomes one line with the file, the cause and the remedy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from vrm.config import ConfigError
from vrm.models.templates import read_template
from vrm.models.text import prepare_tokenizer
from vrm.models.weights import AGAIN, one_line, some_of
from vrm.records import RecordError

WEIGHTS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
"""What transformers raises at files that are cut, or hold JSON of another form."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def checked_tokenizer(
    model: str | Path,
    *,
    max_length: int | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """A model's tokenizer, ready for use, once all that can be known without loading the weights is right.

    Args:
        model: directory or hub id.
        max_length: the longest text, in tokens; None asks nothing of the positions.
        revision: commit of the hub model.
        chat_template: instead of the tokenizer's own, its text or a file.
        trust_remote_code: run the code that the model brings along.

    Raises:
        ConfigError: no causal language model, fewer positions than `max_length`, no end token, no such template.
        RecordError: files are missing, incomplete or do not belong together.
    """
    config = checked_config(model, revision=revision, trust_remote_code=trust_remote_code)
    if max_length is not None:
        require_positions(model, config, max_length)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), revision=revision, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise RecordError(f"{model}: its tokenizer can't be read ({one_line(error)}); {AGAIN}") from None
    _require_vocabulary(model, config, tokenizer)
    return prepare_tokenizer(tokenizer, None if chat_template is None else read_template(chat_template))


def checked_config(
    model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """A model's configuration, once its files are whole and it is a causal language model, or has one inside.

    Raises:
        ConfigError: it is no causal language model.
        RecordError: files are missing or incomplete.
    """
    import vrm.models.features
    import vrm.models.vrm  # noqa: F401  both register their model types

    require_model(model)
    if not Path(model).is_dir():  # without a network the hub's library tries for half a minute
        print(f"{model}: no directory here; asking the hub for it", file=sys.stderr, flush=True)
    try:
        config = AutoConfig.from_pretrained(str(model), revision=revision, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        if Path(model).is_dir():
            raise RecordError(f"{model}/config.json: can't be read ({one_line(error)}); {AGAIN}") from None
        raise RecordError(
            f"{model}: neither a directory here nor a model that can be had from the hub ({one_line(error)}); correct "
            "the name, or give the path of a directory"
        ) from None
    _require_causal(model, config)
    return config


def require_model(model: str | Path) -> None:
    """Say what is wrong with a local model's files, and with a path, before the hub takes it for a name of its own.

    Raises:
        RecordError: there is no such directory, it holds no model, or files are missing or incomplete.
    """
    directory = Path(model)
    if not directory.is_dir():
        if isinstance(model, Path) or len(directory.parts) > 2 or str(model).startswith((".", "/", "~")):
            raise RecordError(f"{model}: there is no such directory; name a trained model, .../seed1/model")
        return
    if not (directory / "config.json").exists():
        inner = directory / "model"
        mend = f"; did you mean {inner}?" if (inner / "config.json").exists() else ""
        raise RecordError(f"{model}: holds no model (no config.json){mend}")
    # hidden files are not the model's: Snakemake leaves an empty time stamp
    files = [path for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for path in files:
        _require_content(path)
    weights = [path for path in files if path.suffix == WEIGHTS]
    for index in directory.glob("*.index.json"):
        _require_shards(index, {path.name for path in weights})
    if not weights and (pickles := [path.name for path in files if path.suffix in PICKLES]):
        raise RecordError(
            f"{model}: its weights are pickled ({some_of(pickles)}), and reading a pickle can run code: convert them "
            "where you trust them, with save_pretrained(..., safe_serialization=True), or name a model with safetensors"
        )
    if not weights:
        raise RecordError(f"{model}: holds no weights (no .safetensors file); {AGAIN}")
    for path in weights:
        _require_whole(path)


def require_positions(model: str | Path, config: PreTrainedConfig, max_length: int) -> None:
    """Have a model a position for every token: beyond them a model answers nonsense, silently.

    Raises:
        ConfigError: it has fewer.
    """
    known = positions_of(config)
    if known is not None and known < max_length:
        raise ConfigError(
            f"{model} has {known} positions (max_position_embeddings), and texts may have {max_length} tokens: lower "
            "max_length and max_prompt_length, or take a model with more"
        )


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can tell the places of; None where that is not limited."""
    return getattr(_language_model(config), "max_position_embeddings", None)


def _language_model(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of what reads the text: inside a VRM, and inside frozen features, there is a further one."""
    inner = config.get_text_config(decoder=True)
    backbone = getattr(inner, "backbone_config", None)
    return inner if backbone is None else _language_model(backbone)


def _require_causal(model: str | Path, config: PreTrainedConfig) -> None:
    inner = _language_model(config)
    if getattr(config, "auto_map", None):  # code of its own, and trusted, or it would not have been loaded
        return
    kind = inner.model_type
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(inner, "is_decoder", None) is False
    if encoder or inner.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"{model} is a {kind}, which is not a causal language model: it can neither answer nor leave a prompt's "
            "reading untouched by the response; name a causal one (Llama, Qwen, Gemma, Mistral, Pythia, ...)"
        )


def _require_vocabulary(model: str | Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = getattr(_language_model(config), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and largest >= rows:
        raise RecordError(
            f"{model}: the tokenizer has token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and the model "
            f"knows {rows} (vocab_size): they do not belong together; save the model's own tokenizer beside it, or "
            "resize its embeddings"
        )


def _require_content(path: Path) -> None:
    with open(path, "rb") as handle:
        start = handle.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise RecordError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in its directory")
    if not start:
        raise RecordError(f"{path}: empty; {AGAIN}")


def _require_shards(index: Path, present: Collection[str]) -> None:
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecordError(f"{index}: no index of weights ({one_line(error)}); {AGAIN}") from None
    if absent := sorted(named - set(present)):
        raise RecordError(f"{index}: names {some_of(absent)}, not in its directory; {AGAIN}")


def _require_whole(path: Path) -> None:
    """A safetensors file begins with its header's size (8 bytes), and the header says where the last tensor ends."""
    with open(path, "rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        length = path.stat().st_size
        if size > length - 8:
            raise RecordError(f"{path}: broken or cut off (its header alone would have {size} bytes); {AGAIN}")
        try:
            header = json.loads(handle.read(size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise RecordError(f"{path}: its header can't be read; {AGAIN}") from None
    expected = 8 + size + max(ends, default=0)
    if length != expected:
        raise RecordError(f"{path}: has {length} of {expected} bytes; {AGAIN}")
