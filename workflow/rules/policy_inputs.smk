# Names for what the policy rules ask of the configuration.


def get_policy_methods(*kinds):
    """A wildcard constraint: the methods of this run that are of one of these kinds."""
    return "|".join(CONFIG.policy.trained(*kinds)) or "(?!)"


PREFERENCE = get_policy_methods("dpo", "ipo", "kto", "simpo", "wpo", "selective_dpo")
PPO = get_policy_methods("ppo")


def get_base(wildcards):
    return CONFIG.policy.bases[wildcards.base]


def get_policy_backbone(wildcards):
    """Directory or hub id of a policy base."""
    made = f"results/{wildcards.run}/policy/{wildcards.base}/backbone"
    return get_base(wildcards).path or made


def get_created_policy_backbone(wildcards):
    """The base that has to be made first; one from a path or the hub is there already."""
    return get_policy_backbone(wildcards) if get_base(wildcards).create else []


def get_start(wildcards):
    """What every method starts from, and is compared with: the SFT model, or a base that is one already."""
    sft = f"results/{wildcards.run}/policy/{wildcards.base}/sft/seed{wildcards.seed}/model"
    return sft if get_base(wildcards).sft else get_policy_backbone(wildcards)


def get_start_files(wildcards):
    """`get_start`, where a rule has to make it."""
    base = get_base(wildcards)
    return get_start(wildcards) if base.sft or base.create else []


def get_policy_backbone_settings(wildcards):
    return get_settings(
        f"policy.bases.{wildcards.base}.create",
        f"policy.bases.{wildcards.base}.chat_template_kwargs",
        "policy.training.max_prompt_length",
        "policy.training.max_length",
    )


# What every policy stage takes of policy.training, and what only those take that are optimised by it.
SIZES = ["max_prompt_length", "max_length", "bf16", "gradient_checkpointing", "lora"]
LENGTHS = SIZES[:2]
SPEED = ["epochs", "learning_rate"]


def get_policy_settings(wildcards, *more, of_training=None, but=()):
    """What a stage depends on: its base, fields of `policy.training` (all, `of_training`, or all `but` some), `more`."""
    training = get_settings("policy.training")["policy.training"]
    wanted = of_training or [field for field in training if field not in but]
    base = get_settings(
        f"policy.bases.{wildcards.base}", *more, exclude=["label", "paper"]
    )
    return base | {field: training[field] for field in wanted}


def get_method(wildcards, name=None):
    """The settings of a method, without what it is called."""
    name = name or wildcards.method
    return get_settings(f"policy.methods.{name}", exclude=["label", "ours"])


def get_sft_settings(wildcards):
    return get_policy_settings(wildcards, "policy.sft", but=SPEED)


def get_preference_settings(wildcards):
    return get_policy_settings(wildcards) | get_method(wildcards)


def get_difficulty_settings(wildcards):
    """Neither how many halvings there are nor what is kept of them changes a run."""
    method = get_method(wildcards, get_selective_method(wildcards))
    own = get_settings("policy.difficulty", exclude=["runs", "keep"])
    return get_policy_settings(wildcards, but=["epochs"]) | method | own


def get_ppo_settings(wildcards):
    """Where a run is stopped changes nothing in one that was not."""
    own = get_settings("policy.ppo", exclude=["limits"])
    more = ["policy.generation", "reward.scoring_batch_size"]
    shared = get_policy_settings(wildcards, *more, of_training=SIZES)
    return shared | get_method(wildcards) | own


def get_best_of_n_settings(wildcards):
    more = ["policy.best_of_n", "policy.generation", "reward.scoring_batch_size"]
    return get_policy_settings(wildcards, *more, of_training=LENGTHS)


def get_score_policy_settings(wildcards):
    lengths = [*LENGTHS, "batch_size"]
    return get_policy_settings(wildcards, of_training=lengths)


def get_gold_model(wildcards):
    """The gold judge's directory, where it is a reward model and not a function."""
    judge = CONFIG.policy.gold
    return judge if judge and ":" not in judge else []


def get_selective_method(wildcards):
    """Whose reference runs they are: there is one way to select, whatever is trained on the selection."""
    return CONFIG.policy.trained("selective_dpo")[0]


def get_difficulty(wildcards):
    """Which pairs are kept, for the method that selects."""
    if CONFIG.policy.methods[wildcards.method].method != "selective_dpo":
        return []
    return f"results/{wildcards.run}/policy/{wildcards.base}/difficulty/seed{wildcards.seed}/difficulty.csv"


def get_reward_model(wildcards):
    """The reward model that PPO trains against; its seed is the policy's."""
    reward = CONFIG.policy.methods[wildcards.method].reward
    return f"results/{wildcards.run}/reward/{reward}/seed{wildcards.seed}/model"


def get_ppo_reward_models(wildcards):
    """Every reward model that some PPO trains against."""
    return collect(
        "results/{run}/reward/{variant}/seed{seed}/model",
        run=wildcards.run,
        variant=[name.removesuffix(":rated") for name in get_ppo_rewards()],
        seed=wildcards.seed,
    )


def get_ppo_rewards():
    """What pays some PPO: names of reward models, with `:rated` for that part of a reward alone."""
    rewards = [CONFIG.policy.methods[name].paid_by for name in CONFIG.policy.ppo_run]
    return list(dict.fromkeys(rewards))


def get_policy_files(name, methods, bases=None):
    """One file of each of these methods, for every base and seed."""
    return collect(
        "results/{{run}}/policy/{base}/{method}/seed{seed}/{name}",
        base=CONFIG.policy.run_bases if bases is None else bases,
        method=methods,
        seed=CONFIG.policy.seeds,
        name=name,
    )


def get_policy_scores():
    """Scores of the policies that are rows of Table 2."""
    scorers = CONFIG.policy.scorers_from
    return (
        get_policy_files("scores.csv", CONFIG.policy.preference_run, [scorers])
        if scorers
        else []
    )


def get_samples(methods):
    """Sampled answers, with the gold judge's scores where there is one."""
    names = ["samples.jsonl", *(["samples.gold.csv"] if CONFIG.policy.gold else [])]
    return [path for name in names for path in get_policy_files(name, methods)]


def get_held_out():
    """What every policy training did to held-out data."""
    tuned = [name for name in CONFIG.policy.run_bases if CONFIG.policy.bases[name].sft]
    return [
        *get_policy_files("held_out.csv", ["sft"], tuned),
        *get_policy_files("held_out.csv", CONFIG.policy.run),
    ]
