"""Training of reward models of every kind on transformers' `Trainer`; `reward_kinds` says what each kind is.

* A batch is B chosen texts and their B rejected ones. Its engine is `shared`, rows without padding in which a prompt
  stands once for both (`vrm.models.shared_prefix`), or `padded`, the concatenated forward pass of TRL's
  `RewardTrainer`: the reference in tests, and for models that cannot share. TRL itself is not imported: of its trainer
  no part would be left, and a test compares loss and gradients of a step with it.
* Pairs arrive tokenised, so nothing is dropped in silence: what is cut or identical after cutting is counted.
* `train` and `validation` accuracies are measured with posterior means over whole sets, not averaged over batches.
* With adapters (`lora`) the head is trained whole beside them, and both are merged into an ordinary model at the end.
* A killed training continues from its last checkpoint to the same result (CPU, same thread count).
* Several processes, each with its part of a batch, train what one process with the whole batch trains, up to rounding
  and three exceptions: accelerate fills up an epoch's last batch, where that is smaller, with the epoch's first pairs;
  `free_bits` are compared with means of one forward pass, which then has a part of the batch; and so are the
  correlations with length of `length_heads`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from vrm.checkpoints import fingerprint, model_files, model_name, require_places, resumable, started_processes
from vrm.config import Features, RewardTraining, Variant, dependencies
from vrm.models.baseline_heads import Noise
from vrm.models.checks import checked_tokenizer
from vrm.models.feature_files import StoredEncoder, StoredFeatures, compute_features, link
from vrm.models.features import FeatureModel, feature_config
from vrm.models.latents import PairAnnotation, shared_sampler
from vrm.models.scoring import own_device
from vrm.models.shared_prefix import compile_blocks
from vrm.models.templates import generation_prompt_ids, left_out, read_template, user_turn_ids
from vrm.models.text import TextEncoder, prepare_tokenizer, without_prompt
from vrm.models.weights import save_model
from vrm.ours import place, remove_ours
from vrm.records import read_pairs, write_json
from vrm.runfiles import TRAINING
from vrm.training.engine import kernel_of, prepare_rows
from vrm.training.pairs import ANNOTATIONS, PackedPairCollator, PairCollator, read_split, tokenise_split
from vrm.training.preemption import CheckpointOnStop
from vrm.training.reward_kinds import KINDS, SIDES, Draws, Evidence, RewardKind
from vrm.training.symptoms import say_symptoms
from vrm.training.trainer import (
    LogWriter,
    WatchedTrainer,
    common_arguments,
    merged,
    shard,
    switch_off_dropout,
    watch_steps,
    weight_dtype,
    whole_weights,
    with_adapters,
    write_log,
)

SECTION = "reward.training"


@dataclass(frozen=True)
class RewardJob:
    """One training: which variant, on what, and where to.

    Args:
        variant: the reward model to train.
        training: optimisation settings.
        aspects: names of the K objectives.
        seed: seeds head initialisation, data order and latent samples.
        backbone: directory or hub id of a causal LM.
        revision: commit of the hub model.
        pairs: directory with `train.jsonl` and `validation.jsonl`.
        checkpoints: where resumable state lives while training.
        out: gets `model/`, `training.csv` and `counts.json`.
        features: directories with the features of both splits, where the backbone is frozen; empty where it is not.
        dropout: share of those features that are set to 0 in training.
        chat_template: instead of the backbone's own, its text or a file.
        tokens: directory that `write_tokens` has filled; None: the training tokenises the pairs itself.
    """

    variant: Variant
    training: RewardTraining
    aspects: list[str]
    seed: int
    backbone: str
    revision: str | None
    pairs: Path
    checkpoints: Path
    out: Path
    features: tuple[Path, ...] = ()
    dropout: float = 0.0
    chat_template: str | None = None
    tokens: Path | None = None


def train_reward_model(job: RewardJob) -> None:
    """Train one reward model and write `model/`, `training.csv` and `counts.json` under `job.out`."""
    require_places(job.checkpoints, job.out, job.out / "model")
    frozen = FrozenBackbone(job.features, job.dropout) if job.features else None
    trainer, counts = make_trainer(job, frozen)
    job.out.mkdir(parents=True, exist_ok=True)
    tokenizer = None if frozen else trainer.processing_class  # rows of features are no text
    trainer.look_out(job.out, tokenizer)
    trainer.add_callback(LogWriter(job.out / TRAINING.name))
    trainer.add_callback(CheckpointOnStop(trainer))
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, _made_from(job)))
    _leave(job, trainer, counts, frozen)


def make_trainer(job: RewardJob, frozen: FrozenBackbone | None = None) -> tuple[PairwiseRewardTrainer, dict[str, Any]]:
    """A trainer with a fresh model, and what was cut or left out of both splits, counted."""
    set_seed(job.seed)
    tokenizer = checked_tokenizer(
        job.backbone,
        max_length=job.training.max_length,
        revision=job.revision,
        chat_template=job.chat_template,
    )
    train, train_counts = _tokenise(job, tokenizer, "train", frozen)
    validation, validation_counts = _tokenise(job, tokenizer, "validation", frozen)
    if frozen:
        frozen.fit(train)
    size = job.training.evaluation_pairs
    kind = KINDS[job.variant.kind](job.variant, job.aspects)
    model = _new_model(job, kind, tokenizer, train, frozen)
    trainer = PairwiseRewardTrainer(
        kind=kind,
        model=model,
        args=_arguments(job, len(train)),
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset={"train": _head(train, size), "validation": _head(validation, size)},
        data_collator=_collator(job, model, tokenizer),
    )
    watch_steps(trainer)
    shard(trainer.accelerator, trainer.model)
    return trainer, {"train": train_counts, "validation": validation_counts}


def _leave(
    job: RewardJob, trainer: PairwiseRewardTrainer, counts: dict[str, Any], frozen: FrozenBackbone | None
) -> None:
    """Write what the training leaves behind; its checkpoints are no longer needed. Of several processes one writes."""
    accelerator = trainer.accelerator
    model, weights = accelerator.unwrap_model(trainer.model), whole_weights(accelerator, trainer.model)
    if job.training.lora and weights:  # a whole one in the main process's memory, whose adapters can be merged
        model = _new_model(job, trainer.kind, trainer.processing_class)
        model.load_state_dict(weights)
        weights = None

    def write(directory: Path) -> None:
        if frozen:
            return frozen.save(model, trainer.processing_class, directory)
        save_model(merged(model), trainer.processing_class, directory, state_dict=weights)

    if accelerator.is_main_process:
        place(job.out / "model", write)
        write_log(trainer.state.log_history, job.out / TRAINING.name)
        write_json(job.out / "counts.json", counts)
        _say_symptoms(trainer.state.log_history)
        remove_ours(job.checkpoints)
    accelerator.wait_for_everyone()


def _say_symptoms(history: list[dict[str, Any]]) -> None:
    """What the last measurement on validation pairs shows, where there was one."""
    measured = [entry for entry in history if "eval_validation_loss" in entry]
    say_symptoms({name.removeprefix("eval_validation_"): value for name, value in (measured or [{}])[-1].items()})


class PairwiseRewardTrainer(WatchedTrainer):
    """A trainer for pairs that are tokenised already, with the loss of their kind."""

    def __init__(self, *, kind: RewardKind, **options: Any) -> None:
        self.kind = kind
        self._window: dict[str, list[Tensor]] = defaultdict(list)
        super().__init__(compute_metrics=self._measure, **options)
        self.model_accepts_loss_kwargs = False  # our loss is a mean over pairs; let the trainer scale accumulation
        for callback in kind.callbacks(self):
            self.add_callback(callback)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Evidence]:
        """The loss of one batch; in evaluation mode its evidence too, one row a pair."""
        inputs = dict(inputs)
        annotation = {name: inputs.pop(name) for name in ANNOTATIONS if name in inputs}
        evidence = self.kind.evidence(model, inputs, self._draws() if self.model.training else None)
        loss, terms = self._loss(evidence, annotation)
        if self.model.training:
            terms["accuracy"] = _wins(evidence).mean()
            for name, value in terms.items():
                self._window[name].append(value.detach())
        return (loss, evidence) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: object = None
    ) -> tuple[Tensor, Evidence, dict[str, Tensor]]:
        """Evidence and annotations of a batch, so that `_measure` sees whole sets."""
        inputs = self._prepare_inputs(inputs)
        annotation = {name: inputs[name] for name in ANNOTATIONS if name in inputs}
        with torch.no_grad():
            loss, evidence = self.compute_loss(model, inputs, return_outputs=True)
        # the trainer measures nothing without labels: pairs without annotations label themselves
        return loss, evidence, annotation or {"none": torch.zeros_like(evidence["chosen"]["reward"])}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the window's means over all processes; the only place where training waits for the device."""
        if self.model.training:
            for name, values in self._window.items():
                mean = torch.stack([torch.as_tensor(v, dtype=torch.float32) for v in values]).mean()
                logs[name] = self.accelerator.gather(mean).mean().item()
            self._window.clear()
        super().log(logs, start_time)

    def _draws(self) -> Draws:
        """Draws the latents of this process's pairs; the one place where a forward pass needs the other processes."""
        accelerator = self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        return Draws(shared_sampler(accelerator.gather, rank, processes), Noise(rank, processes))

    def _loss(self, evidence: Evidence, annotation: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # progress counts finished steps, so a resumed run stands where the killed one stood
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return self.kind.loss(evidence, _ratings(annotation), progress)

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics over a whole set, with posterior means; in float64, for KLs of large concentrations want it."""
        evidence = {
            side: {name: _exact_values(value) for name, value in prediction.predictions[side].items()} for side in SIDES
        }
        annotation = {k: _exact_values(v) for k, v in prediction.label_ids.items() if k in ANNOTATIONS}
        loss, terms = self._loss(evidence, annotation)
        metrics = {"accuracy": _wins(evidence).mean().item()} | {name: value.item() for name, value in terms.items()}
        measured = self.kind.measures(evidence, _ratings(annotation), terms)
        return self._exact(loss.item()) | metrics | _spreads(evidence) | measured

    def _exact(self, loss: float) -> dict[str, float]:
        """A whole set's loss: several processes fill up their last batches with pairs that the trainer counts again."""
        return {"loss": loss} if self.accelerator.num_processes > 1 else {}


def _spreads(evidence: Evidence) -> dict[str, float]:
    """How much the reward varies over responses and, least of the objectives, the per-objective scores."""

    def spread(name: str) -> Tensor:
        return torch.cat([evidence[side][name].float() for side in SIDES]).std(0, unbiased=False)

    scores = {"decoder_sd": spread("per_objective").min().item()} if "per_objective" in evidence["chosen"] else {}
    return {"reward_sd": spread("reward").item()} | scores


def _ratings(annotation: dict[str, Tensor]) -> PairAnnotation | None:
    return PairAnnotation(*(annotation[name] for name in ANNOTATIONS)) if annotation else None


def _exact_values(values: Any) -> Tensor:
    """The same numbers; floating ones as float64."""
    found = torch.as_tensor(values)
    return found.double() if found.is_floating_point() else found


def _wins(evidence: Evidence) -> Tensor:
    """1 where the chosen response has the higher reward, shape (B,)."""
    return (evidence["chosen"]["reward"] > evidence["rejected"]["reward"]).float()


def _new_model(
    job: RewardJob,
    kind: RewardKind,
    tokenizer: Any,
    train: Dataset | None = None,
    frozen: FrozenBackbone | None = None,
) -> torch.nn.Module:
    """A fresh head on the backbone; what is trained is float32, `bf16` is mixed precision on top of that."""
    backbone = frozen.table if frozen else job.backbone
    turns = {"generation_prompt_ids": generation_prompt_ids(tokenizer), "user_turn_ids": user_turn_ids(tokenizer)}
    model = kind.new_model(backbone, job.revision, weight_dtype(job.training), turns, train)
    padding = NO_PADDING if frozen else tokenizer.pad_token_id
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = padding
    # whoever loads the model later scores with the limits that it was trained with
    limits = ("max_prompt_length", "max_length")
    model.config.reward_limits = {name: getattr(job.training, name) for name in limits}
    if not frozen:  # a table of features has nothing to share
        prepare_rows(model, job.training, job.backbone, SECTION)
        if job.training.compile:
            compile_blocks(model)
    model = with_adapters(model, job.training.lora, exclude=kind.head, train_excluded=True)
    if not frozen:  # features have a dropout of their own, which is a setting
        switch_off_dropout(model)
    return model


def _collator(job: RewardJob, model: torch.nn.Module, tokenizer: Any) -> PairCollator | PackedPairCollator:
    kernel = kernel_of(model, job.training, SECTION)
    if kernel is None:
        return PairCollator(pad_token_id=tokenizer.pad_token_id)
    return PackedPairCollator(tokenizer.pad_token_id, job.training.tokens_per_row, kernel)


def _tokenise(
    job: RewardJob, tokenizer: Any, split: str, frozen: FrozenBackbone | None
) -> tuple[Dataset, dict[str, int]]:
    encoder = TextEncoder(tokenizer, job.training.max_prompt_length, job.training.max_length)
    most = job.training.pairs if split == "train" else None
    path = job.pairs / f"{split}.jsonl"
    if job.tokens is not None:
        return read_split(path, job.tokens, encoder, job.variant, most)
    return tokenise_split(path, frozen.encoder(encoder) if frozen else encoder, job.variant, most)


def _head(dataset: Dataset, size: int) -> Dataset:
    return dataset.select(range(min(size, len(dataset))))


def _arguments(job: RewardJob, pairs: int) -> TrainingArguments:
    training = for_heads(job.training) if job.features else job.training
    return TrainingArguments(
        **common_arguments(training, pairs, job.seed, job.checkpoints, job.out),
        weight_decay=job.training.weight_decay,
        activation_checkpointing=job.training.gradient_checkpointing and not job.features,
    )


def _made_from(job: RewardJob) -> dict[str, Any]:
    settings = {
        "variant": dependencies.variant(job.variant),
        "training": dependencies.training(job.training, started_processes()),
        "aspects": job.aspects,
        "seed": job.seed,
        "backbone": model_name(job.backbone),
        "revision": job.revision,
        "features": [str(directory) for directory in job.features],
        "chat_template": None if job.chat_template is None else read_template(job.chat_template),
    }
    pairs = [job.pairs / f"{split}.jsonl" for split in ("train", "validation")]
    return fingerprint(settings, [*pairs, *model_files(job.backbone)])


# Heads on frozen features: the same trainer, losses and log as for whole models, in seconds.
#
# * The features of all texts are computed once (`vrm features`). A training sees a table of them in the backbone's
#   place, and rows of the table instead of token ids.
# * What it leaves is a whole model: the backbone's weights (the same file for all heads, linked), the features' recipe
#   and standardisation, and the head. It scores texts that have no stored features as well.

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
        self.table = self.stored.table(self.stored.config)

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
