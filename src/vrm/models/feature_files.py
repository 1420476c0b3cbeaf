"""Frozen features on disk: computed once for every text of a set, and looked up by the text's token ids.

* A directory of features has `config.json` (the recipe), `part-*.safetensors` (vectors, and the keys of their texts),
  `backbone.safetensors` (the backbone's weights, under the names that they have in a whole reward model) and
  `features.json` (what was computed, and how fast).
* A text's key is a hash of its token ids: a vector depends on nothing else but the recipe. Prompts are texts, too.
* Parts are written into a store as they are computed, every minute, and linked into the directory of each set that
  needs them. So a killed job goes on where it was, and a text that two sets share is computed once.
* A prompt is computed once for all of its responses, which continue its key-value cache. Responses go through in
  batches of similar length.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vrm.models.features import FeatureConfig, FeatureModel, FeatureTable, raw_features
from vrm.models.templates import prompt_end
from vrm.models.text import TextEncoder, TokenisedText, Truncation, located, without_prompt
from vrm.records import Prompt, RecordError, write_json
from vrm.watch import Watch

PART_SECONDS = 60.0
"""How much work a killed job can lose."""
WASTE = 1.25
"""Padded tokens of a batch, as a multiple of the real ones, from which a new batch is begun."""
PROMPT_TOKENS = 16384
"""Tokens of the prompts, padded, whose key-value cache is held at a time."""
BACKBONE = "backbone.safetensors"


def key_of(ids: Sequence[int]) -> bytes:
    """The key of a text: 16 bytes of a hash of its token ids."""
    return hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Grouped:
    """A prompt and those of its texts that have no features yet; `ids[:len(prompt)]` of each text is the prompt."""

    prompt: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens that have to go through the backbone."""
        return len(self.prompt) + sum(len(ids) - len(self.prompt) for ids in self.texts)


def compute_features(
    model: FeatureModel,
    texts: Iterable[TokenisedText],
    pad_token_id: int,
    batch_size: int,
    store: Path,
    out: Path,
) -> dict[str, Any]:
    """Have the features of all texts and of their prompts in `store`, and link them into `out`.

    Args:
        model: the frozen backbone, on the device to compute on.
        texts: prompts with responses.
        pad_token_id: any token.
        batch_size: responses a forward pass.
        store: directory of parts; those of another recipe are not touched.
        out: directory to fill.

    Returns:
        What `features.json` holds.
    """
    store = store / model.config.recipe
    store.mkdir(parents=True, exist_ok=True)
    wanted, missing = _missing(texts, _keys(store))
    started, tokens = time.monotonic(), sum(group.tokens for group in missing)
    with Watch("features", "tokens", tokens) as watch, torch.inference_mode():
        _write_parts(store, _vectors(model, missing, pad_token_id, batch_size, watch))
    seconds = time.monotonic() - started
    summary = {
        "recipe": model.config.recipe,
        "layer": model.config.layer,
        "vectors": len(wanted),
        "found_in_store": len(wanted) - sum(len(group.texts) + 1 for group in missing),
        "tokens_computed": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1) if tokens else None,
    }
    _save_backbone(model, store / BACKBONE)
    out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out)
    for name, keys in _keys(store).items():
        if wanted & set(keys):
            link(store / name, out / name)
    link(store / BACKBONE, out / BACKBONE)
    write_json(out / "features.json", summary)
    return summary


def features_of(
    model: FeatureModel, texts: Sequence[TokenisedText], pad_token_id: int, batch_size: int, quiet: bool = False
) -> tuple[FeatureTable, list[TokenisedText]]:
    """Features of N texts and of their prompts, in memory: the same as `compute_features` stores.

    Args:
        model: the frozen backbone, on the device to compute on.
        texts: prompts with responses, whose prompt's end is known.
        pad_token_id: any token.
        batch_size: responses a forward pass.
        quiet: show no progress.

    Returns:
        The table that stands in for the model, and the rows of it that stand in for each text's token ids.
    """
    _, missing = _missing(texts, {})
    rows: dict[bytes, int] = {}
    vectors = []
    with Watch("features", "tokens", sum(group.tokens for group in missing), quiet=quiet) as watch:
        for keys, some in _vectors(model, missing, pad_token_id, batch_size, watch):
            rows.update({key: len(rows) + n for n, key in enumerate(keys)})
            vectors.append(some)
    lengths = torch.full((len(rows),), torch.nan)
    table = FeatureTable(model.config, torch.cat(vectors), lengths).to(model.device).eval()
    table.centre, table.scale = model.centre, model.scale
    return table, _as_rows(texts, rows, lengths)


