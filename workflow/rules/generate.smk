# The judged benchmarks' questions, and every policy's answers to them.
from vrm.config.benchmarks import FILES


def get_benchmark_sets():
    return collect(
        "results/{{run}}/judged/sets/{benchmark}", benchmark=CONFIG.benchmarks.run
    )


def get_answer_files(benchmarks=None):
    """Names of one policy's answers."""
    folder = "results/{run}/policy/{base}/{method}/seed{seed}/answers"
    names = CONFIG.benchmarks.run if benchmarks is None else benchmarks
    return [f"{folder}/{FILES[name]}" for name in names]


# The embedded default: made only where the configuration points at its files.
rule world_benchmarks:
    output:
        directory("results/{run}/world/benchmarks"),
    log:
        "results/{run}/logs/world_benchmarks.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.world_benchmarks),
    shell:
        "python -m vrm world-benchmarks --config results/{wildcards.run}/config.yaml --out {output} > {log} 2>&1"


rule benchmark_set:
    input:
        CONFIG.data.benchmarks_dir or [],
    output:
        directory("results/{run}/judged/sets/{benchmark}"),
    log:
        "results/{run}/logs/benchmark_set/{benchmark}.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=depends_on(dependencies.benchmark_set, "benchmark"),
    shell:
        "python -m vrm benchmark-set --config results/{wildcards.run}/config.yaml --name {wildcards.benchmark}"
        " --out {output} > {log} 2>&1"


# A policy's first turns in several jobs, where `benchmarks.answering.shares` says so: the rule `answer` takes them over.
rule answer_share:
    input:
        policy="results/{run}/policy/{base}/{method}/seed{seed}/model",
        sets=get_benchmark_sets(),
    output:
        "results/{run}/policy/{base}/{method}/seed{seed}/answer_shares/{share}of{shares}.jsonl",
    log:
        "results/{run}/logs/answer_share/{base}.{method}.seed{seed}.{share}of{shares}.log",
    benchmark:
        "results/{run}/benchmarks/answer_share/{base}.{method}.seed{seed}.{share}of{shares}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("answer_share"),
        mem_mb=get_mem_mb("answer_share"),
        runtime=get_runtime("answer_share"),
    params:
        settings=depends_on(dependencies.answer, "base"),
        checkpoints="results/{run}/checkpoints/answer_shares/{base}/{method}/seed{seed}/{share}of{shares}",
    shell:
        "python -m vrm answer-share --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --share {wildcards.share} --shares {wildcards.shares}"
        " --policy {input.policy} --sets {input.sets} --checkpoints {params.checkpoints} --out {output} > {log} 2>&1"


def get_answer_shares():
    """Files of the shares; none where one job answers everything."""
    shares = CONFIG.benchmarks.answering.shares
    return collect(
        rules.answer_share.output,
        share=range(shares) if shares > 1 else [],
        shares=shares,
        allow_missing=True,
    )


def get_answer_options(wildcards, input, output):
    """Where answers go, and shares of them: as options of their own these would have a run from before them answer anew."""
    directory = Path(output.counts).parent
    return (
        f"{directory} --shares {' '.join(input.shares)}" if input.shares else directory
    )


# One job a policy, since loading it is what takes time; it goes on where a killed one stopped.
rule answer:
    input:
        policy="results/{run}/policy/{base}/{method}/seed{seed}/model",
        sets=get_benchmark_sets(),
        shares=get_answer_shares(),
    output:
        answers=get_answer_files(),
        counts="results/{run}/policy/{base}/{method}/seed{seed}/answers/counts.json",
    log:
        "results/{run}/logs/answer/{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/answer/{base}.{method}.seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CONFIG.threads
    resources:
        gpu=get_gpus("answer"),
        mem_mb=get_mem_mb("answer"),
        runtime=get_runtime("answer"),
    params:
        settings=depends_on(dependencies.answer, "base"),
        checkpoints="results/{run}/checkpoints/answers/{base}/{method}/seed{seed}",
        out=get_answer_options,
    shell:
        "python -m vrm answer --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {input.policy} --sets {input.sets}"
        " --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
