# Tables and figures, each from the files of the run and nothing else.


rule table:
    input:
        get_table_inputs,
    output:
        csv="results/{run}/tables/{table}.csv",
        md="results/{run}/tables/{table}.md",
        tex="results/{run}/tables/{table}.tex",
        html=report(
            "results/{run}/tables/{table}.html",
            caption="../report/table.rst",
            category="Tables",
            labels=get_table_labels,
        ),
    log:
        "results/{run}/logs/table/{table}.log",
    wildcard_constraints:
        table="(?!paper).*",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings(
            "report",
            "data.label",
            "data.aspects",
            "reward.run",
            "reward.variants",
            "evaluation",
            "policy.run",
            "policy.run_bases",
            "policy.bases",
            "policy.methods",
            "policy.gold",
            "benchmarks",
        ),
        name="{table}",
        results="results/{run}",
        out=lambda wildcards, output: Path(output.csv).parent,
    shell:
        "python -m vrm table --config {params.results}/config.yaml --name {params.name}"
        " --results {params.results} --out {params.out} > {log} 2>&1"


# Every number and claim of the paper beside what this run has for it.
use rule table as paper_page with:
    input:
        get_paper_page_inputs,
    output:
        csv="results/{run}/tables/paper.csv",
        md="results/{run}/tables/paper.md",
        tex="results/{run}/tables/paper.tex",
        html=report(
            "results/{run}/tables/paper.html",
            caption="../report/paper.rst",
            category="Paper against this run",
            labels={"page": "every number and claim"},
        ),
    log:
        "results/{run}/logs/table/paper.log",
    params:
        settings=get_settings(
            "report",
            "data",
            "reward.run",
            "reward.variants",
            "evaluation",
            "policy.run",
            "policy.run_bases",
            "policy.scorers_from",
            "policy.bases",
            "policy.methods",
            "benchmarks",
            "judge",
            "backbone",
        ),
        name="paper",
        results="results/{run}",
        out=lambda wildcards, output: Path(output.csv).parent,


# Figures 1 and 2 explain the method and are drawn from the configuration; 3 to 5 are curves of the run.
rule schematic:
    output:
        pdf="results/{run}/figures/{figure}.pdf",
        png=report(
            "results/{run}/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels=get_figure_labels,
        ),
        csv="results/{run}/figures/{figure}.csv",
    log:
        "results/{run}/logs/figure/{figure}.log",
    wildcard_constraints:
        figure="figure[12]",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings("data.aspects", "reward.run", "reward.variants"),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,
    shell:
        "python -m vrm figure --config {params.results}/config.yaml --name {wildcards.figure}"
        " --results {params.results} --out {params.out} > {log} 2>&1"


use rule schematic as curves with:
    input:
        get_figure_inputs,
    wildcard_constraints:
        figure="figure[345]",
    params:
        settings=get_settings("report", "data.label", "reward.variants"),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,


# The reward-hacking claim put to the test: proxy and gold reward along PPO, and of best-of-n.
use rule schematic as overoptimisation with:
    input:
        get_figure_inputs,
    wildcard_constraints:
        figure="overoptimisation",
    params:
        settings=get_settings(
            "report",
            "data.label",
            "reward.variants",
            "policy.run",
            "policy.run_bases",
            "policy.bases",
            "policy.methods",
            "policy.gold",
        ),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,


# What the judge says of policies trained with and without supervision, and of how long their answers are.
use rule schematic as judged with:
    input:
        get_figure_inputs,
    wildcard_constraints:
        figure="figure6|win_rate_length",
    params:
        settings=get_settings(
            "report",
            "data.label",
            "policy.run",
            "policy.run_bases",
            "policy.bases",
            "policy.methods",
            "benchmarks",
        ),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,


use rule schematic as bound with:
    input:
        get_figure_inputs,
    wildcard_constraints:
        figure="bound",
    params:
        settings=get_settings("report", "data.label", "reward.run", "reward.variants"),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,


# One page to read single pairs in: what each reward model prefers, by which objective, and who is right.
rule explorer:
    input:
        scores=get_reward_files("scores.csv"),
        sets=collect(
            "results/{{run}}/evaluation/sets/{set}.jsonl", set=CONFIG.evaluation.run
        ),
    output:
        html=report(
            "results/{run}/explorer/explorer.html",
            caption="../report/explorer.rst",
            category="Explorer",
            labels={"page": "pairs, weights, contributions"},
        ),
        csv="results/{run}/explorer/explorer.csv",
    log:
        "results/{run}/logs/explorer.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings(
            "report.level",
            "report.explorer_pairs",
            "report.seed",
            "data.label",
            "data.aspects",
            "reward.run",
            "reward.seeds",
            "reward.variants",
            "evaluation",
        ),
        results=lambda wildcards, output: Path(output.html).parents[1],
        out=lambda wildcards, output: Path(output.html).parent,
    shell:
        "python -m vrm explorer --config {params.results}/config.yaml --results {params.results}"
        " --out {params.out} > {log} 2>&1"