def link(source: Path, target: Path) -> None:
    """One file under two names; a copy where the file system has no such thing."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _missing(texts: Iterable[TokenisedText], known: Mapping[str, list[bytes]]) -> tuple[set[bytes], list[Grouped]]:
    """Keys of all texts and prompts, and what has to be computed, prompts of similar length side by side."""
    there = {key for keys in known.values() for key in keys}
    prompts: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for text in texts:
        prompts.setdefault(tuple(text.ids[: text.prompt_length]), {})[tuple(text.ids)] = None
    wanted = {key_of(ids) for prompt, whole in prompts.items() for ids in (prompt, *whole)}
    missing = []
    for prompt, whole in prompts.items():
        lacking = tuple(ids for ids in whole if key_of(ids) not in there)
        if lacking or key_of(prompt) not in there:
            missing.append(Grouped(prompt, lacking))
    return wanted, sorted(missing, key=lambda group: len(group.prompt))


def _vectors(
    model: FeatureModel, groups: Sequence[Grouped], pad: int, batch_size: int, watch: Watch
) -> Iterator[tuple[list[bytes], Tensor]]:
    """Keys and vectors of everything in `groups`, a few prompts at a time."""
    for chunk in _chunks(groups, batch_size):
        prompts, mask, cache = _prompts(model, [group.prompt for group in chunk], pad)
        yield [key_of(group.prompt) for group in chunk], prompts
        watch.add(sum(len(group.prompt) for group in chunk))
        rows = sorted(((len(ids), row, ids) for row, group in enumerate(chunk) for ids in group.texts))
        for batch in _batches([(row, ids) for _, row, ids in rows], [len(g.prompt) for g in chunk], batch_size):
            owners = torch.tensor([row for row, _ in batch], device=mask.device)
            prompts_of = [chunk[row].prompt for row, _ in batch]
            vectors = _responses(model, batch, prompts_of, mask[owners], cache, owners, pad)
            yield [key_of(ids) for _, ids in batch], vectors
            watch.add(sum(len(ids) - len(chunk[row].prompt) for row, ids in batch))


def _chunks(groups: Sequence[Grouped], batch_size: int) -> Iterator[list[Grouped]]:
    """As many prompts at a time, the shortest first, as have a batch of responses together and fit into memory."""
    chunk: list[Grouped] = []
    rows = 0
    for group in groups:
        more = max(1, len(group.texts))
        if chunk and (rows + more > batch_size or (len(chunk) + 1) * len(group.prompt) > PROMPT_TOKENS):
            yield chunk
            chunk, rows = [], 0
        chunk.append(group)
        rows += more
    if chunk:
        yield chunk


def _batches(
    rows: Sequence[tuple[int, tuple[int, ...]]], prompt_lengths: Sequence[int], batch_size: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Rows in order of their responses' length, cut where the padding would cost too much."""
    rows = sorted(rows, key=lambda entry: len(entry[1]) - prompt_lengths[entry[0]])
    batch: list[tuple[int, tuple[int, ...]]] = []
    tokens = 0
    for row, ids in rows:
        length = len(ids) - prompt_lengths[row]
        full = len(batch) == batch_size or (len(batch) + 1) * length > WASTE * (tokens + length)
        # a batch of its own costs more than the padding of a few short texts
        if batch and full and (len(batch) == batch_size or tokens >= 256):
            yield batch
            batch, tokens = [], 0
        batch.append((row, ids))
        tokens += length
    if batch:
        yield batch


