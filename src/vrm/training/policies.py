"""What SFT, the preference methods and PPO share: the job, the model they start from, the one they leave; and SFT.

* Master weights are float32, `bf16` is mixed precision on top; with adapters the frozen weights are bfloat16 then.
* The language-model head is TRL's fused one: log-probabilities come without the (B, T, V) logits in memory.
* Every policy is an ordinary Hugging Face directory: adapters are merged when a training has finished.
* Supervised fine-tuning on chosen responses, by TRL's `SFTTrainer`, is where every method starts. The losses that are
  measured along the way are means over batches of their means over tokens, so they depend a little on the batch size
  and the number of processes; the training, and `held_out.csv`, do not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from vrm.checkpoints import fingerprint, model_files, model_name, require_places, resumable, started_processes
from vrm.config import PolicyTraining, SftTraining, dependencies
from vrm.models.checks import checked_tokenizer
from vrm.models.policy_scoring import PolicyScorer
from vrm.models.reference_log_probs import Reference, asked_of, read_reference
from vrm.models.responses import fuse_head
from vrm.models.templates import left_out, read_template
from vrm.models.text import PolicyEncoder, TokenisedText, end_ids, generation_config
from vrm.models.weights import checked_weights, save_model
from vrm.ours import place, remove_ours
from vrm.records import PreferencePair, read_pairs, write_json
from vrm.runfiles import HELD_OUT, TRAINING
from vrm.training.engine import prepare_rows
from vrm.training.preemption import CheckpointOnStop
from vrm.training.symptoms import OFFLINE_SYMPTOMS, offline_measures, say_symptoms
from vrm.training.trainer import (
    LogWriter,
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

if TYPE_CHECKING:
    from trl import SFTTrainer


MAX_GRAD_NORM = 1.0
"""Gradients of every policy training are clipped to this norm."""


@dataclass(frozen=True)
class PolicyJob:
    """One training of a policy: from what, on what, and where to.

    Args:
        policy: directory or hub id of the causal LM that training starts from.
        training: optimisation settings.
        seed: seeds data order and sampling.
        pairs: directory with `train.jsonl` and `validation.jsonl`.
        checkpoints: where resumable state lives while training.
        out: gets `model/`, `training.csv`, `held_out.csv` and `counts.json`.
        revision: commit of the hub model.
        chat_template_kwargs: passed to the chat template.
        chat_template: instead of the policy's own, its text or a file.
    """

    policy: str
    training: PolicyTraining
    seed: int
    pairs: Path
    checkpoints: Path
    out: Path
    revision: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    def require_places(self) -> None:
        """Check, before anything is loaded, that nothing of somebody else's would be deleted; raises ConfigError."""
        require_places(self.checkpoints, self.out, self.out / "model")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, ready for use, once the policy is found fit (see `vrm.models.checks`)."""
        return checked_tokenizer(
            self.policy,
            max_length=self.training.max_length,
            revision=self.revision,
            chat_template=self.chat_template,
        )

    def read(self, split: str) -> list[PreferencePair]:
        """The pairs of a split; of the training split those that `training.pairs` asks for."""
        return read_pairs(self.pairs / f"{split}.jsonl")[: self.training.pairs if split == "train" else None]

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> PolicyEncoder:
        """Encodes with this job's limits and template arguments, and counts what it cuts."""
        limits = self.training.max_prompt_length, self.training.max_length
        ends = end_ids(generation_config(self.policy, self.revision), tokenizer)
        return PolicyEncoder(tokenizer, *limits, chat_template_kwargs=self.chat_template_kwargs, ends=ends)

    def asked_of(self, encoder: PolicyEncoder) -> dict[str, Any]:
        """What log-probabilities of the job's policy depend on, asked as a training asks it."""
        lora = self.training.lora
        precision = {
            "bf16": self.training.bf16,
            "weights": str(weight_dtype(self.training)),
            "load_in_4bit": lora is not None and lora.load_in_4bit,
        }
        return asked_of(self.policy, self.revision, encoder, precision)

    def reference(self, path: Path | None, tokenizer: PreTrainedTokenizerBase) -> Reference | None:
        """What the job's policy has said, from a file that was asked for as `asked_of` tells; None where there is none.

        Raises:
            RecordError: the file is missing, damaged or made from something else.
        """
        if path is None:
            return None
        encoder = self.encoder(tokenizer)
        return read_reference(path, encoder, self.asked_of(encoder))

    def made_from(self, settings: dict[str, Any], *files: Path, unused: Collection[str] = ()) -> dict[str, Any]:
        """What the result depends on: `settings`, this job, the pairs, the policy, and further files.

        Args:
            settings: what the stage has of its own.
            files: what it reads besides.
            unused: fields of `training` that it does not look at.
        """
        own = {
            "training": dependencies.training(self.training, started_processes(), unused),
            "seed": self.seed,
            "policy": model_name(self.policy),
            "revision": self.revision,
            "chat_template_kwargs": self.chat_template_kwargs,
            "chat_template": None if self.chat_template is None else read_template(self.chat_template),
        }
        pairs = [self.pairs / "train.jsonl", self.pairs / "validation.jsonl"]
        return fingerprint(own | settings, [*pairs, *model_files(self.policy), *files])


SECTION = "policy.training"


