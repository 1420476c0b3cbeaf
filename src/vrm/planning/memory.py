"""How large a backbone is, without loading any model, and the peak memory of one job on one GPU, in GiB by part.

* A created backbone's sizes stand in the configuration; a local directory has its config.json. Of hub models only those
  of our presets are known, from their published config.json; a test compares their sizes with the published totals. For
  any other, download its config.json and name the directory.
* Memory is formulas, not measurements of a GPU. Weights, gradients and AdamW's two moments are counted exactly; float32
  masters as the trainings keep them.
* Tokens are those of the longest pairs: packed rows have as many as padded ones where prompts are short.
* Activations a token and block are counted in what autograd saves of Qwen3's forward pass (`ACTIVATIONS`); a test
  measures that on the CPU. The attention matrix is never stored (SDPA), nor are the (B, T, V) logits (fused head).
* What a CUDA context, cuBLAS and the allocator's fragments take is `RESERVED` and `FRAGMENTATION`: assumptions.

Source: AdamW's 16 bytes a parameter: Rajbhandari et al. 2020 (ZeRO), section 3.1; 4-bit weights: Dettmers et al. 2023
(QLoRA), section 3; activations by block: the way of
Korthikanti et al. 2022, recounted for gated blocks with float32 residuals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrm.config import BackboneConfig, ConfigError, CreatedBackbone, Lora

# The shape of a backbone, as far as memory and time depend on it.


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


# Memory.

GIB = 2**30
RESERVED = 1.5
"""GiB of CUDA context, cuBLAS workspaces and the like."""
FRAGMENTATION = 0.05
"""Share of all allocations that the caching allocator cannot use."""

REPEATED = 2 * 1.5
"""Tensors as wide as all queries that attention by group keeps of a token: keys and values repeated for all heads, and
those of the second response's keys once more, half of all tokens where the prompt is short.
"""

MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256)}
"""Bytes of AdamW's two moments of a weight: float32, or 8 bits with a float32 scale a block of 256."""

PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantisation: 4 bits, an 8-bit scale a block of 64, and a float32 scale a block
of 256 of those: 0.127 bits a weight for all scales.
"""

ACTIVATIONS = {
    "float32": (24, 16, 16, 16),
    "mixed": (26, 10, 10, 8),
    "bfloat16": (8, 8, 8, 6),
}
"""Bytes saved a token and block for the backward pass, by width: of the residual stream, queries, keys, feed-forward.

`mixed` is bfloat16 on float32 weights, `bfloat16` on weights that are that themselves.
"""


@dataclass(frozen=True)
class Memory:
    """What a job holds at its peak.

    Args:
        parts: GiB by name.
    """

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """GiB that the card must have."""
        return RESERVED + sum(self.parts.values()) * (1 + FRAGMENTATION) if self.parts else 0.0


@dataclass(frozen=True)
class Precision:
    """How a model is trained.

    Args:
        bf16: computes in bfloat16.
        lora: adapters instead of all weights; the frozen weights are then of the precision that is computed in.
        checkpointing: recomputes activations in the backward pass.
        moments: bytes of AdamW's two moments of a weight.
        by_group: packed rows whose attention is computed group by group.
    """

    bf16: bool = False
    lora: Lora | None = None
    checkpointing: bool = False
    moments: float = 8
    by_group: bool = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of a stored weight, but for those that are packed."""
        return 2 if self.bf16 and self.lora else 4

    @property
    def packed(self) -> bool:
        """Whether the blocks' weights are 4-bit numbers; embedding, norms and language-model head are not."""
        return self.lora is not None and self.lora.load_in_4bit

    @property
    def read_bytes(self) -> float:
        """Bytes that a step of decoding moves a weight of the blocks: packed ones are read, written out and read."""
        return PACKED + 2 * self.weight_bytes if self.packed else self.weight_bytes

    @property
    def name(self) -> str:
        """Key of `ACTIVATIONS`."""
        return "float32" if not self.bf16 else "bfloat16" if self.lora else "mixed"


