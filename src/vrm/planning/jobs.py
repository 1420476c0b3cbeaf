"""What the workflow's rules ask a scheduler for, from the same estimates as `vrm plan`.

Every job of a run that may need a GPU: what it holds, how long it takes, what it leaves, and what it waits for.

One function a stage of the workflow; `jobs` puts them together as the rules do. A small model that is made here runs
on the CPU: its jobs count, and their hours and memory are not estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil

from vrm.config import (
    BackboneConfig,
    Config,
    ConfigError,
    Lora,
    Optimisation,
    OutsideModel,
    PolicyConfig,
    PolicyTraining,
)
from vrm.planning import memory, time
from vrm.planning.judge_cost import questions
from vrm.planning.memory import GIB, Memory, Precision, Shape, shape_of
from vrm.planning.time import Gpu, Texts, texts_of, training_pairs

QUESTION_TOKENS = 100
"""Mean tokens of a question. Assumed."""


@dataclass(frozen=True)
class Job:
    """One job.

    Args:
        stage: the rule.
        name: unique in a run.
        gpus: how many it asks for, on all its nodes together.
        memory: its peak; empty on the CPU, None where the model's size is not known.
        hours: how long it takes on all its GPUs together.
        disk: GiB that it leaves.
        working: GiB of checkpoints while it runs.
        host: GiB of a node's own memory: the weights pass through it.
        nodes: how many it runs on.
        needs: names of the jobs that come first.
    """

    stage: str
    name: str
    gpus: int = 0
    memory: Memory | None = field(default_factory=Memory)
    hours: float = 0.0
    disk: float = 0.0
    working: float = 0.0
    host: float = 2.0
    nodes: int = 1
    needs: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """Hours that cards are held."""
        return self.gpus * self.hours


@dataclass(frozen=True)
class Setting:
    """What every estimate starts from.

    Args:
        config: the run's.
        gpu: the card.
        capacity: GiB of the card.
        scale: how many times the training data there are; PPO then makes as many times the updates.
    """

    config: Config
    gpu: Gpu = time.H100
    capacity: float = 80.0
    scale: float = 1.0

    @property
    def data(self) -> Texts:
        """Lengths of the training data."""
        return texts_of(self.config.data)

    @property
    def every_pair(self) -> int:
        """Training pairs that there are."""
        return round(self.scale * training_pairs(self.config))

    @property
    def validation_pairs(self) -> float:
        """Validation pairs that there are."""
        data = self.config.data
        return self.every_pair * data.validation_fraction / (1 - data.validation_fraction - data.test_fraction)

    def pairs(self, training: Optimisation) -> float:
        """Pairs of a training: all there are, or as many as it takes."""
        return min(self.every_pair, self.scale * training.pairs) if training.pairs else self.every_pair

    def policy(self, base: str) -> BackboneConfig:
        """What policies of a base start from."""
        return self.config.policy.bases[base]

    def reward(self, name: str) -> BackboneConfig:
        """The backbone of a reward model: the run's, or an outside model's own."""
        outside = self.config.reward.outside.get(name)
        return self.config.backbone if outside is None else _own_backbone(outside)

    def largest_reward(self, methods: Iterable[str]) -> Shape:
        """The largest of the reward models that pay some of the PPO methods."""
        names = [self.config.policy.methods[name].reward for name in methods] or [""]
        return max((shape_of(self.reward(name)) for name in names), key=lambda shape: shape.body_parameters)

    def evaluation_rows(self) -> int:
        """Texts of all evaluation sets."""
        sets = self.config.evaluation
        return 2 * sum(texts_of(sets.sets[name]).rows for name in sets.run)

    def text_length(self, training: Optimisation) -> float:
        """Mean tokens of prompt and response, after cutting."""
        return min(self.data.prompt + self.data.response, training.max_length)


def estimate(setting: Setting, stage: str, base: str = "", method: str = "") -> Job:
    """One job of a stage, whatever its seed.

    Args:
        setting: configuration and card.
        stage: a rule's name, with underscores.
        base: a key of policy.bases, for stages of policies.
        method: a key of policy.methods, for stages that have one; of reward.outside, for `score_outside`.

    Returns:
        A job named after the stage. Stages without a model need no GPU.
    """
    backbone = setting.policy(base) if base else setting.reward(method)
    if stage not in ESTIMATES or (backbone.create is not None and not _reads_outside(setting, stage, method)):
        return Job(stage, stage)
    if setting.config.backbone.freeze and stage in ("train_reward", "score"):
        return _frozen(setting, stage)
    try:
        job = ESTIMATES[stage](setting, base, method)
    except ConfigError:  # a model of unknown size: it gets a card a process, and the plan says so
        job = Job(stage, stage, gpus=1, memory=None, host=32.0)
    return _spread(setting, job, backbone)


def _own_backbone(outside: OutsideModel) -> BackboneConfig:
    return BackboneConfig(path=outside.path, revision=outside.revision)


def _reads_outside(setting: Setting, stage: str, method: str) -> bool:
    """Whether a job of a policy that is made here, and small, loads an outside reward model, which may be large."""
    policy, outside = setting.config.policy, setting.config.reward.outside
    methods = {"train_ppo": [method], "best_of_n": policy.ppo_run}.get(stage, [])
    return any(policy.methods[name].reward in outside for name in methods)


def jobs(setting: Setting) -> Iterator[Job]:
    """Every job of the run, each after those it needs."""
    config = setting.config
    features = []
    for name, pairs in _featured_sets(setting):
        features.append(f"features {name}")
        yield _named(_features_of(setting, pairs), features[-1])
    for seed in config.reward.seeds:
        for variant in config.reward.run:
            trained = f"train_reward {variant} seed{seed}"
            yield _named(estimate(setting, "train_reward", method=variant), trained, *features[:2])
            yield _named(estimate(setting, "score"), f"score {variant} seed{seed}", trained, *features)
            if variant in _bounded(config):
                yield _named(estimate(setting, "pac_bayes"), f"pac_bayes {variant} seed{seed}", trained)
    for name in config.reward.run_outside:
        yield _named(estimate(setting, "score_outside", method=name), f"score_outside {name}")
    for base in config.policy.run_bases:
        for seed in config.policy.seeds:
            yield from _policy_jobs(setting, base, seed)


def _bounded(config: Config) -> list[str]:
    """Variants whose bound is shown somewhere."""
    return config.bounded_variants if "bound" in (*config.report.tables, *config.report.figures) else []


def _policy_jobs(setting: Setting, base: str, seed: int) -> Iterator[Job]:
    policy, end = setting.config.policy, f"{base} seed{seed}"
    start = [f"sft {end}"] if policy.bases[base].sft else []
    if start:
        yield _named(estimate(setting, "sft", base), start[0])
    reference = f"reference_log_probs {end}"
    if policy.preference_run:
        yield _named(estimate(setting, "reference_log_probs", base), reference, *start)
    of_sets = f"reference_of_sets {end}"
    if base == policy.scorers_from and any(policy.methods[name].needs_reference for name in policy.preference_run):
        yield _named(estimate(setting, "reference_of_sets", base), of_sets, *start)
    halves = [f"difficulty_run {end} run{run} half{half}" for run in range(policy.difficulty.runs) for half in (0, 1)]
    if selective := policy.trained("selective_dpo"):
        first = [reference] if policy.shares_reference else start
        for name in halves:
            yield _named(estimate(setting, "difficulty_run", base, selective[0]), name, *first)
    for method in policy.preference_run:
        first = [reference, *(halves if policy.methods[method].method == "selective_dpo" else ())]
        name = f"train_preference {method} {end}"
        yield _named(estimate(setting, "train_preference", base, method), name, *first)
        if base == policy.scorers_from:
            known = [of_sets] if policy.methods[method].needs_reference else []
            yield _named(estimate(setting, "score_policy", base, method), f"score_policy {method} {end}", name, *known)
    outside = setting.config.reward.outside  # is there before anything runs
    rewards = {name: policy.methods[name].reward for name in policy.ppo_run}
    trained = {name: [f"train_reward {reward} seed{seed}"] for name, reward in rewards.items() if reward not in outside}
    for method in rewards:
        first = trained.get(method, [])
        yield _named(estimate(setting, "train_ppo", base, method), f"train_ppo {method} {end}", *first, *start)
    if rewards and "overoptimisation" in setting.config.report.figures:
        first = [name for names in trained.values() for name in names]
        yield _named(estimate(setting, "best_of_n", base), f"best_of_n {end}", *first, *start)
    for judged in setting.config.judged_policies:
        if (judged.base, judged.seed) == (base, seed):
            stage = "train_ppo" if judged.method in rewards else "train_preference"
            made = start[0] if judged.method == "sft" else f"{stage} {judged.method} {end}"
            number = setting.config.benchmarks.answering.shares
            shares = [f"answer_share {judged.method} {end} {share}" for share in range(number) if number > 1]
            for name in shares:
                yield _named(estimate(setting, "answer_share", base), name, made)
            yield _named(estimate(setting, "answer", base), f"answer {judged.method} {end}", *(shares or [made]))


def _spread(setting: Setting, job: Job, backbone: BackboneConfig) -> Job:
    """A training's job in as many processes as it is given, one a card; that they take turns at nothing is assumed."""
    policy, reward = setting.config.policy, job.stage == "train_reward"
    training = setting.config.reward.training if reward else policy.training
    if job.stage not in TRAININGS or training.processes == 1:
        return job
    needed = job.memory
    # PPO keeps a whole policy on each card
    if needed and (training.launch == "ddp" or job.stage == "train_ppo"):
        needed = memory.copied(needed)
    elif needed:
        lora = _difficulty_adapters(policy) if job.stage == "difficulty_run" else training.lora
        precision = _precision(training, lora)
        needed = memory.sharded(needed, shape_of(backbone), precision, training.processes, head=not reward)
    spread = {"gpus": training.processes, "hours": job.hours / training.processes, "memory": needed}
    host = job.host * training.processes / training.nodes  # each process reads the weights
    return Job(**{**vars(job), **spread, "host": host, "nodes": training.nodes})


