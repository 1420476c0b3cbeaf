"""Trainings whose result does not depend on how many processes share a batch; run by test_several_processes.py.

As a script, in two processes:
accelerate launch ... several_processes.py BACKBONE PAIRS DIRECTORY NAME...

* Each process of P takes a P-th of the global batch.
* PPO's answers are a function of the prompt: processes that sample would each draw others.
* `accelerate` shards only on GPUs. Where the launch asks for FSDP2 on CPU processes, it is told otherwise; everything
  else is its own code, on gloo.
"""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import fsdp2_prepare_model
from policy_jobs import policy_job
from test_ppo import LENGTH, NEVER

from vrm.config import Generation, Lora, PpoTraining, PreferenceMethod, RewardTraining, Variant
from vrm.records import write_whole
from vrm.training import ppo, sharding
from vrm.training.preference import train_preference
from vrm.training.reward import RewardJob, train_reward_model

GLOBAL_BATCH = 16
REWARD = RewardTraining(
    epochs=1,
    learning_rate=5e-3,
    max_prompt_length=64,
    max_length=96,
    evaluations=6,  # the log has a row for each of 6 steps
    evaluation_pairs=24,
    checkpoints=1,
)
VARIANTS = {
    "rm": Variant(label="RM", kind="scalar"),
    "vrm": Variant(label="VRM", latent_dim=4, score_anchor_weight=0.1, beta_w=0.1, beta_z=0.1),
}
PPO = PpoTraining(
    updates=4, prompts_per_update=GLOBAL_BATCH, epochs=2, critic_warmup=1, evaluations=2, evaluation_prompts=6,
    checkpoints=0, limits=NEVER,
)  # fmt: skip


class KnownAnswers:
    """An engine whose answer depends on the prompt alone."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ends = tokenizer, frozenset([tokenizer.eos_token_id])

    def generate(self, prompts, seed, sampling=None):
        return [self._answer(prompt) for prompt in prompts]

    def sync(self):
        pass

    def _answer(self, prompt):
        generator = np.random.default_rng(prompt)
        words = generator.integers(10, 200, generator.integers(2, 6)).tolist()
        return [*words, self.tokenizer.eos_token_id] if generator.random() < 0.8 else words


def train(name, backbone, pairs, directory, processes):
    """Train `rm`, `vrm`, `dpo` or `ppo` into `directory`/`name`/out; `_lora` and `_bf16` may follow all but `ppo`."""
    directory, local = directory / name, GLOBAL_BATCH // processes
    how = {"lora": Lora(rank=4) if "_lora" in name else None, "bf16": name.endswith("_bf16")}
    if name == "ppo":
        job = policy_job(backbone, pairs, directory)
        settings = PPO.model_copy(update={"minibatch_size": local})
        with patch.object(ppo, "make_engine", lambda generation, model, tokenizer, **_: KnownAnswers(tokenizer)):
            ppo.train_ppo(job, settings, Generation(max_new_tokens=8), LENGTH)
    elif name.startswith("dpo"):
        job = policy_job(backbone, pairs, directory, epochs=1, evaluations=6, batch_size=local, **how)
        train_preference(job, PreferenceMethod(label="DPO", method="dpo"))
    else:
        settings = REWARD.model_copy(update={"batch_size": local, **how})
        places = {"checkpoints": directory / "checkpoints", "out": directory / "out"}
        variant = VARIANTS[name.split("_")[0]]
        aspects = ["clarity", "accuracy", "candour"]
        train_reward_model(RewardJob(variant, settings, aspects, 1, str(backbone), None, pairs, **places))


def shard_on_cpu():
    """Have accelerate take CPU processes for GPUs where it decides whether a model may be sharded."""
    begin = AcceleratorState.__init__

    def begin_sharded(self, *arguments, fsdp_plugin=None, **options):
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            plugin = fsdp_plugin or FullyShardedDataParallelPlugin()
            if self.mixed_precision != "no":
                plugin.set_mixed_precision(self.mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def measured(file):
    """`fsdp2_prepare_model`, which also writes down what share of the weights a process keeps."""

    def prepare(accelerator, model):
        whole = {part: parameter.numel() for part, parameter in model.named_parameters()}
        fsdp2_prepare_model(accelerator, model)
        own = {part: parameter.to_local().numel() for part, parameter in model.named_parameters()}  # all are sharded
        write_whole(file, str(sum(own.values()) / sum(whole.values())))
        return model

    return prepare


def main():
    backbone, pairs, directory, *names = sys.argv[1:]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    for name in names:
        AcceleratorState._reset_state()
        share = Path(directory) / f"{name}.share{os.environ['RANK']}"
        with patch.object(sharding, "fsdp2_prepare_model", measured(share)):
            train(name, backbone, Path(pairs), Path(directory), int(os.environ["WORLD_SIZE"]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
