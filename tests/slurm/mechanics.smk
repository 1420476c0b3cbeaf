# Small jobs that show what SLURM and the profile do with them; they leave a line an attempt in attempts/<rule>.


rule all:
    input:
        "gpu.txt",
        "cpu.txt",
        "memory.txt",
        "cancelled.txt",


rule gpu:
    output:
        "gpu.txt",
    resources:
        gpu=1,
    shell:
        "echo ${{CUDA_VISIBLE_DEVICES:-none}} > {output}"


# The judge's key has to reach a job, and only so.
rule cpu:
    output:
        "cpu.txt",
    shell:
        "echo ${{CUDA_VISIBLE_DEVICES:-none}} $(printenv VRM_TEST_KEY | sha256sum) > {output}"


# 700 MB and Snakemake itself: too much for 600, not for 1200.
rule memory:
    output:
        "memory.txt",
    params:
        program="import time; held = bytearray(700_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(6)",
    resources:
        mem_mb=lambda wildcards, attempt: 600 * attempt,
    shell:
        "mkdir -p attempts; echo {resources.mem_mb} >> attempts/memory;"
        ' python3 -c "{params.program}" && touch {output}'


# Sleeps long in its first attempt; somebody cancels it.
rule cancelled:
    output:
        "cancelled.txt",
    shell:
        "mkdir -p attempts; echo $SLURM_JOB_ID >> attempts/cancelled;"
        " if [ $(wc -l < attempts/cancelled) = 1 ]; then sleep 300; fi; touch {output}"


# Outlives the Snakemake that submitted it.
rule orphan:
    output:
        "orphan.txt",
    shell:
        "mkdir -p attempts; echo $SLURM_JOB_ID >> attempts/orphan; sleep 8; touch {output}"


rule after_orphan:
    input:
        "orphan.txt",
    output:
        "after_orphan.txt",
    shell:
        "touch {output}"


# Two nodes with a GPU each, as the workflow's rules ask for them.
rule nodes:
    output:
        "nodes.txt",
    threads: 2
    resources:
        gpu=2,
        nodes=2,
        tasks=2,
        tasks_per_gpu=0,
        mpi="srun",
        slurm_extra="--gpus-per-node=1",
    shell:
        "srun --nodes=2 --ntasks=2 --cpus-per-task={threads}"
        " sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $SLURM_CPUS_ON_NODE' > {output}"
