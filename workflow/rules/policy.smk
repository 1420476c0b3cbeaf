# Policies on every base: SFT, the preference methods, PPO against the reward models. As in reward.smk, resumable state
# lives in an undeclared directory.


def get_policy_methods(*kinds):
    """A wildcard constraint: the methods of this run that are of one of these kinds."""
    return "|".join(CONFIG.policy.trained(*kinds)) or "(?!)"


PREFERENCE = get_policy_methods("dpo", "ipo", "kto", "simpo", "wpo", "selective_dpo")

PPO = get_policy_methods("ppo")


def get_base(wildcards):
    return CONFIG.policy.bases[wildcards.base]


def get_policy_backbone(wildcards):
    """Directory or hub id of a policy base."""
    made = f"results/{wildcards.run}/policy/{wildcards.base}/backbone"
    return get_base(wildcards).path or made


def get_created_policy_backbone(wildcards):
    """The base that has to be made first; one from a path or the hub is there already."""
    return get_policy_backbone(wildcards) if get_base(wildcards).create else []


def get_start(wildcards):
    """What every method starts from, and is compared with: the SFT model, or a base that is one already."""
    sft = f"results/{wildcards.run}/policy/{wildcards.base}/sft/seed{wildcards.seed}/model"
    return sft if get_base(wildcards).sft else get_policy_backbone(wildcards)


def get_start_files(wildcards):
    """`get_start`, where a rule has to make it."""
    base = get_base(wildcards)
    return get_start(wildcards) if base.sft or base.create else []


def get_policy_files(name, methods, bases=None):
    """One file of each of these methods, for every base and seed."""
    return collect(
        "results/{{run}}/policy/{base}/{method}/seed{seed}/{name}",
        base=CONFIG.policy.run_bases if bases is None else bases,
        method=methods,
        seed=CONFIG.policy.seeds,
        name=name,
    )


