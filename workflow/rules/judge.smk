# The judge on every answer, and what the judgments amount to. Replies are kept in a store that is no output of any rule,
# so that Snakemake never deletes one that was paid for; judging again asks only for what is not in it.


rule judge:
    input:
        answers="results/{run}/policy/{base}/{method}/seed{seed}/answers/{benchmark}.jsonl",
        set="results/{run}/judged/sets/{benchmark}",
    output:
        judgments="results/{run}/policy/{base}/{method}/seed{seed}/judgments/{benchmark}.jsonl",
        counts="results/{run}/policy/{base}/{method}/seed{seed}/judgments/{benchmark}.counts.json",
    log:
        "results/{run}/logs/judge/{benchmark}.{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/judge/{benchmark}.{base}.{method}.seed{seed}.tsv"
    wildcard_constraints:
        benchmark="arena_hard|mt_bench",
    conda:
        "../../envs/judge.yaml"
    # `--resources judge=1` lets one job at a time ask: judge.requests_per_minute is a job's
    resources:
        judge=1,
    params:
        settings=depends_on(dependencies.judge, "benchmark"),
        name="{benchmark}",
        answers=lambda wildcards, input: Path(input.answers).parent,
        out=lambda wildcards, output: Path(output.counts).parent,
    shell:
        "python -m vrm judge --config results/{wildcards.run}/config.yaml --name {params.name}"
        " --base {wildcards.base} --method {wildcards.method} --seed {wildcards.seed} --answers {params.answers}"
        " --sets {input.set} --out {params.out} > {log} 2>&1"


# The package reads and writes one JSON list.
use rule judge as judge_alpaca_eval with:
    input:
        answers="results/{run}/policy/{base}/{method}/seed{seed}/answers/alpaca_eval.json",
        set="results/{run}/judged/sets/alpaca_eval",
    output:
        judgments="results/{run}/policy/{base}/{method}/seed{seed}/judgments/alpaca_eval.json",
        counts="results/{run}/policy/{base}/{method}/seed{seed}/judgments/alpaca_eval.counts.json",
    log:
        "results/{run}/logs/judge/alpaca_eval.{base}.{method}.seed{seed}.log",
    benchmark:
        "results/{run}/benchmarks/judge/alpaca_eval.{base}.{method}.seed{seed}.tsv"
    params:
        settings=depends_on(dependencies.judge, name="alpaca_eval"),
        name="alpaca_eval",
        answers=lambda wildcards, input: Path(input.answers).parent,
        out=lambda wildcards, output: Path(output.counts).parent,


def get_judged_files(wildcards, stage):
    """One file of each judged policy: its answers to a benchmark, or the judgments of them."""
    return [
        f"results/{wildcards.run}/{policy.folder}/{stage}/{FILES[wildcards.benchmark]}"
        for policy in CONFIG.judged_policies
    ]


def get_judged_answers(wildcards):
    return get_judged_files(wildcards, "answers")


def get_judgments(wildcards):
    return get_judged_files(wildcards, "judgments")


# All policies at once: Arena-Hard's style control is fitted over the whole table.
rule judged_scores:
    input:
        set="results/{run}/judged/sets/{benchmark}",
        answers=get_judged_answers,
        judgments=get_judgments,
    output:
        scores="results/{run}/judged/{benchmark}.csv",
        per_item="results/{run}/judged/{benchmark}.items.csv",
        draws="results/{run}/judged/{benchmark}.draws.csv",
        terms="results/{run}/judged/{benchmark}.terms.csv",
        record="results/{run}/judged/{benchmark}.json",
    log:
        "results/{run}/logs/judged_scores/{benchmark}.log",
    benchmark:
        "results/{run}/benchmarks/judged_scores/{benchmark}.tsv"
    conda:
        "../../envs/judge.yaml"
    params:
        settings=depends_on(dependencies.judged_scores, "benchmark"),
        results=lambda wildcards, output: Path(output.scores).parents[1],
    shell:
        "python -m vrm judged-scores --config {params.results}/config.yaml --name {wildcards.benchmark}"
        " --results {params.results} --out {output.scores} > {log} 2>&1"
