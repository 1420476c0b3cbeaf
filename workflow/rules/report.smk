# Tables and figures, each from the files of the run and nothing else.


rule table:
    input:
        get_table_inputs,
    output:
        csv="results/{run}/tables/{table}.csv",
        md=report(
            "results/{run}/tables/{table}.md",
            caption="../report/table.rst",
            category="Tables",
        ),
        tex="results/{run}/tables/{table}.tex",
    log:
        "results/{run}/logs/table/{table}.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=get_settings(
            "report",
            "data.label",
            "reward.run",
            "reward.variants",
            "evaluation",
            "policy.bases",
            "policy.methods",
            "policy.gold",
        ),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.csv).parent,
    shell:
        "python -m vrm table --config {params.results}/config.yaml --name {wildcards.table}"
        " --results {params.results} --out {params.out} > {log} 2>&1"


# Figures 1 and 2 explain the method and are drawn from the configuration; 3 to 5 are curves of the run.
rule schematic:
    output:
        pdf="results/{run}/figures/{figure}.pdf",
        png=report(
            "results/{run}/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
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
        get_curve_inputs,
    wildcard_constraints:
        figure="figure[345]",
    params:
        settings=get_settings("report", "data.label", "reward.variants"),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,


# The reward-hacking claim put to the test: proxy and gold reward along PPO, and of best-of-n.
use rule schematic as overoptimisation with:
    input:
        lambda wildcards: [
            path.format(run=wildcards.run)
            for path in get_samples([*CONFIG.policy.ppo_run, "best_of_n"])
        ],
    wildcard_constraints:
        figure="overoptimisation",
    params:
        settings=get_settings(
            "report",
            "data.label",
            "reward.variants",
            "policy.bases",
            "policy.methods",
            "policy.gold",
        ),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,
