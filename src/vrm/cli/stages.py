"""What a rule of the workflow types: each function reads the configuration, picks what is needed, calls one function.

A function is a command and its parameters are the options (see `vrm.cli.commands`). Nothing heavy is imported before
a stage is chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from vrm.cli.commands import (
    ConfigFiles,
    Csv,
    Fill,
    Make,
    Option,
    config_error,
    hide_peft,
    known,
    local,
    local_or_hub,
    stage,
)

if TYPE_CHECKING:
    from vrm.config import Config, OutsideModel, PolicyBase
    from vrm.config.benchmarks import BenchmarkName
    from vrm.generation.answers import Questionnaire
    from vrm.training.policies import PolicyJob

M = TypeVar("M")

Name = Annotated[str, Option("which one")]
VariantName = Annotated[str, Option("a key of reward.variants")]
Base = Annotated[str, Option("a key of policy.bases")]
AnyBase = Annotated[str | None, Option("a key of policy.bases; without it, the reward models' backbone")]
Method = Annotated[str, Option("a key of policy.methods")]
Seed = Annotated[int, Option("seed of this stage (default: 0)")]
Backbone = Annotated[str, Option("directory or hub id of a causal LM")]
Policy = Annotated[str, Option("directory or hub id of the policy to start from, or to score")]
Reference = Annotated[str, Option("directory or hub id of the policy it was trained from")]
Pairs = Annotated[Path, Option("directory of normalised pairs by split")]
Checkpoints = Annotated[Path, Option("where resumable state lives")]
TrainedModel = Annotated[Path, Option("directory of a trained reward model")]
TrainedHere = Annotated[Path | None, Option("directory of a trained reward model; none where it is an outside one")]
Outside = Annotated[str | None, Option("instead of --model: a key of reward.outside")]
Sets = Annotated[list[Path], Option("files of evaluation sets")]
JudgedSets = Annotated[list[Path], Option("directories that `vrm benchmark-set` filled")]
Tokens = Annotated[Path | None, Option("directory that `vrm tokenise` filled; without it, pairs are tokenised anew")]
Texts = Annotated[Path | None, Option("file that `vrm tokenise-sets` wrote; without it, texts are tokenised anew")]
LogProbs = Annotated[Path | None, Option("file that `vrm reference-log-probs` wrote; without it, the policy is asked")]
Parquet = Annotated[Path, Option("the Parquet file to write")]
FeatureFiles = Annotated[list[Path], Option("directories that `vrm features` filled, of a frozen backbone")]
Results = Annotated[Path, Option("results/<run>")]


def _load(files: list[Path]) -> Config:
    from vrm.config import load

    return load(files)


@stage("vrm world --config config.yaml --out results/demo/world")
def world(config: ConfigFiles, out: Fill) -> None:
    """Write the offline preference world."""
    from vrm.world.write import write_world

    write_world(_load(config).world, out)


@stage("vrm read-scored --config config.yaml --out results/demo/data")
def read_scored(config: ConfigFiles, out: Fill) -> None:
    """Read scored prompts; set aside what can't be used."""
    from vrm.data.scored import read_scored_prompts

    read_scored_prompts(_load(config).data, out)


@stage("vrm make-pairs --config config.yaml --out results/demo/data")
def make_pairs(
    config: ConfigFiles,
    out: Annotated[Path, Option("directory that holds scored.jsonl")],
) -> None:
    """Split prompts and make preference pairs."""
    from vrm.data.pairs import make_pairs

    make_pairs(_load(config).data, out)


@stage("vrm normalise --config config.yaml --out results/demo/data")
def normalise(config: ConfigFiles, out: Annotated[Path, Option("directory that holds paired/")]) -> None:
    """Normalise scores by the training split."""
    from vrm.data.pairs import normalise_pairs

    normalise_pairs(_load(config).data, out)