def _prompts(model: FeatureModel, prompts: Sequence[tuple[int, ...]], pad: int) -> tuple[Tensor, Tensor, Any]:
    """Features of P prompts (P, F), their attention mask (P, T), padded on the left, and their key-value cache."""
    longest, device = max(map(len, prompts)), model.centre.device
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device).unsqueeze(1)
    where = torch.arange(longest, device=device) - (longest - lengths)  # below 0 on padding
    mask = (where >= 0).long()
    final, middle, cache = model.states(
        input_ids=ids, attention_mask=mask, position_ids=where.clamp(min=0), use_cache=True
    )
    last = torch.full((len(prompts),), longest - 1, device=device)
    return raw_features(final, middle, where > 0, last), mask, cache


def _responses(
    model: FeatureModel,
    batch: Sequence[tuple[int, tuple[int, ...]]],
    prompts: Sequence[tuple[int, ...]],
    prompt_mask: Tensor,
    cache: Any,
    owners: Tensor,
    pad: int,
) -> Tensor:
    """Features of a batch of B responses, shape (B, F), that continue the cache's rows `owners`."""
    device = prompt_mask.device
    tails = [list(ids[len(prompt) :]) for (_, ids), prompt in zip(batch, prompts, strict=True)]
    longest = max(map(len, tails))
    ids = torch.tensor([tail + [pad] * (longest - len(tail)) for tail in tails], device=device)
    lengths = torch.tensor([len(tail) for tail in tails], device=device).unsqueeze(1)
    steps = torch.arange(longest, device=device).expand_as(ids)
    mask = steps < lengths
    own = copy.deepcopy(cache)
    own.batch_select_indices(owners)
    final, middle, _ = model.states(
        input_ids=ids,
        attention_mask=torch.cat([prompt_mask, mask.long()], dim=1),
        position_ids=prompt_mask.sum(-1, keepdim=True) + steps,
        cache=own,
        use_cache=True,
    )
    headers = model.config.generation_prompt_ids, model.config.user_turn_ids
    begins = [prompt_end(text, *headers) - len(prompt) for (_, text), prompt in zip(batch, prompts, strict=True)]
    counted = mask & (steps >= torch.tensor(begins, device=device).unsqueeze(1))
    return raw_features(final, middle, counted, lengths.squeeze(1) - 1)


def _write_parts(store: Path, found: Iterator[tuple[list[bytes], Tensor]]) -> None:
    """Write what is computed, every `PART_SECONDS`."""
    keys: list[bytes] = []
    vectors: list[Tensor] = []
    written = time.monotonic()
    for some_keys, some in found:
        keys += some_keys
        vectors.append(some.cpu())
        if time.monotonic() - written >= PART_SECONDS:
            _write_part(store, keys, vectors)
            keys, vectors, written = [], [], time.monotonic()
    if keys:
        _write_part(store, keys, vectors)


def _write_part(store: Path, keys: list[bytes], vectors: list[Tensor]) -> None:
    table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), -1)
    _save({"keys": table, "vectors": torch.cat(vectors)}, store / f"part-{uuid.uuid4().hex}.safetensors")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(path)


def _save_backbone(model: FeatureModel, path: Path) -> None:
    """The backbone's weights, in their own dtype, under the names of a whole reward model."""
    if not path.exists():
        state = model.backbone.state_dict()
        dtype = getattr(torch, str(model.config.backbone_config.dtype).removeprefix("torch."), None)
        _save({f"model.backbone.{name}": value.to(dtype or value.dtype).cpu() for name, value in state.items()}, path)


def _keys(directory: Path) -> dict[str, list[bytes]]:
    """Keys of each part of a directory, by the part's name."""
    found = {}
    for path in sorted(directory.glob("part-*.safetensors")):
        with safe_open(path, "pt") as part:
            found[path.name] = [bytes(row) for row in part.get_tensor("keys").numpy()]
    return found


