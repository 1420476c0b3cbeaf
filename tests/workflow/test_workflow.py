"""The DAG itself: what it plans, what a change reruns, and the smoke preset from end to end."""

import inspect
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from paths import ROOT, SHARED
from runs import DEFAULT, SMOKE, contents, planned, results, snakemake
from snakemake.scheduling.job_scheduler import JobScheduler
from transformers import AutoTokenizer

from vrm.cli.commands import COMMANDS
from vrm.records import read_jsonl
from vrm.reporting.registry import FIGURES, TABLES


def test_the_default_plans_the_papers_grid(tmp_path):
    jobs = planned(snakemake("-n", directory=tmp_path))
    assert jobs["train_reward"] == jobs["score"] == 13 * 3
    assert jobs["tokenise"] == jobs["tokenise_sets"] == 1
    assert (jobs["figure"], jobs["schematic"], jobs["table"], jobs["world"]) == (9, 2, 11, 1)
    assert (jobs["policy_backbone"], jobs["sft"], jobs["train_preference"], jobs["train_ppo"]) == (2, 2, 2 * 6, 2 * 5)
    assert (jobs["reference_log_probs"], jobs["reference_of_sets"]) == (2, 1)  # the base that scores
    assert (jobs["difficulty_run"], jobs["difficulty"]) == (2 * 2, 2)  # one halving, two halves, two bases
    assert (jobs["score_policy"], jobs["best_of_n"]) == (6, 2)
    assert jobs["gold"] == 2 * (5 + 1)
    judged = 2 * (1 + 6 + 5)  # what training started from, too
    assert (jobs["answer"], jobs["judge_alpaca_eval"], jobs["judge"]) == (judged, judged, 2 * judged)
    assert (jobs["benchmark_set"], jobs["judged_scores"]) == (3, 3)
    assert (jobs["pac_bayes"], jobs["explorer"], jobs["paper_page"]) == (3 * 3, 1, 1)
    assert not (tmp_path / "results").exists()  # a dry run writes nothing


def test_every_world_of_the_study_is_tokenised_once_for_all_its_models(tmp_path):
    preset = ROOT / "workflow" / "presets" / "study.yaml"
    output = snakemake("-n", "-p", directory=tmp_path, configs=(DEFAULT, preset))
    jobs = planned(output)
    assert jobs["tokenise"] == 1
    assert jobs["tokenise_study_world"] == jobs["study_world"] > 1
    cells = [line for line in output.splitlines() if " study-cell " in line]
    assert len(cells) == jobs["study_cell"]
    for cell in cells:
        data, tokens = (re.search(rf"--{name} (\S+)", cell)[1] for name in ("data", "tokens"))
        assert tokens == data.replace("/data/pairs", "").replace("study/worlds", "study/tokens") or (
            (data, tokens) == ("results/study/data/pairs", "results/study/data/tokens")
        )


def test_trainings_on_two_nodes_ask_for_a_task_a_node_and_their_gpus_evenly(tmp_path):
    paper = (DEFAULT, ROOT / "workflow" / "presets" / "paper.yaml")
    two = "reward={training: {processes: 16, nodes: 2}}"
    said = snakemake("-n", "-p", "--config", two, directory=tmp_path, configs=paper)
    asked = re.findall(r"^rule (\w+):.*?resources: ([^\n]*)", said, flags=re.MULTILINE | re.DOTALL)
    (training,) = {resources for rule, resources in asked if rule == "train_reward"}
    placed = {"gpu=16", "nodes=2", "tasks=2", "tasks_per_gpu=0", "mpi=srun", "slurm_extra=--gpus-per-node=8"}
    assert placed <= set(training.split(", "))
    others = [resources for rule, resources in asked if rule != "train_reward"]
    assert len(others) > 5
    assert not any("nodes=" in resources for resources in others)
    started = re.findall(r"Shell command: (.*) -m vrm train-reward", said)
    assert len(started) == planned(said)["train_reward"]
    assert all(words.startswith("python -m vrm.launch --nodes 2 ") for words in started)