@stage(
    "vrm evaluation-set --config config.yaml --name reward_bench --pairs results/demo/data/pairs \\\n"
    "  --out results/demo/evaluation/sets"
)
def evaluation_set(config: ConfigFiles, name: Name, pairs: Pairs, out: Fill) -> None:
    """Read one evaluation set and audit its leakage."""
    from vrm.data.preference_sets import read_preference_set

    settings = _load(config)
    read_preference_set(
        name,
        known(settings.evaluation.sets, name, "evaluation set"),
        pairs / "train.jsonl",
        out,
        settings.data.aspects,
    )


@stage(
    "vrm backbone --config config.yaml --pairs results/demo/data/pairs --checkpoints /tmp/backbone \\\n"
    "  --out results/demo/backbone",
    models=True,
)
def backbone(
    config: ConfigFiles,
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Make,
    base: AnyBase = None,
) -> None:
    """Make and pretrain a small causal LM."""
    from vrm.config import ConfigError
    from vrm.training.backbones import dequantise, pretrain_backbone

    settings = _load(config)
    if base is None and settings.backbone.is_gguf:
        return dequantise(Path(settings.backbone.path), out)
    model = _base(settings, base) if base else settings.backbone
    if model.create is None:
        raise ConfigError(f"{base or 'backbone'}: `create` is not set, there is nothing to make")
    training = settings.policy.training if base else settings.reward.training
    limits = training.max_prompt_length, training.max_length
    kwargs = model.chat_template_kwargs if base else {}
    pretrain_backbone(model.create, *limits, pairs / "train.jsonl", checkpoints, out, kwargs)


@stage(
    "vrm features --config config.yaml --backbone models/smollm2 \\\n"
    "  --pairs results/demo/data/pairs/train.jsonl --store results/features \\\n"
    "  --out results/demo/features/train",
    models=True,
)
def features(
    config: ConfigFiles,
    backbone: Backbone,
    pairs: Annotated[Path, Option("a file of preference pairs")],
    store: Annotated[Path, Option("where computed features are kept for other sets")],
    out: Fill,
) -> None:
    """Compute a frozen backbone's features of a file of pairs."""
    from vrm.training.reward import make_features

    settings = _load(config)
    make_features(
        backbone,
        settings.backbone.revision,
        settings.backbone.features,
        settings.reward.training,
        settings.reward.scoring_batch_size,
        pairs,
        store,
        out,
        settings.backbone.chat_template,
    )


@stage(
    "vrm tokenise --config config.yaml --backbone results/demo/backbone --pairs results/demo/data/pairs \\\n"
    "  --out results/demo/data/tokens",
    models=True,
)
def tokenise(config: ConfigFiles, backbone: Backbone, pairs: Pairs, out: Fill) -> None:
    """Tokenise pairs once for all reward models of a backbone."""
    from vrm.training.pairs import write_tokens

    settings = _load(config)
    model = settings.backbone
    write_tokens(backbone, model.revision, model.chat_template, settings.reward.training, pairs, out)


@stage(
    "vrm tokenise-sets --config config.yaml --backbone results/demo/backbone --pairs results/demo/data/pairs \\\n"
    "  --sets results/demo/evaluation/sets/reward_bench.jsonl --out results/demo/evaluation/texts.parquet",
    models=True,
)
def tokenise_sets(
    config: ConfigFiles,
    backbone: Backbone,
    sets: Sets,
    pairs: Pairs,
    out: Parquet,
) -> None:
    """Tokenise evaluation sets and validation pairs once for all reward models of a backbone."""
    from vrm.evaluation.score_sets import tokenise_sets

    settings = _load(config)
    tokenise_sets(backbone, settings.backbone, settings.reward.training, [*sets, pairs / "validation.jsonl"], out)


