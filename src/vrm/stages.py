"""What each `vrm <stage>` does: read the configuration, pick what the stage needs of it, call one function.

Nothing heavy is imported before a stage is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vrm.config import Config, ConfigError, JudgedPolicy, PolicyBase, PpoMethod, PreferenceMethod, load
from vrm.config.benchmarks import FILES, BenchmarkName
from vrm.records import RecordError

if TYPE_CHECKING:
    from vrm.training.policies import PolicyJob

T = TypeVar("T")
M = TypeVar("M", PreferenceMethod, PpoMethod)


def _config(options: argparse.Namespace) -> Config:
    return load(options.config)


def _known(known: Mapping[str, T], name: str, what: str) -> T:
    """An entry by name; a wrong name is the user's mistake, and the right ones are listed."""
    if name not in known:
        raise ConfigError(f"there is no {what} {name!r}; known are: {', '.join(known)}")
    return known[name]


def world(options: argparse.Namespace) -> None:
    from vrm.world.write import write_world

    write_world(_config(options).world, options.out)


def world_benchmarks(options: argparse.Namespace) -> None:
    from vrm.world.instructions import write_benchmarks

    write_benchmarks(_config(options).world, options.out)


def read_scored(options: argparse.Namespace) -> None:
    from vrm.data.scored import read_scored_prompts

    read_scored_prompts(_config(options).data, options.out)


def make_pairs(options: argparse.Namespace) -> None:
    from vrm.data.pairs import make_pairs

    make_pairs(_config(options).data, options.out)


def normalise(options: argparse.Namespace) -> None:
    from vrm.data.normalise import normalise_pairs

    normalise_pairs(_config(options).data, options.out)


def evaluation_set(options: argparse.Namespace) -> None:
    from vrm.data.preference_sets import read_preference_set

    config = _config(options)
    read_preference_set(
        options.name,
        _known(config.evaluation.sets, options.name, "evaluation set"),
        options.pairs / "train.jsonl",
        options.out,
        config.data.aspects,
    )


def backbone(options: argparse.Namespace) -> None:
    from vrm.training.pretraining import pretrain_backbone

    config = _config(options)
    base = _base(config, options.base) if options.base else config.backbone
    training = config.policy.training if options.base else config.reward.training
    if base.create is None:
        raise ConfigError(f"{options.base or 'backbone'}: `create` is not set, there is nothing to make")
    limits = training.max_prompt_length, training.max_length
    kwargs = base.chat_template_kwargs if options.base else {}
    pairs = options.pairs / "train.jsonl"
    pretrain_backbone(base.create, *limits, pairs, options.checkpoints, options.out, kwargs)


def train_reward(options: argparse.Namespace) -> None:
    from vrm.training.reward import RewardJob, train_reward_model

    config = _config(options)
    train_reward_model(
        RewardJob(
            variant=_known(config.reward.variants, options.variant, "variant"),
            training=config.reward.training,
            aspects=config.data.aspects,
            seed=options.seed,
            backbone=options.backbone,
            revision=config.backbone.revision,
            chat_template=config.backbone.chat_template,
            pairs=options.pairs,
            checkpoints=options.checkpoints,
            out=options.out,
        )
    )


def score(options: argparse.Namespace) -> None:
    from vrm.evaluation.score_sets import score_sets
    from vrm.models.scoring import load_reward_model

    reward = _config(options).reward
    model = load_reward_model(
        options.model,
        max_prompt_length=reward.training.max_prompt_length,
        max_length=reward.training.max_length,
        batch_size=reward.scoring_batch_size,
        posterior_samples=reward.posterior_samples,
        seed=options.seed,
        progress=True,
    )
    score_sets(model, {path.stem: path for path in options.sets}, options.pairs / "train.jsonl", options.out)


def pac_bayes(options: argparse.Namespace) -> None:
    from vrm.evaluation.pac_bayes import pac_bayes

    reward = _config(options).reward
    pac_bayes(
        options.model,
        options.pairs,
        seed=options.seed,
        out=options.out,
        max_prompt_length=reward.training.max_prompt_length,
        max_length=reward.training.max_length,
        batch_size=reward.scoring_batch_size,
    )


def sft(options: argparse.Namespace) -> None:
    from vrm.training.sft import train_sft

    config = _config(options)
    train_sft(_policy_job(options, config), config.policy.sft)


