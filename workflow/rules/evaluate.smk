# Every scorer on every evaluation set; and how far a policy can be pushed against a reward model.


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
        settings=get_evaluation_settings,
        train=lambda wildcards, input: Path(input.train).parent,
        out=lambda wildcards, output: Path(output.pairs).parent,
    shell:
        "python -m vrm evaluation-set --config results/{wildcards.run}/config.yaml --name {wildcards.set}"
        " --pairs {params.train} --out {params.out} > {log} 2>&1"


rule score:
    input:
        model="results/{run}/reward/{variant}/seed{seed}/model",
        train="results/{run}/data/pairs/train.jsonl",
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
        features=get_evaluation_features,
    output:
        "results/{run}/reward/{variant}/seed{seed}/scores.csv",
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
        settings=get_settings(
            "reward.scoring_batch_size",
            "reward.posterior_samples",
            "reward.training.max_prompt_length",
            "reward.training.max_length",
        ),
        train=lambda wildcards, input: Path(input.train).parent,
        features=get_features_option,
    shell:
        "python -m vrm score --config results/{wildcards.run}/config.yaml --model {input.model} --sets {input.sets}"
        " --pairs {params.train} {params.features} --seed {wildcards.seed} --out {output} > {log} 2>&1"


# Every term of Theorem 5.1, on the pairs that the model was trained on.
rule pac_bayes:
    input:
        model="results/{run}/reward/{variant}/seed{seed}/model",
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
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
        gpu=get_gpus("score"),
        mem_mb=get_mem_mb("score"),
        runtime=get_runtime("score"),
    params:
        settings=get_settings(
            "reward.scoring_batch_size",
            "reward.training.max_prompt_length",
            "reward.training.max_length",
        ),
        pairs=lambda wildcards, input: Path(input.train).parent,
    shell:
        "python -m vrm pac-bayes --config results/{wildcards.run}/config.yaml --model {input.model}"
        " --pairs {params.pairs} --seed {wildcards.seed} --out {output} > {log} 2>&1"


# A policy as a scorer: its implicit reward, or its own where it has no reference.
rule score_policy:
    input:
        policy="results/{run}/policy/{base}/{method}/seed{seed}/model",
        start=get_start_files,
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
        settings=get_score_policy_settings,
        start=get_start,
        train=lambda wildcards, input: Path(input.train).parent,
    shell:
        "python -m vrm score-policy --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --policy {input.policy} --reference {params.start} --sets {input.sets}"
        " --pairs {params.train} --out {output} > {log} 2>&1"


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
        settings=get_best_of_n_settings,
        start=get_start,
        models=lambda wildcards, input: [
            f"{name}={path}" for name, path in zip(get_ppo_rewards(), input.models)
        ],
        pairs=lambda wildcards, input: Path(input.validation).parent,
    shell:
        "python -m vrm best-of-n --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --seed {wildcards.seed} --policy {params.start} --models {params.models} --pairs {params.pairs}"
        " --out {output} > {log} 2>&1"


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
        settings=get_settings("policy.gold"),
    shell:
        "python -m vrm gold --config results/{wildcards.run}/config.yaml --samples {input.samples} --out {output}"
        " > {log} 2>&1"


rule evaluate:
    input:
        [*get_policy_scores(), *get_reward_files("scores.csv")],
    output:
        "results/{run}/evaluation/reward_models.csv",
    log:
        "results/{run}/logs/evaluate.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings("evaluation"),
    shell:
        "python -m vrm evaluate --config results/{wildcards.run}/config.yaml --scores {input} --out {output}"
        " > {log} 2>&1"