@stage(
    "vrm train-reward --config config.yaml --variant vrm --seed 1 --backbone results/demo/backbone \\\n"
    "  --pairs results/demo/data/pairs --checkpoints /tmp/vrm --out results/demo/reward/vrm/seed1",
    models=True,
)
def train_reward(
    config: ConfigFiles,
    variant: VariantName,
    backbone: Backbone,
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Fill,
    seed: Seed = 0,
    tokens: Tokens = None,
    features: FeatureFiles = (),
) -> None:
    """Train a reward model."""
    if tokens and features:
        raise config_error("--tokens, --features: features stand in the place of token ids; give one of them")
    settings = _load(config)
    if settings.reward.training.lora is None:
        hide_peft(backbone)
    from vrm.training.reward import RewardJob, train_reward_model

    chosen = known(settings.reward.variants, variant, "variant")
    train_reward_model(
        RewardJob(
            variant=chosen,
            training=settings.reward.training_of(variant),
            aspects=settings.data.aspects,
            seed=seed,
            backbone=backbone,
            revision=settings.backbone.revision,
            chat_template=settings.backbone.chat_template,
            pairs=pairs,
            checkpoints=checkpoints,
            out=out,
            features=tuple(features),
            dropout=settings.backbone.features.dropout,
            tokens=tokens,
        )
    )


@stage(
    "vrm pac-bayes --config config.yaml --model results/demo/reward/vrm/seed1/model \\\n"
    "  --pairs results/demo/data/pairs --out pac_bayes.csv",
    models=True,
)
def pac_bayes(
    config: ConfigFiles, model: TrainedModel, pairs: Pairs, out: Csv, seed: Seed = 0, tokens: Tokens = None
) -> None:
    """Compute every term of Theorem 5.1 on a trained VRM."""
    from vrm.evaluation.bound import BoundJob, pac_bayes

    reward = _load(config).reward
    pac_bayes(
        BoundJob(
            model=local(model, "--model"),
            pairs=pairs,
            seed=seed,
            out=out,
            max_prompt_length=reward.training.max_prompt_length,
            max_length=reward.training.max_length,
            batch_size=reward.scoring_batch_size,
            trained_on=reward.training.pairs,
            tokens=tokens,
        )
    )


@stage(
    "vrm score-reward --config config.yaml --model results/demo/reward/vrm/seed1/model \\\n"
    "  --sets results/demo/evaluation/sets/reward_bench.jsonl --pairs results/demo/data/pairs \\\n"
    "  --out scores.csv",
    models=True,
)
def score_reward(
    config: ConfigFiles,
    sets: Sets,
    pairs: Pairs,
    out: Csv,
    model: TrainedHere = None,
    outside: Outside = None,
    features: FeatureFiles = (),
    texts: Texts = None,
    seed: Seed = 0,
) -> None:
    """Score every evaluation set with a reward model."""
    if (model is None) == (outside is None):
        raise config_error("give --model DIRECTORY, or --outside NAME for one that was not trained here")
    if texts and (features or outside):
        raise config_error("--texts: the token ids of models that were trained here, and none of a frozen backbone's")
    reward = _load(config).reward
    options = {
        "batch_size": reward.scoring_batch_size,
        "posterior_samples": reward.posterior_samples,
        "seed": seed,
        "progress": True,
    }
    limits = {name: getattr(reward.training, name) for name in ("max_prompt_length", "max_length")}
    entry = None if outside is None else known(reward.outside, outside, "outside model")

    from vrm.evaluation.score_sets import score_sets
    from vrm.models.scoring import load_outside, load_reward_model

    if entry is not None:
        scorer = load_outside(entry, **options)
    else:
        scorer = load_reward_model(model, **limits, **options, features=features, texts=texts)
    sources = {path.stem: path for path in sets}
    score_sets(scorer, sources, pairs / "train.jsonl", out, validation=pairs / "validation.jsonl")


