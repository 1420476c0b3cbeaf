"""Policies: their bases, the methods that train them, and what is measured along the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vrm.config.backbone import BackboneConfig
from vrm.config.base import (
    ConfigError,
    Fraction,
    Lora,
    Name,
    NonNegativeFloat,
    Optimisation,
    PositiveFloat,
    PositiveInt,
    RunPath,
    Section,
    require_known,
    require_whole,
)

NOT_METHODS = ("backbone", "sft", "reference", "difficulty", "best_of_n")
"""What lies beside the methods' directories, and what tables and judgments call it: no method may have these names."""
RATED = ":rated"
"""Follows a reward model's name where its rated-aspect reward alone is meant."""


class PolicyBase(BackboneConfig):
    """A model that policies start from, with its own tokenizer and chat template."""

    label: str = Field(description="What tables and figures call it.")
    paper: str | None = Field(None, description="The policy of the paper's Table 1 that it stands for; null: none.")
    sft: bool = Field(True, description="Fine-tune it on chosen responses first; false for a base that already is.")
    chat_template_kwargs: dict[str, bool | str | int] = Field(
        {}, description="Passed to the chat template in training and generation alike, e.g. {enable_thinking: false}."
    )


class PolicyTraining(Optimisation):
    """Optimisation, shared by SFT and the preference methods; each of them may override parts of it."""


class SftTraining(Section):
    """What supervised fine-tuning does differently from `policy.training`."""

    epochs: PositiveFloat = Field(2.0, description="Passes over the chosen responses.")
    learning_rate: PositiveFloat = Field(1e-3, description="Peak learning rate.")


class PreferenceMethod(Section):
    """A policy trained on preference pairs, offline."""

    label: str = Field(description="Row name in tables, legend in figures.")
    ours: bool = Field(False, description="Not in the paper: labelled as ours wherever it appears.")
    method: Literal["dpo", "ipo", "kto", "simpo", "wpo", "selective_dpo"] = Field(description="The objective.")
    beta: PositiveFloat = Field(0.1, description="Scale of the implicit reward; tau in IPO.")
    gamma_over_beta: NonNegativeFloat = Field(0.5, description="SimPO: target reward margin, in units of beta.")
    desirable_weight: NonNegativeFloat = Field(1.0, description="KTO: weight of chosen responses (lambda_D).")
    undesirable_weight: NonNegativeFloat = Field(1.0, description="KTO: weight of rejected responses (lambda_U).")
    learning_rate: PositiveFloat | None = Field(None, description="Instead of policy.training.learning_rate.")
    epochs: PositiveFloat | None = Field(None, description="Instead of policy.training.epochs.")
    batch_size: PositiveInt | None = Field(
        None,
        description="Instead of policy.training.batch_size; gradient_accumulation then follows, so that a step stays "
        "as large. KTO takes its KL term from one forward pass, over all processes: 4 texts at least, better more.",
    )

    def trained_with(self, training: PolicyTraining) -> PolicyTraining:
        """`policy.training`, with what this method has instead.

        Raises:
            ConfigError: a step is not a whole number of this method's batches, or KTO has nothing to mismatch.
        """
        own = {"learning_rate": self.learning_rate, "epochs": self.epochs, "batch_size": self.batch_size}
        changed = training.model_copy(update={key: value for key, value in own.items() if value is not None})
        accumulation, rest = divmod(training.batch_size * training.gradient_accumulation, changed.batch_size)
        if rest:
            raise ConfigError(
                f"batch_size ({changed.batch_size}) must divide policy.training's batch_size ({training.batch_size}) x "
                f"gradient_accumulation ({training.gradient_accumulation})"
            )
        if self.method == "kto" and changed.batch_size < 2:
            raise ConfigError(
                "kto estimates its KL term from the other responses of a batch: batch_size is to be at least 2, its "
                "own or policy.training's"
            )
        return changed.model_copy(update={"gradient_accumulation": accumulation})

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares with the policy that training starts from."""
        return self.method != "simpo"


class PpoMethod(Section):
    """A policy trained by PPO against one of the reward models."""

    label: str = Field(description="Row name in tables, legend in figures.")
    ours: bool = Field(False, description="Not in the paper: labelled as ours wherever it appears.")
    method: Literal["ppo"] = Field(description="The objective.")
    reward: Name = Field(
        description="Which of reward.run is the reward, policy seed s taking reward model seed s; or one of "
        "reward.outside, the same for all seeds."
    )
    reward_part: Literal["full", "rated"] = Field(
        "full",
        description="Its whole reward, or the rated-aspect reward alone; without a residual they are the same.",
    )

    @property
    def paid_by(self) -> str:
        """What samples and figures call the reward: the reward model's name, and `:rated` for that part of it."""
        return self.reward + (RATED if self.reward_part == "rated" else "")


Method = Annotated[PreferenceMethod | PpoMethod, Field(discriminator="method")]