def train_preference(options: argparse.Namespace) -> None:
    from vrm.training.preference import train_preference

    config = _config(options)
    method = _method(config, options.method, PreferenceMethod)
    if (method.method == "selective_dpo") != (options.difficulty is not None):
        raise ConfigError(f"{options.method}: --difficulty goes with selective_dpo, and selective_dpo needs it")
    train_preference(_policy_job(options, config), method, options.difficulty)


def difficulty_run(options: argparse.Namespace) -> None:
    from vrm.training.selective import train_difficulty_run

    config = _config(options)
    difficulty = config.policy.difficulty
    lora = difficulty.lora or config.policy.training.lora
    job = _policy_job(options, config, epochs=difficulty.epochs, lora=lora)
    method = _method(config, options.method, PreferenceMethod)
    overrides = {"learning_rate": difficulty.learning_rate or method.learning_rate, "epochs": None}
    train_difficulty_run(job, method.model_copy(update=overrides), options.run, options.half)


def difficulty(options: argparse.Namespace) -> None:
    from vrm.training.selective import select_pairs

    select_pairs(options.losses, _config(options).policy.difficulty.keep, options.out)


def train_ppo(options: argparse.Namespace) -> None:
    from vrm.models.scoring import load_reward_model
    from vrm.training.ppo import train_ppo

    config = _config(options)
    _method(config, options.method, PpoMethod)
    job = _policy_job(options, config)
    reward = load_reward_model(options.model, batch_size=config.reward.scoring_batch_size)
    train_ppo(job, config.policy.ppo, config.policy.generation, reward, options.model)


def score_policy(options: argparse.Namespace) -> None:
    from vrm.evaluation.score_sets import score_sets
    from vrm.models.policy_scoring import load_policy_scorer

    config = _config(options)
    training = config.policy.training
    method = _method(config, options.method, PreferenceMethod)
    base = _base(config, options.base)
    scorer = load_policy_scorer(
        _causal_lm(options.policy, "--policy"),
        _causal_lm(options.reference, "--reference") if method.needs_reference else None,
        reference_revision=_revision(base, options.reference),
        max_prompt_length=training.max_prompt_length,
        max_length=training.max_length,
        batch_size=2 * training.batch_size,
        chat_template_kwargs=base.chat_template_kwargs,
        chat_template=base.chat_template,
        progress=True,
    )
    score_sets(scorer, {path.stem: path for path in options.sets}, options.pairs / "train.jsonl", options.out)


def best_of_n(options: argparse.Namespace) -> None:
    from vrm.evaluation.best_of_n_samples import BestOfNJob, sample_best_of_n

    config = _config(options)
    policy, base = config.policy, _base(config, options.base)
    sample_best_of_n(
        BestOfNJob(
            policy=_causal_lm(options.policy, "--policy"),
            revision=_revision(base, options.policy),
            chat_template_kwargs=base.chat_template_kwargs,
            chat_template=base.chat_template,
            rewards=dict(entry.split("=", 1) for entry in options.models),
            pairs=options.pairs / "validation.jsonl",
            generation=policy.generation,
            best_of_n=policy.best_of_n,
            max_prompt_length=policy.training.max_prompt_length,
            max_length=policy.training.max_length,
            scoring_batch_size=config.reward.scoring_batch_size,
            seed=options.seed,
            out=options.out,
        )
    )


def gold(options: argparse.Namespace) -> None:
    from vrm.evaluation.gold import score_gold

    spec = _config(options).policy.gold
    if spec is None:
        raise ConfigError("policy.gold is null: there is no gold judge to score by")
    score_gold(spec, options.samples, options.out)


def benchmark_set(options: argparse.Namespace) -> None:
    from vrm.data.benchmark_files import prepare

    config, name = _config(options), _benchmark(options)
    directory = config.data.benchmarks_dir
    prepare(name, config.benchmarks, Path(directory) if directory else None, options.out)


def answer(options: argparse.Namespace) -> None:
    from vrm.evaluation.mt_bench import TEMPERATURES
    from vrm.generation.answers import answer_benchmarks

    config = _config(options)
    answer_benchmarks(
        config,
        JudgedPolicy(options.base, options.method, options.seed),
        _causal_lm(options.policy, "--policy"),
        revision=_revision(_base(config, options.base), options.policy),
        sets={path.name: path for path in options.sets},
        temperatures=TEMPERATURES,
        checkpoints=options.checkpoints,
        out=options.out,
    )


