"""What every part of the configuration is built from: strict sections, and the types of numbers and names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _fill_run(path: str, info: ValidationInfo) -> str:
    run = (info.context or {}).get("run")
    return path.replace("{run}", run) if run and isinstance(run, str) else path


RunPath = Annotated[str, AfterValidator(_fill_run)]
"""Names a file or directory; `{run}` in it stands for the run's name and is filled in by `vrm.config.parse`."""


class ConfigError(ValueError):
    """The configuration is not usable; the message names the key and what to do about it."""


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HubDataset(Section):
    """A dataset on the Hugging Face hub, pinned so that the numbers can be had again."""

    dataset: str = Field(description="Hub id, or a local directory in the hub's layout.")
    revision: str | None = Field(None, description="Commit of the dataset; required for a hub id.")
    name: str | None = Field(None, description="Configuration (subset) of the dataset, if it has several.")
    split: str = Field("train", description="Split to read.")


ShapeName = Literal[
    "ultrafeedback",
    "distilabel",
    "helpsteer2",
    "rated_responses",
    "pku_saferlhf",
    "nectar",
    "helpsteer3",
    "helpsteer2_preference",
    "judgebench",
    "pku_saferlhf_single",
    "reward_bench_2",
    "rm_bench",
    "implicit_prompt",
    "pairs",
]


class Source(Section):
    """Where records come from: a file or a directory of shards, or a pinned hub dataset. Exactly one."""

    path: RunPath | None = Field(
        None,
        description="A .jsonl, .ndjson, .json, .csv or .parquet file (also .gz, .bz2, .xz of these), or a directory of "
        "shards. `{run}` stands for the run's name.",
    )
    hub: HubDataset | None = Field(None, description="A hub dataset with a pinned revision.")
    shape: ShapeName | None = Field(
        None, description="Which public data's columns the rows have; null: it is recognised, and named in the log."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` and `hub`")
        return self


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning; merged into the weights when the training has finished."""

    rank: PositiveInt = Field(16, description="r of the adapters, which sit on every linear layer but the head's.")
    alpha: PositiveInt = Field(16, description="Scale of the adapters: alpha / r.")
    load_in_4bit: bool = Field(
        False,
        description="QLoRA: the frozen linear layers below the adapters as 4-bit numbers (NF4, double quantisation; "
        "bitsandbytes). A quarter of their memory in bfloat16, and slower. What is saved is a whole model in float32.",
    )


class Optimisation(Section):
    """What every training by gradient descent on pairs has: its steps, its lengths, its measurements."""

    pairs: PositiveInt | None = Field(
        None,
        description="Training pairs that are used, the first of the split, which is in the order of its prompts' "
        "hashes: a random part of them. null: all. PPO takes its prompts from all of them.",
    )
    epochs: PositiveFloat = Field(1.0, description="Passes over the training pairs.")
    batch_size: PositiveInt = Field(16, description="Pairs (KTO, SFT: texts) per device and forward pass.")
    gradient_accumulation: PositiveInt = Field(1, description="Forward passes per optimiser step.")
    learning_rate: PositiveFloat = Field(5e-4, description="Peak learning rate (AdamW, cosine to zero).")
    warmup: Fraction = Field(0.1, description="Share of the steps with rising learning rate.")
    max_prompt_length: PositiveInt = Field(
        256, description="Tokens kept of a prompt; its beginning is cut, and counted."
    )
    max_length: PositiveInt = Field(
        512, description="Tokens kept of prompt + response; a reward model's end token always stays."
    )
    evaluations: PositiveInt = Field(4, description="How often, evenly spaced, fixed pairs are measured.")
    evaluation_pairs: PositiveInt = Field(200, description="Pairs of each split used for those measurements.")
    checkpoints: int = Field(1, ge=0, description="How many resumable checkpoints a training writes.")
    bf16: bool = Field(False, description="Mixed precision in bfloat16 (GPUs).")
    gradient_checkpointing: bool = Field(False, description="Trade compute for activation memory.")
    lora: Lora | None = Field(
        None, description="Train adapters instead of all weights; a reward model's head is trained whole beside them."
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="Trackers that get what is logged; their packages have to be installed. Empty: none."
    )
    engine: Literal["shared", "shared_flex", "shared_varlen", "padded"] = Field(
        "shared",
        description="One copy of a prompt for all its responses and no padding; the same with FlexAttention, or in "
        "bfloat16 with FlashAttention (varlen), both on CUDA alone and not yet tried on a GPU; or a padded row a text. "
        "Results are the same up to rounding; a model that cannot share says so and pads. SFT, which is TRL's, pads.",
    )
    tokens_per_row: PositiveInt | None = Field(
        None,
        description="Tokens of a row that several pairs share; null is all of a batch in one row (shared_flex: 8192). "
        "A longer pair has a row for itself. Of no effect where engine is padded.",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="AdamW, or AdamW whose moments are 8-bit numbers (torchao), a quarter of their memory. "
        "PPO has adamw alone.",
    )
    processes: PositiveInt = Field(
        1,
        description="Processes of a training, one a GPU; a step has batch_size x gradient_accumulation pairs of each.",
    )
    nodes: PositiveInt = Field(
        1, description="Nodes of a SLURM cluster that the processes are spread over, as many on each (docs/cluster.md)."
    )
    launch: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="Where there are several: a whole model on each GPU (ddp), or one spread over all of them (fsdp2); "
        "PPO has a whole policy on each in any case.",
    )

    @model_validator(mode="after")
    def _nodes_are_alike(self) -> Optimisation:
        if self.processes % self.nodes:
            raise ValueError(
                f"processes ({self.processes}) must be a multiple of nodes ({self.nodes}): each node has as many, one "
                "a GPU of it"
            )
        return self

    @model_validator(mode="after")
    def _packed_weights_are_whole(self) -> Optimisation:
        require_whole(self.lora, self)
        return self


def require_whole(lora: Lora | None, training: Optimisation) -> None:
    """Raise ValueError where weights in 4 bits would be spread over several cards."""
    if lora and lora.load_in_4bit and training.launch == "fsdp2" and training.processes > 1:
        raise ValueError("lora.load_in_4bit: 4-bit weights are not spread over several cards; set launch to ddp")


def require_known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError where `names`, the entries of `key`, hold one that is not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{key} names {', '.join(unknown)}, known are: {', '.join(known)}")
