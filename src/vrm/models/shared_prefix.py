"""One copy of a prompt for all of its responses, and no padding: packed rows in place of padded batches.

* Layout of a row: `[P | R1 | R2 | ...]` once a prompt, several prompts one after the other. Positions of every response
  begin at len(P), and a response sees its prompt and itself. So each token's state is what it is in a row of its own.
* A packed batch is made of whole groups (a prompt and its responses). Rows hold up to a budget of tokens; a group that
  is longer than the budget has a row for itself. Without a budget there is one row, and nothing is padded.
* Attention is computed group by group with SDPA (`groups`): no mask of a whole row is made, and next to nothing is
  computed to be masked out. One SDPA over rows with a 4D mask took 1.1 to 2 times as long in every case measured, the
  shortest texts included (one CPU thread).
* On CUDA there are two more ways, each one kernel for all groups, and both only where asked for: FlexAttention with a
  block mask (`blocks`), and FlashAttention over texts of any lengths (`varlen`; half precision), in which a response's
  keys are its prompt's and its own. **Neither kernel has been run on a GPU here**; who sees whom in them is tested on
  a CPU.
* Sliding windows and soft-capped logits (Gemma 2) are in both. `unsupported` names what is not, and whoever asked pads
  instead.

The layout's idea: Krell et al. 2021 (packing without cross-contamination); tree attention of speculative decoding.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from types import MethodType
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_layers import GenericForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutput

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text")
"""Model types whose attention layers take any registered function, and whose every other layer works token by token."""
HALF = (torch.bfloat16, torch.float16)
LAYERS = {"full_attention", "sliding_attention"}
Kernel = Literal["groups", "blocks", "varlen"]
"""How attention is computed; see above."""
BLOCK = 128
BLOCKS_ROW = 8192
"""Tokens a row for a block mask, which is made of all pairs of a row's blocks of `BLOCK` tokens."""
UNREAD = torch.ones((1, 1, 1, 1), dtype=torch.bool)
"""The attention mask of packed rows: one of 4 dimensions is handed on as it is, nobody makes one of W x W, and `attend`
does not read this one."""


