"""What stages depend on: every key of the configuration is somebody's, and what a stage is made from is said once."""

import inspect

import pytest
from paths import ROOT
from pydantic import BaseModel

from vrm.config import Config, PpoLimits, RewardTraining, dependencies, load, merge, parse

BENCHMARKS = ("alpaca_eval", "arena_hard", "mt_bench")
NOBODYS = {
    "run",  # where results go
    "threads",
    *("policy.seeds", "policy.difficulty.runs"),  # more jobs, and no other ones
    *("policy.ppo.checkpoints", "policy.generation.vllm_memory"),
    *(f"policy.ppo.limits.{limit}" for limit in PpoLimits.model_fields),
    *(f"{part}.training.{key}" for part in ("reward", "policy") for key in dependencies.no_effect(1) - {"processes"}),
}
"""Keys that change no result."""


@pytest.fixture
def config():
    demo = load([ROOT / "config.yaml"]).model_dump(mode="json")
    worlds = {"no_bias": {"label": "no bias", "spurious_bias": 0.0, "rating_bias": 0.0}}
    outside = {"theirs": {"label": "Theirs", "path": "./theirs"}}
    ppo = {"ppo_theirs": {"label": "PPO (theirs)", "method": "ppo", "reward": "theirs"}}
    run = [*demo["policy"]["run"], "ppo_theirs"]
    more = {"reward": {"outside": outside, "run_outside": ["theirs"]}, "policy": {"methods": ppo, "run": run}}
    return parse(merge(demo, {"study": {"worlds": worlds}} | more))


def stages(config: Config):
    """What every stage depends on, by its name and what it is about."""
    about = {
        "name": {
            "train_reward": ["vrm"],
            "study_cell": ["vrm"],
            "study_world": ["no_bias"],
            "train_preference": ["dpo"],
            "train_ppo": ["ppo_vrm", "ppo_theirs"],
            "score_outside": ["theirs"],
            "evaluation_set": ["uf_c"],
            **dict.fromkeys(("benchmark_set", "judge", "judged_scores"), BENCHMARKS),
        }
    }
    found = {}
    for stage, function in vars(dependencies).items():
        parameters = list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
        if parameters[:1] != ["config"] or stage.startswith("_") or stage == "selective_method":
            continue
        for name in about["name"].get(stage, [None]):
            given = {"base": "qwen3"} if "base" in parameters else {}
            given |= {"name": name} if name else {}
            found[stage, name] = function(config, **given)
    return found


def leaves(section: BaseModel, prefix=""):
    """Every key with a value, its section and its own name; of several variants, bases, methods and sets one each."""
    one = {"variants": "vrm", "bases": "qwen3", "sets": "uf_c", "worlds": "no_bias", "outside": "theirs"}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, dict) and name in one:
            yield from leaves(value[one[name]], f"{prefix}{name}.")
        elif isinstance(value, dict) and name == "methods":
            for method in ("dpo", "ppo_vrm"):
                yield from leaves(value[method], f"{prefix}{name}.{method}.")
        elif isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", section, name


def another(value):
    """Another value of the same type, where there is a type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return {**{key: another(part) for key, part in value.items()}, "vrm": 7.0}
    return value[:-1] if isinstance(value, list) and len(value) > 1 else "another value"


def changed_by(config, section, name):
    """Stages that depend on a key: what they take of the configuration differs when it does."""
    before, value = stages(config), section.__dict__[name]
    section.__dict__[name] = another(value)  # sections are frozen, and no longer validated
    after = stages(config)
    section.__dict__[name] = value
    return {stage for stage in before if before[stage] != after[stage]}


REPORT = {
    *("table", "paper_page", "schematic", "explorer"),
}


pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def test_every_key_is_somebodys_but_for_those_that_change_no_result(config):
    nobodys = {key for key, section, name in leaves(config) if not changed_by(config, section, name)}
    assert nobodys == NOBODYS


def test_what_things_are_called_changes_the_report_alone(config):
    named = [(section, name) for _, section, name in leaves(config) if name in dependencies.NAMES]
    assert len(named) > 10
    for section, name in named:
        assert {stage for stage, _ in changed_by(config, section, name)} <= REPORT


def test_how_hard_the_judge_is_asked_and_how_much_memory_answers_take_change_the_report_alone(config):
    sections = [
        (config.judge, dependencies.NOT_JUDGMENTS),
        (config.benchmarks.answering, {"save_every", "shares", "vllm_memory"}),
    ]
    for section, names in sections:
        for name in names:
            assert {stage for stage, _ in changed_by(config, section, name)} <= REPORT


def test_how_processes_share_a_model_is_a_question_of_several():
    settings = RewardTraining()
    assert "launch" not in dependencies.training(settings, 1)
    assert "launch" in dependencies.training(settings, 2)
    assert not {"processes", "nodes", "checkpoints"} & dependencies.training(settings, 2).keys()


def test_an_outside_model_is_read_again_where_it_is_used(config):
    """And nowhere else: PPO against a model of ours goes on."""
    used = {("score_outside", "theirs"), ("train_ppo", "ppo_theirs"), ("best_of_n", None)}
    for name in ("path", "revision", "chat_template", "trust_remote_code", "max_prompt_length", "max_length"):
        changed = changed_by(config, config.reward.outside["theirs"], name)
        assert {entry for entry in changed if entry[0] not in REPORT} == used