def test_own_data_needs_no_world(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    preset = ROOT / "workflow" / "presets" / "own_data.yaml"
    output = snakemake("-n", "--config", "data={path: mine.jsonl}", directory=tmp_path, configs=(DEFAULT, preset))
    assert not {"world", "sft", "train_ppo", "gold", "answer", "judge", "world_benchmarks"} & planned(output).keys()
    absent = snakemake(
        "-n", "--config", "data={path: absent.jsonl}", directory=tmp_path, configs=(DEFAULT, preset), check=False
    )
    assert "absent.jsonl" in absent
    assert "Missing input files" in absent


def test_an_outside_model_is_scored_and_pays_ppo_without_a_training(tmp_path):
    """One in a directory is a file of the workflow; one of the hub is none."""
    (tmp_path / "theirs").mkdir()
    overlay = {
        "reward": {
            "run": ["rm"],
            "seeds": [1],
            "outside": {
                "theirs": {"label": "Theirs", "path": "./theirs"},
                "hub": {"label": "Hub", "path": "owner/name", "revision": "0" * 40},
            },
            "run_outside": ["theirs", "hub"],
        },
        "policy": {
            "run_bases": ["qwen3"],
            "scorers_from": None,
            "run": ["ppo", "ppo_theirs", "ppo_hub"],
            "methods": {f"ppo_{n}": {"label": n, "method": "ppo", "reward": n} for n in ("theirs", "hub")},
        },
        "benchmarks": {"run": []},
        "report": {"tables": ["table2", "training_summary"], "figures": ["overoptimisation"], "paper": False},
    }
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(overlay))
    configs = (DEFAULT, tmp_path / "outside.yaml")
    output = snakemake("-n", "-p", directory=tmp_path, configs=configs)
    jobs = planned(output)
    assert (jobs["score_outside"], jobs["train_ppo"], jobs["train_reward"], jobs["score"]) == (2, 3, 1, 1)
    commands = {command: [line for line in output.splitlines() if f"-m vrm {command}" in line] for command in COMMANDS}
    outside = [line for line in commands["score-reward"] if "--outside" in line]
    assert len(outside) == 2
    assert not any("--model" in line or "--features" in line for line in outside)
    paid = [line for line in commands["train-ppo"] if "ppo_theirs" in line or "ppo_hub" in line]
    assert len(paid) == 2
    assert not any("--model" in line for line in paid)
    (drawn,) = commands["best-of-n"]
    assert "--models rm=results/demo/reward/rm/seed1/model theirs hub --pairs" in drawn
    (tmp_path / "theirs").rmdir()
    absent = snakemake("-n", directory=tmp_path, configs=configs, check=False)
    assert "Missing input files" in absent
    assert "theirs" in absent


def test_a_mistyped_key_stops_before_anything_runs(tmp_path):
    output = snakemake("-n", "--config", "rewards={seeds: [1]}", directory=tmp_path, check=False)
    assert "rewards: there is no such key" in output


def plan(smoke, *config):
    return snakemake("-n", *(["--config", *config] if config else []), directory=smoke, configs=(DEFAULT, SMOKE))


def test_smoke_makes_every_table_and_figure(smoke):
    run = smoke / "results" / "smoke"
    for table in TABLES:
        for suffix in ("csv", "md", "tex", "html"):
            assert (run / "tables" / f"{table}.{suffix}").stat().st_size > 100
        assert "synthetic world" in (run / "tables" / f"{table}.md").read_text()
    for figure in FIGURES:
        for suffix in ("pdf", "png"):
            assert (run / "figures" / f"{figure}.{suffix}").stat().st_size > 5000
    assert (run / "explorer" / "explorer.html").stat().st_size > 10_000
    assert {path.name for path in smoke.iterdir()} == {"results", ".snakemake"}


