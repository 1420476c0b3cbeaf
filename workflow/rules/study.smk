# The study: many small reward models, each trained, scored and thrown away in one job. A run without it makes none.


def get_study_files(cells):
    """Scores of these models of the study."""
    return [f"results/{{run}}/{cell.file}" for cell in cells]


rule study_world:
    output:
        directory("results/{run}/study/worlds/{world}"),
    log:
        "results/{run}/logs/study_world/{world}.log",
    wildcard_constraints:
        world=r"(?!base$)[a-z][a-z0-9_]*",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.study_world, "world"),
    shell:
        "python -m vrm study-world --config results/{wildcards.run}/config.yaml --name {wildcards.world} --out {output}"
        " > {log} 2>&1"


def get_study_data(wildcards):
    """What a model of the run's own world is trained and measured on, or the directory of another world."""
    if wildcards.world != "base":
        return f"results/{wildcards.run}/study/worlds/{wildcards.world}"
    return [
        f"results/{wildcards.run}/data/pairs/train.jsonl",
        f"results/{wildcards.run}/data/pairs/validation.jsonl",
        *get_study_sets(wildcards),
    ]


def get_study_place(wildcards):
    """Where the pairs of a world lie."""
    if wildcards.world == "base":
        return f"results/{wildcards.run}/data/pairs"
    return f"results/{wildcards.run}/study/worlds/{wildcards.world}/data/pairs"


def get_study_sets(wildcards):
    """The evaluation sets of a world."""
    place = f"results/{wildcards.run}/evaluation/sets"
    if wildcards.world != "base":
        place = f"results/{wildcards.run}/study/worlds/{wildcards.world}/sets"
    return [f"{place}/{name}.jsonl" for name in CONFIG.evaluation.run]


def get_study_gpus(wildcards):
    """A model of the study is trained by one process, however many train the grid's."""
    return min(1, RESOURCES.gpus("train_reward"))


def get_study_tokens(wildcards):
    """Both splits of a world as token ids."""
    place = (
        "data/tokens"
        if wildcards.world == "base"
        else f"study/tokens/{wildcards.world}"
    )
    return [f"results/{wildcards.run}/{place}/{split}.parquet" for split in TRAINED_ON]


use rule tokenise as tokenise_study_world with:
    input:
        pairs="results/{run}/study/worlds/{world}",
        backbone=get_created_backbone,
    output:
        tokens=collect(
            "results/{{run}}/study/tokens/{{world}}/{split}.parquet", split=TRAINED_ON
        ),
    log:
        "results/{run}/logs/tokenise_study_world/{world}.log",
    benchmark:
        "results/{run}/benchmarks/tokenise_study_world/{world}.tsv"
    wildcard_constraints:
        world=r"(?!base$)[a-z][a-z0-9_]*",
    params:
        place=get_study_place,


rule study_cell:
    input:
        data=get_study_data,
        backbone=get_created_backbone,
        tokens=get_study_tokens,
    output:
        "results/{run}/study/{world}/{variant}/pairs{pairs}/seed{seed}/scores.csv",
    log:
        "results/{run}/logs/study_cell/{world}.{variant}.pairs{pairs}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/study_cell/{world}.{variant}.pairs{pairs}.seed{seed}.tsv"
    wildcard_constraints:
        pairs=r"\d+",
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_study_gpus,
        mem_mb=get_mem_mb("train_reward"),
        runtime=get_runtime("train_reward"),
    params:
        settings=depends_on(dependencies.study_cell, "variant"),
        backbone=get_backbone,
        data=get_study_place,
        tokens=get_tokens_option,
        sets=get_study_sets,
    shell:
        "python -m vrm study-cell --config results/{wildcards.run}/config.yaml --variant {wildcards.variant}"
        " --pairs {wildcards.pairs} --seed {wildcards.seed} --backbone {params.backbone} --data {params.data}"
        " {params.tokens} --sets {params.sets} --out {output} > {log} 2>&1"