use rule backbone as policy_backbone with:
    output:
        directory("results/{run}/policy/{base}/backbone"),
    log:
        "results/{run}/logs/policy_backbone/{base}.log",
    benchmark:
        "results/{run}/benchmarks/policy_backbone/{base}.tsv"
    params:
        settings=depends_on(dependencies.policy_backbone, "base"),
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
    priority: 1
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        **get_placement(CONFIG.policy.training, "sft"),
        gpu=get_gpus("sft"),
        mem_mb=get_mem_mb("sft"),
        runtime=get_runtime("sft"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=depends_on(dependencies.sft, "base"),
        policy=get_policy_backbone,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/sft/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm sft --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --seed {wildcards.seed} --policy {params.policy:q} --pairs {params.pairs}"
        " --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"


# Once for all preference methods, which start from the same policy and read the same pairs.
rule reference_log_probs:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
    output:
        "results/{run}/policy/{base}/reference/seed{seed}/log_probs.parquet",
    log:
        "results/{run}/logs/reference_log_probs/{base}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/reference_log_probs/{base}.seed{seed}.tsv"
    priority: 1
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        **get_placement(CONFIG.policy.training, "reference_log_probs"),
        gpu=get_gpus("reference_log_probs"),
        mem_mb=get_mem_mb("reference_log_probs"),
        runtime=get_runtime("reference_log_probs"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=depends_on(dependencies.reference_log_probs, "base"),
        start=get_start,
        pairs=lambda wildcards, input: Path(input.train).parent,
    shell:
        "{params.launcher} -m vrm reference-log-probs --config results/{wildcards.run}/config.yaml"
        " --base {wildcards.base} --policy {params.start:q} --pairs {params.pairs} --out {output} > {log} 2>&1"


def get_reference(wildcards):
    """What the start says of the pairs; nothing where Selective DPO's reference runs ask it in another precision."""
    if "half" in wildcards.keys() and not CONFIG.policy.shares_reference:
        return []
    return f"results/{wildcards.run}/policy/{wildcards.base}/reference/seed{wildcards.seed}/log_probs.parquet"


def get_reference_option(wildcards, input):
    """The command's option, where there is such a file."""
    return f"--reference-log-probs {input.reference}" if input.reference else ""


def get_difficulty(wildcards):
    """Which pairs are kept, for the method that selects."""
    if CONFIG.policy.methods[wildcards.method].method != "selective_dpo":
        return []
    return f"results/{wildcards.run}/policy/{wildcards.base}/difficulty/seed{wildcards.seed}/difficulty.csv"


rule train_preference:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        reference=get_reference,
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
        **get_placement(CONFIG.policy.training, "train_preference"),
        gpu=get_gpus("train_preference"),
        mem_mb=get_mem_mb("train_preference"),
        runtime=get_runtime("train_preference"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=depends_on(dependencies.train_preference, "base", "method"),
        start=get_start,
        reference=get_reference_option,
        difficulty=lambda wildcards, input: (
            f"--difficulty {input.difficulty}" if input.difficulty else ""
        ),
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/{method}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-preference --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {params.start:q} --pairs {params.pairs}"
        " {params.reference} {params.difficulty} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"


# Selective DPO: reference runs on halves of the pairs, and from them each pair's difficulty.
rule difficulty_run:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        reference=get_reference,
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
        **get_placement(CONFIG.policy.training, "difficulty_run"),
        gpu=get_gpus("difficulty_run"),
        mem_mb=get_mem_mb("difficulty_run"),
        runtime=get_runtime("difficulty_run"),
    params:
        launcher=get_launcher(CONFIG.policy.training),
        settings=depends_on(dependencies.difficulty_run, "base"),
        method=lambda wildcards: dependencies.selective_method(CONFIG),
        start=get_start,
        reference=get_reference_option,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/difficulty/seed{seed}/run{halving}.half{half}",
    shell:
        "{params.launcher} -m vrm difficulty-run --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {params.method} --seed {wildcards.seed} --run {wildcards.halving} --half {wildcards.half}"
        " --policy {params.start:q} --pairs {params.pairs} {params.reference} --checkpoints {params.checkpoints}"
        " --out {output} > {log} 2>&1"


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
        settings=depends_on(dependencies.difficulty),
    shell:
        "python -m vrm difficulty --config results/{wildcards.run}/config.yaml --losses {input} --out {output}"
        " > {log} 2>&1"


def get_reward_model(wildcards, name):
    """A reward model's directory: that of the policy's seed, or an outside model's, which has none on the hub."""
    if name in CONFIG.reward.outside:
        return get_outside_directory(name)
    return [f"results/{wildcards.run}/reward/{name}/seed{wildcards.seed}/model"]


def get_ppo_reward(wildcards):
    """The reward model that PPO trains against."""
    return get_reward_model(wildcards, CONFIG.policy.methods[wildcards.method].reward)


def get_ppo_reward_option(wildcards, input):
    """The command's option; an outside model is read by the configuration."""
    outside = CONFIG.policy.methods[wildcards.method].reward in CONFIG.reward.outside
    return "" if outside else f"--model {input.reward}"


rule train_ppo:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        reward=get_ppo_reward,
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
    priority: 1
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        **get_placement(CONFIG.policy.training, "train_ppo"),
        gpu=get_gpus("train_ppo"),
        mem_mb=get_mem_mb("train_ppo"),
        runtime=get_runtime("train_ppo"),
    params:
        launcher=get_launcher(CONFIG.policy.training, "ddp"),
        settings=depends_on(dependencies.train_ppo, "base", "method"),
        start=get_start,
        reward=get_ppo_reward_option,
        pairs=lambda wildcards, input: Path(input.train).parent,
        checkpoints="results/{run}/checkpoints/policy/{base}/{method}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-ppo --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {params.start:q} {params.reward}"
        " --pairs {params.pairs} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
