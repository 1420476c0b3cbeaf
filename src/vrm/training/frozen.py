"""Reward heads on frozen features: the same trainer, losses and log as for whole models, in seconds.

* The features of all texts are computed once (`vrm features`). A training sees a table of them in the backbone's place,
  and rows of the table instead of token ids.
* What it leaves is a whole model: the backbone's weights (the same file for all heads, linked), the features' recipe
  and standardisation, and the head. It scores texts that have no stored features as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vrm.checkpoints import fingerprint, model_files
from vrm.config import Features, RewardTraining
from vrm.models.feature_files import StoredEncoder, StoredFeatures, compute_features, link
from vrm.models.features import FeatureModel, FeatureTable, feature_config
from vrm.models.scoring import own_device
from vrm.models.templates import generation_prompt_ids, left_out, read_template, user_turn_ids
from vrm.models.text import TextEncoder, prepare_tokenizer, without_prompt
from vrm.records import read_pairs, write_json

NO_PADDING = -1
"""In training nothing is padded, and every token's id is a row that a stock classifier could take for padding."""


def make_features(
    backbone: str,
    revision: str | None,
    features: Features,
    training: RewardTraining,
    batch_size: int,
    pairs: Path,
    store: Path,
    out: Path,
    chat_template: str | None = None,
) -> None:
    """Compute the features of a file of pairs; see `compute_features`.

    Args:
        backbone: directory or hub id of a causal LM.
        revision: commit of the hub model.
        features: the recipe's settings.
        training: limits in tokens, and whether in mixed precision.
        batch_size: responses a forward pass.
        pairs: a file of preference pairs.
        store: where computed features are kept for other sets and later runs.
        out: directory to fill.
        chat_template: instead of the backbone's own, its text or a file.
    """
    template = None if chat_template is None else read_template(chat_template)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(backbone, revision=revision), template)
    encoder = TextEncoder(tokenizer, training.max_prompt_length, training.max_length)
    records = read_pairs(pairs)
    prompts = [pair.prompt for pair in records for _ in range(2)]
    encoded, refused = encoder.try_encode(prompts, [text for pair in records for text in (pair.chosen, pair.rejected)])
    names = [f"{pairs}, pair {pair.pair_id}, {side} response" for pair in records for side in ("chosen", "rejected")]
    refused |= without_prompt(encoded)
    left_out(refused, names, f"texts of {pairs}")
    texts = [text for row, text in enumerate(encoded) if row not in refused]
    model = load_feature_model(backbone, revision, features, training.bf16, tokenizer).to(own_device())
    summary = compute_features(model, texts, tokenizer.pad_token_id, batch_size, store, out)
    print(f"{out}: " + ", ".join(f"{name} {value}" for name, value in summary.items()))


def load_feature_model(
    backbone: str, revision: str | None, features: Features, mixed_precision: bool, tokenizer: PreTrainedTokenizerBase
) -> FeatureModel:
    """A causal LM as a `FeatureModel`, in float32; its configuration remembers the dtype that the weights came in."""
    lm = AutoModel.from_pretrained(backbone, revision=revision, dtype="auto", use_safetensors=True)
    given = lm.dtype
    turns = {"generation_prompt_ids": generation_prompt_ids(tokenizer), "user_turn_ids": user_turn_ids(tokenizer)}
    content = fingerprint({"revision": revision, "backbone": None if Path(backbone).is_dir() else backbone}, [])
    # by content, not by path: a moved model is the same model
    hashes = fingerprint({}, model_files(backbone))["files"]
    config = feature_config(
        lm.config, features.layer, features.dropout, turns, mixed_precision, json.dumps([content["settings"], hashes])
    )
    with torch.device("meta"):
        model = FeatureModel(config)
    model.backbone = lm.float()
    model.register_buffer("centre", torch.zeros(2, config.hidden_size))
    model.register_buffer("scale", torch.ones(2, config.hidden_size))
    model.config.backbone_config.dtype = given
    return model.eval()


class FrozenBackbone:
    """What takes the place of a trained backbone in a reward training.

    Args:
        directories: features of the training and of the validation pairs.
        dropout: share of features that are set to 0 in training.
    """

    def __init__(self, directories: Sequence[Path], dropout: float) -> None:
        self.stored = StoredFeatures.read(directories)
        self.stored.config.dropout = dropout
        self.table = FeatureTable(self.stored.config, self.stored.vectors)

    def encoder(self, encoder: TextEncoder) -> StoredEncoder:
        """Rows of features in the place of token ids."""
        return StoredEncoder(encoder, self.stored)

    def fit(self, train: Dataset) -> None:
        """Standardise by the training prompts and responses."""
        columns = [train["chosen_ids"], train["rejected_ids"]]
        prompts, texts = zip(*(row for column in columns for row in column), strict=True)
        self.table.fit(prompts, texts)

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Write the head with its backbone as a whole model."""
        files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        head = {name: value.contiguous() for name, value in model.state_dict().items()}
        link(self.stored.backbone, directory / files[0])
        save_file(head, directory / files[1], metadata={"format": "pt"})
        with safe_open(directory / files[0], "pt") as part:
            places = dict.fromkeys(part.keys(), files[0]) | dict.fromkeys(head, files[1])
        size = sum((directory / name).stat().st_size for name in files)
        write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
        model.config.architectures = [type(model).__name__]
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def for_heads(training: RewardTraining) -> RewardTraining:
    """Settings of a training that takes seconds: nothing to resume."""
    return training.model_copy(update={"checkpoints": 0, "bf16": False, "gradient_checkpointing": False})
