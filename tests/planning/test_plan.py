"""The plan of the paper's preset: what is in it, that it fits, that it is light, and that it agrees with the DAG."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from paths import ROOT

from vrm.config import Config, load, merge
from vrm.planning.jobs import ESTIMATES, Job, RuleResources, Setting, jobs
from vrm.planning.memory import GIB, shape_of
from vrm.planning.plan import longest_chain, open_revisions, plan, wall_clock

PRESETS = ROOT / "workflow" / "presets"
PAPER = [ROOT / "config.yaml", PRESETS / "paper.yaml"]
SMALL = [ROOT / "config.yaml", PRESETS / "single_gpu.yaml"]


@pytest.fixture(scope="module")
def paper() -> Config:
    return load(PAPER)


def changed(config: Config, **parts) -> Config:
    return Config.model_validate(merge(config.model_dump(mode="json"), parts))


@pytest.mark.parametrize("files", [PAPER, SMALL], ids=["paper", "single_gpu"])
def test_presets_fit_a_card_are_pinned_and_know_nothing_of_the_demo(files):
    config = load(files)
    assert open_revisions(config) == []
    text = plan(config)
    assert "does not fit" not in text
    assert "unknown" not in text
    used = [config.data, *(config.evaluation.sets[name] for name in config.evaluation.run)]
    assert all(source.hub is not None for source in used)
    assert [config.judge.serve, config.policy.gold, config.data.benchmarks_dir] == [None, None, None]
    assert "world" not in config.report.tables


def test_every_job_of_the_dag_is_planned(paper):
    """Against snakemake's own count."""
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--configfile", *map(str, PAPER)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counted = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    planned = Counter(job.stage for job in jobs(Setting(paper)))
    assert planned == {stage: counted[stage] for stage in planned}
    rules = [rule for path in ROOT.glob("workflow/rules/*.smk") for rule in path.read_text().split("\nrule ")]
    assert set(planned) >= {rule.partition(":")[0] for rule in rules if "gpu=" in rule} & set(counted)


def test_a_smaller_card_and_a_missing_revision_are_open_points(paper):
    text = plan(paper, gpu_memory=40)
    assert re.search(r"train_reward: needs \d+ GiB and does not fit a card \(weights 15, gradients 15", text)
    loose = changed(paper, backbone={"revision": None}, data={"hub": {"revision": None}})
    assert open_revisions(loose) == [
        "backbone.revision (Qwen/Qwen3-4B-Instruct-2507)",
        "data.hub.revision (openbmb/UltraFeedback)",
    ]
    assert "not pinned: backbone.revision" in plan(loose)


def test_sets_that_are_not_here_are_said_and_a_served_judge_is_no_bill(paper, tmp_path):
    demo = changed(load([ROOT / "config.yaml"]), data={"benchmarks_dir": str(tmp_path / "sets")})
    text = plan(demo)
    assert (
        f"  {tmp_path}/sets is not here yet, so how large its sets are is not known: counted are the official" in text
    )
    assert text.count("M out, a local judge, free\n") == len(demo.benchmarks.run) > 0
    assert "price unknown" not in text
    (tmp_path / "sets").mkdir()
    assert "is not known" not in plan(demo)
    assert "is not known" not in plan(paper)


def test_a_model_of_unknown_size_is_said(paper):
    text = plan(changed(paper, backbone={"path": "somebody/model", "revision": "0" * 40}))
    assert "train_reward: a model's size is not known" in text


def test_ten_times_the_seeds_take_ten_times_the_hours(paper):
    def total(config):
        return sum(job.hours for job in jobs(Setting(config)) if job.stage == "train_reward")

    seeds = list(range(30))
    assert total(changed(paper, reward={"seeds": seeds})) == pytest.approx(10 * total(paper))