def states(shape: Shape, precision: Precision, head: bool = True) -> dict[str, float]:
    """Weights, gradients and AdamW's moments of a model in training, GiB.

    Args:
        shape: the backbone.
        precision: how it is trained.
        head: with the language-model head, or a reward model's or critic's few weights instead.
    """
    parameters = shape.parameters if head else shape.body_parameters
    trained = shape.adapter_parameters(precision.lora.rank) if precision.lora else parameters
    packed = shape.matrix_parameters if precision.packed else 0
    frozen = precision.weight_bytes * (parameters - packed) + PACKED * packed
    parts = {
        "weights": frozen + (4 * trained if precision.lora else 0),
        "gradients": 4 * trained,
        "optimiser": precision.moments * trained,
    }
    if precision.name == "mixed":
        parts["bfloat16 copies"] = 2 * shape.matrix_parameters  # autocast keeps them until the pass ends
    if packed:  # for one product at a time
        parts["unpacked layer"] = precision.weight_bytes * max(i * o for i, o in shape.linear_layers)
    return {name: value / GIB for name, value in parts.items()}


def activation_bytes(shape: Shape, precision: Precision) -> float:
    """Bytes that one token leaves in one block for the backward pass."""
    widths = (shape.hidden, shape.query_width, shape.key_width, shape.intermediate)
    own = sum(each * width for each, width in zip(ACTIVATIONS[precision.name], widths, strict=True))
    # each adapter keeps its own copy of its layer's input
    copies = sum(inputs for inputs, _ in shape.linear_layers) if precision.lora else 0
    if precision.by_group:
        copies += REPEATED * shape.query_width
    return own + (2 if precision.bf16 else 4) * copies


def activations(shape: Shape, precision: Precision, tokens: int) -> float:
    """GiB of activations of a forward pass over so many tokens, padding included."""
    block = activation_bytes(shape, precision)
    residual = (2 if precision.name == "bfloat16" else 4) * shape.hidden
    # with checkpointing a block's input stays, and one block at a time is recomputed
    kept = residual * shape.layers + block if precision.checkpointing else block * shape.layers
    return (kept + 2 * residual) * tokens / GIB


def key_value_cache(shape: Shape, rows: int, length: int, width: int = 2) -> float:
    """GiB of keys and values of so many rows of that length, `width` bytes a number."""
    return 2 * shape.layers * shape.key_width * width * rows * length / GIB


def forward_only(shape: Shape, rows: int, length: int, width: int, head: bool = True) -> dict[str, float]:
    """Weights of `width` bytes, and what a forward pass without gradients needs at once, GiB.

    Args:
        shape: the backbone.
        rows: texts of a forward pass.
        length: their tokens.
        width: bytes of a weight and of an activation.
        head: with the language-model head.
    """
    parameters = shape.parameters if head else shape.body_parameters
    # of one block at a time: the residual twice, queries, keys, values, and three feed-forward tensors
    block = 2 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width + 3 * shape.intermediate
    return {"weights": width * parameters / GIB, "activations": width * block * rows * length / GIB}


def training(shape: Shape, precision: Precision, rows: int, length: int, head: bool = True) -> Memory:
    """A training with one model: reward models, SFT and the preference methods (references are precomputed).

    Args:
        shape: the backbone.
        precision: how it is trained.
        rows: texts in a forward pass; a pair is two.
        length: tokens of the longest text.
        head: with the language-model head.
    """
    parts = states(shape, precision, head) | {"activations": activations(shape, precision, rows * length)}
    return Memory(_at_least_saving(parts, shape, precision, head))


def copied(whole: Memory) -> Memory:
    """A training with a whole model on each of several cards (DDP): buckets hold all gradients a second time.

    Args:
        whole: of one card with the same batch.

    Source: torch's DistributedDataParallel, whose buckets are copies unless gradient_as_bucket_view is set; accelerate
    leaves it unset.
    """
    return Memory({**whole.parts, "DDP buckets": whole.parts["gradients"]})


