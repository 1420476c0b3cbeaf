"""What each of two processes does in tests/training/test_two_processes.py: train, and print the norm of its weights.

torchrun --nproc-per-node 2 two_processes.py METHOD POLICY PAIRS DIRECTORY
"""

import sys
from pathlib import Path

import torch
from policy_jobs import policy_job
from test_ppo import LENGTH, PPO, SHORT

from vrm.config import PreferenceMethod, SftTraining
from vrm.training import policies, ppo, preference, sft


def norm(model):
    return float(sum(parameter.detach().double().norm() ** 2 for parameter in model.parameters()) ** 0.5)


def main():
    method, policy, pairs, directory = sys.argv[1:]
    job = policy_job(policy, Path(pairs), Path(directory), epochs=1)
    if method == "ppo":
        run = ppo.PpoRun(job, PPO, SHORT, LENGTH)
        run.train(None)
        model = run.models.policy
        run.finish()
    else:
        trainers = []
        for module in (preference, sft):
            module.leave = lambda job, trainer, *rest: trainers.append(trainer) or policies.leave(job, trainer, *rest)
        if method == "sft":
            sft.train_sft(job, SftTraining())
        else:
            preference.train_preference(job, PreferenceMethod(label="x", method=method))
        model = trainers[0].model
    print(
        f"rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()}: {norm(model):.12f}", flush=True
    )


main()