def test_ten_times_the_data_train_ten_times_as_long_and_answer_no_more(paper):
    def hours(scale, *stages):
        return sum(job.hours for job in jobs(Setting(paper, scale=scale)) if job.stage in stages)

    assert hours(10, "difficulty_run") == pytest.approx(10 * hours(1, "difficulty_run"), rel=1e-3)
    # what is measured along the way stays
    for stage in ("train_reward", "train_preference", "train_ppo"):
        assert 8 < hours(10, stage) / hours(1, stage) <= 10
    assert hours(10, "score", "answer", "best_of_n") == hours(1, "score", "answer", "best_of_n")


def test_the_reference_is_asked_once_and_before_whoever_needs_it(paper):
    found = {job.name: job for job in jobs(Setting(paper))}
    end = f"qwen3 seed{paper.policy.seeds[0]}"
    once = found[f"reference_log_probs {end}"]
    assert once.needs == ()  # its bases are instruction-tuned
    assert 0 < once.hours < found[f"train_preference dpo {end}"].hours / 3
    for name in ("train_preference dpo", "train_preference kto"):
        assert found[f"{name} {end}"].needs == (once.name,)
    assert found[f"difficulty_run {end} run0 half1"].needs == (once.name,)
    assert once.name in found[f"train_preference selective_dpo {end}"].needs
    scored = paper.policy.scorers_from
    names = [job.name for job in found.values() if job.stage == "reference_of_sets"]
    assert names == [f"reference_of_sets {scored} seed{seed}" for seed in paper.policy.seeds]
    for method, known in (("dpo", names[:1]), ("simpo", [])):
        scores = found[f"score_policy {method} {scored} seed{paper.policy.seeds[0]}"]
        assert list(scores.needs[1:]) == known
        assert scores.memory == found[names[0]].memory  # one model is held


def test_reference_runs_in_another_precision_ask_for_themselves(paper):
    packed = changed(paper, policy={"difficulty": {"lora": {"load_in_4bit": True}}})
    assert paper.policy.shares_reference
    assert not packed.policy.shares_reference
    ours, own = (
        next(job for job in jobs(Setting(config)) if job.stage == "difficulty_run") for config in (paper, packed)
    )
    assert [need.split()[0] for need in ours.needs] == ["reference_log_probs"]
    assert own.needs == ()
    whole = changed(paper, policy={"difficulty": {"lora": None}, "training": {"lora": None}})
    assert whole.policy.shares_reference


def test_small_models_made_here_ask_for_no_gpu():
    resources = RuleResources(load([ROOT / "config.yaml"]))
    assert resources.gpus("train_reward") == 0
    assert resources.gpus("train_ppo", "qwen3", "ppo") == 0
    assert resources.mem_mb("train_reward") < 4096


def test_resources_grow_with_every_attempt(paper):
    resources = RuleResources(paper)
    assert resources.gpus("train_ppo", "qwen3", "ppo_vrm") == 1
    assert resources.gpus("table") == 0
    hours = resources.job("train_ppo", "qwen3", "ppo_vrm").hours
    assert resources.runtime("train_ppo", "qwen3", "ppo_vrm") > 60 * hours
    assert resources.runtime("train_reward", attempt=2) == 2 * resources.runtime("train_reward")
    assert resources.mem_mb("train_reward", attempt=3) == pytest.approx(2 * resources.mem_mb("train_reward"), abs=1)


def test_planning_imports_nothing_heavy():
    code = "import sys, vrm.planning.plan, vrm.planning.jobs; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


DIAMOND = [
    Job("a", "a", gpus=1, hours=2.0),
    Job("b", "b", gpus=1, hours=3.0, needs=("a",)),
    Job("c", "c", gpus=1, hours=1.0, needs=("a",)),
    Job("d", "d", gpus=1, hours=1.0, needs=("b", "c")),
]


@pytest.mark.parametrize(("gpus", "hours"), [(1, 7.0), (2, 6.0), (64, 6.0)])
def test_wall_clock_of_a_diamond(gpus, hours):
    assert wall_clock(DIAMOND, gpus) == hours
    assert longest_chain(DIAMOND) == (6.0, ["a", "b", "d"])


