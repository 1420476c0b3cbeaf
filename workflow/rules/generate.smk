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


# One job a policy, since loading it is what takes time; it goes on where a killed one stopped.
rule answer:
    input:
        policy="results/{run}/policy/{base}/{method}/seed{seed}/model",
        sets=get_benchmark_sets(),
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
        out=lambda wildcards, output: Path(output.counts).parent,
    shell:
        "python -m vrm answer --config results/{wildcards.run}/config.yaml --base {wildcards.base}"
        " --method {wildcards.method} --seed {wildcards.seed} --policy {input.policy} --sets {input.sets}"
        " --checkpoints {params.checkpoints} --out {params.out} > {log} 2>&1"
