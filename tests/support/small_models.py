"""Small configurations of every family that packs rows, and random texts for them."""

import numpy as np
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

PAD = 0
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": PAD, "num_labels": 1,
}  # fmt: skip
NO_HEAD = {name: size for name, size in SIZES.items() if name != "head_dim"}
WINDOW = 6
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "qwen2": Qwen2Config(**NO_HEAD),
    "qwen2_sliding": Qwen2Config(**NO_HEAD, use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED),
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral_sliding": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=WINDOW, attn_logit_softcapping=2.0, query_pre_attn_scalar=4),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=MIXED),
}


def draw_texts(pairs=5, seed=0, prompt=(3, 24), response=(1, 20)):
    """Texts of pairs, chosen before rejected, with an end token of their own, and their prompts' lengths."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 97, rng.integers(*prompt)).tolist() for _ in range(pairs)]
    return [(p + rng.integers(1, 97, rng.integers(*response)).tolist(), len(p)) for _ in range(2) for p in prompts]
