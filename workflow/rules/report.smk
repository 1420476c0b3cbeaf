# Tables and figures, each from the files of the run and nothing else.


def get_bounds():
    """The terms of Theorem 5.1 for every VRM that they are shown of."""
    return get_reward_files("pac_bayes.csv", CONFIG.bounded_variants)


def get_judged_scores():
    return collect(
        "results/{{run}}/judged/{benchmark}.{ending}",
        benchmark=CONFIG.benchmarks.run,
        ending=["csv", "items.csv", "draws.csv", "terms.csv", "json"],
    )


def get_reward_scores():
    """Scores of every reward model, those of the validation pairs too."""
    return [*get_reward_files("scores.csv"), *get_reward_files("validation.csv")]


def get_outside_scores():
    """Scores of the outside models that are rows of Table 2."""
    return collect(
        "results/{{run}}/outside/{outside}/scores.csv",
        outside=CONFIG.reward.run_outside,
    )


def get_policy_scores():
    """Scores of the policies that are rows of Table 2."""
    scorers = CONFIG.policy.scorers_from
    return (
        get_policy_files("scores.csv", CONFIG.policy.preference_run, [scorers])
        if scorers
        else []
    )


def get_samples(methods):
    """Sampled answers, with the gold judge's scores where there is one."""
    names = ["samples.jsonl", *(["samples.gold.csv"] if CONFIG.policy.gold else [])]
    return [path for name in names for path in get_policy_files(name, methods)]


def get_of_trainings(name):
    """A file of every policy training, SFT's included."""
    tuned = [base for base in CONFIG.policy.run_bases if CONFIG.policy.bases[base].sft]
    return [
        *get_policy_files(name, ["sft"], tuned),
        *get_policy_files(name, CONFIG.policy.run),
    ]


def get_table_inputs(wildcards):
    """Files that a table is made of."""
    needs = {
        "table1": get_judged_scores(),
        "table2": [*get_policy_scores(), *get_reward_scores(), *get_outside_scores()],
        "comparisons": get_reward_files("scores.csv"),
        "comparisons_judged": get_judged_scores(),
        "bound": get_bounds(),
        "calibration": get_reward_scores(),
        "residual": get_reward_files("scores.csv"),
        "health": [
            *get_reward_scores(),
            *get_reward_files("training.csv"),
            *get_of_trainings("training.csv"),
            *get_of_trainings("held_out.csv"),
            *get_policy_files("samples.jsonl", CONFIG.policy.ppo_run),
        ],
        "training_summary": [
            *get_of_trainings("held_out.csv"),
            *get_samples(CONFIG.policy.ppo_run),
        ],
        "world": [
            "results/{run}/world/statistics.csv",
            *get_reward_files("scores.csv"),
        ],
        "latents": [*get_reward_files("scores.csv"), *get_reward_files("training.csv")],
        "ablation": get_study_files(CONFIG.study.ablation_cells()),
    }
    return [path.format(run=wildcards.run) for path in needs[wildcards.table]]


def get_figure_inputs(wildcards):
    """Files that a figure is drawn from; Figures 1 and 2 are drawn from the configuration."""
    name = wildcards.figure
    if name in ("figure3", "figure4", "figure5"):
        paths = get_reward_files("training.csv", getattr(CONFIG.report, name))
    elif name == "overoptimisation":
        paths = get_samples([*CONFIG.policy.ppo_run, "best_of_n"])
    elif name == "bound":
        paths = get_bounds()
    elif name == "power":
        paths = get_study_files(CONFIG.study.power_cells())
    elif name == "residual":
        paths = get_reward_files("scores.csv")
    elif name == "calibration":
        drawn = [
            name for name in CONFIG.report.calibration if name in CONFIG.reward.run
        ]
        paths = get_reward_files("scores.csv", drawn)
    else:
        paths = get_judged_scores()
    return [path.format(run=wildcards.run) for path in paths]


# What a report calls the tables and figures that are not the paper's own.
TITLES = {
    "world": "The synthetic world, and probes",
    "latents": "Latents of every VRM",
    "training_summary": "What each policy training did",
    "comparisons": "Differences between reward models",
    "comparisons_judged": "Differences between judged policies",
    "bound": "The bound of Theorem 5.1",
    "calibration": "How far probabilities can be trusted",
    "residual": "What rated aspects and residual hold",
    "health": "Health of every training",
    "overoptimisation": "Over-optimisation",
    "win_rate_length": "Win rate against length",
    "ablation": "What made it learn: one change at a time",
    "power": "Accuracy and recovered weights against pairs and bias",
}


def get_title(name):
    """Table 1 for table1."""
    return TITLES.get(name, f"{name[:-1].capitalize()} {name[-1]}")


def get_table_labels(wildcards):
    return {"table": get_title(wildcards.table)}


def get_figure_labels(wildcards):
    return {"figure": get_title(wildcards.figure)}


def get_paper_page_inputs(wildcards):
    """The tables and figures that claims are looked up in, and what the page's own tests are made of."""
    read = ["table1", "table2", "comparisons", "comparisons_judged", "bound"]
    drawn = ["figure3", "figure4", "figure5", "figure6", "overoptimisation"]
    tables = [name for name in CONFIG.report.tables if name in read]
    figures = [name for name in CONFIG.report.figures if name in drawn]
    made = [f"results/{{run}}/tables/{name}.csv" for name in tables]
    made += [f"results/{{run}}/figures/{name}.csv" for name in figures]
    if {"table1", "comparisons_judged", "figure6"} & {*tables, *figures}:
        made += [*get_judged_scores(), *get_benchmark_sets()]
    if {"table2", "comparisons"} & {*tables}:
        made += get_reward_scores()
    if "table2" in tables:
        made += [*get_policy_scores(), *get_outside_scores()]
    return [path.format(run=wildcards.run) for path in made]


def get_pages():
    """Pages beside tables and figures; the explorer compares a plain reward model with variational ones."""
    kinds = {CONFIG.reward.variants[name].kind for name in CONFIG.reward.run}
    pages = ["tables/paper.md"] if CONFIG.report.paper else []
    pages += ["explorer/explorer.html"] if {"scalar", "variational"} <= kinds else []
    return [f"results/{CONFIG.run}/{page}" for page in pages]


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
        settings=depends_on(dependencies.table),
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
        settings=depends_on(dependencies.paper_page),
        name="paper",
        results="results/{run}",
        out=lambda wildcards, output: Path(output.csv).parent,


# Figures 1 and 2 explain the method and are drawn from the configuration; all others from the files of the run.
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
        settings=depends_on(dependencies.schematic),
        results="results/{run}",
        out=lambda wildcards, output: Path(output.pdf).parent,
    shell:
        "python -m vrm figure --config {params.results}/config.yaml --name {wildcards.figure}"
        " --results {params.results} --out {params.out} > {log} 2>&1"


use rule schematic as figure with:
    input:
        get_figure_inputs,
    wildcard_constraints:
        figure=r"(?!figure[12]\.).*",
    params:
        settings=depends_on(dependencies.table),
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
        settings=depends_on(dependencies.explorer),
        results=lambda wildcards, output: Path(output.html).parents[1],
        out=lambda wildcards, output: Path(output.html).parent,
    shell:
        "python -m vrm explorer --config {params.results}/config.yaml --results {params.results}"
        " --out {params.out} > {log} 2>&1"
