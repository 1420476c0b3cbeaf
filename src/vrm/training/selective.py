"""Selective DPO: how hard each training pair is, and which are kept.

A pair's difficulty is its DPO loss under reference runs that did not train on it: the prompts are halved at random, one
policy is trained on each half and scores the other; the losses of several halvings are averaged. The easiest pairs are
kept and trained on from easy to hard.

Source: Gao et al. 2025, "Principled Data Selection for Alignment: The Hidden Risks of Difficult Examples".
"""

from __future__ import annotations

from collections.abc import Sequence
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


def train_difficulty_run(job: PolicyJob, method: PreferenceMethod, run: int, half: int) -> None:
    """Train a reference run on one half of the training prompts; write the other half's losses to `job.out`.

    Args:
        job: what to train from, and on what; `out` is the CSV to write, with columns pair_id, loss (nats).
        method: Selective DPO; its beta is the reference run's.
        run: number of the halving.
        half: 0 or 1, which half is trained on.
    """
    # here, because selecting pairs needs none of it
    from transformers import set_seed

    from vrm.checkpoints import resumable
    from vrm.training.log import LossWatch
    from vrm.training.pairs import tokenise_pairs
    from vrm.training.preemption import CheckpointOnStop
    from vrm.training.preference import make_trainer, measure_rows, paired_rows, with_reference

    require_ours(job.checkpoints)
    set_seed(job.seed)
    tokenizer = job.tokenizer()
    path = job.pairs / "train.jsonl"
    pairs, _ = tokenise_pairs(job.read("train"), job.encoder(tokenizer), path, "policy.training.max_length")
    halves = split_in_half(pairs, run)
    train, rest = halves[half], halves[1 - half]
    trainer = make_trainer(job, method, tokenizer, train, rest[: job.training.evaluation_pairs])
    trainer.add_callback(LossWatch())
    trainer.add_callback(CheckpointOnStop(trainer))
    rows = with_reference(trainer, paired_rows(rest))
    settings = {"method": dependencies.method(method), "run": run, "half": half}
    made_from = job.made_from(settings)
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, made_from))
    losses = measure_rows(trainer, rows).loss
    if trainer.accelerator.is_main_process:
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
    """Write `out`: pair_id, difficulty (mean loss, nats), runs, kept (0/1), the easiest pair first.

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
