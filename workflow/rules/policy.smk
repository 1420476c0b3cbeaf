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


def get_policy_backbone_settings(wildcards):
    return get_settings(
        f"policy.bases.{wildcards.base}.create",
        f"policy.bases.{wildcards.base}.chat_template_kwargs",
        "policy.training.max_prompt_length",
        "policy.training.max_length",
    )


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


# What every policy stage takes of policy.training, and what only those take that are optimised by it.
SIZES = ["max_prompt_length", "max_length", "bf16", "gradient_checkpointing", "lora"]

LENGTHS = SIZES[:2]

SPEED = ["epochs", "learning_rate"]


def get_policy_settings(wildcards, *more, of_training=None, but=()):
    """What a stage depends on: its base, fields of `policy.training` (all, `of_training`, or all `but` some), `more`."""
    training = get_settings("policy.training")["policy.training"]
    wanted = of_training or [field for field in training if field not in but]
    base = get_settings(
        f"policy.bases.{wildcards.base}", *more, exclude=["label", "paper"]
    )
    return base | {field: training[field] for field in wanted}


def get_method(wildcards, name=None):
    """The settings of a method, without what it is called."""
    name = name or wildcards.method
    return get_settings(f"policy.methods.{name}", exclude=["label", "ours"])


def get_sft_settings(wildcards):
    return get_policy_settings(wildcards, "policy.sft", but=SPEED)


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


def get_preference_settings(wildcards):
    return get_policy_settings(wildcards) | get_method(wildcards)


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


def get_selective_method(wildcards):
    """Whose reference runs they are: there is one way to select, whatever is trained on the selection."""
    return CONFIG.policy.trained("selective_dpo")[0]


def get_difficulty_settings(wildcards):
    """Neither how many halvings there are nor what is kept of them changes a run."""
    method = get_method(wildcards, get_selective_method(wildcards))
    own = get_settings("policy.difficulty", exclude=["runs", "keep"])
    return get_policy_settings(wildcards, but=["epochs"]) | method | own


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


def get_reward_model(wildcards):
    """The reward model that PPO trains against; its seed is the policy's."""
    reward = CONFIG.policy.methods[wildcards.method].reward
    return f"results/{wildcards.run}/reward/{reward}/seed{wildcards.seed}/model"


def get_ppo_settings(wildcards):
    """Where a run is stopped changes nothing in one that was not."""
    own = get_settings("policy.ppo", exclude=["limits"])
    more = ["policy.generation", "reward.scoring_batch_size"]
    shared = get_policy_settings(wildcards, *more, of_training=SIZES)
    return shared | get_method(wildcards) | own


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
