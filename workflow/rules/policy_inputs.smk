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


def get_policy_settings(wildcards, *more):
    """What every training of a policy depends on; labels are left out."""
    return get_settings(
        f"policy.bases.{wildcards.base}", "policy.training", *more, exclude=["label"]
    )


def get_sft_settings(wildcards):
    return get_policy_settings(wildcards, "policy.sft")


def get_method_settings(wildcards):
    method = get_settings(
        f"policy.methods.{wildcards.method}", exclude=["label", "ours"]
    )
    return get_policy_settings(wildcards) | method


def get_difficulty_settings(wildcards):
    method = get_settings(
        f"policy.methods.{get_selective_method(wildcards)}", exclude=["label", "ours"]
    )
    return get_policy_settings(wildcards, "policy.difficulty") | method


def get_ppo_settings(wildcards):
    return get_method_settings(wildcards) | get_settings(
        "policy.ppo", "policy.generation", "reward.scoring_batch_size"
    )


def get_best_of_n_settings(wildcards):
    return get_policy_settings(
        wildcards, "policy.best_of_n", "policy.generation", "reward.scoring_batch_size"
    )


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
        variant=get_ppo_rewards(),
        seed=wildcards.seed,
    )


def get_ppo_rewards():
    rewards = [CONFIG.policy.methods[name].reward for name in CONFIG.policy.ppo_run]
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
