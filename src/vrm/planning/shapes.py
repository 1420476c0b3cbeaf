"""The architecture of a backbone, as far as memory and time depend on it, without loading any model.

* A created backbone's sizes stand in the configuration; a local directory has its config.json.
* Of hub models only those of our presets are known, from their published config.json; a test compares their sizes with
  the published totals. For any other, download its config.json and name the directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrm.config import BackboneConfig, ConfigError, CreatedBackbone


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and a gated feed-forward block, as Qwen2, Qwen3 and Llama have.

    Args:
        vocabulary: rows of the embedding.
        hidden: width of the residual stream.
        layers: transformer blocks.
        heads: attention heads.
        key_value_heads: key-value heads.
        head_dim: width of a head.
        intermediate: width of the feed-forward blocks.
        tied: whether the language-model head is the embedding.
        attention_bias: whether query, key and value have biases (Qwen2).
        head_norms: whether queries and keys are normalised by head (Qwen3).
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    tied: bool = True
    attention_bias: bool = False
    head_norms: bool = True

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token; the values' as well."""
        return self.key_value_heads * self.head_dim

    @property
    def linear_layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a block, in the order of q, k, v, o, gate, up, down."""
        h, q, k, m = self.hidden, self.query_width, self.key_width, self.intermediate
        return [(h, q), (h, k), (h, k), (q, h), (h, m), (h, m), (m, h)]

    @property
    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with in the blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_layers)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding; of an untied language-model head as well."""
        return self.vocabulary * self.hidden

    @property
    def body_parameters(self) -> int:
        """Everything below the language-model head: what a reward model and a critic have."""
        biases = self.query_width + 2 * self.key_width if self.attention_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        return self.embedding_parameters + self.matrix_parameters + self.layers * (biases + norms) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the causal LM."""
        return self.body_parameters + (0 if self.tied else self.embedding_parameters)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of low-rank adapters on every linear layer of the blocks."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linear_layers)


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, tied: bool = True) -> Shape:
    return Shape(151936, hidden, layers, heads, 8, 128, intermediate, tied)


QWEN2_5_7B = Shape(152064, 3584, 28, 28, 4, 128, 18944, tied=False, attention_bias=True, head_norms=False)

PUBLIC: dict[str, Shape] = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 36, 32, 9728),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, tied=False),
    "Qwen/Qwen2.5-7B": QWEN2_5_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN2_5_7B,
    "FuseAI/FuseChat-Qwen-2.5-7B-SFT": QWEN2_5_7B,
}
"""Shapes of the presets' models by hub id.

Source: their config.json on the hub.
"""


def shape_of(backbone: BackboneConfig) -> Shape:
    """The shape of a configured backbone.

    Raises:
        ConfigError: it is neither created, nor a local directory with a config.json, nor in `PUBLIC`.
    """
    if backbone.create is not None:
        return created_shape(backbone.create)
    path = Path(backbone.path) / "config.json"
    if path.is_file():
        return read_shape(path)
    if backbone.path not in PUBLIC:
        raise ConfigError(
            f"{backbone.path}: its size is not known here; download its config.json into a directory and plan with "
            f"that as `path`. Known: {', '.join(PUBLIC)}"
        )
    return PUBLIC[backbone.path]


def created_shape(create: CreatedBackbone) -> Shape:
    """The shape of a backbone made from scratch; its tokenizer may find fewer tokens than it is allowed."""
    qwen2 = create.architecture == "qwen2"
    return Shape(
        vocabulary=create.vocabulary_size,
        hidden=create.hidden_size,
        layers=create.layers,
        heads=create.heads,
        key_value_heads=create.key_value_heads,
        head_dim=create.hidden_size // create.heads,
        intermediate=create.intermediate_size,
        attention_bias=qwen2,
        head_norms=not qwen2,
    )


def read_shape(path: Path) -> Shape:
    """The shape that a Hugging Face config.json states; a reward model's is that of its backbone.

    Raises:
        ConfigError: a size is missing.
    """
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    kind = config.get("model_type", "")
    try:
        return Shape(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            tied=config.get("tie_word_embeddings", False),
            # Qwen2 has them always and its config.json does not say so
            attention_bias=config.get("attention_bias", False) or kind == "qwen2",
            head_norms=kind == "qwen3",
        )
    except KeyError as error:
        raise ConfigError(f"{path}: it does not say {error}; planning knows decoders like Qwen and Llama") from None