def sharded(whole: Memory, shape: Shape, precision: Precision, processes: int, head: bool = True) -> Memory:
    """A training spread over several cards (FSDP2): each holds its share of all states, and its own activations.

    What is computed with is gathered whole: embedding and language-model head, and two blocks (the present one and the
    next); in the backward pass the gradients of all these as well, until they are shared out. There are no bfloat16
    copies (`vrm.training.trainer`).

    Args:
        whole: of one card with the same batch.
        shape: the backbone.
        precision: how it is trained.
        processes: cards.
        head: with the language-model head.

    Source: units and what stays gathered: `accelerate.utils.fsdp2_prepare_model`.
    """
    states = {"weights", "gradients", "optimiser", "float32 copy while merging"}
    kept = {name: size for name, size in whole.parts.items() if name != "bfloat16 copies"}
    shares = {name: size / processes if name in states else size for name, size in kept.items()}
    embeddings = shape.embedding_parameters * (1 if shape.tied or not head else 2)
    gathered = embeddings + 2 * shape.matrix_parameters / shape.layers
    adapters = 2 * shape.adapter_parameters(precision.lora.rank) / shape.layers if precision.lora else 0
    # frozen weights have no gradients, and adapters are float32
    gradients = 8 * adapters if precision.lora else 4 * gathered
    return Memory(shares | {"gathered": (precision.weight_bytes * gathered + gradients) / GIB})


def ppo(
    policy: Shape,
    reward: Shape,
    precision: Precision,
    *,
    rows: int,
    length: int,
    generated: int,
    scored: int,
    scored_length: int,
    reserved: float = 0.0,
) -> Memory:
    """PPO on one card: actor, critic, reference (of its own without adapters), reward model, and the larger of rollout
    and optimiser step.

    Args:
        policy: shape of actor and critic.
        reward: shape of the reward model, which is loaded in float32.
        precision: how actor and critic are trained.
        rows: responses in a forward pass of the optimiser step.
        length: tokens of the longest prompt and response.
        generated: prompts answered at once.
        scored: texts that the reward model scores at once.
        scored_length: tokens of the longest of them.
        reserved: GiB that another engine reserves for its own weights and cache.
    """
    actor, critic = states(policy, precision), states(policy, precision, head=False)
    judge = forward_only(reward, scored, scored_length, 4, head=False)
    width = 2 if precision.bf16 else 4
    parts = {name: actor[name] + critic[name] for name in actor}
    parts["reference"] = 0.0 if precision.lora else precision.weight_bytes * policy.parameters / GIB
    parts["reward model"] = judge["weights"]
    phases = {
        "rollout's cache": key_value_cache(policy, generated, length, width) if not reserved else 0.0,
        "activations": 2 * activations(policy, precision, rows * length),
        "scoring": judge["activations"],
    }
    name = max(phases, key=phases.__getitem__)
    parts |= {name: phases[name], "vLLM": reserved}
    return Memory(_at_least_saving(parts, policy, precision, head=True))


def generation(shape: Shape, rows: int, length: int, width: int = 2) -> Memory:
    """Answering with a finished policy: bfloat16 weights, and a cache for every row's longest conversation."""
    return Memory({"weights": width * shape.parameters / GIB, "cache": key_value_cache(shape, rows, length, width)})


def largest(memories: Iterable[Memory]) -> Memory:
    """The one that needs most."""
    return max(memories, key=lambda memory: memory.total, default=Memory())


def _at_least_saving(parts: dict[str, float], shape: Shape, precision: Precision, head: bool) -> dict[str, float]:
    """Adapters are merged in float32 when a training has finished; activations and cache are gone by then.

    4-bit weights leave the card for that.
    """
    if precision.weight_bytes == 4 or precision.packed:
        return parts
    transient = {"activations", "rollout's cache", "scoring"}
    kept = {name: value for name, value in parts.items() if name not in transient}
    parameters = shape.parameters if head else shape.body_parameters
    merging = kept | {"float32 copy while merging": 2 * parameters / GIB}
    return max(parts, merging, key=lambda each: sum(each.values()))
