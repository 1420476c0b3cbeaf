"""What every training on Hugging Face's `Trainer` has in common: length, log, sharding, adapters, dropout.

* The log is a tidy CSV: step, epoch, split, metric, value. `split` is `batch` (means over the logging window or the
  update: what was optimised; a VRM's latents are sampled then), `train` or `validation` (measured on a fixed subset; a
  VRM with posterior means). The file is rewritten at every evaluation, so that it can be watched, and is derived from
  the trainer's own history, so that a resumed run has one log.
* Dropout is off: the numbers that a method starts from are then exact. With dropout on, a policy in training mode is
  not the policy that was measured: the first DPO loss is not log 2, and PPO clips ratios of a policy that has not moved
  yet. Reward models are trained without it too, so that what is trained and what is evaluated agree.
* Adapters (LoRA) are float32, like all weights that are trained; with `bf16` the frozen weights below them are
  bfloat16, and a backbone that was published in float32 stays rounded to that. A layer that is trained whole beside
  them, a reward model's head or a critic's, is in every checkpoint with them.
* `optimizer: adamw_8bit` keeps AdamW's two moments as 8-bit numbers in blocks of 256 with a float32 scale each; weights
  and gradients stay float32. Tensors of fewer than 4,096 numbers keep float32 moments.
* FSDP2 is set up so that a sharded training equals a plain one. A model is sharded as soon as its trainer exists: what
  it is compared with is measured before there is an optimiser. bfloat16 is autocast on float32 weights, as in a single
  process, and not FSDP2's own mixed precision, which casts a VRM's head and its outputs as well: digamma differences
  have no digits left in bfloat16. The price: weights travel between GPUs in float32. Without FSDP, all of this does
  nothing.
* Whatever was trained, a finished model is gathered in the main process's memory and is an ordinary Hugging Face
  directory in float32.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; the adapters are PEFT's. Dettmers et al.
2022, "8-bit Optimizers via Block-wise Quantization"; the optimiser is torchao's.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from vrm.checkpoints import started_processes
from vrm.config import ConfigError, Lora, Optimisation
from vrm.models.scoring import own_device
from vrm.records import write_whole
from vrm.runfiles import TRAINING
from vrm.training.four_bit import is_packed, pack_linear_layers, unpack_linear_layers
from vrm.training.symptoms import TrainingError
from vrm.watch import Watch

TRACKED = "tensorboard"
"""Directory of TensorBoard's files below a training's results."""
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it, should the newest turn out to be damaged."""


def optimiser_steps(epochs: float, rows: int, per_step: int) -> int:
    """Optimiser steps of a training in which every whole epoch has all of its rows.

    An epoch ends with what is left of its rows, a smaller step than the others, and the next one begins anew: 20 rows
    in steps of 8 are steps of 8, 8 and 4, so that two epochs have 6 steps and not 5.

    Args:
        epochs: passes over the rows; a part of an epoch has at least that share of the rows.
        rows: training rows.
        per_step: rows of a full step, over all devices and accumulated batches.
    """
    whole, part = divmod(Fraction(str(epochs)), 1)  # 1.1 is eleven tenths, not a little more
    return max(1, whole * math.ceil(Fraction(rows, per_step)) + math.ceil(part * rows / per_step))