def test_wall_clock_lies_between_its_bounds(paper):
    todo = list(jobs(Setting(paper)))
    total, (chain, _) = sum(job.hours for job in todo), longest_chain(todo)
    for gpus in (1, 8, 64):
        # Graham 1966: no list schedule takes longer than both bounds together
        assert max(total / gpus, chain) - 1e-9 <= wall_clock(todo, gpus) <= total / gpus + chain


def test_a_training_in_two_processes_holds_two_cards_half_as_long(paper):
    one = RuleResources(paper)
    two = RuleResources(changed(paper, reward={"training": {"processes": 2, "launch": "fsdp2"}}))
    assert [each.gpus("train_reward") for each in (one, two)] == [1, 2]
    assert two.job("train_reward").gpu_hours == pytest.approx(one.job("train_reward").gpu_hours)
    assert two.mem_mb("train_reward") == 2 * one.mem_mb("train_reward")
    whole, half = (each.job("train_reward").memory.parts for each in (one, two))
    assert [half[name] for name in ("weights", "optimiser")] == [whole[name] / 2 for name in ("weights", "optimiser")]
    assert half["activations"] == whole["activations"]
    assert half["gathered"] * GIB == pytest.approx(_gathered(shape_of(paper.backbone), embeddings=2))
    assert "bfloat16 copies" not in half
    assert [each.gpus("score") for each in (one, two)] == [1, 1]
    # PPO keeps a whole policy on each card
    ppo = changed(paper, policy={"training": {"processes": 2, "launch": "fsdp2"}})
    asked = ("train_ppo", "qwen3", "ppo_vrm")
    parts = one.job(*asked).memory.parts
    assert RuleResources(ppo).job(*asked).memory.parts == {**parts, "DDP buckets": parts["gradients"]}


def test_a_training_on_two_nodes_asks_each_for_half_of_the_memory(paper):
    one, two = (changed(paper, reward={"training": {"processes": 4, "nodes": n}}) for n in (1, 2))
    here, there = RuleResources(one), RuleResources(two)
    assert there.job("train_reward").nodes == 2
    assert there.mem_mb("train_reward") == here.mem_mb("train_reward") / 2
    assert [each.gpus("train_reward") for each in (here, there)] == [4, 4]
    assert there.job("train_reward").gpu_hours == here.job("train_reward").gpu_hours
    assert "4 a training of reward (ddp, on 2 nodes)" in plan(two)
    assert plan(two).replace(", on 2 nodes", "") == plan(one)


def test_answers_are_shared_by_as_many_jobs_and_second_turns_are_left_to_one(paper):
    shared = changed(paper, benchmarks={"answering": {"shares": 4}})
    one, four = (list(jobs(Setting(config))) for config in (paper, shared))
    stages = Counter(job.stage for job in four)
    assert stages["answer_share"] == 4 * stages["answer"] == 4 * sum(job.stage == "answer" for job in one)
    spent = [sum(job.gpu_hours for job in each if job.stage.startswith("answer")) for each in (one, four)]
    assert spent[1] == pytest.approx(spent[0], rel=0.1)  # batches are rounded up, of each turn
    share = next(job for job in four if job.stage == "answer_share")
    second = next(job for job in four if job.name == share.name.replace("answer_share", "answer")[:-2])
    assert 0 < second.hours < share.hours
    assert {f"answer_share {second.name.removeprefix('answer ')} {n}" for n in range(4)} == set(second.needs)
    without = changed(shared, benchmarks={"run": ["arena_hard"]})
    assert RuleResources(without).job("answer", "qwen3").hours == 0


def test_a_site_is_told_of_every_rule_that_uses_a_gpu():
    profile = (ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"^#   (\w+): \{slurm_partition: gpu\}$", profile, re.MULTILINE))
    assert named == {*ESTIMATES, "study_cell"}


def _gathered(shape, embeddings):
    """Bytes of embeddings and blocks in float32, half of each weights and half gradients."""
    return 4 * (embeddings * shape.embedding_parameters + 4 * shape.matrix_parameters / shape.layers)


