# Names for what the rules of the judged benchmarks ask of the configuration.

from vrm.config.benchmarks import FILES

# How hard a judge is asked, what it costs and where replies are kept change no judgment.
NOT_JUDGMENTS = [
    *["concurrency", "requests_per_minute", "timeout", "attempts", "backoff"],
    *["longest_wait", "prices", "store", "api_key_env"],
]
# What only the judge and the scores need of a benchmark, or only the reader of tables.
NOT_ANSWERS = ["label", "annotator", "attempts", "bootstrap_samples"]


def get_benchmark_sets():
    return collect(
        "results/{{run}}/judged/sets/{benchmark}", benchmark=CONFIG.benchmarks.run
    )


def get_answer_files(benchmarks=None):
    """Names of one policy's answers."""
    folder = "results/{run}/policy/{base}/{method}/seed{seed}/answers"
    names = CONFIG.benchmarks.run if benchmarks is None else benchmarks
    return [f"{folder}/{FILES[name]}" for name in names]


def get_benchmark_settings(wildcards):
    """The set's files depend on who is compared with."""
    own = get_settings(f"benchmarks.{wildcards.benchmark}")
    names = ("references", "baseline")
    kept = {k: v for part in own.values() for k, v in part.items() if k in names}
    return kept | get_settings("data.benchmarks_dir")


def get_answer_settings(wildcards):
    names = [f"benchmarks.{name}" for name in CONFIG.benchmarks.run]
    sets = get_settings(*names, exclude=NOT_ANSWERS)
    template = f"policy.bases.{wildcards.base}.chat_template_kwargs"
    how = get_settings("benchmarks.answering", exclude=["save_every", "vllm_memory"])
    return sets | how | get_settings(template)


def get_judge_settings(wildcards):
    name = wildcards.get("benchmark", "alpaca_eval")
    kept = ["annotator", "attempts", "references", "baseline"]
    benchmark = get_settings(f"benchmarks.{name}")[f"benchmarks.{name}"]
    own = {key: value for key, value in benchmark.items() if key in kept}
    return own | get_settings("judge", exclude=NOT_JUDGMENTS)


def get_judged_scores_settings(wildcards):
    names = ["report.level", "report.seed", "report.bootstrap_samples", "judge.model"]
    return get_settings(f"benchmarks.{wildcards.benchmark}", *names, exclude=["label"])


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


def get_judged_scores():
    return collect(
        "results/{{run}}/judged/{benchmark}.{ending}",
        benchmark=CONFIG.benchmarks.run,
        ending=["csv", "items.csv", "draws.csv", "json"],
    )