def common_arguments(
    training: Optimisation, rows: int, seed: int, checkpoints: Path, out: Path | None = None
) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` and its subclasses.

    Args:
        training: optimisation settings.
        rows: training rows, of which `training.batch_size` go through a device at once.
        seed: seeds the order of the rows.
        checkpoints: where resumable state goes.
        out: where results go, TensorBoard's files among them: checkpoints are removed at the end.

    Raises:
        ConfigError: several GPUs are visible, and no launcher started a process for each.
    """
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible to one process, which would spread each batch over them; "
            "make one visible (CUDA_VISIBLE_DEVICES=0), or start one process a GPU with accelerate launch"
        )
    if out is not None and "tensorboard" in training.report_to:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / TRACKED)  # the only way in which transformers is told
    per_step = training.batch_size * training.gradient_accumulation * started_processes()
    steps = optimiser_steps(training.epochs, rows, per_step)
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
        "save_total_limit": KEPT,
        "bf16": training.bf16,
        "optim": optimizer_name(training),
        "ddp_find_unused_parameters": False,  # every parameter is used in every step
        "remove_unused_columns": False,
        "seed": seed,
        "data_seed": seed,
        "report_to": training.report_to or "none",
        "use_cpu": not torch.cuda.is_available(),
    }


OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_torch_8bit"}
"""Names that transformers has for `optimizer`."""


def optimizer_name(training: Optimisation) -> str:
    """What transformers calls the optimiser of a training.

    Raises:
        ConfigError: its package is not installed.
    """
    if training.optimizer == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
        raise ConfigError("optimizer: adamw_8bit needs torchao: pip install 'vrm[low-memory]'")
    return OPTIMIZERS[training.optimizer]


# The log.

BOOKKEEPING = ("runtime", "per_second", "total_flos", "step", "epoch", "num_tokens", "_reward", "preparation_time")


def tidy(history: list[dict[str, Any]]) -> Iterator[tuple[int, float, str, str, float]]:
    """One row a metric from a `TrainerState.log_history`."""
    for entry in history:
        if "train_runtime" in entry:  # the trainer's closing summary
            continue
        for key, value in entry.items():
            if any(key == word or key.endswith(word) for word in BOOKKEEPING):
                continue
            split, metric = _split(key)
            if metric.startswith("eval_"):  # of TRL's trainer, which says not of which split
                continue
            yield entry["step"], round(entry.get("epoch", 0.0), 6), split, metric, value


def _split(key: str) -> tuple[str, str]:
    for split in ("train", "validation"):
        if key.startswith(f"eval_{split}_"):
            return split, key.removeprefix(f"eval_{split}_")
    return "batch", key


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """Write a `TrainerState.log_history` as the tidy CSV, whole."""
    # a resumed run measures its first step again, and a history read back from a checkpoint has another key order
    rows = {
        (step, split, metric): (step, epoch, split, metric, value)
        for step, epoch, split, metric, value in tidy(history)
    }
    write_rows([rows[key] for key in sorted(rows)], path)


def write_rows(rows: list[tuple[int, float, str, str, float]], path: Path) -> None:
    """Write rows of step, epoch, split, metric, value, whole."""
    # as objects: a count stays a count where other metrics are fractions
    TRAINING.write(path, pd.DataFrame(rows, columns=list(TRAINING.columns), dtype=object))


# What is said while it trains.


class StepWatch(TrainerCallback):
    """Says how far a trainer is, and of what it measures the loss and the accuracy; the log file has the rest.

    It takes the place of transformers' own bar and of its printed dictionaries.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.measuring: Watch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Begin, at the step of the checkpoint that is resumed."""
        self.watch = Watch(
            "training", "steps", state.max_steps, state.global_step, quiet=not state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """One more step."""
        self.watch.add(state.global_step - self.watch.done)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: object) -> None:
        """One more batch of what is measured."""
        if self.measuring is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self.measuring = Watch("measuring", "batches", total, quiet=not state.is_world_process_zero)
        self.measuring.add()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """It is measured."""
        if self.measuring is not None:
            self.measuring.close()
        self.measuring = None

    on_predict = on_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: object) -> None:
        """Say what was measured."""
        if "train_runtime" in (logs or {}):  # the trainer's closing summary
            return
        shown = [(*_split(name), value) for name, value in (logs or {}).items()]
        words = [f"{metric} {value:.4g} ({split})" for split, metric, value in shown if metric in ("loss", "accuracy")]
        if words and self.watch is not None:
            self.watch.say(f"step {state.global_step} of {state.max_steps}: {', '.join(words)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """The end."""
        self.watch.close()


def watch_steps(trainer: Trainer) -> None:
    """Have a trainer say how far it is by a `StepWatch`, in place of whatever it would print."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StepWatch())


# What stops a training that has diverged.


class LossWatch(TrainerCallback):
    """Stops a training that has diverged, in its last steps too."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> Any:
        """Have the last window logged, however short it is; the trainer logs no step twice."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: object) -> None:
        """Look at every loss, those of evaluations and of the whole training included.

        Raises:
            TrainingError: one is not a finite number.
        """
        for name, value in (logs or {}).items():
            if (name == "loss" or name.endswith("_loss")) and not math.isfinite(value):
                words = name.replace("_", " ")
                raise TrainingError(f"step {state.global_step}: the {words} is {value}; lower the learning rate")


class LogWriter(LossWatch):
    """Keeps `training.csv` up to date while training goes on, and stops a training that has diverged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Rewrite the log after each evaluation."""
        if state.is_world_process_zero:
            write_log(state.log_history, self.path)


STOPPED = "stopped_batch"
"""Stem of the two files that a training leaves which stopped at a number that is not finite."""


class FiniteWatch(TrainerCallback):
    """Stops a training at a loss or gradient that is not finite, and saves the batch that it came from.

    A device is asked one step late, so that it need not be waited for in every step; before anything is measured,
    logged or saved it is asked at once, so that no checkpoint holds what came of it.

    Args:
        out: directory of `stopped_batch.json` (step, numbers, texts) and `.safetensors` (every tensor of the batch).
        tokenizer: makes texts of token ids.
    """

    def __init__(self, out: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.out, self.tokenizer = out, tokenizer
        self.waiting: tuple[int, torch.Tensor, torch.Tensor, Mapping[str, Any]] | None = None
        for path in self._files:
            path.unlink(missing_ok=True)  # an earlier attempt's

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.out / f"{STOPPED}.json", self.out / f"{STOPPED}.safetensors"

    def look(self, step: int, loss: torch.Tensor, model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        """Look at the step before, and remember this one, right after its backward pass.

        Raises:
            TrainingError: the step before was not finite.
        """
        self.check()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        self.waiting = (step, loss.detach(), norm.full_tensor() if hasattr(norm, "full_tensor") else norm, inputs)

    def check(self) -> None:
        """Look at what is waiting.

        Raises:
            TrainingError: its loss or its gradient is not finite.
        """
        if self.waiting is None:
            return
        step, *numbers, inputs = self.waiting
        self.waiting = None
        loss, norm = (float(number) for number in numbers)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self._save(step, loss, norm, inputs)
        which, value = ("loss", loss) if not math.isfinite(loss) else ("gradient's norm", norm)
        raise TrainingError(
            f"step {step}: the {which} is {value}; the batch is in {self._files[0]}: if its texts are as they should "
            "be, lower the learning rate"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Before what comes of the step is measured, logged or saved."""
        if control.should_save or control.should_evaluate or control.should_log or state.global_step >= state.max_steps:
            self.check()

    def _save(self, step: int, loss: float, norm: float, inputs: Mapping[str, Any]) -> None:
        tensors = {name: value.cpu().contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        ids = tensors.get("input_ids")
        texts = self.tokenizer.batch_decode(ids) if self.tokenizer is not None and ids is not None else []
        record, batch = self._files
        save_file(tensors, batch)
        entry = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "texts": texts}  # JSON has no NaN
        write_whole(record, json.dumps(entry, ensure_ascii=False, indent=2) + "\n")


class WatchedTrainer(Trainer):
    """transformers' trainer, whose steps are looked at."""

    watch: FiniteWatch | None = None

    def look_out(self, out: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """From now on; see `FiniteWatch`."""
        self.watch = FiniteWatch(out, tokenizer)
        self.add_callback(self.watch)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any) -> torch.Tensor:
        """Forward and backward pass, looked at."""
        loss = super().training_step(model, inputs, *rest, **options)
        if self.watch:
            self.watch.look(self.state.global_step + 1, loss, model, inputs)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it takes every parameter's name at every step, and nobody reads the sum."""
        return 0


# Sharding.


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether models are spread over the processes.

    Raises:
        ConfigError: the launch asks for it and does not get it, or asks for the first FSDP.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not sharded:
        raise ConfigError(
            "the launch asks for FSDP, which accelerate does between several GPUs only; launch it with "
            "workflow/accelerate/ddp.yaml"
        )
    if sharded and not accelerator.is_fsdp2:
        raise ConfigError("the launch asks for FSDP version 1; set fsdp_version: 2, as workflow/accelerate/fsdp2.yaml")
    return sharded


def shard(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Spread a model over the processes in place, if the launch asks for that; all processes call it together.

    Raises:
        ConfigError: the launch asks for it, and the model has 4-bit weights.
    """
    if not is_sharded(accelerator):
        return
    if is_packed(model):
        raise ConfigError(
            "lora.load_in_4bit: 4-bit weights are not spread over several cards; launch it with "
            "workflow/accelerate/ddp.yaml, a whole model on each"
        )
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if accelerator.mixed_precision == "bf16":
        # without the cache, which would hold a whole bfloat16 model
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16, cache_enabled=False)
        model.forward = autocast(model.forward)
    fsdp2_prepare_model(accelerator, model)
    accelerator._models.append(model)  # or the trainer would prepare it again, for its first measurement


def whole_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """All weights of a sharded model, in the main process's memory; None: the model is whole as it is.

    All processes call it together; the others get an empty dictionary.
    """
    return accelerator.get_state_dict(model) if is_sharded(accelerator) else None


# Adapters.


def weight_dtype(training: Optimisation) -> torch.dtype:
    """Weights that are trained are float32, whatever the checkpoint's; those below adapters may be bfloat16."""
    return torch.bfloat16 if training.lora and training.bf16 else torch.float32


def with_adapters(
    model: PreTrainedModel, lora: Lora | None, exclude: str, train_excluded: bool = False
) -> PreTrainedModel:
    """Low-rank adapters on every linear layer but the head's; until they are trained they change nothing.

    Args:
        model: the model; it is returned as it is where `lora` is None.
        lora: rank and scale, and whether the layers below the adapters are packed.
        exclude: name of the head, a layer or a module of several, which gets no adapters.
        train_excluded: whether the head is trained in full; otherwise it is frozen like all other weights.

    Raises:
        ConfigError: layers are to be packed, and bitsandbytes is not installed.
    """
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rsplit(".", 1)[-1]
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and exclude not in name.split(".")
    }
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(linear),
        modules_to_save=[exclude] if train_excluded else None,
    )
    if lora.load_in_4bit:
        pack_linear_layers(model, exclude, own_device())
    model.enable_input_require_grads()  # or activation checkpointing has nothing to pass back
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapters merged into its weights, in float32; one without adapters as it is."""
    if not hasattr(model, "merge_and_unload"):
        return model
    if is_packed(model):
        unpack_linear_layers(model)
    # merged into bfloat16 weights, a small change would be rounded away
    whole = model.float().merge_and_unload()
    for part in whole.modules():
        if isinstance(part, PreTrainedModel):
            part.config.dtype = torch.float32  # a backbone's own configuration still says bfloat16
    return whole


# Dropout.

MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NAMES = re.compile(r"drop_?out|pdrop$|layer_?drop|drop_path|drop_prob|jitter_noise")
"""Names of shares and of noise that act in training mode alone: attention_dropout, resid_pdrop, router_jitter_noise."""


def switch_off_dropout(model: nn.Module) -> None:
    """Set every kind of dropout of a model to 0: modules, their numbers, and fields of its configurations.

    Attention reads its share from a number of its own (`self.attention_dropout`) or from the configuration, not from
    a module, so switching modules off is not enough. The configuration is saved with the model and says what it was
    trained with.

    Args:
        model: changed in place; adapters, if any, included.
    """
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, MODULES):
            module.p = 0.0
        _zero(vars(module))
        configs |= {id(c): c for c in vars(module).values() if isinstance(c, PreTrainedConfig)}
    for config in configs.values():
        for part in _with_parts(config):
            for name in _shares(vars(part)):
                setattr(part, name, 0.0)


def drop_adapters(model: nn.Module, share: float) -> None:
    """Give the inputs of every low-rank adapter dropout, the one training in which its authors have some.

    Args:
        model: changed in place; one without adapters stays as it is.
        share: of the inputs that are dropped, in 0..1.
    """
    for module in model.modules():
        found = getattr(module, "lora_dropout", None)  # an identity where adapters were made without dropout
        if isinstance(found, nn.ModuleDict):
            found.update({name: nn.Dropout(share) for name in found})


def _zero(values: dict[str, object]) -> None:
    for name in _shares(values):
        values[name] = 0.0


def _shares(values: dict[str, object]) -> list[str]:
    """Names of the shares that are above 0; booleans and modules of such names are something else."""
    return [name for name, value in values.items() if NAMES.search(name) and type(value) in (int, float) and value > 0]


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it: of the text, of the vision tower."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _with_parts(value)