def test_an_untied_head_is_gathered_beside_the_embedding_and_frozen_weights_have_no_gradients(paper):
    full = changed(paper, policy={"training": {"processes": 2, "launch": "fsdp2", "lora": None}})
    adapted = changed(paper, policy={"training": {"processes": 2, "launch": "fsdp2"}})
    asked = ("train_preference", "qwen3", "dpo")
    shape, lora = shape_of(paper.policy.bases["qwen3"]), paper.policy.training.lora
    assert not shape.tied
    whole, less = (RuleResources(config).job(*asked).memory.parts["gathered"] * GIB for config in (full, adapted))
    assert whole == pytest.approx(_gathered(shape, embeddings=4))
    assert less == pytest.approx(whole / 4 + 16 * shape.adapter_parameters(lora.rank) / shape.layers)


def test_several_whole_models_hold_their_gradients_twice(paper):
    one, two = (
        RuleResources(changed(paper, reward={"training": {"processes": n}})).job("train_reward").memory for n in (1, 2)
    )
    assert two.parts == {**one.parts, "DDP buckets": one.parts["gradients"]}
    assert one.total < 80 < two.total  # a plan that left them out would say that it fits


def test_a_model_of_unknown_size_gets_a_card_for_each_process(paper):
    unknown = {"path": "somebody/model", "revision": "0" * 40}
    resources = RuleResources(changed(paper, backbone=unknown, reward={"training": {"processes": 4}}))
    assert resources.gpus("train_reward") == 4
    assert resources.gpus("score") == 1
    assert resources.job("train_reward").memory is None


def test_ktos_own_batch_is_what_its_memory_is_planned_for(paper):
    """Activations of the larger batch outgrow the merging of adapters, which is otherwise the peak."""
    few, many = (changed(paper, policy={"methods": {"kto": {"batch_size": n}}}) for n in (8, 16))
    a, b = (RuleResources(config).job("train_preference", "qwen3", "kto").memory.parts for config in (few, many))
    assert b["activations"] == pytest.approx(2 * a["activations"])
    dpo = RuleResources(paper).job("train_preference", "qwen3", "dpo")
    assert dpo.memory == RuleResources(many).job("train_preference", "qwen3", "dpo").memory


def test_an_outside_model_is_scored_with_and_held_at_its_own_size(paper):
    pinned = {"revision": "0" * 40}
    outside = {
        "small": {"label": "Small", "path": "Qwen/Qwen3-0.6B", **pinned},
        "strange": {"label": "Strange", "path": "somebody/model", **pinned},
    }
    ppo = {"ppo_small": {"label": "PPO (small)", "method": "ppo", "reward": "small"}}
    policy = {"methods": ppo, "run": [*paper.policy.run, "ppo_small"]}
    config = changed(paper, reward={"outside": outside, "run_outside": ["small", "strange"]}, policy=policy)
    planned = {job.name: job for job in jobs(Setting(config))}
    weights = {name: planned[f"score_outside {name}"].memory for name in ("small", "strange")}
    assert weights["strange"] is None  # of unknown size: a card, and the plan says so
    assert planned["score_outside strange"].gpus == 1
    size = 4 * shape_of(paper.backbone.model_copy(update={"path": "Qwen/Qwen3-0.6B"})).body_parameters / GIB
    assert weights["small"].parts["weights"] == pytest.approx(size)
    (paid,) = (job for name, job in planned.items() if name.startswith("train_ppo ppo_small qwen3 "))
    assert paid.memory.parts["reward model"] == pytest.approx(size)
    assert not any("train_reward" in name for name in paid.needs)
    assert not any("train_reward small" in name for name in planned)


def test_ppos_activations_are_those_of_a_forward_pass(paper):
    def parts(**sizes):
        config = changed(paper, policy={"ppo": sizes})
        return RuleResources(config).job("train_ppo", "qwen3", "ppo").memory.parts

    pass_of_32 = parts(minibatch_size=32, gradient_accumulation=4)
    assert parts(minibatch_size=32, gradient_accumulation=1) == pass_of_32
    assert parts(minibatch_size=64, gradient_accumulation=2)["activations"] == 2 * pass_of_32["activations"]