@stage("vrm study-world --config config.yaml --name no_bias --out results/study/study/worlds/no_bias")
def study_world(config: ConfigFiles, name: Annotated[str, Option("a key of study.worlds")], out: Fill) -> None:
    """Write a world of the study, its pairs and its sets."""
    from vrm.evaluation.study import make_study_world

    settings = _load(config)
    known(settings.study.worlds, name, "world of the study")
    make_study_world(settings, name, out)


@stage(
    "vrm study-cell --config config.yaml --variant vrm --pairs 5000 --seed 1 --backbone results/study/backbone \\\n"
    "  --data results/study/data/pairs --sets results/study/evaluation/sets/uf_c.jsonl --out scores.csv",
    models=True,
)
def study_cell(
    config: ConfigFiles,
    variant: VariantName,
    pairs: Annotated[int, Option("training pairs, the first ones")],
    backbone: Backbone,
    data: Pairs,
    sets: Sets,
    out: Csv,
    seed: Seed = 0,
    tokens: Tokens = None,
) -> None:
    """Train a reward model of the study and score with it."""
    from vrm.evaluation.study import train_and_score

    settings = _load(config)
    known(settings.reward.variants, variant, "variant")
    train_and_score(settings, variant, pairs, seed, backbone, data, sets, out, tokens)


@stage(
    "vrm sft --config config.yaml --base qwen3 --seed 1 --policy results/demo/policy/qwen3/backbone \\\n"
    "  --pairs results/demo/data/pairs --checkpoints /tmp/sft \\\n"
    "  --out results/demo/policy/qwen3/sft/seed1",
    models=True,
)
def sft(
    config: ConfigFiles,
    base: Base,
    policy: Policy,
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Fill,
    seed: Seed = 0,
) -> None:
    """Fine-tune a policy base on chosen responses."""
    from vrm.training.policies import train_sft

    settings = _load(config)
    train_sft(_policy_job(settings, base, policy, seed, pairs, checkpoints, out), settings.policy.sft)


@stage(
    "vrm reference-log-probs --config config.yaml --base qwen3 --policy results/demo/policy/qwen3/sft/seed1/model \\\n"
    "  --pairs results/demo/data/pairs --out log_probs.parquet",
    models=True,
)
def reference_log_probs(
    config: ConfigFiles,
    base: Base,
    policy: Policy,
    out: Parquet,
    pairs: Annotated[Path | None, Option("directory of normalised pairs by split, for trainings")] = None,
    sets: Annotated[list[Path], Option("instead: files of evaluation sets, for `vrm score-policy`")] = (),
) -> None:
    """Ask the policy that others start from for every text, once for all preference methods."""
    if (pairs is None) != bool(sets):
        raise config_error("give --pairs DIRECTORY for trainings, or --sets FILES for scores")
    settings = _load(config)
    if pairs is not None:
        from vrm.training.preference import make_reference

        return make_reference(_policy_job(settings, base, policy, 0, pairs, out.parent, out.parent), out)
    from vrm.evaluation.score_sets import texts_of
    from vrm.models.policy_scoring import ask_reference, load_policy_scorer

    entry = _base(settings, base)
    own = {"revision": _revision(entry, policy), "chat_template": entry.chat_template}
    scorer = load_policy_scorer(local_or_hub(policy, "--policy"), None, **own, **_policy_scoring(settings, base))
    return ask_reference(scorer, policy, own["revision"], texts_of(sets), out)


@stage(
    "vrm train-preference --config config.yaml --base qwen3 --method dpo --seed 1 \\\n"
    "  --policy results/demo/policy/qwen3/sft/seed1/model --pairs results/demo/data/pairs \\\n"
    "  --checkpoints /tmp/dpo --out results/demo/policy/qwen3/dpo/seed1",
    models=True,
)
def train_preference(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Fill,
    difficulty: Annotated[Path | None, Option("difficulty.csv; selective_dpo needs it")] = None,
    reference_log_probs: LogProbs = None,
    seed: Seed = 0,
) -> None:
    """Train a policy on preference pairs."""
    from vrm.config import ConfigError, PreferenceMethod
    from vrm.training.preference import train_preference

    settings = _load(config)
    spec = _method(settings, method, PreferenceMethod)
    if (spec.method == "selective_dpo") != (difficulty is not None):
        raise ConfigError(f"{method}: --difficulty goes with selective_dpo, and selective_dpo needs it")
    train_preference(
        _policy_job(settings, base, policy, seed, pairs, checkpoints, out), spec, difficulty, reference_log_probs
    )