def _named(job: Job, name: str, *needs: str) -> Job:
    return Job(**{**vars(job), "name": name, "needs": needs})


def _precision(training: Optimisation, lora: Lora | None = None) -> Precision:
    moments, by_group = memory.MOMENTS[training.optimizer], training.engine == "shared"
    return Precision(training.bf16, lora, training.gradient_checkpointing, moments, by_group)


def _job(stage: str, shape: Shape, needed: Memory, hours: float, disk: float = 0.0, working: float = 0.0) -> Job:
    return Job(stage, stage, 1, needed, hours, disk, working, host=8 + 2 * 4 * shape.parameters / GIB)


def _features(setting: Setting, base: str, method: str) -> Job:
    """The largest set's."""
    return _features_of(setting, max(pairs for _, pairs in _featured_sets(setting)))


def _featured_sets(setting: Setting) -> list[tuple[str, float]]:
    """Sets that features are computed of, training and validation pairs first, and how many pairs they have."""
    config = setting.config
    if not config.backbone.freeze:
        return []
    sets = config.evaluation
    pairs = {"train": float(setting.every_pair), "validation": setting.validation_pairs}
    return [*pairs.items(), *((name, float(texts_of(sets.sets[name]).rows)) for name in sets.run)]


def _features_of(setting: Setting, pairs: float) -> Job:
    """One set's: every prompt once, every response once, whatever the number of heads."""
    if setting.config.backbone.create is not None:
        return Job("features", "features")
    try:
        reward, shape = setting.config.reward, shape_of(setting.config.backbone)
    except ConfigError:  # of unknown size, and the plan says so
        return Job("features", "features", gpus=1, memory=None, host=32.0)
    data = setting.data
    length = setting.text_length(reward.training)
    tokens = pairs * min(data.prompt + 2 * data.response, 2 * length)
    spent = time.hours(tokens * time.forward_operations(shape, length, head=False), setting.gpu, reward.training.bf16)
    parts = memory.forward_only(shape, reward.scoring_batch_size, reward.training.max_length, 4, head=False)
    return _job("features", shape, Memory(parts), spent, _features_size(shape, pairs))


