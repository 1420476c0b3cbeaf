# Every scorer on every evaluation set; and how far a policy can be pushed against a reward model.


def get_evaluation_source(wildcards):
    """The file of an evaluation set; a hub dataset is no file."""
    return CONFIG.evaluation.sets[wildcards.set].path or []


rule evaluation_set:
    input:
        source=get_evaluation_source,
        train="results/{run}/data/pairs/train.jsonl",
    output:
        pairs="results/{run}/evaluation/sets/{set}.jsonl",
        audit="results/{run}/evaluation/sets/{set}.json",
    log:
        "results/{run}/logs/evaluation_set/{set}.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.evaluation_set, "set"),
        train=lambda wildcards, input: Path(input.train).parent,
        out=lambda wildcards, output: Path(output.pairs).parent,
    shell:
        "python -m vrm evaluation-set --config results/{wildcards.run}/config.yaml --name {wildcards.set}"
        " --pairs {params.train} --out {params.out} > {log} 2>&1"


def get_evaluation_features(wildcards):
    return [
        *get_features(wildcards, "sets", CONFIG.evaluation.run),
        *get_features(wildcards, "pairs", ["validation"]),
    ]


def get_texts(wildcards):
    """All texts that reward models are measured on as token ids; none where the backbone is frozen."""
    if CONFIG.backbone.freeze:
        return []
    return f"results/{wildcards.run}/evaluation/texts.parquet"


def get_texts_option(wildcards, input):
    """The command's option, where there is such a file."""
    return f"--texts {input.texts}" if input.texts else ""


# Once for all reward models, which read the same texts.
rule tokenise_sets:
    input:
        validation="results/{run}/data/pairs/validation.jsonl",
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
        backbone=get_created_backbone,
    output:
        "results/{run}/evaluation/texts.parquet",
    log:
        "results/{run}/logs/tokenise_sets.log",
    benchmark:
        "results/{run}/benchmarks/tokenise_sets.tsv"
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.tokenise),
        backbone=get_backbone,
        pairs=lambda wildcards, input: Path(input.validation).parent,
    shell:
        "python -m vrm tokenise-sets --config results/{wildcards.run}/config.yaml --backbone {params.backbone:q}"
        " --sets {input.sets} --pairs {params.pairs} --out {output} > {log} 2>&1"


rule score:
    input:
        model="results/{run}/reward/{variant}/seed{seed}/model",
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
        features=get_evaluation_features,
        texts=get_texts,
    output:
        scores="results/{run}/reward/{variant}/seed{seed}/scores.csv",
        validation="results/{run}/reward/{variant}/seed{seed}/validation.csv",
    log:
        "results/{run}/logs/score/{variant}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/score/{variant}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("score"),
        mem_mb=get_mem_mb("score"),
        runtime=get_runtime("score"),
    params:
        settings=depends_on(dependencies.score),
        scorer=lambda wildcards, input: f"--model {input.model} --seed {wildcards.seed}",
        train=lambda wildcards, input: Path(input.train).parent,
        features=get_features_option,
        texts=get_texts_option,
    shell:
        "python -m vrm score-reward --config results/{wildcards.run}/config.yaml {params.scorer} --sets {input.sets}"
        " --pairs {params.train} {params.features} {params.texts} --out {output.scores} > {log} 2>&1"


def get_outside_directory(name):
    """An outside model's directory, where it is one; a model of the hub is no file."""
    model = CONFIG.reward.outside[name]
    return [model.path] if model.is_local else []


def get_outside_model(wildcards):
    return get_outside_directory(wildcards.outside)


# A reward model that others have trained: no seed, and a backbone of its own, so no stored features.
use rule score as score_outside with:
    input:
        model=get_outside_model,
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
    output:
        scores="results/{run}/outside/{outside}/scores.csv",
        validation="results/{run}/outside/{outside}/validation.csv",
    log:
        "results/{run}/logs/score_outside/{outside}.log",
    benchmark:
        "results/{run}/benchmarks/score_outside/{outside}.tsv"
    resources:
        gpu=get_gpus("score_outside"),
        mem_mb=get_mem_mb("score_outside"),
        runtime=get_runtime("score_outside"),
    params:
        settings=depends_on(dependencies.score_outside, "outside"),
        scorer="--outside {outside}",
        train=lambda wildcards, input: Path(input.train).parent,
        features="",
        texts="",


# Every term of Theorem 5.1, on the pairs that the model was trained on.
rule pac_bayes:
    input:
        model="results/{run}/reward/{variant}/seed{seed}/model",
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        tokens=get_tokens,
    output:
        "results/{run}/reward/{variant}/seed{seed}/pac_bayes.csv",
    log:
        "results/{run}/logs/pac_bayes/{variant}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/pac_bayes/{variant}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("pac_bayes"),
        mem_mb=get_mem_mb("pac_bayes"),
        runtime=get_runtime("pac_bayes"),
    params:
        settings=depends_on(dependencies.pac_bayes),
        pairs=lambda wildcards, input: Path(input.train).parent,
        tokens=get_tokens_option,
    shell:
        "python -m vrm pac-bayes --config results/{wildcards.run}/config.yaml --model {input.model}"
        " --pairs {params.pairs} {params.tokens} --seed {wildcards.seed} --out {output} > {log} 2>&1"


