# Training of the grid of reward models. Resumable state lives in an undeclared directory, because Snakemake deletes
# declared outputs before a job; the finished model is written last and moved into place.


rule backbone:
    input:
        "results/{run}/data/pairs/train.jsonl",
    output:
        directory("results/{run}/backbone"),
    log:
        "results/{run}/logs/backbone.log",
    benchmark:
        "results/{run}/benchmarks/backbone.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    params:
        settings=get_settings(
            "backbone.create",
            "backbone.path",
            "reward.training.max_prompt_length",
            "reward.training.max_length",
        ),
        which="",
        pairs=lambda wildcards, input: Path(input[0]).parent,
        checkpoints="results/{run}/checkpoints/backbone",
    shell:
        "python -m vrm backbone --config results/{wildcards.run}/config.yaml {params.which} --pairs {params.pairs}"
        " --checkpoints {params.checkpoints} --out {output} > {log} 2>&1"


rule train_reward:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        backbone=get_created_backbone,
        features=get_training_features,
    output:
        model=directory("results/{run}/reward/{variant}/seed{seed}/model"),
        training="results/{run}/reward/{variant}/seed{seed}/training.csv",
        counts="results/{run}/reward/{variant}/seed{seed}/counts.json",
    log:
        "results/{run}/logs/train_reward/{variant}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/train_reward/{variant}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("train_reward"),
        mem_mb=get_mem_mb("train_reward"),
        runtime=get_runtime("train_reward"),
    params:
        launcher=get_launcher(CONFIG.reward.training),
        settings=get_training_settings,
        backbone=get_backbone,
        pairs=lambda wildcards, input: Path(input.train).parent,
        features=get_features_option,
        checkpoints="results/{run}/checkpoints/reward/{variant}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-reward --config results/{wildcards.run}/config.yaml"
        " --variant {wildcards.variant} --seed {wildcards.seed} --backbone {params.backbone} --pairs {params.pairs}"
        " {params.features} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