@dataclass(frozen=True)
class PromptGroup:
    """Token ids of a prompt, which is not empty, and of its responses, of which there is at least one."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Place:
    """Where a group is: its row, its first column, and the lengths of its parts, in tokens."""

    row: int
    start: int
    prompt: int
    responses: tuple[int, ...]

    def __len__(self) -> int:
        return self.prompt + sum(self.responses)


class Layout:
    """Where the texts of a packed batch are, and who sees whom: G groups of N texts in all, in R rows of W columns."""

    def __init__(
        self,
        places: Sequence[Place],
        rows: int,
        width: int,
        order: Sequence[int] | None = None,
        kernel: Kernel = "groups",
        unread: Sequence[int] | None = None,
    ) -> None:
        """Describe a batch.

        Args:
            places: of the groups.
            rows, width: R and W.
            order: the number, in the groups' order, of each text that is asked for; None is all in that order.
            kernel: how attention is computed.
            unread: tokens at the end of each text, in the groups' order, that come after the one that is read; None
                reads every text at its last token.
        """
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel is {kernel!r}, and can be {', '.join(get_args(Kernel))}")
        self.places, self.rows, self.width, self.kernel = tuple(places), rows, width, kernel
        prompts, texts, groups = [], [], []
        for number, place in enumerate(self.places):
            prompt_end = place.row * width + place.start + place.prompt - 1
            end = prompt_end
            for length in place.responses:
                skipped = 0 if unread is None else unread[len(texts)]
                end += length
                texts.append(end - skipped if skipped < length else prompt_end + length - skipped)
                prompts.append(prompt_end)
                groups.append(number)
        chosen = torch.arange(len(texts)) if order is None else torch.tensor(order)
        self._prompt_ends, self._text_ends = torch.tensor(prompts)[chosen], torch.tensor(texts)[chosen]
        self.groups = torch.tensor(groups)[chosen]
        """The group of each text, shape (N,)."""
        self.response_lengths = torch.tensor([n for place in self.places for n in place.responses])[chosen]
        """Tokens of each response, shape (N,)."""
        self._masks: dict[tuple[object, ...], Any] = {}

    def prompt_ends(self, hidden: Tensor) -> Tensor:
        """State of the last token of each text's prompt: (R, W, H) -> (N, H)."""
        return hidden.flatten(0, 1).index_select(0, self._prompt_ends.to(hidden.device))

    def text_ends(self, hidden: Tensor) -> Tensor:
        """State of the token at which each text is read, its last one: (R, W, H) -> (N, H)."""
        return hidden.flatten(0, 1).index_select(0, self._text_ends.to(hidden.device))

    def prompt_tokens(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States of all tokens of the prompts, padded on the right to the longest one of P tokens.

        Args:
            hidden: shape (R, W, H).

        Returns:
            States (G, P, H), a mask with 1 on real tokens (G, P), and the index of each prompt's last token (G,).
        """
        lengths = torch.tensor([place.prompt for place in self.places])
        starts = torch.tensor([place.row * self.width + place.start for place in self.places])
        steps = torch.arange(int(lengths.max()))
        index = starts.unsqueeze(-1) + torch.minimum(steps, lengths.unsqueeze(-1) - 1)
        states = hidden.flatten(0, 1).index_select(0, index.flatten().to(hidden.device))
        mask = (steps < lengths.unsqueeze(-1)).long()
        return states.view(*index.shape, -1), mask.to(hidden.device), (lengths - 1).to(hidden.device)

    @cached_property
    def tokens(self) -> Tensor:
        """Of each token its group, its response (0 in the prompt) and its position, shape (3, R, W); padding is -1.

        Padding is a group of its own, so that no row of attention is empty.
        """
        table = np.full((3, self.rows, self.width), -1)  # of numpy, whose small slices cost a tenth of torch's
        table[2] = np.arange(self.width)
        for number, place in enumerate(self.places):
            row, at = place.row, place.start
            table[0, row, at : at + len(place)] = number
            for part, length in enumerate((place.prompt, *place.responses)):
                table[1, row, at : at + length] = part
                first = place.prompt if part else 0
                table[2, row, at : at + length] = np.arange(first, first + length)
                at += length
        return torch.from_numpy(table)

    @property
    def position_ids(self) -> Tensor:
        """Shape (R, W)."""
        return self.tokens[2]

    def sees(self, window: int | None, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Who sees whom, in the form that FlexAttention takes.

        Args:
            window: how many positions a query looks back, itself included; None is to the prompt's first.
            device: of the indices.

        Returns:
            A function of (row, head, query's column, key's column), indices that broadcast, to bool.
        """
        group, part, position = self.tokens.to(device)

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (group[row, query] == group[row, key]) & (position[row, query] >= position[row, key])
            # a value of its own, since FlexAttention's compiler takes no change in place
            same = same & ((part[row, key] == 0) | (part[row, query] == part[row, key]))
            return same if window is None else same & (position[row, query] - position[row, key] < window)

        return seen

    def causal_mask(self, window: int | None, like: Tensor) -> Tensor:
        """Of a text by itself, as 0 and -inf, shape (T, T) for the longest of the batch; slices serve all others."""

        def make() -> Tensor:
            longest = max(place.prompt + max(place.responses) for place in self.places)
            steps = torch.arange(longest, device=like.device)
            distance = steps.unsqueeze(-1) - steps
            seen = distance >= 0
            return _additive(seen if window is None else seen & (distance < window), like.dtype)

        return self._once(("text", window, like.dtype, like.device), make)

    def block_mask(self, window: int | None, device: torch.device) -> Any:
        """`sees` as FlexAttention's `BlockMask`, which skips the blocks of 128 x 128 tokens that see nothing."""
        from torch.nn.attention.flex_attention import create_block_mask

        def make() -> Any:
            shape = (self.rows, None, self.width, self.width)
            return create_block_mask(self.sees(window, device), *shape, device, _compile=device.type == "cuda")

        return self._once(("blocks", window, device), make)

    def cuts(self, device: torch.device) -> Cuts:
        """Queries and keys of one FlashAttention call; padding is a text of its own."""
        return self._once(("cuts", device), lambda: Cuts.of(self.places, self.rows, self.width, device))

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]