def load_policy(
    job: PolicyJob, tokenizer: PreTrainedTokenizerBase, *outputs: str, temperature: float = 1.0, rows: bool = True
) -> PreTrainedModel:
    """A causal LM to be trained, without dropout and with a fused head, wrapped in adapters if the job wants them.

    Args:
        job: names the model and the adapters.
        tokenizer: its pad token becomes the model's.
        outputs, temperature: see `fuse_head`.
        rows: prepare it for packed rows, if the job wants them.
    """
    options = {"revision": job.revision, "dtype": weight_dtype(job.training)}
    model = checked_weights(AutoModelForCausalLM, job.policy, **options)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    fuse_head(model, *outputs, temperature=temperature)
    if rows:
        prepare_rows(model, job.training, job.policy, SECTION)
    model = with_adapters(model, job.training.lora, exclude="lm_head")
    switch_off_dropout(model)
    return model


def save_policy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write an ordinary Hugging Face directory; adapters are merged into the weights."""
    save_model(merged(model), tokenizer, directory)


def leave(
    job: PolicyJob,
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[tuple[str, str, str, float, float]],
    counts: dict[str, Any],
) -> None:
    """Write what a training leaves behind; its checkpoints are no longer needed. Of several processes one writes.

    Args:
        job: says where to.
        trainer: has the policy and the log.
        tokenizer: the policy's.
        held_out: rows of `write_held_out`.
        counts: for `counts.json`.
    """
    weights = whole_weights(trainer.accelerator, trainer.model)
    if trainer.accelerator.is_main_process:
        write_held_out(held_out, job.out / HELD_OUT.name)
        write_log(trainer.state.log_history, job.out / TRAINING.name)
        write_json(job.out / "counts.json", counts)
        say_symptoms(offline_measures(job.out), OFFLINE_SYMPTOMS)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if weights is not None:  # a whole one on the CPU, whose adapters can be merged
            policy = load_policy(job, tokenizer, rows=False)
            policy.load_state_dict(weights)
        place(job.out / "model", lambda directory: save_policy(policy, tokenizer, directory))
        remove_ours(job.checkpoints)
    trainer.accelerator.wait_for_everyone()


def write_held_out(rows: list[tuple[str, str, str, float, float]], path: Path) -> None:
    """Write a `held_out.csv` from rows of item, prompt, metric, start and end."""
    HELD_OUT.write(path, pd.DataFrame(rows, columns=list(HELD_OUT.columns)))


# Supervised fine-tuning.


def train_sft(job: PolicyJob, sft: SftTraining) -> None:
    """Fine-tune a base; write `model/`, `training.csv`, `held_out.csv` and `counts.json` under `job.out`.

    Args:
        job: what to train from, on what, and where to.
        sft: takes precedence over the job's own optimisation settings.
    """
    job.require_places()
    from trl import SFTConfig, SFTTrainer  # takes seconds to import, and the other methods need neither

    set_seed(job.seed)
    training = job.training.model_copy(update=sft.model_dump())
    tokenizer = job.tokenizer()
    records, texts, counts = {}, {}, {}
    for split in ("train", "validation"):
        encoder = job.encoder(tokenizer)
        path = job.pairs / f"{split}.jsonl"
        every = job.read(split)
        encoded, refused = encoder.try_encode([r.prompt for r in every], [r.chosen for r in every])
        left_out(refused, [f"{path}, pair {r.pair_id}" for r in every], f"pairs of {path}")
        records[split] = [record for row, record in enumerate(every) if row not in refused]
        texts[split] = [text for text in encoded if text is not None]
        counts[split] = {"refused_by_template": len(refused), **encoder.truncation.as_dict()}
    held_out = records["validation"][: training.evaluation_pairs]
    size = len(held_out)
    trainer = SFTTrainer(
        model=load_policy(job, tokenizer, rows=False),  # TRL puts texts into rows
        args=SFTConfig(
            **common_arguments(training, len(texts["train"]), job.seed, job.checkpoints, job.out),
            max_length=None,
            max_grad_norm=MAX_GRAD_NORM,
            activation_checkpointing=training.gradient_checkpointing,
        ),
        processing_class=tokenizer,
        train_dataset=_rows(texts["train"]),
        eval_dataset={split: _rows(texts[split][:size]) for split in ("train", "validation")},
    )
    # none beside checkpoints: everything there that is not a checkpoint is somebody else's
    trainer.create_model_card = lambda *_, **__: None
    watch_steps(trainer)
    shard(trainer.accelerator, trainer.model)
    trainer.add_callback(LogWriter(job.out / TRAINING.name))
    trainer.add_callback(CheckpointOnStop(trainer))
    start = _losses(job, trainer, tokenizer, held_out)
    made_from = job.made_from({"sft": sft.model_dump(mode="json")}, unused=dependencies.SFT_OWN)
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, made_from))
    end = _losses(job, trainer, tokenizer, held_out)
    changes = [(r.pair_id, r.prompt_id, "loss", a, b) for r, a, b in zip(held_out, start, end, strict=True)]
    leave(job, trainer, tokenizer, changes, counts)


def _rows(texts: list[TokenisedText]) -> Dataset:
    """Texts whose response tokens alone are learnt, the end token included."""
    labels = [[-100] * text.prompt_length + text.ids[text.prompt_length :] for text in texts]
    return Dataset.from_dict({"input_ids": [text.ids for text in texts], "labels": labels})


def _losses(job: PolicyJob, trainer: SFTTrainer, tokenizer: Any, records: list[PreferencePair]) -> list[float]:
    """Nats a token of each chosen response, in the precision that is trained in."""
    scorer = PolicyScorer(
        trainer.accelerator.unwrap_model(trainer.model),
        None,
        tokenizer,
        max_prompt_length=job.training.max_prompt_length,
        max_length=job.training.max_length,
        batch_size=2 * job.training.batch_size,
        chat_template_kwargs=job.chat_template_kwargs,
        engine="padded",
    )
    with trainer.accelerator.autocast():
        return (-scorer.score([r.prompt for r in records], [r.chosen for r in records]).mean).tolist()