def _frozen(setting: Setting, stage: str) -> Job:
    """A head's training, or its scores, from stored features: seconds, without a GPU."""
    try:
        shape = shape_of(setting.config.backbone)
    except ConfigError:  # of unknown size: what the smallest takes
        return Job(stage, stage)
    # a training holds the features, and what is scored with is the whole model
    held = 2 * _features_size(shape, setting.every_pair) if stage == "train_reward" else _float32(shape)
    return Job(stage, stage, host=3 + held)


def _features_size(shape: Shape, pairs: float) -> float:
    """GiB of stored features: vectors of a prompt and two responses a pair, each three hidden states wide."""
    return 3 * pairs * 3 * shape.hidden * 4 / GIB


def _float32(shape: Shape) -> float:
    """GiB of a reward model's weights."""
    return 4 * shape.body_parameters / GIB


def _train_reward(setting: Setting, base: str, method: str) -> Job:
    reward, shape = setting.config.reward, shape_of(setting.config.backbone)
    # a rule asks for all its variants at once: the one that trains for longest
    names = [method] if method else reward.run
    training = max((reward.training_of(name) for name in names), key=lambda own: own.epochs)
    length = setting.text_length(training)
    precision = _precision(training, training.lora)
    a_token = time.forward_operations(shape, length, head=False)
    texts = 2 * setting.pairs(training) * training.epochs * time.passes(precision)
    texts += 4 * training.evaluations * training.evaluation_pairs
    needed = memory.training(shape, precision, 2 * training.batch_size, training.max_length, head=False)
    spent = time.hours(texts * length * a_token * time.unpacking(precision), setting.gpu, training.bf16)
    trained = shape.adapter_parameters(training.lora.rank) if training.lora else shape.body_parameters
    # adapters are merged in float32
    size = 4 * shape.body_parameters / GIB
    checkpoint = (4 + precision.moments) * trained / GIB if training.checkpoints else 0
    return _job("train_reward", shape, needed, spent, size, checkpoint)