class Difficulty(Section):
    """Selective DPO: how hard each training pair is, and which are kept.

    A pair's difficulty is its mean DPO loss along reference runs that are trained on the other half of the data.
    """

    runs: PositiveInt = Field(3, description="Random halvings, each with a seed of its own; each gives two runs.")
    evaluations: PositiveInt = Field(
        5, description="How often a reference run scores the other half, evenly spaced, the last time at its end."
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Share of the pairs, the easiest, that is kept.")
    epochs: PositiveFloat = Field(1.0, description="Passes of a reference run over its half.")
    learning_rate: PositiveFloat | None = Field(
        None, description="Instead of the method's own, or else policy.training.learning_rate."
    )
    lora: Lora | None = Field(None, description="Instead of policy.training.lora.")
    lora_dropout: Fraction = Field(
        0.05, description="Dropout before the adapters of a reference run; of no effect where there are none."
    )


class PpoLimits(Section):
    """When a PPO run has blown up: it then stops and says why."""

    kl: PositiveFloat = Field(100.0, description="Highest mean KL from the reference, in nats a response.")
    entropy: NonNegativeFloat = Field(0.01, description="Lowest mean entropy of the policy, in nats a token.")
    missing_end: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Highest share of responses without an end token."
    )
    explained_variance: float = Field(-5.0, description="Lowest explained variance of the critic after its warm-up.")
    response_length: PositiveFloat = Field(
        1.0, description="Shortest mean response, in tokens, the end token included."
    )
    patience: PositiveInt = Field(3, description="Updates in a row beyond a limit that are tolerated.")


class PpoTraining(Section):
    """PPO: one update is one batch of responses, and several optimiser steps on it."""

    updates: PositiveInt = Field(60, description="Batches of responses.")
    prompts_per_update: PositiveInt = Field(64, description="Responses in a batch, one a prompt, over all processes.")
    epochs: PositiveInt = Field(2, description="Passes over each batch.")
    minibatch_size: PositiveInt = Field(
        32,
        description="Responses a forward pass and device; an optimiser step has minibatch_size x gradient_accumulation "
        "of them.",
    )
    gradient_accumulation: PositiveInt = Field(1, description="Forward passes per optimiser step.")
    learning_rate: PositiveFloat = Field(3e-4, description="Actor's peak learning rate (AdamW, eps 1e-5, linear).")
    critic_learning_rate: PositiveFloat = Field(1e-3, description="Critic's peak learning rate.")
    critic_warmup: int = Field(3, ge=0, description="First updates in which only the critic learns.")
    kl_coefficient: NonNegativeFloat = Field(0.05, description="Weight of log pi - log pi_ref in the reward.")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Discount of later rewards, per token.")
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of the advantage estimator.")
    clip: PositiveFloat = Field(0.2, description="Policy ratios are clipped to 1 +- this.")
    value_clip: PositiveFloat = Field(0.2, description="New values are clipped to old ones +- this.")
    value_coefficient: PositiveFloat = Field(0.5, description="Weight of the value loss; scales the critic's gradient.")
    normalise_rewards: bool = Field(
        True, description="Subtract the running mean of all rewards so far and divide by their standard deviation."
    )
    reward_clip: PositiveFloat = Field(10.0, description="Rewards are clipped to +- this, after normalisation.")
    missing_end_penalty: NonNegativeFloat = Field(
        1.0, description="Taken from the reward of a response without an end token, after normalisation."
    )
    evaluations: PositiveInt = Field(8, description="How often, evenly spaced, held-out prompts are answered.")
    evaluation_prompts: PositiveInt = Field(96, description="Validation prompts used for that.")
    checkpoints: int = Field(2, ge=0, description="How many resumable checkpoints a training writes.")
    limits: PpoLimits = Field(default_factory=PpoLimits, description="When a run has blown up.")

    def local_batch(self, processes: int) -> int:
        """Responses in a batch that each process has.

        Raises:
            ConfigError: the batch can't be dealt out evenly to processes and optimiser steps.
        """
        local, rest = divmod(self.prompts_per_update, processes)
        if rest or local % (self.minibatch_size * self.gradient_accumulation):
            raise ConfigError(
                f"policy.ppo.prompts_per_update ({self.prompts_per_update}) must be a multiple of processes "
                f"({processes}) x minibatch_size ({self.minibatch_size}) x gradient_accumulation "
                f"({self.gradient_accumulation})"
            )
        return local

    @model_validator(mode="after")
    def _actor_learns(self) -> PpoTraining:
        if self.critic_warmup >= self.updates:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) leaves the actor none of the {self.updates} updates; lower it"
            )
        return self