@dataclass(frozen=True)
class Cuts:
    """Pieces of all rows' tokens, one after the other, whose queries see keys of their own: S pieces.

    A piece is a prompt with its first response, whose keys are itself, or a further response, whose keys are its prompt
    and itself; its last query sees its last key, the one before it all but that, and so on.

    Args:
        keys: index of each key among the R * W tokens, shape (number of keys,).
        queries_at, keys_at: where pieces begin, and the end, int32, shape (S + 1,).
        most_queries, most_keys: of a piece.
    """

    keys: Tensor
    queries_at: Tensor
    keys_at: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, places: Sequence[Place], rows: int, width: int, device: torch.device) -> Cuts:
        """Cut up rows of W = `width` tokens, of which `places` take some."""
        pieces: list[tuple[range, range]] = []  # keys of a prompt, and tokens that are queries and keys
        for row in range(rows):
            at = row * width
            for place in sorted((place for place in places if place.row == row), key=lambda place: place.start):
                prompt = range(at, at + place.prompt)
                first, *others = place.responses
                at += place.prompt + first
                pieces.append((range(0), range(prompt.start, at)))
                for length in others:
                    pieces.append((prompt, range(at, at + length)))
                    at += length
            pieces.append((range(0), range(at, (row + 1) * width)))
        pieces = [(prompt, own) for prompt, own in pieces if own]
        queries = [len(own) for _, own in pieces]
        seen = [len(prompt) + len(own) for prompt, own in pieces]
        keys = torch.cat([torch.arange(part.start, part.stop) for piece in pieces for part in piece])
        queries_at, keys_at = (torch.tensor([0, *lengths]).cumsum(0).int().to(device) for lengths in (queries, seen))
        return cls(keys.to(device), queries_at, keys_at, max(queries), max(seen))


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