def test_smoke_leaves_provenance_beside_every_result(smoke):
    run = smoke / "results" / "smoke"
    for place in (
        "reward/rm/seed1/train-reward",
        "reward/rm/seed1/scores",
        "tables/table2",
        "data/make-pairs",
        "backbone/backbone",
        "data/tokens/tokenise",
        "evaluation/texts",
        "policy/qwen3/sft/seed1/sft",
        "policy/qwen3/kto/seed1/train-preference",
        "policy/qwen2_5/ppo_vrm/seed1/train-ppo",
        "policy/qwen2_5/ppo_vrm/seed1/samples.gold",
        "policy/qwen2_5/dpo/seed1/scores",
        "policy/qwen2_5/dpo/seed1/answers/answer",
        "policy/qwen2_5/dpo/seed1/judgments/arena_hard",
        "judged/mt_bench",
    ):
        found = json.loads((run / f"{place}.provenance.json").read_text())
        assert {"commit", "config_sha256", "lock_sha256", "packages", "seconds", "device"} <= found.keys(), place
        assert {"config", "data", "inputs", "judge", "seed"} <= found.keys(), place
    table = json.loads((run / "tables" / "table1.provenance.json").read_text())
    assert table["run"]["rows"]["counts"]["rows"] == 120
    assert len(table["run"]["tokenizers"]) == 3  # the reward models' and one of each base


def test_smoke_judges_every_policy_on_every_benchmark(smoke):
    run = smoke / "results" / "smoke"
    for name, judgments in (("alpaca_eval", 8), ("arena_hard", 2 * 6), ("mt_bench", 2 * 8)):
        counts = [json.loads(path.read_text()) for path in run.glob(f"policy/*/*/seed1/judgments/{name}.counts.json")]
        assert len(counts) == 2 * 8
        assert {(entry["judged"], entry["failed"] == {}) for entry in counts} == {(judgments, True)}
    table = pd.read_csv(run / "tables" / "table1.csv")
    assert set(table.method) == {"sft", "dpo", "kto", "simpo", "selective_dpo", "ppo", "ppo_vrm", "ppo_vrm_lambda0"}
    assert table.groupby(["base", "benchmark"]).ngroups == 2 * 3


@pytest.mark.skipif(sys.platform != "linux", reason="jobs are plain elsewhere")
def test_smoke_has_every_job_in_the_warm_interpreter(smoke):
    logs = smoke / "results" / "smoke" / "logs"
    lines = [json.loads(line) for line in (logs / "warm.log").read_text().splitlines()]
    jobs = [line for line in lines if "job" in line]
    assert len(jobs) == sum(1 for _ in logs.rglob("*.log")) - 1
    assert not [line for line in lines if "plain" in line]  # a job that did not fit the server, and imported again


def test_the_scheduler_still_asks_for_its_rate_limit_where_a_local_run_takes_it_away():
    source = inspect.getsource(JobScheduler)
    assert "if self.job_rate_limiter is not None" in source
    assert "if self.job_rate_limiter is None" in source


def test_smoke_policies_of_both_bases_see_the_same_prompts_in_their_own_templates(smoke):
    run = smoke / "results" / "smoke" / "policy"
    prompts = []
    for base, opening in (("qwen2_5", "<|im_start|>system"), ("qwen3", "<|im_start|>user")):
        samples = [row for _, row in read_jsonl(run / base / "ppo" / "seed1" / "samples.jsonl")]
        prompts.append([row["prompt_id"] for row in samples])
        tokenizer = AutoTokenizer.from_pretrained(run / base / "ppo" / "seed1" / "model")
        assert tokenizer.apply_chat_template(samples[0]["prompt"], tokenize=False).startswith(opening)
    assert prompts[0] == prompts[1]