class Generation(Section):
    """How policies answer."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What generates in PPO; vllm is an extra."
    )
    max_new_tokens: PositiveInt = Field(128, description="Longest response, in tokens, the end token included.")
    temperature: NonNegativeFloat = Field(1.0, description="Sampling temperature; 0 takes the likeliest token.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    batch_size: PositiveInt = Field(128, description="Prompts answered at once (transformers).")
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="Share of the GPU's memory that vLLM reserves; training needs the rest."
    )


class BestOfN(Section):
    """Best-of-n sampling from the SFT policy, beside PPO in the over-optimisation figure."""

    samples: PositiveInt = Field(64, description="Responses drawn for each prompt: the largest n.")
    prompts: PositiveInt = Field(64, description="Validation prompts.")


class PolicyConfig(Section):
    """Bases x methods, and what every training shares."""

    seeds: list[int] = Field([1], min_length=1, description="Each gives an SFT model and a policy of every method.")
    bases: dict[Name, PolicyBase] = Field({}, description="All known bases, by name.")
    run_bases: list[Name] = Field([], description="Which bases are trained; none leaves policies out.")
    methods: dict[Name, Method] = Field({}, description="All known methods, by name.")
    run: list[Name] = Field([], description="Which methods are trained, in the order of the tables' rows.")
    scorers_from: Name | None = Field(
        None, description="The base whose preference-trained policies are rows of Table 2; null leaves them out."
    )
    training: PolicyTraining = Field(default_factory=PolicyTraining, description="Optimisation.")
    sft: SftTraining = Field(default_factory=SftTraining, description="Supervised fine-tuning.")
    difficulty: Difficulty = Field(default_factory=Difficulty, description="Selective DPO's reference runs.")
    ppo: PpoTraining = Field(default_factory=PpoTraining, description="PPO.")
    generation: Generation = Field(default_factory=Generation, description="How policies answer.")
    best_of_n: BestOfN = Field(default_factory=BestOfN, description="Best-of-n sampling.")
    gold: RunPath | None = Field(
        None,
        description="What over-optimisation is measured against: `module:function` of (prompt text, response text), or "
        "the directory of a reward model that training does not see. null: the figure shows the proxy alone.",
    )

    @model_validator(mode="after")
    def _run_is_known(self) -> PolicyConfig:
        require_known("policy.run_bases", self.run_bases, self.bases)
        require_known("policy.run", self.run, self.methods)
        if self.scorers_from is not None:
            require_known("policy.scorers_from", [self.scorers_from], self.run_bases)
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> PolicyConfig:
        if taken := [name for name in self.methods if name in NOT_METHODS]:
            raise ValueError(f"policy.methods names {', '.join(taken)}, which is something else; rename it")
        return self

    @model_validator(mode="after")
    def _packed_weights_are_whole(self) -> PolicyConfig:
        require_whole(self.difficulty.lora, self.training)
        return self

    @model_validator(mode="after")
    def _batches_come_out_even(self) -> PolicyConfig:
        for name in self.preference_run if self.run_bases else []:
            try:
                self.methods[name].trained_with(self.training)
            except ConfigError as error:
                raise ValueError(f"policy.methods.{name}: {error}") from None
        if self.run_bases and self.ppo_run:
            self.ppo.local_batch(self.training.processes)
        return self

    @model_validator(mode="after")
    def _samples_have_known_probabilities(self) -> PolicyConfig:
        generation, training = self.generation, self.training
        if self.run_bases and self.ppo_run and (generation.temperature == 0 or generation.top_p < 1):
            raise ValueError(
                "PPO learns from samples of the policy's own distribution: policy.generation needs a temperature above "
                f"0 and top_p 1 (they are {generation.temperature:g} and {generation.top_p:g})"
            )
        if generation.engine == "vllm" and training.lora and (training.bf16 or training.lora.load_in_4bit):
            raise ValueError(
                "policy.generation.engine vllm with policy.training.lora and bf16 or load_in_4bit: adapters are merged "
                "into rounded weights and taken out again at every update, and the weights drift; use the transformers "
                "engine"
            )
        return self

    @model_validator(mode="after")
    def _responses_fit(self) -> PolicyConfig:
        room = self.training.max_length - self.training.max_prompt_length
        if self.run_bases and self.generation.max_new_tokens > room:
            raise ValueError(
                f"policy.generation.max_new_tokens is {self.generation.max_new_tokens}, but policy.training leaves "
                f"{room} tokens for a response (max_length - max_prompt_length)"
            )
        return self

    def trained(self, *methods: str) -> list[str]:
        """The names of `run` whose method is one of these, in order."""
        return [name for name in self.run if self.methods[name].method in methods]

    @property
    def shares_reference(self) -> bool:
        """Whether Selective DPO's reference runs ask the very policy that trainings ask, in the same precision.

        Adapters that are not trained yet change nothing, but weights below some are bfloat16 (with bf16) or packed.
        """

        def precision(lora: Lora | None) -> tuple[bool, bool]:
            return lora is not None and self.training.bf16, lora is not None and lora.load_in_4bit

        return precision(self.training.lora) == precision(self.difficulty.lora or self.training.lora)

    @property
    def preference_run(self) -> list[str]:
        """The names of `run` that are trained on preference pairs."""
        return [name for name in self.run if isinstance(self.methods[name], PreferenceMethod)]

    @property
    def ppo_run(self) -> list[str]:
        """The names of `run` that are trained by PPO."""
        return [name for name in self.run if isinstance(self.methods[name], PpoMethod)]