# What the policies of a base start from says of the sets, once for all of them.
rule reference_of_sets:
    input:
        start=get_start_files,
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
    output:
        "results/{run}/policy/{base}/reference/seed{seed}/sets.parquet",
    log:
        "results/{run}/logs/reference_of_sets/{base}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/reference_of_sets/{base}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("reference_of_sets"),
        mem_mb=get_mem_mb("reference_of_sets"),
        runtime=get_runtime("reference_of_sets"),
    params:
        settings=depends_on(dependencies.score_policy, "base"),
        start=get_start,
    shell:
        "python -m vrm reference-log-probs --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --policy {params.start:q} --sets {input.sets} --out {output} > {log} 2>&1"


def get_reference_of_sets(wildcards):
    """What the start says of the sets, for a method that is compared with it."""
    if not CONFIG.policy.methods[wildcards.method].needs_reference:
        return []
    return f"results/{wildcards.run}/policy/{wildcards.base}/reference/seed{wildcards.seed}/sets.parquet"


# A policy as a scorer: its implicit reward, or its own where it has no reference.
rule score_policy:
    input:
        policy="results/{run}/policy/{base}/{method}/seed{seed}/model",
        start=get_start_files,
        reference=get_reference_of_sets,
        train="results/{run}/data/pairs/train.jsonl",
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
    output:
        "results/{run}/policy/{base}/{method}/seed{seed}/scores.csv",
    log:
        "results/{run}/logs/score_policy/{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/score_policy/{base}.{method}.seed{seed}.tsv"
    wildcard_constraints:
        method=PREFERENCE,
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("score_policy"),
        mem_mb=get_mem_mb("score_policy"),
        runtime=get_runtime("score_policy"),
    params:
        settings=depends_on(dependencies.score_policy, "base"),
        start=get_start,
        reference=get_reference_option,
        train=lambda wildcards, input: Path(input.train).parent,
    shell:
        "python -m vrm score-policy --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --policy {input.policy} --reference {params.start:q} --sets {input.sets}"
        " {params.reference} --pairs {params.train} --out {output} > {log} 2>&1"


def get_ppo_rewards():
    """What pays some PPO: names of reward models, with `:rated` for that part of a reward alone."""
    rewards = [CONFIG.policy.methods[name].paid_by for name in CONFIG.policy.ppo_run]
    return list(dict.fromkeys(rewards))


def get_ppo_reward_models(wildcards):
    """Every reward model that some PPO trains against."""
    names = [name.removesuffix(":rated") for name in get_ppo_rewards()]
    return [path for name in names for path in get_reward_model(wildcards, name)]


def get_ppo_reward_options(wildcards):
    """The same as the command takes them: with the directory of one that is trained here, an outside one by name."""
    options = []
    for name in get_ppo_rewards():
        variant = name.removesuffix(":rated")
        if variant in CONFIG.reward.outside:
            options.append(name)
        else:
            options.append(f"{name}={get_reward_model(wildcards, variant)[0]}")
    return options


rule best_of_n:
    input:
        validation="results/{run}/data/pairs/validation.jsonl",
        start=get_start_files,
        models=get_ppo_reward_models,
    output:
        "results/{run}/policy/{base}/best_of_n/seed{seed}/samples.jsonl",
    log:
        "results/{run}/logs/best_of_n/{base}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/best_of_n/{base}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("best_of_n"),
        mem_mb=get_mem_mb("best_of_n"),
        runtime=get_runtime("best_of_n"),
    params:
        settings=depends_on(dependencies.best_of_n, "base"),
        start=get_start,
        models=get_ppo_reward_options,
        pairs=lambda wildcards, input: Path(input.validation).parent,
    shell:
        "python -m vrm best-of-n --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --seed {wildcards.seed} --policy {params.start:q} --models {params.models} --pairs {params.pairs}"
        " --out {output} > {log} 2>&1"


def get_gold_model(wildcards):
    """The gold judge's directory, where it is a reward model and not a function."""
    judge = CONFIG.policy.gold
    return judge if judge and ":" not in judge else []


rule gold:
    input:
        samples="results/{run}/policy/{base}/{sampled}/seed{seed}/samples.jsonl",
        judge=get_gold_model,
    output:
        "results/{run}/policy/{base}/{sampled}/seed{seed}/samples.gold.csv",
    log:
        "results/{run}/logs/gold/{base}.{sampled}.seed{seed}.log",
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    params:
        settings=depends_on(dependencies.gold),
    shell:
        "python -m vrm gold --config results/{wildcards.run}/config.yaml --samples {input.samples} --out {output}"
        " > {log} 2>&1"