@stage(
    "vrm difficulty-run --config config.yaml --base qwen3 --method dpo --seed 1 --run 1 --half 0 \\\n"
    "  --policy results/demo/policy/qwen3/sft/seed1/model --pairs results/demo/data/pairs \\\n"
    "  --checkpoints /tmp/half --out run1.half0.csv",
    models=True,
)
def difficulty_run(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    run: Annotated[int, Option("number of the halving")],
    half: Annotated[Literal[0, 1], Option("which half is trained on")],
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Csv,
    reference_log_probs: LogProbs = None,
    seed: Seed = 0,
) -> None:
    """Train a reference run on half of the pairs; score the others."""
    from vrm.config import PreferenceMethod
    from vrm.training.selective import train_difficulty_run

    settings = _load(config)
    spec, training = settings.policy.difficulty, settings.policy.training
    changed = {"epochs": spec.epochs, "lora": spec.lora or training.lora}
    job = _policy_job(settings, base, policy, seed, pairs, checkpoints, out, **changed)
    trained_by = _method(settings, method, PreferenceMethod)
    overrides = {"learning_rate": spec.learning_rate or trained_by.learning_rate, "epochs": None}
    method = trained_by.model_copy(update=overrides)
    train_difficulty_run(job, method, run, half, spec.evaluations, spec.lora_dropout, reference_log_probs)


@stage("vrm difficulty --config config.yaml --losses run1.half0.csv run1.half1.csv --out difficulty.csv")
def difficulty(
    config: ConfigFiles,
    losses: Annotated[list[Path], Option("what the reference runs wrote")],
    out: Csv,
) -> None:
    """Average the reference runs' losses and select pairs."""
    from vrm.training.selective import select_pairs

    select_pairs(losses, _load(config).policy.difficulty.keep, out)


@stage(
    "vrm train-ppo --config config.yaml --base qwen3 --method ppo_vrm --seed 1 \\\n"
    "  --policy results/demo/policy/qwen3/sft/seed1/model --model results/demo/reward/vrm/seed1/model \\\n"
    "  --pairs results/demo/data/pairs --checkpoints /tmp/ppo \\\n"
    "  --out results/demo/policy/qwen3/ppo_vrm/seed1",
    models=True,
)
def train_ppo(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    pairs: Pairs,
    checkpoints: Checkpoints,
    out: Fill,
    model: TrainedHere = None,
    seed: Seed = 0,
) -> None:
    """Train a policy by PPO."""
    from vrm.config import PpoMethod

    settings = _load(config)
    spec = _method(settings, method, PpoMethod)
    outside = settings.reward.outside.get(spec.reward)
    if (model is None) == (outside is None):
        here = "trained here: give --model DIRECTORY" if outside is None else "an outside model: leave --model out"
        raise config_error(f"{method}: its reward {spec.reward} is {here}")
    job = _policy_job(settings, base, policy, seed, pairs, checkpoints, out)

    from vrm.models.scoring import load_outside, load_reward_model
    from vrm.training.ppo import train_ppo

    options = {"batch_size": settings.reward.scoring_batch_size, "reward": spec.reward_part}
    reward = load_outside(outside, **options) if outside else load_reward_model(local(model, "--model"), **options)
    train_ppo(job, settings.policy.ppo, settings.policy.generation, reward, outside or model)