def test_the_report_holds_every_table_and_figure_with_its_caption(smoke, tmp_path):
    snakemake("--report", tmp_path / "report.html", directory=smoke, configs=(DEFAULT, SMOKE))
    page = (tmp_path / "report.html").read_text()
    for opening in ("Pairwise accuracy of every scorer", "What every policy training did", "Over-optimisation: gains"):
        assert opening in page
    assert "snakemake.wildcards" not in page  # captions are rendered
    pages = re.findall(r"data:text/html[^\"']*", page)
    assert len(pages) == len(TABLES) + 1  # the paper's page is a table among them; the explorer
    assert max(map(len, pages)) < 2 * 2**20  # Chromium shows nothing of a longer address


def test_every_table_and_figure_has_a_caption():
    for kind, names in (("table", TABLES), ("figure", FIGURES)):
        captions = (ROOT / "workflow" / "report" / f"{kind}.rst").read_text()
        assert set(re.findall(r'== "(\w+)"', captions)) == set(names) - {"paper"}  # a page of its own


def test_a_second_run_does_nothing(smoke):
    assert "Nothing to be done" in plan(smoke)


CHAIN = (
    *("reward/vrm/seed1/scores.csv", "reward/vrm/seed1/pac_bayes.csv", "policy/qwen2_5/selective_dpo/seed1/scores.csv"),
    *("policy/qwen2_5/ppo_vrm/seed1/samples.gold.csv", "policy/qwen2_5/ppo_vrm/seed1/judgments/alpaca_eval.json"),
    "policy/qwen2_5/ppo_vrm/seed1/judgments/arena_hard.jsonl",
    "study/no_bias/vrm_concept_residual/pairs64/seed1/scores.csv",
)
"""From the world to scores, samples and judgments: whatever a stage makes of one model, made from nothing."""

GATHERED = {
    "best_of_n": "policy/qwen2_5/best_of_n/seed1/samples.jsonl",
    "judged_scores": "judged/arena_hard.csv",
    "table": "tables/table1.csv",
    "schematic": "figures/figure1.csv",
    "figure": "figures/figure6.csv",
    "explorer": "explorer/explorer.html",
    "paper_page": "tables/paper.csv",
}
"""What the other stages make of all models, by rule."""

WARM_LOG = "results/smoke/logs/warm.log"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Directory where CHAIN was made, each job in an interpreter of its own; and what Snakemake said."""
    directory = tmp_path_factory.mktemp("second")
    targets = [f"results/smoke/{name}" for name in CHAIN]
    said = snakemake("--", *targets, directory=directory, configs=(DEFAULT, SMOKE), VRM_WARM="off")
    assert not (directory / WARM_LOG).exists()
    return directory, said


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.xdist_group("second_run")
def test_every_stage_makes_the_same_bytes_in_an_interpreter_of_its_own(smoke, chain, tmp_path):
    """A job of each stage, started as where there is no warm server, leaves what its fork of the server has left.

    One job a stage is enough. The server runs no job itself: what a fork has before a fresh interpreter is modules that
    were imported beforehand, by a list that knows stages and no methods, and nothing that another job has left. That
    each job of a stage, of whatever method, variant and base, gives equal files again is the second run's to show.
    """
    everything = planned(snakemake("-n", directory=tmp_path / "nothing", configs=(DEFAULT, SMOKE)))
    (made, chain_said), copy = chain, tmp_path / "copy"
    shutil.copytree(smoke, copy)
    targets = [f"results/smoke/{name}" for name in GATHERED.values()]
    options = ("--force", "--allowed-rules", *GATHERED, "--", *targets)
    gathered_said = snakemake(*options, directory=copy, configs=(DEFAULT, SMOKE), VRM_WARM="off")
    assert planned(chain_said).keys() | planned(gathered_said).keys() | {"all"} == everything.keys()
    assert (copy / WARM_LOG).read_bytes() == (smoke / WARM_LOG).read_bytes()
    once = results(smoke)
    for directory in (made, copy):
        found = results(directory)
        assert [name for name in found if once[name] != found[name]] == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.xdist_group("second_run")
def test_equal_seeds_give_byte_identical_files(smoke, chain):
    """Every file of a whole run in another directory: CHAIN's jobs are done, the others come one after another."""
    directory, _ = chain
    snakemake("--cores", "1", directory=directory, configs=(DEFAULT, SMOKE))
    once, twice = results(smoke), results(directory)
    assert {name for name in once if name.startswith("tables/")} >= {f"tables/{table}.csv" for table in TABLES}
    assert {name for name in once if name.startswith("figures/")} >= {f"figures/{figure}.csv" for figure in FIGURES}
    assert twice.keys() == once.keys()
    assert [name for name in once if once[name] != twice[name]] == []


