"""Supervised fine-tuning of a policy base on chosen responses, on TRL's `SFTTrainer`: where every method starts."""

from __future__ import annotations

import shutil

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from vrm.config import SftTraining
from vrm.models.policy_scoring import PolicyScorer
from vrm.records import read_pairs, write_json
from vrm.training.arguments import common_arguments
from vrm.training.checkpoints import place, resumable
from vrm.training.log import LogWriter, write_log
from vrm.training.pairs import TokenisedPair, tokenise_pairs
from vrm.training.policies import HELD_OUT, PolicyJob, load_policy, save_policy, write_held_out


def train_sft(job: PolicyJob, sft: SftTraining) -> None:
    """Fine-tune a base; write `model/`, `training.csv`, `held_out.csv` and `counts.json` under `job.out`.

    Args:
        job: what to train from, on what, and where to.
        sft: takes precedence over the job's own optimisation settings.
    """
    set_seed(job.seed)
    training = job.training.model_copy(update=sft.model_dump())
    tokenizer = job.tokenizer()
    pairs, counts = {}, {}
    for split in ("train", "validation"):
        path = job.pairs / f"{split}.jsonl"
        pairs[split], counts[split] = tokenise_pairs(
            read_pairs(path), job.encoder(tokenizer), path, "policy.training.max_length"
        )
    held_out = pairs["validation"][: training.evaluation_pairs]
    model = load_policy(job, tokenizer, outputs=())
    start = _losses(job, model, tokenizer, held_out)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **common_arguments(training, len(pairs["train"]), job.seed, job.checkpoints),
            max_length=None,
            max_grad_norm=training.max_grad_norm,
            activation_checkpointing=training.gradient_checkpointing,
        ),
        processing_class=tokenizer,
        train_dataset=_rows(pairs["train"]),
        eval_dataset={"train": _rows(pairs["train"][: len(held_out)]), "validation": _rows(held_out)},
    )
    trainer.add_callback(LogWriter(job.out / "training.csv"))
    made_from = job.made_from({"sft": sft.model_dump(mode="json")})
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, made_from))
    model = trainer.accelerator.unwrap_model(trainer.model)
    end = _losses(job, model, tokenizer, held_out)
    records = [pair.record for pair in held_out]
    changes = [(r.pair_id, r.prompt_id, "loss", a, b) for r, a, b in zip(records, start, end, strict=True)]
    write_held_out(changes, job.out / HELD_OUT)
    write_log(trainer.state.log_history, job.out / "training.csv")
    write_json(job.out / "counts.json", counts)
    place(job.out / "model", lambda directory: save_policy(model, tokenizer, directory))
    shutil.rmtree(job.checkpoints, ignore_errors=True)


def _rows(pairs: list[TokenisedPair]) -> Dataset:
    """Chosen texts whose response tokens alone are learnt, the end token included."""
    texts = [pair.chosen for pair in pairs]
    labels = [[-100] * text.prompt_length + text.ids[text.prompt_length :] for text in texts]
    return Dataset.from_dict({"input_ids": [text.ids for text in texts], "labels": labels})


def _losses(job: PolicyJob, model: object, tokenizer: object, pairs: list[TokenisedPair]) -> list[float]:
    """Nats a token of each chosen response."""
    training = job.training
    scorer = PolicyScorer(
        model,
        None,
        tokenizer,
        max_prompt_length=training.max_prompt_length,
        max_length=training.max_length,
        batch_size=2 * training.batch_size,
        chat_template_kwargs=job.chat_template_kwargs,
    )
    records = [pair.record for pair in pairs]
    return (-scorer.score([r.prompt for r in records], [r.chosen for r in records]).mean).tolist()