@stage(
    "vrm score-policy --config config.yaml --base qwen3 --method dpo \\\n"
    "  --policy results/demo/policy/qwen3/dpo/seed1/model \\\n"
    "  --reference results/demo/policy/qwen3/sft/seed1/model \\\n"
    "  --sets results/demo/evaluation/sets/reward_bench.jsonl --pairs results/demo/data/pairs \\\n"
    "  --out scores.csv",
    models=True,
)
def score_policy(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    reference: Reference,
    sets: Sets,
    pairs: Pairs,
    out: Csv,
    reference_log_probs: LogProbs = None,
) -> None:
    """Score every evaluation set with a policy."""
    from vrm.config import PreferenceMethod
    from vrm.evaluation.score_sets import score_sets
    from vrm.models.policy_scoring import load_policy_scorer

    settings = _load(config)
    spec = _method(settings, method, PreferenceMethod)
    scorer = load_policy_scorer(
        local_or_hub(policy, "--policy"),
        local_or_hub(reference, "--reference") if spec.needs_reference else None,
        reference_revision=_revision(_base(settings, base), reference),
        reference_log_probs=reference_log_probs,
        **_policy_scoring(settings, base),
    )
    score_sets(scorer, {path.stem: path for path in sets}, pairs / "train.jsonl", out)


@stage(
    "vrm best-of-n --config config.yaml --base qwen3 --seed 1 \\\n"
    "  --policy results/demo/policy/qwen3/sft/seed1/model \\\n"
    "  --models vrm=results/demo/reward/vrm/seed1/model --pairs results/demo/data/pairs \\\n"
    "  --out samples.jsonl",
    models=True,
)
def best_of_n(
    config: ConfigFiles,
    base: Base,
    policy: Policy,
    models: Annotated[
        list[str], Option("trained reward models; an outside one by its name alone", metavar="VARIANT=DIRECTORY")
    ],
    pairs: Pairs,
    out: Annotated[Path, Option("JSONL to write")],
    seed: Seed = 0,
) -> None:
    """Draw many answers to each prompt and score them."""
    from vrm.evaluation.overoptimisation import BestOfNJob, sample_best_of_n

    settings = _load(config)
    section, entry = settings.policy, _base(settings, base)
    sample_best_of_n(
        BestOfNJob(
            policy=local_or_hub(policy, "--policy"),
            revision=_revision(entry, policy),
            chat_template_kwargs=entry.chat_template_kwargs,
            chat_template=entry.chat_template,
            rewards=dict(_reward(settings, text) for text in models),
            pairs=pairs / "validation.jsonl",
            generation=section.generation,
            best_of_n=section.best_of_n,
            max_prompt_length=section.training.max_prompt_length,
            max_length=section.training.max_length,
            scoring_batch_size=settings.reward.scoring_batch_size,
            seed=seed,
            out=out,
        )
    )


@stage("vrm gold --config config.yaml --samples samples.jsonl --out samples.gold.csv")
def gold(config: ConfigFiles, samples: Annotated[Path, Option("a samples.jsonl")], out: Csv) -> None:
    """Score a file of samples by the gold judge."""
    from vrm.config import ConfigError
    from vrm.evaluation.overoptimisation import score_gold

    spec = _load(config).policy.gold
    if spec is None:
        raise ConfigError("policy.gold is null: there is no gold judge to score by")
    score_gold(spec, samples, out)


@stage("vrm world-benchmarks --config config.yaml --out results/demo/world/benchmarks")
def world_benchmarks(config: ConfigFiles, out: Fill) -> None:
    """Write the world's benchmark files."""
    from vrm.world.evaluation_sets import write_benchmarks

    write_benchmarks(_load(config).world, out)


@stage("vrm benchmark-set --config config.yaml --name mt_bench --out results/demo/judged/sets/mt_bench")
def benchmark_set(config: ConfigFiles, name: Name, out: Fill) -> None:
    """Fetch or copy one judged benchmark's files, and check them."""
    from vrm.data.benchmark_files import prepare

    settings = _load(config)
    directory = settings.data.benchmarks_dir
    prepare(_benchmark(name), settings.benchmarks, Path(directory) if directory else None, out)