@dataclass(frozen=True)
class PackedBatch:
    """Token ids, shape (R, W), and where which text is."""

    input_ids: Tensor
    layout: Layout

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of a model that `share_prefixes` has prepared."""
        return {"input_ids": self.input_ids, "position_ids": self.layout.position_ids, "layout": self.layout}


def by_prompt(texts: Sequence[tuple[Sequence[int], int]]) -> tuple[list[PromptGroup], list[int]]:
    """Texts put together whose prompts are the same, token by token.

    Args:
        texts: token ids and how many of them are the prompt's; 0, where that is unknown, shares the first token alone.

    Returns:
        The groups, in the order of their first texts, and the number of each text in the groups' order.

    Raises:
        ValueError: a text has no tokens.
    """
    members = same_prompts(texts)
    order = [0] * len(texts)
    for place, number in enumerate(number for found in members for number in found):
        order[number] = place
    groups = []
    for found in members:
        ids, length = texts[found[0]][0], texts[found[0]][1] or 1
        groups.append(PromptGroup(ids[:length], [texts[i][0][length:] for i in found]))
    return groups, order


def same_prompts(texts: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
    """Numbers of the texts by prompt, in the order of their first texts; see `by_prompt`."""
    members: dict[tuple[int, ...], list[int]] = {}
    for number, (ids, length) in enumerate(texts):
        if not ids:
            raise ValueError(f"text {number} has no tokens")
        members.setdefault(tuple(ids[: length or 1]), []).append(number)
    return list(members.values())


def passes(texts: Sequence[tuple[Sequence[int], int]], budget: int) -> list[list[int]]:
    """Which texts are computed together: those of one prompt, prompts of like length, up to a budget of tokens.

    Args:
        texts: token ids and how many of them are the prompt's.
        budget: tokens of a forward pass, in which a prompt counts once; a text that is longer is there by itself.

    Returns:
        Numbers of texts by forward pass, the shortest first; each text is in exactly one.
    """
    pieces = [piece for members in same_prompts(texts) for piece in _pieces_of(members, texts, budget)]
    pieces.sort(key=lambda piece: piece[1])
    found: list[list[int]] = []
    used = budget
    for members, tokens in pieces:
        if used + tokens > budget:
            found.append([])
            used = 0
        found[-1] += members
        used += tokens
    return found


def _pieces_of(
    members: list[int], texts: Sequence[tuple[Sequence[int], int]], budget: int
) -> Iterator[tuple[list[int], int]]:
    """The texts of one prompt, in as many pieces as the budget asks for, and how many tokens each has."""
    prompt = texts[members[0]][1] or 1
    piece, tokens = [], prompt
    for number in sorted(members, key=lambda number: len(texts[number][0])):
        response = len(texts[number][0]) - prompt
        if piece and tokens + response > budget:
            yield piece, tokens
            piece, tokens = [], prompt
        piece.append(number)
        tokens += response
    yield piece, tokens


def pack(
    groups: Sequence[PromptGroup],
    pad_token_id: int,
    budget: int | None = None,
    order: Sequence[int] | None = None,
    kernel: Kernel = "groups",
    unread: int | None = None,
) -> PackedBatch:
    """Put groups into rows.

    Args:
        groups: at least one.
        pad_token_id: fills rows up; it is never seen.
        budget: tokens a row; None is one row for all, and `BLOCKS_ROW` with `kernel` blocks.
        order: in which the texts are asked for, and
        kernel: how attention is computed, see `Layout`.
        unread: a token at which no text is read: texts that end in it are read before it.
    """
    if kernel == "blocks" and budget is None:
        budget = BLOCKS_ROW
    bins = fill([len(group) for group in groups], budget)
    width = max(sum(len(groups[i]) for i in members) for members in bins)
    if kernel == "blocks":  # whole blocks, of which there are few different numbers to compile for
        width = -(-width // BLOCK) * BLOCK
    ids = torch.full((len(bins), width), pad_token_id)
    places: dict[int, Place] = {}
    for row, members in enumerate(bins):
        start = 0
        for i in members:
            parts = (groups[i].prompt, *groups[i].responses)
            places[i] = Place(row, start, len(parts[0]), tuple(map(len, parts[1:])))
            ids[row, start : start + len(groups[i])] = torch.tensor([token for part in parts for token in part])
            start += len(groups[i])
    after = None
    if unread is not None:
        after = [_trailing([*group.prompt, *response], unread) for group in groups for response in group.responses]
    in_order = [places[i] for i in range(len(groups))]
    return PackedBatch(ids, Layout(in_order, len(bins), width, order, kernel, after))


def _trailing(ids: list[int], token: int) -> int:
    """How many tokens at the end are this one; 0 where all are."""
    return next((n for n, each in enumerate(reversed(ids)) if each != token), 0)


def fill(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """Indices of items by bin: first fit, longest first; what is larger than the budget has a bin for itself.

    Args:
        sizes: tokens of each item.
        budget: tokens of a bin; None is one bin for all.

    Source: Johnson 1973, first-fit decreasing (at most 11/9 of the fewest bins, plus 6/9).
    """
    if budget is None:
        return [list(range(len(sizes)))]
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        number = next((n for n, left in enumerate(room) if sizes[i] <= left), None)
        if number is None:
            number = len(bins)
            bins.append([])
            room.append(budget)
        bins[number].append(i)
        room[number] -= sizes[i]
    return bins


def unsupported(model: PreTrainedModel) -> str | None:
    """Why a model cannot share prefixes; None where it can."""
    backbone = model.base_model
    config = backbone.config
    if not type(backbone).__module__.startswith("transformers."):
        return f"{type(backbone).__name__} is not a class of transformers"
    if not (hasattr(model, "score") or _speaks(model) or "layout" in inspect.signature(model.forward).parameters):
        return f"{type(model).__name__} has neither a head that is known nor a forward function that takes a layout"
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is none of {', '.join(FAMILIES)}"
    if config._attn_implementation not in ("sdpa", "eager", *ATTENTION):
        return f"its attention implementation is {config._attn_implementation}, not sdpa or eager"
    others = set(getattr(config, "layer_types", None) or []) - LAYERS
    if others:
        return f"it has layers of other kinds: {', '.join(sorted(others))}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention is bidirectional: a prompt sees its response"
    return None


def share_prefixes(model: PreTrainedModel) -> None:
    """Let a model take packed batches as well as padded ones; nothing else about it changes.

    Args:
        model: a VRM, or a stock classifier or causal language model; without adapters yet.

    Raises:
        ValueError: `unsupported` says why.
    """
    reason = unsupported(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot share prefixes: {reason}")
    backbone = model.base_model
    if backbone.config._attn_implementation in ATTENTION:
        return
    backbone.set_attn_implementation(f"shared_prefix_{backbone.config._attn_implementation}")
    # causal LMs and token classifiers have an output a token, and hand the layout on to their backbones
    if hasattr(model, "score") and not isinstance(model, GenericForTokenClassification):
        model.forward = _with_layout(model)


def _speaks(model: PreTrainedModel) -> bool:
    """Whether it is a causal language model."""
    return model.get_output_embeddings() is not None


def compile_blocks(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Have torch compile what each block consists of: norms, feed-forward, and attention around its kernel.

    Not whole blocks: activation checkpointing is around or inside them, by transformers' version, and a compiler that
    meets the kernel's call within a checkpoint gives up on all of it. One compilation serves all blocks and lengths.

    Args:
        model: as `share_prefixes` takes it, which may come before or after.
        backend: of torch.compile.
    """
    for name in ATTENTION:
        AttentionInterface.register(name, torch.compiler.disable(attend))
    for block in model.base_model.layers:
        for part in block.children():
            part.compile(dynamic=True, backend=backend)


