# From scored prompts to normalised preference pairs.

SPLITS = ["train", "validation", "test"]


def get_scored_source(wildcards):
    """The file of scored prompts; a hub dataset is no file."""
    return CONFIG.data.path or []


# The embedded default: made only where the configuration points at its files.
rule world:
    output:
        scored="results/{run}/world/ultrafeedback.jsonl",
        sets=collect(
            "results/{{run}}/world/{set}.jsonl",
            set=["uf_c", "noise_free", "reward_bench", "probes"],
        ),
        statistics="results/{run}/world/statistics.csv",
    log:
        "results/{run}/logs/world.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.world),
        out=lambda wildcards, output: Path(output.scored).parent,
    shell:
        "python -m vrm world --config results/{wildcards.run}/config.yaml --out {params.out} > {log} 2>&1"


rule read_scored:
    input:
        get_scored_source,
    output:
        scored="results/{run}/data/scored.jsonl",
        quarantine="results/{run}/data/quarantine.jsonl",
        counts="results/{run}/data/counts.json",
    log:
        "results/{run}/logs/read_scored.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.pairs),
        out=lambda wildcards, output: Path(output.scored).parent,
    shell:
        "python -m vrm read-scored --config results/{wildcards.run}/config.yaml --out {params.out} > {log} 2>&1"


rule make_pairs:
    input:
        "results/{run}/data/scored.jsonl",
    output:
        pairs=collect("results/{{run}}/data/raw_pairs/{split}.jsonl", split=SPLITS),
        counts="results/{run}/data/pair_counts.json",
    log:
        "results/{run}/logs/make_pairs.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.pairs),
        out=lambda wildcards, output: Path(output.counts).parent,
    shell:
        "python -m vrm make-pairs --config results/{wildcards.run}/config.yaml --out {params.out} > {log} 2>&1"


# Mean and standard deviation come from the training split and are reused for every other one.
rule normalise:
    input:
        collect("results/{{run}}/data/raw_pairs/{split}.jsonl", split=SPLITS),
    output:
        pairs=collect("results/{{run}}/data/pairs/{split}.jsonl", split=SPLITS),
        statistics="results/{run}/data/normalisation.json",
    log:
        "results/{run}/logs/normalise.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.normalise),
        out=lambda wildcards, output: Path(output.statistics).parent,
    shell:
        "python -m vrm normalise --config results/{wildcards.run}/config.yaml --out {params.out} > {log} 2>&1"