@dataclass
class StoredFeatures:
    """The features of one or several sets, by the key of the text.

    Args:
        config: their recipe.
        rows: row of each key.
        vectors: not standardised, shape (N, F).
        backbone: the backbone's weights.
        lengths: tokens of each text once it has been looked up, NaN before, shape (N,).
    """

    config: FeatureConfig
    rows: dict[bytes, int]
    vectors: Tensor
    backbone: Path
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = torch.full((len(self.vectors),), torch.nan)

    def table(self, config: FeatureConfig) -> FeatureTable:
        """These features in the place of a model."""
        return FeatureTable(config, self.vectors, self.lengths)

    @classmethod
    def read(cls, directories: Sequence[Path]) -> StoredFeatures:
        """What `vrm features` has written.

        Raises:
            RecordError: a directory has no features, or they are of another recipe than the first one's.
        """
        configs, parts = [], {}
        for directory in directories:
            if not (directory / "features.json").is_file():
                raise RecordError(f"{directory}: holds no features; make them with vrm features")
            configs.append(FeatureConfig.from_pretrained(directory))
            recipe = json.loads((directory / "features.json").read_text())["recipe"]
            if recipe != configs[0].recipe:
                raise RecordError(f"{directory}: features of another recipe than those of {directories[0]}")
            parts.update({path.name: path for path in sorted(directory.glob("part-*.safetensors"))})
        rows: dict[bytes, int] = {}
        vectors = []
        for path in parts.values():
            with safe_open(path, "pt") as part:
                keys = [bytes(row) for row in part.get_tensor("keys").numpy()]
                # sets computed side by side may share a text; one vector of it is enough
                new = [i for i, key in enumerate(keys) if key not in rows]
                rows.update({keys[i]: len(rows) + n for n, i in enumerate(new)})
                vectors.append(part.get_tensor("vectors")[new])
        return cls(configs[0], rows, torch.cat(vectors), directories[0] / BACKBONE)


@dataclass
class StoredEncoder:
    """A `TextEncoder` whose token ids are rows of stored features: one of the prompt, one of the whole text.

    Args:
        encoder: says how texts are tokenised and cut.
        stored: the features.
    """

    encoder: TextEncoder
    stored: StoredFeatures
    tokenizer: PreTrainedTokenizerBase = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = self.encoder.tokenizer

    @property
    def truncation(self) -> Truncation:
        """What had to be cut."""
        return self.encoder.truncation

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenisedText]:
        """Rows of N texts.

        Raises:
            Unrenderable: some can't be encoded, or their prompt's end can't be told; names them all.
            RecordError: some have no stored features.
        """
        texts = self.encoder.encode(prompts, responses)
        located(texts)
        return self._rows(texts)

    def try_encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> tuple[list[TokenisedText | None], dict[int, str]]:
        """As `encode`, with None for what can't be encoded, and the reason by its 0-based place.

        Raises:
            RecordError: some have no stored features.
        """
        texts, refused = self.encoder.try_encode(prompts, responses)
        refused |= without_prompt(texts)  # features are of a prompt and a text
        rows = iter(self._rows([text for row, text in enumerate(texts) if row not in refused]))
        return [None if row in refused else next(rows) for row in range(len(texts))], refused

    def _rows(self, texts: Sequence[TokenisedText]) -> list[TokenisedText]:
        rows = _as_rows(texts, self.stored.rows, self.stored.lengths)
        if lacking := sum(-1 in row.ids for row in rows):
            raise RecordError(
                f"{lacking} of {len(texts)} texts have no stored features: run vrm features on the file that holds "
                "them, with the same limits in tokens"
            )
        return rows


def _as_rows(texts: Sequence[TokenisedText], rows: Mapping[bytes, int], lengths: Tensor) -> list[TokenisedText]:
    """Rows of a table in the place of token ids, one of the prompt and one of the whole; -1 is in none.

    Their lengths in tokens are written into `lengths`.
    """
    found = [[rows.get(key_of(ids), -1) for ids in (text.ids[: text.prompt_length], text.ids)] for text in texts]
    for row, text in zip(found, texts, strict=True):
        if -1 not in row:
            lengths[row] = torch.tensor([text.prompt_length, len(text.ids)], dtype=lengths.dtype)
    return [TokenisedText(row, 1, text.prompt_cut, text.response_cut) for row, text in zip(found, texts, strict=True)]