@stage(
    "vrm answer --config config.yaml --base qwen3 --method dpo --seed 1 \\\n"
    "  --policy results/demo/policy/qwen3/dpo/seed1/model --sets results/demo/judged/sets/mt_bench \\\n"
    "  --checkpoints /tmp/answers --out results/demo/policy/qwen3/dpo/seed1/answers",
    models=True,
)
def answer(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    sets: JudgedSets,
    checkpoints: Checkpoints,
    out: Fill,
    seed: Seed = 0,
    shares: Annotated[list[Path], Option("files of `vrm answer-share`, whose answers are taken")] = (),
) -> None:
    """Answer every judged benchmark with a policy."""
    from vrm.generation.answers import answer_benchmarks

    answer_benchmarks(_questionnaire(config, base, method, seed, policy, sets), checkpoints, out, shares)


@stage(
    "vrm answer-share --config config.yaml --base qwen3 --method dpo --seed 1 --share 0 --shares 4 \\\n"
    "  --policy results/demo/policy/qwen3/dpo/seed1/model --sets results/demo/judged/sets/mt_bench \\\n"
    "  --checkpoints /tmp/share0 --out results/demo/policy/qwen3/dpo/seed1/answer_shares/0of4.jsonl",
    models=True,
)
def answer_share(
    config: ConfigFiles,
    base: Base,
    method: Method,
    policy: Policy,
    sets: JudgedSets,
    share: Annotated[int, Option("which share, from 0")],
    shares: Annotated[int, Option("how many there are")],
    checkpoints: Checkpoints,
    out: Annotated[Path, Option("JSON lines to write, a batch each")],
    seed: Seed = 0,
) -> None:
    """Answer a share of the judged benchmarks' first turns with a policy."""
    from vrm.generation.answers import answer_share as answer_own

    answer_own(_questionnaire(config, base, method, seed, policy, sets), checkpoints, out, share, shares)


def _questionnaire(
    config: list[Path], base: str, method: str, seed: int, policy: str, sets: list[Path]
) -> Questionnaire:
    from vrm.config import JudgedPolicy
    from vrm.generation.answers import Questionnaire
    from vrm.judged.stages import read_answer_sets

    settings = _load(config)
    judged = JudgedPolicy(base, method, seed)
    directories = {path.name: path for path in sets}
    return Questionnaire(
        settings,
        judged,
        local_or_hub(policy, "--policy"),
        revision=_revision(_base(settings, base), policy),
        answer_sets=read_answer_sets(settings, judged, directories),
        sets=directories,
    )


@stage(
    "vrm judge --config config.yaml --name mt_bench --base qwen3 --method dpo --seed 1 \\\n"
    "  --answers results/demo/policy/qwen3/dpo/seed1/answers --sets results/demo/judged/sets/mt_bench \\\n"
    "  --out results/demo/policy/qwen3/dpo/seed1/judgments"
)
def judge(
    config: ConfigFiles,
    name: Name,
    base: Base,
    method: Method,
    answers: Annotated[Path, Option("directory that `vrm answer` filled")],
    sets: Annotated[Path, Option("directory that `vrm benchmark-set` filled")],
    out: Fill,
    seed: Seed = 0,
) -> None:
    """Have a policy's answers to one benchmark judged; what was paid for is never asked again."""
    from vrm.config import JudgedPolicy
    from vrm.judged.stages import judge_benchmark

    judged = JudgedPolicy(base, method, seed)
    judge_benchmark(_load(config), judged, _benchmark(name), answers, sets, out)