@pytest.mark.slow
@pytest.mark.long
def test_another_seed_changes_the_table(smoke, tmp_path):
    report = "report={tables: [table2], figures: [], paper: false}"
    config = ("reward={seeds: [2], run: [rm, vrm]}", "policy={run: []}", report)
    snakemake("--config", *config, directory=tmp_path, configs=(DEFAULT, SMOKE))
    first, second = (
        pd.read_csv(directory / "results" / "smoke" / "tables" / "table2.csv").set_index(["variant", "column"])
        for directory in (smoke, tmp_path)
    )
    assert set(second.index.get_level_values("variant")) == {"rm", "vrm", "length alone"}
    for variant in ("rm", "vrm"):
        assert first.estimate[variant].to_dict() != second.estimate[variant].to_dict()


def test_answers_that_two_jobs_share_are_the_bytes_of_one(smoke, tmp_path):
    for part in ("results/smoke/judged", "results/smoke/policy/qwen3/sft", ".snakemake"):
        shutil.copytree(smoke / part, tmp_path / part)
    place = tmp_path / "results/smoke/policy/qwen3/sft/seed1/answers"
    expected = contents(place)
    shutil.rmtree(place)
    rules = ("--allowed-rules", "answer", "answer_share", "--", place.relative_to(tmp_path) / "counts.json")
    shares = ("--config", "benchmarks={answering: {shares: 2}}")
    snakemake(*shares, *rules, directory=tmp_path, configs=(DEFAULT, SMOKE))
    assert len(list((place.parent / "answer_shares").glob("*of2.jsonl"))) == 2
    assert contents(place) == expected


@pytest.mark.parametrize(
    ("change", "rerun", "kept"),
    [
        ("report={level: 0.9}", {"table", "figure"}, {"train_reward", "score"}),
        ("reward={variants: {rm: {label: Plain RM}}}", {"table"}, {"train_reward", "score", "world"}),
        ("reward={variants: {vrm: {beta_z: 0.5}}}", {"train_reward", "score", "table"}, {"backbone", "tokenise"}),
        ("data={pairing: best_vs_worst}", {"make_pairs", "tokenise", "tokenise_sets", "train_reward"}, {"world"}),
        ("world={seed: 7}", {"world"}, set()),
        ("policy={ppo: {kl_coefficient: 0.1}}", {"train_ppo", "gold"}, {"train_preference", "sft", "best_of_n"}),
        ("policy={methods: {dpo: {label: Direct}}}", {"table"}, {"train_preference", "score_policy"}),
        ("policy={difficulty: {keep: 0.25}}", {"difficulty", "train_preference"}, {"difficulty_run", "train_ppo"}),
        ("benchmarks={mt_bench: {max_new_tokens: 8}}", {"answer", "judge", "judged_scores"}, {"train_ppo", "sft"}),
        ("judge={model: another}", {"judge", "judge_alpaca_eval", "judged_scores"}, {"answer"}),
        ("judge={concurrency: 2}", set(), {"judge", "judged_scores", "table"}),
        ("world={instructions: 9}", {"world_benchmarks", "answer"}, {"world", "train_reward", "sft"}),
        ("policy={gold: null}", {"figure", "table"}, {"train_ppo", "best_of_n"}),
        ("benchmarks={arena_hard: {label: Arena}}", {"table", "figure"}, {"answer", "judge", "judged_scores"}),
    ],
    ids=[
        *("interval level", "label", "beta_z", "pairing", "world", "PPO", "method label", "selection"),
        *("answers", "judge", "how hard the judge is asked", "instructions", "no gold"),
        "benchmark label",
    ],
)
def test_a_change_reruns_what_depends_on_it(smoke, change, rerun, kept):
    jobs = planned(plan(smoke, change))
    assert rerun <= jobs.keys()
    assert not kept & jobs.keys()