def test_a_training_that_wants_more_cards_than_there_are_is_an_open_point(paper):
    config = changed(paper, reward={"training": {"processes": 2}})
    assert "train_reward: a job takes 2 cards, and the plan has 1" in plan(config)
    assert "2 a training of reward (ddp)" in plan(config, gpus=2)
    assert "a job takes" not in plan(config, gpus=2)


def test_a_reward_models_adapters_take_half_a_card_and_checkpoints_of_megabytes(paper):
    """4B parameters: 2 bytes a frozen weight, 16 a trained one; a pass for the frozen weights' gradients is saved."""
    full = RuleResources(paper).job("train_reward")
    adapted = RuleResources(changed(paper, reward={"training": {"lora": {"rank": 16}}})).job("train_reward")
    shape = shape_of(paper.backbone)
    trained = shape.adapter_parameters(16) / GIB
    assert adapted.memory.parts["weights"] == pytest.approx(2 * shape.body_parameters / GIB + 4 * trained)
    assert adapted.memory.parts["optimiser"] == pytest.approx(8 * trained)
    assert adapted.memory.total < 40 < full.memory.total
    assert adapted.working == pytest.approx(12 * trained)
    assert adapted.working < full.working / 50
    assert adapted.disk == full.disk  # merged
    assert 0.74 < adapted.hours / full.hours < 0.8  # what is measured along the way stays


def test_a_key_that_is_not_there_is_an_open_point_before_anything_is_trained(paper, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "judge: the environment variable OPENAI_API_KEY is not set here" in plan(paper)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    text = plan(paper)
    assert "OPENAI_API_KEY" not in text
    assert "sk-secret" not in text


def test_a_frozen_backbone_is_read_once_for_all_heads(paper):
    frozen = changed(paper, backbone={"freeze": True}, reward={"training": {"lora": None, "processes": 1}})
    trained, heads = (list(jobs(Setting(config))) for config in (paper, frozen))

    def hours(found, *stages):
        return sum(job.gpu_hours for job in found if job.stage in stages)

    features = [job for job in heads if job.stage == "features"]
    assert {job.name for job in features} == {f"features {n}" for n in ("train", "validation", *paper.evaluation.run)}
    assert not hours(heads, "train_reward", "score")
    assert 0 < hours(heads, "features") < hours(trained, "train_reward") / len(paper.reward.run)
    training = next(job for job in heads if job.stage == "train_reward")
    assert set(training.needs) == {"features train", "features validation"}
    assert plan(frozen)
    # the more pairs, the more of them a training holds
    fewer = changed(frozen, data={"validation_fraction": 0.5})
    needed, less = (RuleResources(config).mem_mb("train_reward") for config in (frozen, fewer))
    assert needed > less


def test_eight_bit_moments_take_a_quarter_and_ppo_has_none(paper):
    sizes = [
        changed(paper, **{part: {"training": {"optimizer": "adamw_8bit"}} for part in ("reward", "policy")}),
        paper,
    ]
    few, many = ({job.stage: job.memory.parts for job in jobs(Setting(config)) if job.memory} for config in sizes)
    reward = shape_of(paper.backbone).body_parameters
    assert many["train_reward"]["optimiser"] * GIB == pytest.approx(8 * reward)
    assert few["train_reward"]["optimiser"] * GIB == pytest.approx(2 * reward * (1 + 4 / 256))
    assert few["train_ppo"] == many["train_ppo"]


def test_four_bit_weights_are_smaller_and_slower(paper):
    def planned(load_in_4bit):
        how = {"training": {"bf16": True, "lora": {"rank": 16, "load_in_4bit": load_in_4bit}}}
        found = jobs(Setting(changed(paper, reward=how, policy=how)))
        return {job.stage: job for job in found if job.memory}

    packed, whole = planned(True), planned(False)
    for stage in ("train_reward", "train_preference", "train_ppo"):
        assert packed[stage].memory.total < whole[stage].memory.total, stage
        assert packed[stage].hours > whole[stage].hours, stage
        assert packed[stage].disk == whole[stage].disk, stage  # what is saved is whole
