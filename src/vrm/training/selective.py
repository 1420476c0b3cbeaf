"""Selective DPO: how hard each training pair is, and which are kept.

A pair's difficulty is its mean DPO loss along reference runs that do not train on it: the prompts are halved at random,
one policy is trained on each half and scores the other several times on its way; the losses are averaged over these
and over several halvings, each with a seed of its own. The easiest pairs are kept and trained on from easy to hard.

Source: Gao et al. 2025, "Principled Data Selection for Alignment: The Hidden Risks of Difficult Examples", and the code
that they released: five evaluations, three seeds, adapters with dropout 0.05. docs/decisions.md says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vrm.config import PreferenceMethod, dependencies
from vrm.ours import remove_ours, require_ours
from vrm.records import RecordError
from vrm.runfiles import DIFFICULTY, DIFFICULTY_LOSSES, require_finite

if TYPE_CHECKING:
    from vrm.training.pairs import TokenisedPair
    from vrm.training.policies import PolicyJob

SEEDS_APART = 1000
"""Between the seeds of a policy's reference runs, so that no run shares one with another policy's."""


def train_difficulty_run(
    job: PolicyJob,
    method: PreferenceMethod,
    run: int,
    half: int,
    evaluations: int = 5,
    lora_dropout: float = 0.05,
    reference: Path | None = None,
) -> None:
    """Train a reference run on one half of the training prompts; write the other half's mean losses to `job.out`.

    Args:
        job: what to train from, and on what; `out` is the CSV to write, with columns pair_id, loss (nats).
        method: Selective DPO; its beta is the reference run's.
        run: number of the halving.
        half: 0 or 1, which half is trained on.
        evaluations: how often the other half is scored, evenly spaced, the last time at the end.
        lora_dropout: dropout before the adapters, where there are some.
        reference: what `make_reference` wrote; None asks the policy here.
    """
    # here, because selecting pairs needs none of it
    from transformers import set_seed

    from vrm.checkpoints import resumable
    from vrm.training.preemption import CheckpointOnStop
    from vrm.training.preference import (
        LossesAlong,
        evidence_of,
        make_trainer,
        paired_rows,
        read_tokenised,
        with_reference,
    )
    from vrm.training.trainer import LossWatch, drop_adapters

    require_ours(job.checkpoints)
    job = replace(job, seed=job.seed + SEEDS_APART * run)
    set_seed(job.seed)
    tokenizer = job.tokenizer()
    known = job.reference(reference, tokenizer)
    pairs, _ = read_tokenised(job, "train", known.encoder() if known else job.encoder(tokenizer))
    halves = split_in_half(pairs, run)
    train, rest = halves[half], halves[1 - half]
    trainer = make_trainer(job, method, tokenizer, train, rest[: job.training.evaluation_pairs], known=known)
    drop_adapters(trainer.model, lora_dropout)
    trainer.add_callback(LossWatch())
    trainer.add_callback(CheckpointOnStop(trainer))
    rows = with_reference(paired_rows(rest), evidence_of(trainer, rest, known))
    along = LossesAlong(trainer, rows, evaluations, job.checkpoints)
    trainer.add_callback(along)
    settings = {"method": dependencies.method(method), "run": run, "half": half, "evaluations": evaluations}
    made_from = job.made_from(settings | {"lora_dropout": lora_dropout})
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, made_from))
    if trainer.accelerator.is_main_process:
        losses = along.mean()
        table = pd.DataFrame({"pair_id": [pair.record.pair_id for pair in rest], "loss": losses})
        DIFFICULTY_LOSSES.write(job.out, table)
        remove_ours(job.checkpoints)
    trainer.accelerator.wait_for_everyone()


def split_in_half(pairs: Sequence[TokenisedPair], run: int) -> tuple[list[TokenisedPair], list[TokenisedPair]]:
    """Two halves of the pairs that share no prompt; another run halves them differently.

    Raises:
        RecordError: there are fewer than two prompts.
    """
    prompts = sorted({pair.record.prompt_id for pair in pairs})
    if len(prompts) < 2:
        raise RecordError(f"selective_dpo halves the training prompts, and there are only {len(prompts)}")
    shuffled = np.random.default_rng(run).permutation(prompts)
    first = set(shuffled[: len(prompts) // 2].tolist())
    inside = [pair.record.prompt_id in first for pair in pairs]
    return (
        [pair for pair, here in zip(pairs, inside, strict=True) if here],
        [pair for pair, here in zip(pairs, inside, strict=True) if not here],
    )


def select_pairs(losses: Sequence[Path], keep: float, out: Path) -> None:
    """Write `out`: pair_id, difficulty (mean loss over runs, nats), runs, kept (0/1), the easiest pair first.

    Args:
        losses: what the reference runs wrote.
        keep: share of the pairs that is kept.
        out: the CSV.

    Raises:
        RecordError: a file lacks a column or holds a loss that is not finite.
    """
    tables = []
    for path in losses:
        table = DIFFICULTY_LOSSES.read(path)
        require_finite(path, table, ["loss"])
        tables.append(table)
    grouped = pd.concat(tables).groupby("pair_id").loss.agg(["mean", "size"]).reset_index()
    grouped.columns = ["pair_id", "difficulty", "runs"]
    ranked = grouped.sort_values(["difficulty", "pair_id"], ignore_index=True)
    ranked["kept"] = (np.arange(len(ranked)) < max(1, round(keep * len(ranked)))).astype(int)
    DIFFICULTY.write(out, ranked)
    print(
        f"{out}: {int(ranked.kept.sum())} of {len(ranked)} pairs kept, difficulty up to "
        f"{ranked.difficulty[ranked.kept == 1].max():.3f} of {ranked.difficulty.max():.3f} nats"
    )
