"""Training of reward models, plain and variational, on TRL's `RewardTrainer`.

* TRL's one concatenated forward pass (B chosen rows, then B rejected rows, right-padded) is kept; the loss is
  swapped, and each batch carries prompt lengths and annotated scores along.
* Pairs arrive tokenised, so nothing is dropped in silence: what is cut or identical after cutting is counted.
* `train` and `validation` accuracies are measured with posterior means over whole sets, not averaged over batches.
* With adapters (`lora`) the head is trained whole beside them, and both are merged into an ordinary model at the end.
* A killed training continues from its last checkpoint to the same result (CPU, same thread count).
* Several processes, each with its part of a batch, train what one process with the whole batch trains, up to rounding
  and two exceptions: accelerate fills up an epoch's last batch, where that is smaller, with the epoch's first pairs;
  and `free_bits` are compared with means of one forward pass, which then has a part of the batch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, EvalPrediction, set_seed
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from vrm.config import RewardTraining, Variant
from vrm.models.checks import checked_tokenizer, checked_weights
from vrm.models.latents import (
    PairAnnotation,
    PairPosterior,
    Weights,
    active_units,
    gaussian_kl,
    objective,
    preference_loss,
)
from vrm.models.saving import save_model
from vrm.models.templates import read_template
from vrm.models.text import TextEncoder, generation_prompt_ids, user_turn_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import write_json
from vrm.training.adapters import merged, weight_dtype, with_adapters
from vrm.training.arguments import common_arguments
from vrm.training.checkpoints import fingerprint, model_files, of_no_effect, place, resumable
from vrm.training.log import LogWriter, write_log
from vrm.training.pairs import ANNOTATIONS, PairCollator, tokenise_split
from vrm.training.sharding import shard, whole_weights


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
        chat_template: instead of the backbone's own, its text or a file.
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
    chat_template: str | None = None


def train_reward_model(job: RewardJob) -> None:
    """Train one reward model and write `model/`, `training.csv` and `counts.json` under `job.out`."""
    trainer, counts = make_trainer(job)
    trainer.add_callback(LogWriter(job.out / "training.csv"))
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, _made_from(job)))
    _leave(job, trainer, counts)


def make_trainer(job: RewardJob) -> tuple[PairwiseRewardTrainer, dict[str, Any]]:
    """A trainer with a fresh model, and what was cut or had to go of both splits, counted."""
    set_seed(job.seed)
    tokenizer = checked_tokenizer(
        job.backbone,
        max_length=job.training.max_length,
        revision=job.revision,
        chat_template=job.chat_template,
    )
    train, train_counts = _tokenise(job, tokenizer, "train")
    validation, validation_counts = _tokenise(job, tokenizer, "validation")
    size = job.training.evaluation_pairs
    trainer = PairwiseRewardTrainer(
        variant=job.variant,
        model=_new_model(job, tokenizer),
        args=_arguments(job, len(train)),
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset={"train": _head(train, size), "validation": _head(validation, size)},
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
    )
    shard(trainer.accelerator, trainer.model)
    return trainer, {"train": train_counts, "validation": validation_counts}


def _leave(job: RewardJob, trainer: PairwiseRewardTrainer, counts: dict[str, Any]) -> None:
    """Write what the training leaves behind; its checkpoints are no longer needed. Of several processes one writes."""
    accelerator = trainer.accelerator
    model, weights = accelerator.unwrap_model(trainer.model), whole_weights(accelerator, trainer.model)
    if job.training.lora and weights:  # a whole one in the main process's memory, whose adapters can be merged
        model = _new_model(job, trainer.processing_class)
        model.load_state_dict(weights)
        weights = None

    def write(directory: Path) -> None:
        save_model(merged(model), trainer.processing_class, directory, state_dict=weights)

    if accelerator.is_main_process:
        place(job.out / "model", write)
        write_log(trainer.state.log_history, job.out / "training.csv")
        write_json(job.out / "counts.json", counts)
        shutil.rmtree(job.checkpoints)
    accelerator.wait_for_everyone()


class PairwiseRewardTrainer(RewardTrainer):
    """TRL's trainer for pairs that are tokenised already, with the loss of the variant."""

    def __init__(self, *, variant: Variant, **options: Any) -> None:
        self.variant = variant
        super().__init__(compute_metrics=self._measure, **options)
        self.model_accepts_loss_kwargs = False  # our loss is a mean over pairs; let the trainer scale accumulation

    @property
    def _variational(self) -> bool:
        return self.variant.kind == "variational"

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch; in evaluation mode its outputs too, one row a pair."""
        inputs = dict(inputs)
        annotation = {name: inputs.pop(name) for name in ANNOTATIONS if name in inputs}
        if not self._variational:
            inputs.pop("prompt_lengths")
            chosen, rejected = model(**inputs, use_cache=False).logits.float().squeeze(-1).chunk(2)
            loss = preference_loss(chosen, rejected)
            terms, evidence = {"preference_loss": loss.detach()}, {"reward_chosen": chosen, "reward_rejected": rejected}
        else:
            output = model(**inputs, sample_pairs=self.model.training)
            evidence = _evidence(output)
            loss, terms = self._objective(evidence, annotation)
        if self.model.training:
            terms["accuracy"] = (evidence["reward_chosen"] > evidence["reward_rejected"]).float().mean()
            for name, value in terms.items():
                self._metrics["train"][name].append(value.detach())
        return (loss, evidence) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: object = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Evidence and annotations of a batch, so that `_measure` sees whole sets."""
        inputs = self._prepare_inputs(inputs)
        annotation = {name: inputs[name] for name in ANNOTATIONS if name in inputs}
        with torch.no_grad():
            loss, evidence = self.compute_loss(model, inputs, return_outputs=True)
        # the trainer measures nothing without labels: pairs without annotations label themselves
        return loss, evidence, annotation or {"none": torch.zeros_like(evidence["reward_chosen"])}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the window's means over all processes; the only place where training waits for the device."""
        for values in self._metrics["train"].values():
            mean = torch.stack([torch.as_tensor(v, dtype=torch.float32) for v in values]).mean()
            values[:] = [self.accelerator.gather(mean).mean().item()]
        super().log(logs, start_time)

    def _objective(
        self, evidence: dict[str, Tensor], annotation: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # progress counts finished steps, so a resumed run stands where the killed one stood
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return objective(
            PairPosterior(**evidence),
            self.accelerator.unwrap_model(self.model).prior().to(evidence["alpha"].device),
            scheduled_weights(self.variant, progress),
            self.variant.supervision,
            PairAnnotation(*(annotation[name] for name in ANNOTATIONS)) if annotation else None,
        )

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics over a whole set, with posterior means."""
        evidence = {name: torch.as_tensor(value) for name, value in prediction.predictions.items()}
        accuracy = (evidence["reward_chosen"] > evidence["reward_rejected"]).float().mean().item()
        if not self._variational:
            loss = preference_loss(**evidence).item()
            return self._exact(loss) | {"accuracy": accuracy, "preference_loss": loss}
        annotation = {k: torch.as_tensor(v) for k, v in prediction.label_ids.items() if k in ANNOTATIONS}
        loss, terms = self._objective(evidence, annotation)
        mu = torch.cat([evidence["mu_chosen"], evidence["mu_rejected"]])
        log_variance = torch.cat([evidence["log_variance_chosen"], evidence["log_variance_rejected"]])
        per_dimension = gaussian_kl(mu, log_variance).mean(0)
        return self._exact(loss.item()) | {
            "accuracy": accuracy,
            **{name: value.item() for name, value in terms.items()},
            "kl_total": (terms["kl_w"] + terms["kl_z"]).item(),
            "active_units": active_units(mu),
            **{f"kl_z_dim{i:02d}": value.item() for i, value in enumerate(per_dimension)},
        }

    def _exact(self, loss: float) -> dict[str, float]:
        """A whole set's loss: several processes fill up their last batches with pairs that the trainer counts again."""
        return {"loss": loss} if self.accelerator.num_processes > 1 else {}


def scheduled_weights(variant: Variant, progress: float) -> Weights:
    """Weights of the objective's terms at `progress` (0 to 1): both betas rise linearly from 0 during the warm-up."""
    ramp = min(1.0, progress / variant.beta_warmup) if variant.beta_warmup > 0 else 1.0
    return Weights(
        beta_w=variant.beta_w * ramp,
        beta_z=variant.beta_z * ramp,
        supervision=variant.supervision_weight,
        score_anchor=variant.score_anchor_weight,
        free_bits=variant.free_bits,
    )


def _evidence(output: Any) -> dict[str, Tensor]:
    """A forward pass over 2B rows as the fields of a `PairPosterior`."""
    chosen, rejected = output.logits.squeeze(-1).chunk(2)
    evidence = {"reward_chosen": chosen, "reward_rejected": rejected, "alpha": output.alpha.chunk(2)[0]}
    evidence["mu_chosen"], evidence["mu_rejected"] = output.mu.chunk(2)
    evidence["log_variance_chosen"], evidence["log_variance_rejected"] = output.log_variance.chunk(2)
    if output.per_objective is not None:
        evidence["scores_chosen"], evidence["scores_rejected"] = output.per_objective.chunk(2)
    return evidence


def _new_model(job: RewardJob, tokenizer: Any) -> torch.nn.Module:
    """A fresh head on the backbone; what is trained is float32, `bf16` is mixed precision on top of that."""
    variant, dtype = job.variant, weight_dtype(job.training)
    if variant.kind == "scalar":
        with suppress_seqcls_warning():
            model = checked_weights(
                AutoModelForSequenceClassification,
                job.backbone,
                fresh=["score"],
                num_labels=1,
                revision=job.revision,
                dtype=dtype,
            )
    else:
        model = VrmForSequenceClassification.from_backbone(
            job.backbone,
            revision=job.revision,
            dtype=dtype,
            aspects=job.aspects,
            latent_dim=variant.latent_dim,
            reward_decoder=variant.decoder,
            prior_concentration=variant.prior_concentration,
            generation_prompt_ids=generation_prompt_ids(tokenizer),
            user_turn_ids=user_turn_ids(tokenizer),
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    # whoever loads the model later scores with the limits that it was trained with
    limits = ("max_prompt_length", "max_length")
    model.config.reward_limits = {name: getattr(job.training, name) for name in limits}
    head = "score" if variant.kind == "scalar" else "head"
    return with_adapters(model, job.training.lora, exclude=head, train_excluded=True)


def _tokenise(job: RewardJob, tokenizer: Any, split: str) -> tuple[Dataset, dict[str, int]]:
    encoder = TextEncoder(tokenizer, job.training.max_prompt_length, job.training.max_length)
    return tokenise_split(job.pairs / f"{split}.jsonl", encoder, job.variant)


def _head(dataset: Dataset, size: int) -> Dataset:
    return dataset.select(range(min(size, len(dataset))))


def _arguments(job: RewardJob, pairs: int) -> TrlRewardConfig:
    return TrlRewardConfig(
        **common_arguments(job.training, pairs, job.seed, job.checkpoints),
        weight_decay=job.training.weight_decay,
        max_length=None,
        activation_checkpointing=job.training.gradient_checkpointing,
    )


def _made_from(job: RewardJob) -> dict[str, Any]:
    settings = {
        "variant": job.variant.model_dump(mode="json", exclude={"label", "ours"}),
        "training": job.training.model_dump(mode="json", exclude=of_no_effect()),
        "aspects": job.aspects,
        "seed": job.seed,
        "backbone": job.backbone,
        "revision": job.revision,
        "chat_template": None if job.chat_template is None else read_template(job.chat_template),
    }
    pairs = [job.pairs / f"{split}.jsonl" for split in ("train", "validation")]
    return fingerprint(settings, [*pairs, *model_files(job.backbone)])
