"""Supervised fine-tuning of a policy base on chosen responses, on TRL's `SFTTrainer`: where every method starts.

The losses that are measured along the way are means over batches of their means over tokens, so they depend a little on
the batch size and the number of processes; the training, and `held_out.csv`, do not.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from vrm.checkpoints import resumable
from vrm.config import SftTraining, dependencies
from vrm.models.policy_scoring import PolicyScorer
from vrm.models.templates import left_out
from vrm.models.text import TokenisedText
from vrm.records import PreferencePair
from vrm.runfiles import TRAINING
from vrm.training.policies import MAX_GRAD_NORM, PolicyJob, leave, load_policy
from vrm.training.preemption import CheckpointOnStop
from vrm.training.trainer import LogWriter, common_arguments, shard, watch_steps


def train_sft(job: PolicyJob, sft: SftTraining) -> None:
    """Fine-tune a base; write `model/`, `training.csv`, `held_out.csv` and `counts.json` under `job.out`.

    Args:
        job: what to train from, on what, and where to.
        sft: takes precedence over the job's own optimisation settings.
    """
    job.require_places()
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
    trainer = _Trainer(
        model=load_policy(job, tokenizer),
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


class _Trainer(SFTTrainer):
    def create_model_card(self, *_: object, **__: object) -> None:
        """None beside checkpoints: everything there that is not a checkpoint is somebody else's."""


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
    )
    with trainer.accelerator.autocast():
        return (-scorer.score([r.prompt for r in records], [r.chosen for r in records]).mean).tolist()