def _with_layout(model: PreTrainedModel) -> Any:
    """The forward function of a stock sequence classifier, which pools the last text of a row, for packed batches too.

    It is replaced, and the model not wrapped, so that checkpoints, adapters and sharding see the model that they know.
    """
    padded = model.forward.__func__

    @wraps(padded)
    def forward(self: Any, *args: Any, layout: Layout | None = None, **kwargs: Any) -> Any:
        if layout is None:
            return padded(self, *args, **kwargs)
        hidden = packed_states(self.base_model, kwargs["input_ids"], kwargs["position_ids"], layout)
        return SequenceClassifierOutput(logits=self.score(layout.text_ends(hidden)))

    return MethodType(forward, model)  # a method, so that a copy of the model computes with its own weights


def shares_prefixes(model: nn.Module) -> bool:
    """Whether `share_prefixes` has prepared a model, which may have got adapters since."""
    models = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return any(part.config._attn_implementation in ATTENTION for part in models)


def packed_states(backbone: nn.Module, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Last hidden states of a packed batch, shape (R, W, H)."""
    unread = UNREAD.to(input_ids.device)
    return backbone(
        input_ids=input_ids, attention_mask=unread, position_ids=position_ids, use_cache=False, layout=layout
    ).last_hidden_state


def pooled_prompts(head: Any, hidden: Tensor, layout: Layout) -> Tensor:
    """The prompt's state of each text, shape (N, H), as the head pools it: `pool_prompt` once a prompt.

    Args:
        head: a reward head; its `pool_prompt` reads the last token alone unless it has a `query`.
        hidden: shape (R, W, H).
        layout: of the batch.
    """
    if getattr(head, "query", None) is None:
        ends = layout.prompt_ends(hidden)
        only = torch.zeros(len(ends), dtype=torch.long, device=ends.device)
        return head.pool_prompt(ends.unsqueeze(1), torch.ones_like(only).unsqueeze(1), only)
    pooled = head.pool_prompt(*layout.prompt_tokens(hidden))
    return pooled.index_select(0, layout.groups.to(pooled.device))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: packed where there is a layout, and what the model came with otherwise.

    Args:
        module: the attention layer.
        query, key, value: shape (R, heads, W, D), of key and value as many heads as the model has.
        attention_mask: of a padded batch.
        layout: of a packed one.
        options: `scaling`, `dropout`, `sliding_window`, `softcap`.

    Returns:
        Shape (R, W, heads, D), and None in place of attention weights.
    """
    if layout is None:
        return _own_attention(module)(module, query, key, value, attention_mask, **options)
    window = options.pop("sliding_window", None)
    query, key, value = _in_one_precision(query, key, value)
    if layout.kernel == "blocks":
        from transformers.integrations.flex_attention import flex_attention_forward

        mask = layout.block_mask(window, query.device)
        return flex_attention_forward(module, query, key, value, mask, **options)
    plain = options.get("softcap") is None and not options.get("dropout")
    if layout.kernel == "varlen" and plain and query.dtype in HALF:
        return _varlen(query, key, value, layout.cuts(query.device), window, options.get("scaling")), None
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    product = _Product(options.get("scaling"), options.get("dropout", 0.0), options.get("softcap"))
    return _by_group(query, key, value, layout, window, product), None


def _in_one_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast computes in: norms leave float32 queries beside bfloat16 values, which SDPA alone casts."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _varlen(query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, window: int | None, scaling: float | None) -> Tensor:
    """Attention of all pieces at once; shapes as in `attend`."""
    rows, heads, width, _ = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (tokens, heads, D)
    key, value = key.index_select(0, cuts.keys), value.index_select(0, cuts.keys)
    return flash_attention(query, key, value, cuts, window, scaling).view(rows, width, heads, -1)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, cuts: Cuts, window: int | None, scaling: float | None
) -> Tensor:
    """torch's FlashAttention over pieces of any lengths, on CUDA: (queries, heads, D) of keys (keys, heads, D)."""
    limits = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    ends = (cuts.queries_at, cuts.keys_at, cuts.most_queries, cuts.most_keys)
    dropout, causal, debug = 0.0, True, False
    return torch.ops.aten._flash_attention_forward(
        query, key, value, *ends, dropout, causal, debug, scale=scaling, **limits
    )[0]


