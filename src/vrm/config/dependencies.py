"""What each stage depends on, said once.

* Snakemake takes it as a job's parameters: the job is rerun when it changes, and only then.
* A training takes the same of its sections (`variant`, `training`, `method`, `ppo`, ...) into what its checkpoints were
  made from: they are continued where it is the same, and only there.
* What is left out of a section is named here with the reason. Files are no part of this: both compare them themselves.

A stage's function has the name of its rule; several bases, methods or benchmarks have one function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic_core import to_jsonable_python

from vrm.config import (
    Answering,
    Config,
    Generation,
    Optimisation,
    OutsideModel,
    PolicyBase,
    PolicyTraining,
    PpoMethod,
    PpoTraining,
    PreferenceMethod,
    Section,
    SftTraining,
    Variant,
)

NAMES = {"label", "ours", "paper"}
"""What tables and figures call something: a renamed row is not trained again."""
ROWS = {"engine", "tokens_per_row"}
SFT_OWN = set(SftTraining.model_fields) | ROWS
"""Fields that SFT has instead of those of `policy.training`, or that it does not look at."""
LENGTHS = {"max_prompt_length", "max_length"}
NOT_PPO = set(PolicyTraining.model_fields) - LENGTHS - ROWS - {"bf16", "gradient_checkpointing", "lora", "report_to"}
"""Fields of `policy.training` that PPO does not look at; it has optimisation settings of its own."""
NOT_REFERENCE = (
    set(Optimisation.model_fields)
    - LENGTHS
    - ROWS
    - {"batch_size", "pairs", "evaluation_pairs", "bf16", "lora", "launch"}
)
"""Fields of `policy.training` that ask nothing of the policy that trainings start from."""
NOT_PAIRS = {"label", "benchmarks_dir"}
"""Keys of `data` that change no scored prompt and no pair."""
INSTRUCTIONS = {"instructions", "arena_prompts", "mt_bench_questions"}
"""Keys of `world` that only the judged benchmarks' files depend on."""
NOT_ANSWERS = {"label", "annotator", "attempts", "bootstrap_samples"}
"""Keys of a benchmark that only the judge, the scores or a reader of tables needs."""
COMPARED_WITH = {"references", "baseline"}
"""Keys of a benchmark that say whose answers come with its set."""
NOT_JUDGMENTS = {
    *("concurrency", "requests_per_minute", "timeout", "attempts", "backoff"),
    *("longest_wait", "prices", "store", "api_key_env"),
}
"""How hard a judge is asked, what it costs and where replies are kept: these change no judgment."""


# Sections, as trainings and stages depend on them.


def variant(settings: Variant) -> dict[str, Any]:
    """A reward model of the grid, without what it is called."""
    return _dump(settings, but=NAMES)


def method(settings: PreferenceMethod | PpoMethod) -> dict[str, Any]:
    """A policy's method, without what it is called."""
    return _dump(settings, but=NAMES)


def outside(settings: OutsideModel) -> dict[str, Any]:
    """An outside reward model, without what it is called."""
    return _dump(settings, but=NAMES)


def training(settings: Optimisation, processes: int, unused: Collection[str] = ()) -> dict[str, Any]:
    """Optimisation, without what leaves the result the same.

    Args:
        settings: `reward.training` or `policy.training`.
        processes: as many as have been started, or will be.
        unused: fields that the training does not look at.
    """
    return _dump(settings, but=no_effect(processes) | set(unused))


def no_effect(processes: int) -> set[str]:
    """Fields of a training that leave its result the same.

    Processes are counted as they were started, on however many nodes; how they share a model, on which a checkpoint's
    format depends, is a question of several alone. `evaluations` is no such field: each measurement draws from the
    random numbers that latents are sampled with, and the log is a result.
    """
    always = {"processes", "nodes", "checkpoints", "gradient_checkpointing", "report_to"}
    return always if processes > 1 else always | {"launch"}


def ppo(settings: PpoTraining) -> dict[str, Any]:
    """PPO, without where a run is stopped: raising a limit after a run has blown up continues that run."""
    return _dump(settings, but={"limits", "checkpoints"})


def generation(settings: Generation) -> dict[str, Any]:
    """How policies answer, without how much memory that may take."""
    return _dump(settings, but={"vllm_memory"})


def answering(settings: Answering) -> dict[str, Any]:
    """How benchmarks are answered, without memory, when answers are saved, and how many jobs share the work."""
    return _dump(settings, but={"save_every", "shares", "vllm_memory"})


# Stages, by the name of their rule.


def world(config: Config) -> dict[str, Any]:
    """The offline preference world."""
    return _dump(config.world, but=INSTRUCTIONS)


def world_benchmarks(config: Config) -> dict[str, Any]:
    """The world's files of the judged benchmarks."""
    return _dump(config.world)