def judge(options: argparse.Namespace) -> None:
    from vrm.judging.judgments import judge_benchmark

    judged = JudgedPolicy(options.base, options.method, options.seed)
    (directory,) = options.sets
    judge_benchmark(_config(options), judged, _benchmark(options), options.answers, directory, options.out)


def judged_scores(options: argparse.Namespace) -> None:
    from vrm.evaluation.judged_scores import write_scores

    write_scores(_config(options), _benchmark(options), options.results, options.out)


def evaluate(options: argparse.Namespace) -> None:
    from vrm.evaluation.reward_models import evaluate

    sets = _config(options).evaluation.sets
    scores = {(path.parts[-3], int(path.parts[-2].removeprefix("seed"))): path for path in options.scores}
    evaluate(scores, {name: entry.format for name, entry in sets.items()}, options.out)


def table(options: argparse.Namespace) -> None:
    from vrm.reporting import tables

    config = _config(options)
    _known(tables.TABLES, options.name, "table")(config, options.results, options.out)


def figure(options: argparse.Namespace) -> None:
    from vrm.reporting import figures

    config = _config(options)
    _known(figures.FIGURES, options.name, "figure")(config, options.results, options.out)


def explorer(options: argparse.Namespace) -> None:
    from vrm.reporting.explorer import explorer

    explorer(_config(options), options.results, options.out)


def score_file(options: argparse.Namespace) -> None:
    from vrm.evaluation.score_file import score_file

    score_file(options.model, options.pairs, options.max_prompt_length, options.max_length, options.out)


def plan(options: argparse.Namespace) -> None:
    from vrm.planning.judge_cost import has_begun
    from vrm.planning.plan import plan

    config = _config(options)
    results = Path("results") / config.run
    print(plan(config, options.gpu_memory, options.gpus, options.data_scale), end="")
    if has_begun(config, results):
        from vrm.judging.plan import progress_text  # may import AlpacaEval's package, which takes seconds

        print(f"\n{progress_text(config, results)}", end="")


def schema(options: argparse.Namespace) -> None:
    from vrm.config import json_schema
    from vrm.records import write_whole

    if options.out:
        write_whole(options.out, json_schema())
    else:
        print(json_schema(), end="")


def _benchmark(options: argparse.Namespace) -> BenchmarkName:
    """The judged benchmark that `--name` names."""
    _known(FILES, options.name, "benchmark")
    return options.name


def _base(config: Config, name: str) -> PolicyBase:
    return _known(config.policy.bases, name, "policy base")


def _method(config: Config, name: str, kind: type[M]) -> M:
    """A method by name, of the kind that the stage is for."""
    method = _known(config.policy.methods, name, "policy method")
    if not isinstance(method, kind):
        raise ConfigError(f"policy.methods.{name} is {method.method}: another stage trains that")
    return method


def _revision(base: PolicyBase, model: str) -> str | None:
    """The base's commit on the hub; what lies in a directory here has none."""
    return None if Path(model).is_dir() else base.revision


def _local(directory: str | Path, option: str) -> Path:
    """A directory that has to be here."""
    if not Path(directory).is_dir():
        raise RecordError(
            f"{option} {directory}: there is no such directory; train that model first, or correct the path"
        )
    return Path(directory)


def _causal_lm(model: str, option: str) -> str:
    """A directory that has to be here, unless the name can be `name` or `owner/name` on the hub."""
    may_be_hub_id = model.count("/") < 2 and not model.startswith((".", "/"))
    return model if may_be_hub_id else str(_local(model, option))


def _policy_job(options: argparse.Namespace, config: Config, **overrides: object) -> PolicyJob:
    """What every policy training has in common; `overrides` replace fields of `policy.training`."""
    from vrm.training.policies import PolicyJob

    base = _base(config, options.base)
    if not (options.pairs / "train.jsonl").is_file():
        raise RecordError(f"--pairs {options.pairs}: there is no train.jsonl; name the directory of normalised pairs")
    return PolicyJob(
        policy=_causal_lm(options.policy, "--policy"),
        revision=_revision(base, options.policy),
        chat_template_kwargs=base.chat_template_kwargs,
        chat_template=base.chat_template,
        training=config.policy.training.model_copy(update=overrides),
        seed=options.seed,
        pairs=options.pairs,
        checkpoints=options.checkpoints,
        out=options.out,
    )
