"""Trainings whose result does not depend on how many processes share a batch; run by test_several_processes.py.

As a script, in two processes:
accelerate launch ... several_processes.py BACKBONE PAIRS DIRECTORY NAME...

* Each process of P takes a P-th of the global batch.
* PPO's answers are a function of the prompt: processes that sample would each draw others.
* `accelerate` shards only on GPUs. Where the launch asks for FSDP2 on CPU processes, it is told otherwise; everything
  else is its own code, on gloo.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import fsdp2_prepare_model
from policy_jobs import Killed, policy_job
from ppo_settings import LENGTH, NEVER, SHORT
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from vrm.config import Generation, Lora, PpoTraining, PreferenceMethod, RewardTraining, SftTraining, Variant
from vrm.records import write_whole
from vrm.training import ppo, preemption, reward
from vrm.training import trainer as sharding
from vrm.training.policies import train_sft
from vrm.training.preference import make_reference, train_preference
from vrm.training.reward import RewardJob, train_reward_model

GLOBAL_BATCH = 16
UNEVEN_BATCH = 20
"""96 pairs are four of these and a remainder of 16."""
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
    "gated": Variant(label="ArmoRM", kind="gated"),
    "bottleneck": Variant(label="InfoRM", kind="bottleneck", bottleneck={"beta": 0.1}),
    "concept": Variant(
        label="concept-residual VRM", latent_dim=4, score_anchor_weight=0.1, residual=True,
        prompt_pooling="attention", concentration="scaled",
    ),
}  # fmt: skip
PPO = PpoTraining(
    updates=4, prompts_per_update=GLOBAL_BATCH, epochs=2, critic_warmup=1, evaluations=2, evaluation_prompts=6,
    checkpoints=0, limits=NEVER,
)  # fmt: skip


class KnownAnswers:
    """An engine whose answer depends on the prompt alone."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ends = tokenizer, frozenset([tokenizer.eos_token_id])

    def generate(self, prompts, seeds, sampling=None):
        return [self._answer(prompt) for prompt in prompts]

    def sync(self):
        pass

    def _answer(self, prompt):
        generator = np.random.default_rng(prompt)
        words = generator.integers(10, 200, generator.integers(2, 6)).tolist()
        return [*words, self.tokenizer.eos_token_id] if generator.random() < 0.8 else words


def train(name, backbone, pairs, directory, processes):
    """Train the model that `name` begins with (of VARIANTS, `sft`, `dpo`, `kto`, `ppo`) into `directory`/`name`/out.

    What may follow: `_lora`, `_4bit`, `_bf16`; `_untied`, from `untied`'s backbone; `_uneven`, with a remainder as
    the last batch; `_known`, once the reference has been asked; `_killed`, in step 5, and started again; `_sampled`,
    with PPO's real engine; `+launcher` or `+one`, which gets a SIGTERM in its first attempt.
    """
    name, _, target = name.partition("+")
    directory, (kind, *how) = directory / name, name.split("_")
    if target:
        send_term(target, directory.with_suffix(".term"))
    changes = {
        "batch_size": (UNEVEN_BATCH if "uneven" in how else GLOBAL_BATCH) // processes,
        "lora": Lora(rank=4, load_in_4bit="4bit" in how) if "lora" in how else None,
        "bf16": "bf16" in how,
    }
    if "untied" in how:
        backbone = directory.parent / "untied"
    if kind in VARIANTS:
        places = {"checkpoints": directory / "checkpoints", "out": directory / "out"}
        settings, aspects = REWARD.model_copy(update=changes), ["clarity", "accuracy", "candour"]
        job = RewardJob(VARIANTS[kind], settings, aspects, 1, str(backbone), None, pairs, **places)
        if "killed" in how:
            start_and_kill(job)
        train_reward_model(job)
        return
    job = policy_job(backbone, pairs, directory, epochs=1, evaluations=6, **changes)
    if kind == "ppo":
        settings = PPO.model_copy(update={"minibatch_size": changes["batch_size"]})
        train_by_ppo(job, settings, sampled="sampled" in how)
    elif kind == "sft":
        train_sft(job, SftTraining(epochs=1, learning_rate=3e-3))
    else:
        known = directory.with_suffix(".parquet") if "known" in how else None
        if known:
            make_reference(job, known)
        train_preference(job, PreferenceMethod(label=kind, method=kind), reference=known)


def train_by_ppo(job, settings, sampled):
    """With known answers, as `train_ppo` does; with sampled ones, and each process's weights written down as well."""
    if not sampled:
        with patch.object(ppo, "make_engine", lambda generation, model, tokenizer, **_: KnownAnswers(tokenizer)):
            ppo.train_ppo(job, settings, Generation(max_new_tokens=8), LENGTH)
        return
    run = ppo.PpoRun(job, settings, SHORT, LENGTH)
    run.train(None)
    norm = sum(weight.detach().double().norm() ** 2 for weight in run.models.policy.parameters())
    write_whole(job.out / f"norm{os.environ['RANK']}", str(float(norm)))
    run.finish()


def start_and_kill(job):
    """Have a reward model's training die in its fifth step, two steps after its checkpoint."""
    write = reward.LogWriter.on_evaluate

    def die(self, args, state, control, **rest):
        write(self, args, state, control, **rest)
        if state.global_step == 5:
            raise Killed

    with patch.object(reward.LogWriter, "on_evaluate", die), contextlib.suppress(Killed):
        train_reward_model(job)
    assert [path.name for path in job.checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]


STOPS_AT = 3
"""The step at whose end SIGTERM is there."""


def send_term(target, sent):
    """Have the second process see to it that SIGTERM comes: to the launcher, which passes it on, or to itself `one`.

    Args:
        target: `launcher` or `one`.
        sent: a file that says that it was sent: the next attempt is left alone.
    """
    came = preemption.StopRequest.came
    calls = []

    def came_after_term(self):
        calls.append(None)
        if len(calls) == STOPS_AT and os.environ["RANK"] == "1" and not sent.exists():
            sent.touch()
            os.kill(os.getppid() if target == "launcher" else os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 60
            while not self._came and time.monotonic() < until:
                time.sleep(0.01)
        return came(self)

    preemption.StopRequest.came = came_after_term


def untied(backbone, directory):
    """Write `directory`/untied: the backbone with a language-model head that is not its embedding."""
    config = AutoConfig.from_pretrained(backbone)
    config.tie_word_embeddings = False
    tied, model = AutoModelForCausalLM.from_pretrained(backbone), AutoModelForCausalLM.from_config(config)
    head = tied.lm_head.weight.detach().flip(0)
    model.load_state_dict({**tied.state_dict(), "lm_head.weight": head})
    model.save_pretrained(directory / "untied")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(directory / "untied")


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
