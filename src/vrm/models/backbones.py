"""The causal LM under a reward model or a policy: one from a path or the hub, or a small one made here.

A created backbone is a Qwen3 or Qwen2 of the configured size with a byte-level BPE tokenizer trained on the training
text, pretrained for a while as a language model on the same text, so that nothing starts from noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from vrm.config import CreatedBackbone
from vrm.models.saving import save_model
from vrm.models.templates import TEMPLATES

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