def _own_attention(module: nn.Module) -> Any:
    if module.config._attn_implementation == "shared_prefix_sdpa":
        return sdpa_attention_forward
    return sys.modules[type(module).__module__].eager_attention_forward


ATTENTION = {"shared_prefix_sdpa": sdpa_mask, "shared_prefix_eager": eager_mask}
"""Attention implementations, by what a model came with, and what makes their masks for padded batches."""
for _name, _mask in ATTENTION.items():
    AttentionInterface.register(_name, attend)
    AttentionMaskInterface.register(_name, _mask)


@dataclass(frozen=True)
class _Product:
    """Scaled dot-product attention; logits are capped at `softcap` * tanh(logit / `softcap`) where that is given."""

    scaling: float | None
    dropout: float
    softcap: float | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with an additive mask, broadcast to (R, heads, Q, K); None is causal."""
        if self.softcap is None:
            causal = mask is None
            return F.scaled_dot_product_attention(query, key, value, mask, self.dropout, causal, scale=self.scaling)
        scale = self.scaling if self.scaling is not None else query.shape[-1] ** -0.5
        logits = torch.tanh(query @ key.transpose(-1, -2) * scale / self.softcap) * self.softcap
        weights = (logits + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
        return F.dropout(weights, self.dropout) @ value


def _by_group(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None, product: _Product
) -> Tensor:
    """Attention of each group by itself; heads of key and value are those of the query."""
    rows = []
    for row in range(layout.rows):
        places = [place for place in layout.places if place.row == row]
        places.sort(key=lambda place: place.start)
        used = sum(map(len, places))
        # split, whose gradient is one concatenation: that of a slice is as large as the row
        sizes = [part for place in places for part in _pieces(place)] + [layout.width - used]
        pieces = zip(*(tensor[row : row + 1].split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
        out = [found for place in places for found in _group(place, pieces, layout, window, product)]
        padding = query.new_zeros((1, query.shape[1], layout.width - used, value.shape[-1]))
        rows.append(torch.cat([found.transpose(1, 2) for found in (*out, padding)], dim=1))
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _pieces(place: Place) -> tuple[int, ...]:
    """Lengths of the prompt with its first response, and of each further response."""
    first, *others = place.responses
    return (place.prompt + first, *others)


def _group(place: Place, pieces: Any, layout: Layout, window: int | None, product: _Product) -> list[Tensor]:
    """Attention of one group, a piece of (1, heads, tokens, D) each."""
    query, key, value = next(pieces)
    length = query.shape[2]
    plain = product.softcap is None and (window is None or length <= window)
    mask = None if plain else layout.causal_mask(window, query)[:length, :length]
    out = [product(query, key, value, mask)]
    prompt_key, prompt_value = key[:, :, : place.prompt], value[:, :, : place.prompt]
    for _ in place.responses[1:]:
        query, key, value = next(pieces)
        if not query.shape[2]:
            out.append(query)
            continue
        end = place.prompt + query.shape[2]
        mask = layout.causal_mask(window, query)[place.prompt : end, :end]
        out.append(product(query, torch.cat([prompt_key, key], 2), torch.cat([prompt_value, value], 2), mask))
    return out