def _score(setting: Setting, base: str, method: str) -> Job:
    """`method` is the outside model, where it is one."""
    stage = "score_outside" if method else "score"
    return _asked(setting, stage, shape_of(setting.reward(method)), setting.evaluation_rows())


def _pac_bayes(setting: Setting, base: str, method: str) -> Job:
    """Posteriors of every pair that was trained on, and of the validation pairs."""
    pairs = setting.pairs(setting.config.reward.training) + setting.validation_pairs
    return _asked(setting, "pac_bayes", shape_of(setting.config.backbone), 2 * pairs)


def _asked(setting: Setting, stage: str, shape: Shape, texts: float) -> Job:
    """A finished reward model on some texts. It is float32, and asked in it."""
    reward = setting.config.reward
    length = setting.text_length(reward.training)
    operations = texts * length * time.forward_operations(shape, length, head=False)
    parts = memory.forward_only(shape, reward.scoring_batch_size, reward.training.max_length, 4, head=False)
    return _job(stage, shape, Memory(parts), time.hours(operations, setting.gpu, bf16=False))


def _difficulty_adapters(policy: PolicyConfig) -> Lora | None:
    return policy.difficulty.lora or policy.training.lora


def _tuning(
    setting: Setting,
    base: str,
    stage: str,
    training: PolicyTraining,
    texts: float,
    lora: Lora | None,
    extra: float = 0.0,
) -> Job:
    """A training on `texts` texts in all, and `extra` forward passes over texts."""
    shape = shape_of(setting.policy(base))
    precision, length = _precision(training, lora), setting.text_length(training)
    if stage == "sft":  # TRL pads
        precision = replace(precision, by_group=False)
    operations = (texts * time.passes(precision) + extra) * length * time.forward_operations(shape, length)
    # of a pair or, in KTO, a text and the mismatched one; the latter carries no gradient, and less memory than this
    rows = training.batch_size * (1 if stage == "sft" else 2)
    needed = memory.training(shape, precision, rows, training.max_length)
    trained = shape.adapter_parameters(lora.rank) if lora else shape.parameters
    spent = time.hours(operations * time.unpacking(precision), setting.gpu, training.bf16)
    # adapters are merged in float32
    size = 4 * shape.parameters / GIB if stage in ("sft", "train_preference") else 0
    working = 12 * trained / GIB if training.checkpoints and texts else 0
    return _job(stage, shape, needed, spent, size, working)


def _sft(setting: Setting, base: str, method: str) -> Job:
    policy = setting.config.policy
    training = policy.training
    return _tuning(setting, base, "sft", training, setting.pairs(training) * policy.sft.epochs, training.lora)


def _reference_log_probs(setting: Setting, base: str, method: str) -> Job:
    """Every pair once. The memory is that of a training, whose trainer asks."""
    training = setting.config.policy.training
    asked = 2 * (setting.pairs(training) + min(training.evaluation_pairs, setting.validation_pairs))
    return _tuning(setting, base, "reference_log_probs", training, 0, training.lora, asked)


def _train_preference(setting: Setting, base: str, method: str) -> Job:
    policy = setting.config.policy
    own, training = policy.methods[method], policy.methods[method].trained_with(policy.training)
    pairs = setting.pairs(training) * (policy.difficulty.keep if own.method == "selective_dpo" else 1)
    texts = 2 * pairs * training.epochs
    # KTO's mismatched texts, once for their reference and then in every pass; what is measured along the way
    extra = 2 * pairs + texts if own.method == "kto" else 0
    extra += 4 * training.evaluations * training.evaluation_pairs
    return _tuning(setting, base, "train_preference", training, texts, training.lora, extra)