def pairs(config: Config) -> dict[str, Any]:
    """Scored prompts, and the pairs that are made of them."""
    return _dump(config.data, but=NOT_PAIRS)


def normalise(config: Config) -> dict[str, Any]:
    """Normalised pairs."""
    return _of(config, "data.aspects")


def backbone(config: Config) -> dict[str, Any]:
    """The backbone that is made for the reward models."""
    return _of(config, "backbone.create", "backbone.path") | _lengths(config.reward.training)


def features(config: Config) -> dict[str, Any]:
    """Features of a frozen backbone."""
    keys = ("path", "revision", "create", "chat_template", "features.layer")
    parts = _of(config, *(f"backbone.{key}" for key in keys), "reward.training.bf16")
    return parts | _lengths(config.reward.training)


def tokenise(config: Config) -> dict[str, Any]:
    """Token ids of the pairs that reward models are trained on, and of those that they are measured on."""
    keys = ("path", "revision", "chat_template")
    return _of(config, *(f"backbone.{key}" for key in keys)) | _lengths(config.reward.training)


def train_reward(config: Config, name: str) -> dict[str, Any]:
    """A reward model: `name` is its variant."""
    return {
        "variant": variant(config.reward.variants[name]),
        **_started(config.reward.training_of(name)),
        **_of(config, "data.aspects", "backbone"),
    }


def policy_backbone(config: Config, base: str) -> dict[str, Any]:
    """The model that is made for a policy base."""
    own = _dump(config.policy.bases[base])
    return {key: own[key] for key in ("create", "chat_template_kwargs")} | _lengths(config.policy.training)


def sft(config: Config, base: str) -> dict[str, Any]:
    """Supervised fine-tuning of a base."""
    return _base(config, base) | _started(config.policy.training, SFT_OWN) | _of(config, "policy.sft")


def reference_log_probs(config: Config, base: str) -> dict[str, Any]:
    """What the policy that preference trainings start from says of the pairs."""
    return _base(config, base) | _started(config.policy.training, NOT_REFERENCE)


def train_preference(config: Config, base: str, name: str) -> dict[str, Any]:
    """A policy trained on pairs: `name` is its method."""
    return _base(config, base) | _started(config.policy.training) | {"method": method(config.policy.methods[name])}


def difficulty_run(config: Config, base: str) -> dict[str, Any]:
    """A reference run of Selective DPO; neither how many there are nor what is kept of the pairs changes one."""
    return {
        **_base(config, base),
        **_started(config.policy.training, {"epochs"}),
        "method": method(config.policy.methods[selective_method(config)]),
        "difficulty": _dump(config.policy.difficulty, but={"runs", "keep"}),
    }


def selective_method(config: Config) -> str:
    """The method whose reference runs they are: there is one way to select, whatever is trained on the selection."""
    return config.policy.trained("selective_dpo")[0]


def difficulty(config: Config) -> dict[str, Any]:
    """The selection of pairs."""
    return _of(config, "policy.difficulty.keep")


def train_ppo(config: Config, base: str, name: str) -> dict[str, Any]:
    """A policy trained by PPO: `name` is its method."""
    return {
        **_outside_rewards(config, [name]),
        **_base(config, base),
        **_started(config.policy.training, NOT_PPO),
        "method": method(config.policy.methods[name]),
        "ppo": ppo(config.policy.ppo),
        "generation": generation(config.policy.generation),
        **_of(config, "reward.scoring_batch_size"),
    }


def study_world(config: Config, name: str) -> dict[str, Any]:
    """A world of the study, with its pairs and sets."""
    changed = config.world.model_copy(update=config.study.worlds[name].changes())
    sets = {each: evaluation_set(config, each) for each in config.evaluation.run}
    return {"world": _dump(changed, but=INSTRUCTIONS), "pairs": pairs(config), "sets": sets}


def study_cell(config: Config, name: str) -> dict[str, Any]:
    """A reward model of the study: `name` is its variant."""
    own = no_effect(1) | {"pairs", "evaluations", "evaluation_pairs"}
    training = config.reward.training_of(name)
    return train_reward(config, name) | {"training": _dump(training, but=own)} | score(config)


def evaluation_set(config: Config, name: str) -> dict[str, Any]:
    """An evaluation set as it is read; its label and its role are the report's."""
    return _dump(config.evaluation.sets[name], but={"label", "role"}) | _of(config, "data.aspects")


def score(config: Config) -> dict[str, Any]:
    """A reward model's scores on every evaluation set."""
    keys = ("scoring_batch_size", "posterior_samples")
    return _of(config, *(f"reward.{key}" for key in keys)) | _lengths(config.reward.training)


def score_outside(config: Config, name: str) -> dict[str, Any]:
    """An outside model's scores on every evaluation set; what it keeps of a text is its own affair."""
    keys = ("scoring_batch_size", "posterior_samples")
    return _of(config, *(f"reward.{key}" for key in keys)) | {"outside": outside(config.reward.outside[name])}