def test_changing_one_method_retrains_that_method_alone(smoke):
    jobs = planned(plan(smoke, "policy={methods: {kto: {beta: 0.2}}}"))
    assert jobs["train_preference"] == 2  # one a base
    assert "train_ppo" not in jobs


def test_changing_one_variant_retrains_that_variant_alone(smoke):
    assert planned(plan(smoke, "reward={variants: {vrm: {beta_z: 0.5}}}"))["train_reward"] == 1


def test_environments_hold_the_pins_of_the_lock():
    subprocess.run([sys.executable, ROOT / "tools" / "envs.py", "--check"], check=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="../shared, the real data, is not here")
def test_real_human_scores_from_file_to_table(tmp_path):
    """SummEval's first 24 articles: other aspect names, fractional ratings, long prompts."""
    lines = (SHARED / "data" / "summeval" / "train.jsonl").read_text().splitlines()[:24]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    overlay = {
        "data": {"path": "mine.jsonl", "label": "SummEval", "max_pairs_per_prompt": 2},
        "backbone": {"create": {"pretraining_steps": 2, "hidden_size": 32, "layers": 1, "vocabulary_size": 400}},
        "reward": {
            "seeds": [1],
            "run": ["rm", "vrm"],
            "training": {"epochs": 0.5, "max_prompt_length": 96, "max_length": 256, "evaluations": 1},
        },
        "evaluation": {
            "run": ["held_out", "reward_bench"],
            "sets": {"reward_bench": {"path": str(SHARED / "data" / "reward_bench_shape" / "pairs.jsonl")}},
        },
        "policy": {
            "run_bases": ["mine"],
            "scorers_from": "mine",
            "bases": {"mine": {"label": "mine", "create": {"pretraining_steps": 2, "layers": 1, "hidden_size": 32}}},
            "run": ["dpo", "ppo_vrm"],
            "training": {"epochs": 0.5, "max_prompt_length": 96, "max_length": 128, "evaluations": 1},
            "generation": {"max_new_tokens": 16},
            "ppo": {
                "updates": 2,
                "critic_warmup": 1,
                "prompts_per_update": 8,
                "minibatch_size": 8,
                "limits": {"missing_end": 1.0},
            },
            "gold": None,
        },
        "report": {
            "tables": ["table2", "latents", "training_summary"],
            "figure3": ["vrm"],
            "figure5": ["vrm"],
            "bootstrap_samples": 100,
        },
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(overlay))
    preset = ROOT / "workflow" / "presets" / "own_data.yaml"
    snakemake(directory=tmp_path, configs=(DEFAULT, preset, tmp_path / "mine.yaml"))
    table = (tmp_path / "results" / "own_data" / "tables" / "table2.md").read_text()
    assert "SummEval" in table
    assert "synthetic" not in table
    for subset in ("math-prm", "hep-python", "donotanswer"):
        assert subset in table, "a missing RewardBench subset is not named"
    summary = pd.read_csv(tmp_path / "results" / "own_data" / "tables" / "training_summary.csv")
    assert set(summary.method) == {"sft", "dpo", "ppo_vrm"}
    assert "gold" not in set(summary.metric)  # there is no gold judge of summaries
    counts = json.loads(
        (tmp_path / "results" / "own_data" / "policy" / "mine" / "dpo" / "seed1" / "counts.json").read_text()
    )
    assert counts["train"]["prompts_cut"] > 0  # articles are long, and it is said
    audit = json.loads((tmp_path / "results" / "own_data" / "evaluation" / "sets" / "reward_bench.json").read_text())
    assert audit["pairs"] == 989