@stage(
    "vrm judged-scores --config config.yaml --name mt_bench --results results/demo \\\n"
    "  --out results/demo/judged/mt_bench.csv"
)
def judged_scores(config: ConfigFiles, name: Name, results: Results, out: Csv) -> None:
    """Score every judged policy on one benchmark."""
    from vrm.judged.stages import write_scores

    write_scores(_load(config), _benchmark(name), results, out)


@stage("vrm table --config config.yaml --name table1 --results results/demo --out results/demo/tables")
def table(config: ConfigFiles, name: Name, results: Results, out: Fill) -> None:
    """Make one table."""
    from vrm.reporting.registry import TABLES

    settings = _load(config)
    known(TABLES, name, "table")(settings, results, out)


@stage("vrm figure --config config.yaml --name figure2 --results results/demo --out results/demo/figures")
def figure(config: ConfigFiles, name: Name, results: Results, out: Fill) -> None:
    """Draw one figure."""
    from vrm.reporting.registry import FIGURES

    settings = _load(config)
    known(FIGURES, name, "figure")(settings, results, out)


@stage("vrm explorer --config config.yaml --results results/demo --out results/demo/explorer")
def explorer(config: ConfigFiles, results: Results, out: Fill) -> None:
    """Make the page to read pairs, weights and contributions in."""
    from vrm.reporting.explorer import explorer

    explorer(_load(config), results, out)


def _benchmark(name: str) -> BenchmarkName:
    """The judged benchmark of that name."""
    from vrm.config.benchmarks import FILES

    known(FILES, name, "benchmark")
    return name


def _base(settings: Config, name: str) -> PolicyBase:
    return known(settings.policy.bases, name, "policy base")


def _reward(settings: Config, text: str) -> tuple[str, Path | OutsideModel]:
    """A reward model by name, with `:rated` behind it for that part: VARIANT=DIRECTORY, or that of an outside model."""
    from vrm.config.policy import RATED

    name, given, directory = text.partition("=")
    outside = settings.reward.outside.get(name.removesuffix(RATED))
    if bool(given) == (outside is not None):
        raise config_error(f"--models {text}: give VARIANT=DIRECTORY, or the name of an outside model alone")
    return name, outside or local(directory, "--models")


def _method(settings: Config, name: str, kind: type[M]) -> M:
    """A method by name, of the kind that the stage is for."""
    from vrm.config import ConfigError

    method = known(settings.policy.methods, name, "policy method")
    if not isinstance(method, kind):
        raise ConfigError(f"policy.methods.{name} is {method.method}: another stage trains that")
    return method


def _revision(base: PolicyBase, model: str) -> str | None:
    """The base's commit on the hub; what lies in a directory here has none."""
    return None if Path(model).is_dir() else base.revision


def _policy_scoring(settings: Config, base: str) -> dict[str, Any]:
    """How policies of a base score: keyword arguments of `load_policy_scorer`."""
    training = settings.policy.training
    return {
        "max_prompt_length": training.max_prompt_length,
        "max_length": training.max_length,
        "batch_size": 2 * training.batch_size,
        "chat_template_kwargs": _base(settings, base).chat_template_kwargs,
        "progress": True,
    }


def _policy_job(
    settings: Config, base: str, policy: str, seed: int, pairs: Path, checkpoints: Path, out: Path, **overrides: object
) -> PolicyJob:
    """What every policy training has in common; `overrides` replace fields of `policy.training`."""
    from vrm.records import RecordError
    from vrm.training.policies import PolicyJob

    entry = _base(settings, base)
    if not (pairs / "train.jsonl").is_file():
        raise RecordError(f"--pairs {pairs}: there is no train.jsonl; name the directory of normalised pairs")
    return PolicyJob(
        policy=local_or_hub(policy, "--policy"),
        revision=_revision(entry, policy),
        chat_template_kwargs=entry.chat_template_kwargs,
        chat_template=entry.chat_template,
        training=settings.policy.training.model_copy(update=overrides),
        seed=seed,
        pairs=pairs,
        checkpoints=checkpoints,
        out=out,
    )
