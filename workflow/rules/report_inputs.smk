# Names for what tables, figures and pages are made of, and what a report calls them.


def get_bounds():
    """The terms of Theorem 5.1 for every trained VRM."""
    kinds = CONFIG.reward.variants
    vrms = [name for name in CONFIG.reward.run if kinds[name].kind == "variational"]
    return get_reward_files("pac_bayes.csv", vrms)


def get_table_inputs(wildcards):
    """Files that a table is made of."""
    needs = {
        "table1": get_judged_scores(),
        "table2": [*get_policy_scores(), *get_reward_files("scores.csv")],
        "comparisons": get_reward_files("scores.csv"),
        "comparisons_judged": get_judged_scores(),
        "bound": get_bounds(),
        "training_summary": [*get_held_out(), *get_samples(CONFIG.policy.ppo_run)],
        "world": [
            "results/{run}/world/statistics.csv",
            *get_reward_files("scores.csv"),
        ],
        "latents": [*get_reward_files("scores.csv"), *get_reward_files("training.csv")],
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
    "overoptimisation": "Over-optimisation",
    "win_rate_length": "Win rate against length",
}


def get_title(name):
    """Table 1 for table1."""
    return TITLES.get(name, f"{name[:-1].capitalize()} {name[-1]}")


def get_table_labels(wildcards):
    return {"table": get_title(wildcards.table)}


def get_figure_labels(wildcards):
    return {"figure": get_title(wildcards.figure)}


def get_pages():
    """Pages beside tables and figures; the explorer compares a plain reward model with variational ones."""
    kinds = {CONFIG.reward.variants[name].kind for name in CONFIG.reward.run}
    pages = ["tables/paper.md"] if CONFIG.report.paper else []
    pages += ["explorer/explorer.html"] if len(kinds) == 2 else []
    return [f"results/{CONFIG.run}/{page}" for page in pages]


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
        made += get_reward_files("scores.csv")
    if "table2" in tables:
        made += get_policy_scores()
    return [path.format(run=wildcards.run) for path in made]
