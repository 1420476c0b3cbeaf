"""What every training on Hugging Face's `Trainer` has in common: its length, its measurements, its checkpoints."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from vrm.config import ConfigError, Optimisation


def started_processes() -> int:
    """How many processes accelerate launch or torchrun has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def common_arguments(training: Optimisation, rows: int, seed: int, checkpoints: Path) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` and its subclasses.

    Args:
        training: optimisation settings.
        rows: training rows, of which `training.batch_size` go through a device at once.
        seed: seeds the order of the rows.
        checkpoints: where resumable state goes.

    Raises:
        ConfigError: several GPUs are visible, and no launcher started a process for each.
    """
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible to one process, which would spread each batch over them; "
            "make one visible (CUDA_VISIBLE_DEVICES=0), or start one process a GPU with accelerate launch"
        )
    per_step = training.batch_size * training.gradient_accumulation * started_processes()
    steps = max(1, math.ceil(training.epochs * rows / per_step))
    every = math.ceil(steps / training.evaluations)  # rounded up, or the last two measurements all but coincide
    return {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": 2 * training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": training.warmup,
        "eval_strategy": "steps",
        "eval_steps": every,
        "logging_steps": every,
        "logging_nan_inf_filter": False,  # it would write a diverged loss as 0
        "eval_on_start": True,
        "save_strategy": "steps" if training.checkpoints else "no",
        # at measurements, where the log's window ends: a resumed run then has the same windows
        "save_steps": every * max(1, training.evaluations // (training.checkpoints + 1)),
        "save_total_limit": 1,
        "bf16": training.bf16,
        "ddp_find_unused_parameters": False,  # every parameter is used in every step
        "remove_unused_columns": False,
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
    }