def _difficulty_run(setting: Setting, base: str, method: str) -> Job:
    policy = setting.config.policy
    training = policy.methods[method].trained_with(policy.training)
    half = 2 * setting.pairs(training) / 2
    lora = _difficulty_adapters(policy)
    # the losses of the other half along the way, and where it is not known the reference of both
    extra = (policy.difficulty.evaluations + (0 if policy.shares_reference else 2)) * half
    return _tuning(setting, base, "difficulty_run", training, half * policy.difficulty.epochs, lora, extra)


def _train_ppo(setting: Setting, base: str, method: str) -> Job:
    config, policy = setting.config, setting.config.policy
    ppo, training, generation = policy.ppo, policy.training, policy.generation
    shape, reward = shape_of(setting.policy(base)), setting.largest_reward([method])
    precision = replace(_precision(training, training.lora), moments=memory.MOMENTS["adamw"])
    prompt = min(setting.data.prompt, training.max_prompt_length)
    length = prompt + time.ANSWER * generation.max_new_tokens
    answers, held_out = (
        round(setting.scale * ppo.updates) * ppo.prompts_per_update,
        (ppo.evaluations + 1) * ppo.evaluation_prompts,
    )
    # old log-probabilities, the reference's and the critic's values; then actor and critic learn
    model_passes = (3 + 2 * ppo.epochs * time.passes(precision)) * time.unpacking(precision)
    spent = time.hours(
        answers * length * model_passes * time.forward_operations(shape, length), setting.gpu, training.bf16
    )
    judged = (answers + held_out) * length * time.forward_operations(reward, length, head=False)
    spent += time.hours(judged, setting.gpu, bf16=False)
    spent += time.decoding_hours(
        shape,
        setting.gpu,
        answers=answers + held_out,
        prompt=prompt,
        new_tokens=generation.max_new_tokens,
        batch=min(generation.batch_size, ppo.prompts_per_update),
        engine=generation.engine,
        adapted=training.lora is not None,
        width=precision.read_bytes,
    )
    longest = training.max_prompt_length + generation.max_new_tokens
    needed = memory.ppo(
        shape,
        reward,
        precision,
        rows=ppo.minibatch_size,
        length=longest,
        generated=min(generation.batch_size, ppo.prompts_per_update),
        scored=config.reward.scoring_batch_size,
        scored_length=config.reward.training.max_length,
        reserved=generation.vllm_memory * setting.capacity if generation.engine == "vllm" else 0.0,
    )
    trained = shape.adapter_parameters(training.lora.rank) if training.lora else shape.parameters
    return _job("train_ppo", shape, needed, spent, 4 * shape.parameters / GIB, 2 * 12 * trained / GIB)


def _score_policy(setting: Setting, base: str, method: str) -> Job:
    return _asked_policy(setting, base, "score_policy")


def _reference_of_sets(setting: Setting, base: str, method: str) -> Job:
    return _asked_policy(setting, base, "reference_of_sets")


def _asked_policy(setting: Setting, base: str, stage: str) -> Job:
    """A finished policy on the texts of all sets, in float32."""
    training, shape = setting.config.policy.training, shape_of(setting.policy(base))
    length = setting.text_length(training)
    operations = setting.evaluation_rows() * length * time.forward_operations(shape, length)
    parts = memory.forward_only(shape, 2 * training.batch_size, training.max_length, 4)
    return _job(stage, shape, Memory(parts), time.hours(operations, setting.gpu, bf16=False))


def _best_of_n(setting: Setting, base: str, method: str) -> Job:
    config, policy = setting.config, setting.config.policy
    generation, shape = policy.generation, shape_of(setting.policy(base))
    reward = setting.largest_reward(policy.ppo_run)
    answers = policy.best_of_n.samples * policy.best_of_n.prompts
    length = setting.data.prompt + time.ANSWER * generation.max_new_tokens
    judges = len({policy.methods[name].reward for name in policy.ppo_run})
    spent = time.hours(
        judges * answers * length * time.forward_operations(reward, length, head=False), setting.gpu, False
    )
    spent += _answering(setting, shape, {generation.max_new_tokens: answers}, generation.batch_size, generation.engine)
    longest = policy.training.max_prompt_length + generation.max_new_tokens
    sampling = memory.generation(shape, generation.batch_size, longest)
    scoring = memory.forward_only(reward, config.reward.scoring_batch_size, config.reward.training.max_length, 4, False)
    needed = Memory({**sampling.parts, "reward model": sum(scoring.values())})
    return _job("best_of_n", shape, needed, spent)


