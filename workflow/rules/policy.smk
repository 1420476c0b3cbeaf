# Policies on every base: SFT, the preference methods, PPO against the reward models. As in reward.smk, resumable state
# lives in an undeclared directory.


use rule backbone as policy_backbone with:
    output:
        directory("results/{run}/policy/{base}/backbone"),
    log:
        "results/{run}/logs/policy_backbone/{base}.log",
    benchmark:
        "results/{run}/benchmarks/policy_backbone/{base}.tsv"
    params:
        settings=get_policy_backbone_settings,
        which="--base {base}",
        pairs=lambda wildcards, input: Path(input[0]).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/backbone",


rule sft:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        backbone=get_created_policy_backbone,
    output:
        model=directory("results/{run}/policy/{base}/sft/seed{seed}/model"),
        training="results/{run}/policy/{base}/sft/seed{seed}/training.csv",
        held_out="results/{run}/policy/{base}/sft/seed{seed}/held_out.csv",
        counts="results/{run}/policy/{base}/sft/seed{seed}/counts.json",
    log:
        "results/{run}/logs/sft/{base}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/sft/{base}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("sft"),
        mem_mb=get_mem_mb("sft"),
        runtime=get_runtime("sft"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=get_sft_settings,
        policy=get_policy_backbone,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/sft/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm sft --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --seed {wildcards.seed} --policy {params.policy} --pairs {params.pairs}"
        " --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"


rule train_preference:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        difficulty=get_difficulty,
    output:
        model=directory("results/{run}/policy/{base}/{method}/seed{seed}/model"),
        training="results/{run}/policy/{base}/{method}/seed{seed}/training.csv",
        held_out="results/{run}/policy/{base}/{method}/seed{seed}/held_out.csv",
        counts="results/{run}/policy/{base}/{method}/seed{seed}/counts.json",
    log:
        "results/{run}/logs/train_preference/{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/train_preference/{base}.{method}.seed{seed}.tsv"
    wildcard_constraints:
        method=PREFERENCE,
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("train_preference"),
        mem_mb=get_mem_mb("train_preference"),
        runtime=get_runtime("train_preference"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=get_preference_settings,
        start=get_start,
        difficulty=lambda wildcards, input: (
            f"--difficulty {input.difficulty}" if input.difficulty else ""
        ),
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/{method}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-preference --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {params.start} --pairs {params.pairs}"
        " {params.difficulty} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"


# Selective DPO: reference runs on halves of the pairs, and from them each pair's difficulty.
rule difficulty_run:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
    output:
        "results/{run}/policy/{base}/difficulty/seed{seed}/run{halving}.half{half}.csv",
    log:
        "results/{run}/logs/difficulty_run/{base}.seed{seed}.run{halving}.half{half}.log",
    benchmark:
        "results/{run}/benchmarks/difficulty_run/{base}.seed{seed}.run{halving}.half{half}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("difficulty_run"),
        mem_mb=get_mem_mb("difficulty_run"),
        runtime=get_runtime("difficulty_run"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=get_difficulty_settings,
        method=get_selective_method,
        start=get_start,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/difficulty/seed{seed}/run{halving}.half{half}",
    shell:
        "{params.launcher} -m vrm difficulty-run --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {params.method} --seed {wildcards.seed} --run {wildcards.halving} --half {wildcards.half}"
        " --policy {params.start} --pairs {params.pairs} --checkpoints {params.checkpoints} --out {output}"
        " > {log} 2>&1"


rule difficulty:
    input:
        collect(
            "results/{{run}}/policy/{{base}}/difficulty/seed{{seed}}/run{halving}.half{half}.csv",
            halving=range(CONFIG.policy.difficulty.runs),
            half=[0, 1],
        ),
    output:
        "results/{run}/policy/{base}/difficulty/seed{seed}/difficulty.csv",
    log:
        "results/{run}/logs/difficulty/{base}.seed{seed}.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings("policy.difficulty.keep"),
    shell:
        "python -m vrm difficulty --config results/{wildcards.run}/config.yaml --losses {input} --out {output}"
        " > {log} 2>&1"


rule train_ppo:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        reward=get_reward_model,
    output:
        model=directory("results/{run}/policy/{base}/{method}/seed{seed}/model"),
        training="results/{run}/policy/{base}/{method}/seed{seed}/training.csv",
        held_out="results/{run}/policy/{base}/{method}/seed{seed}/held_out.csv",
        samples="results/{run}/policy/{base}/{method}/seed{seed}/samples.jsonl",
        counts="results/{run}/policy/{base}/{method}/seed{seed}/counts.json",
    log:
        "results/{run}/logs/train_ppo/{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/train_ppo/{base}.{method}.seed{seed}.tsv"
    wildcard_constraints:
        method=PPO,
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("train_ppo"),
        mem_mb=get_mem_mb("train_ppo"),
        runtime=get_runtime("train_ppo"),
    params:
        launcher=get_launcher(CONFIG.policy.training, "ddp"),
        settings=get_ppo_settings,
        start=get_start,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/{method}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-ppo --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {params.start} --model {input.reward}"
        " --pairs {params.pairs} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
