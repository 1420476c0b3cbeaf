"""Small models with the chat templates' shapes of the families that people use: written here, none of them copied.

What differs is what breaks things: a BOS that the template writes, headers of special tokens or of plain text, no
system turn, a role under another name, trimmed contents, no generation prompt at all, an end of text after the end of a
turn, and a rendering with `add_generation_prompt` that is no continuation of the one without.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vrm.models.templates import CHATML, PLAIN, QWEN3, QWEN25
from vrm.models.text import generation_prompt_ids, prepare_tokenizer, user_turn_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.models.weights import save_model

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    + ALTERNATING
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + ALTERNATING + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI_EARLY = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n"
    "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
"""Whose users' turns already hold the response header."""
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Whose prompts open a thought that a finished response does not hold."""

CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Family:
    """A template, and the special tokens of a tokenizer that goes with it; the last one is the end token."""

    template: str
    special: tuple[str, ...]
    bos: str | None = None
    pad: str | None = None
    system: bool = True


FAMILIES = {
    "chatml": Family(CHATML, tuple(CHATML_TOKENS), pad="<|endoftext|>"),
    "qwen2.5": Family(QWEN25, tuple(CHATML_TOKENS), pad="<|endoftext|>"),
    "qwen3": Family(QWEN3, ("<think>", "</think>", *CHATML_TOKENS), pad="<|endoftext|>"),
    "plain": Family(PLAIN, ("<s>", "</s>"), bos="<s>"),
    "llama": Family(
        LLAMA,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        pad="<|eot_id|>",
    ),
    "gemma": Family(
        GEMMA, ("<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<eos>"), bos="<bos>", pad="<pad>", system=False
    ),
    "mistral": Family(MISTRAL, ("<unk>", "<s>", "</s>"), bos="<s>", pad="</s>", system=False),
    "mistral_control": Family(MISTRAL, ("[INST]", "[/INST]", "<s>", "</s>"), bos="<s>", system=False),
    "phi": Family(
        PHI, ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), pad="<|endoftext|>"
    ),
    "phi_early": Family(
        PHI_EARLY, ("<s>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|end|>"), bos="<s>", system=False
    ),
    "reasoning": Family(REASONING, ("<think>", "</think>", *CHATML_TOKENS), pad="<|endoftext|>"),
}

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's and Llama-3's way to split: it joins line breaks, so that a header's newline may become another token."""
TEXT = [
    "alpha beta gamma delta user assistant model system good bad\n\nalpha\n\n\nbeta  gamma\n",
    *("user\n", "assistant\n\n", "model\n", "the good answer\n\n- one\n- two\n", " [INST] alpha [/INST] beta"),
] * 4


def make_tokenizer(name: str, split: str | None = QWEN_SPLIT) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens and template."""
    family = FAMILIES[name]
    inner = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    inner.pre_tokenizer = (
        byte_level
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(family.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=family.bos,
        eos_token=family.special[-1],
        pad_token=family.pad,
        chat_template=family.template,
    )


def save_backbone(name: str, directory: Path, split: str | None = QWEN_SPLIT, **changes: object) -> Path:
    """A random causal LM of this family, with weights large enough that every token matters."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(name, split)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.12}
    tokens = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **(sizes | tokens | changes)))
    save_model(model, tokenizer, directory)
    return directory


def save_reward_model(kind: str, name: str, directory: Path, split: str | None = QWEN_SPLIT) -> Path:
    """A random reward model of this family as `vrm train-reward` saves it: `scalar`, or a VRM's decoder."""
    backbone = save_backbone(name, directory.with_name(f"{directory.name}.backbone"), split)
    tokenizer = prepare_tokenizer(make_tokenizer(name, split))
    torch.manual_seed(1)
    if kind == "scalar":
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
        torch.nn.init.normal_(model.score.weight, std=0.3)
    else:
        model = VrmForSequenceClassification.from_backbone(
            str(backbone),
            aspects=["a", "b", "c"],
            latent_dim=4,
            reward_decoder=kind,
            generation_prompt_ids=generation_prompt_ids(tokenizer),
            user_turn_ids=user_turn_ids(tokenizer),
        )
        for layer in (*model.head.weight_encoder, *model.head.decoder, model.head.latent_encoder):
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=0.3)
    model.config.pad_token_id = tokenizer.pad_token_id
    save_model(model, tokenizer, directory)
    return directory