def _answer(setting: Setting, base: str, method: str) -> Job:
    """All turns, or where they are shared the second ones alone."""
    first = 1 if setting.config.benchmarks.answering.shares == 1 else 0
    return _answers(setting, base, "answer", lambda name: first + (name == "mt_bench"))


def _answer_share(setting: Setting, base: str, method: str) -> Job:
    """A share of the first turns."""
    job = _answers(setting, base, "answer_share", lambda name: 1)
    return replace(job, hours=job.hours / setting.config.benchmarks.answering.shares)


def _answers(setting: Setting, base: str, stage: str, turns: Callable[[str], int]) -> Job:
    benchmarks, shape = setting.config.benchmarks, shape_of(setting.policy(base))
    how, lengths = benchmarks.answering, {n: getattr(benchmarks, n).max_new_tokens for n in benchmarks.run}
    answers: dict[int, int] = {}
    for name, longest in lengths.items():
        answers[longest] = answers.get(longest, 0) + turns(name) * questions(setting.config, name)
    spent = _answering(setting, shape, answers, how.batch_size, how.engine)
    needed = memory.generation(shape, how.batch_size, how.max_prompt_length + max(lengths.values(), default=0))
    if how.engine == "vllm":
        needed = Memory({"vLLM": how.vllm_memory * setting.capacity - memory.RESERVED})
    return _job(stage, shape, needed, spent)


def _answering(setting: Setting, shape: Shape, answers: dict[int, int], batch: int, engine: str) -> float:
    """GPU hours of answers, given by their greatest length."""
    return sum(
        time.decoding_hours(
            shape, setting.gpu, answers=n, prompt=QUESTION_TOKENS, new_tokens=longest, batch=batch, engine=engine
        )
        for longest, n in answers.items()
    )


ESTIMATES: dict[str, Callable[[Setting, str, str], Job]] = {
    "features": _features,
    "train_reward": _train_reward,
    "score": _score,
    "score_outside": _score,
    "pac_bayes": _pac_bayes,
    "sft": _sft,
    "reference_log_probs": _reference_log_probs,
    "train_preference": _train_preference,
    "difficulty_run": _difficulty_run,
    "train_ppo": _train_ppo,
    "reference_of_sets": _reference_of_sets,
    "score_policy": _score_policy,
    "best_of_n": _best_of_n,
    "answer_share": _answer_share,
    "answer": _answer,
}
"""By rule: those that load a model."""

TRAININGS = ("train_reward", "sft", "reference_log_probs", "train_preference", "difficulty_run", "train_ppo")
"""Those that may take several GPUs: trainings, and what a trainer asks."""

SMALL_MEMORY, SMALL_MINUTES = 3000, 120
"""MiB and minutes of a job without a GPU: importing torch alone takes 1,500 MiB."""

LONGER = 2.0
"""How much longer than its estimate a job may take before the scheduler ends it."""


class RuleResources:
    """RuleResources of the rules of a run.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        setting = Setting(config)
        self._job = cache(lambda stage, base, method: estimate(setting, stage, base, method))

    def job(self, stage: str, base: str = "", method: str = "") -> Job:
        """The estimate behind the numbers."""
        return self._job(stage, base, method)

    def gpus(self, stage: str, base: str = "", method: str = "") -> int:
        """GPUs that a job asks for; 0 for a small model that is made here."""
        return self.job(stage, base, method).gpus

    def mem_mb(self, stage: str, base: str = "", method: str = "", attempt: int = 1) -> int:
        """Memory of a machine in MiB; half as much again with every further attempt."""
        job = self.job(stage, base, method)
        needed = ceil(job.host * 1024) if job.gpus else max(SMALL_MEMORY, ceil(job.host * 1024))
        return ceil(needed * (1 + (attempt - 1) / 2))

    def runtime(self, stage: str, base: str = "", method: str = "", attempt: int = 1) -> int:
        """Minutes; a job that ran out of time goes on from its checkpoint, with as much again."""
        job = self.job(stage, base, method)
        return (ceil(job.hours * 60 * LONGER) + SMALL_MINUTES) * attempt