def pac_bayes(config: Config) -> dict[str, Any]:
    """The terms of Theorem 5.1."""
    return _of(config, "reward.scoring_batch_size", "reward.training.pairs") | _lengths(config.reward.training)


def score_policy(config: Config, base: str) -> dict[str, Any]:
    """A policy's scores on every evaluation set, and what it starts from says of them."""
    return _base(config, base) | _lengths(config.policy.training) | _of(config, "policy.training.batch_size")


def best_of_n(config: Config, base: str) -> dict[str, Any]:
    """Many answers to a prompt."""
    return {
        **_outside_rewards(config, config.policy.ppo_run),
        **_base(config, base),
        **_lengths(config.policy.training),
        "generation": generation(config.policy.generation),
        **_of(config, "policy.best_of_n", "reward.scoring_batch_size"),
    }


def gold(config: Config) -> dict[str, Any]:
    """The gold judge's scores of samples."""
    return _of(config, "policy.gold")


def benchmark_set(config: Config, name: str) -> dict[str, Any]:
    """A judged benchmark's files, which depend on who is compared with."""
    own = _dump(getattr(config.benchmarks, name))
    return {key: own[key] for key in own if key in COMPARED_WITH} | _of(config, "data.benchmarks_dir")


def answer(config: Config, base: str) -> dict[str, Any]:
    """A policy's answers to every benchmark."""
    asked = {name: _dump(getattr(config.benchmarks, name), but=NOT_ANSWERS) for name in config.benchmarks.run}
    kwargs = config.policy.bases[base].chat_template_kwargs
    return asked | {"answering": answering(config.benchmarks.answering), "chat_template_kwargs": kwargs}


def judge(config: Config, name: str) -> dict[str, Any]:
    """The judgments of a policy's answers to a benchmark."""
    own, kept = _dump(getattr(config.benchmarks, name)), {"annotator", "attempts", *COMPARED_WITH}
    return {key: own[key] for key in own if key in kept} | {"judge": _dump(config.judge, but=NOT_JUDGMENTS)}


def judged_scores(config: Config, name: str) -> dict[str, Any]:
    """All policies' scores on a benchmark."""
    parts = _of(config, "report.level", "report.seed", "report.bootstrap_samples", "judge.model")
    return parts | {name: _dump(getattr(config.benchmarks, name), but={"label"})}


_POLICIES = ("policy.run", "policy.run_bases", "policy.bases", "policy.methods")
_REWARDS = ("reward.run", "reward.variants", "reward.run_outside", "reward.outside")


def table(config: Config) -> dict[str, Any]:
    """Any table, and any figure with data: all are made again where one would have to be, since that takes seconds."""
    data = ("data.label", "data.aspects", "reward.posterior_samples")
    return _of(config, "report", *data, *_REWARDS, "evaluation", *_POLICIES, "policy.gold", "benchmarks", "study")


def paper_page(config: Config) -> dict[str, Any]:
    """The page that sets the paper's numbers and claims against this run."""
    made_of = ("data", "evaluation", "benchmarks", "judge", "backbone", "policy.scorers_from")
    return _of(config, "report", *_REWARDS, *_POLICIES, *made_of)


def schematic(config: Config) -> dict[str, Any]:
    """Figures 1 and 2, drawn from the configuration."""
    return _of(config, "data.aspects", *_REWARDS)


def explorer(config: Config) -> dict[str, Any]:
    """The page to read pairs in."""
    report = ("report.level", "report.explorer_pairs", "report.seed")
    return _of(config, *report, "data.label", "data.aspects", *_REWARDS, "reward.seeds", "evaluation")


def _dump(section: Section, but: Iterable[str] = ()) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=set(but))


def _of(config: Config, *keys: str) -> dict[str, Any]:
    """Entries by their dotted keys."""
    found = {}
    for key in keys:
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        found[key] = to_jsonable_python(value)
    return found


def _started(settings: Optimisation, unused: Collection[str] = ()) -> dict[str, Any]:
    """A training as a job starts it."""
    own = training(settings, settings.processes, unused)
    return {"training": own, "processes": settings.processes}


def _lengths(settings: Optimisation) -> dict[str, Any]:
    return {key: getattr(settings, key) for key in sorted(LENGTHS)}


def _outside_rewards(config: Config, methods: Iterable[str]) -> dict[str, Any]:
    """The outside models that pay some of these PPO methods; nothing where ours alone do."""
    known = config.reward.outside
    paying = {config.policy.methods[name].reward for name in methods} & set(known)
    return {"outside": {name: outside(known[name]) for name in sorted(paying)}} if paying else {}


def _base(config: Config, name: str) -> dict[str, Any]:
    base: PolicyBase = config.policy.bases[name]
    return {"base": _dump(base, but=NAMES)}
