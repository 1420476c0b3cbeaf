"""Variants of reward models that ask for what can't be, and what they leave to the defaults."""

import pytest
from paths import ROOT

from vrm.config import ConfigError, OutsideModel, PpoMethod, RewardTraining, Variant, dependencies, load, merge, parse

VARIANTS = {"vrm": "variational", "vrm_mse": "variational", "rm": "scalar"}


def variant(**settings):
    return Variant(label="x", **settings)


def test_a_variant_without_the_options_is_the_papers():
    plain = variant()
    assert (plain.prompt_pooling, plain.concentration, plain.residual, plain.has_scale) == (
        "last", "softplus", False, False,
    )  # fmt: skip


def test_a_residual_brings_the_scale_unless_it_is_refused():
    anchored = {"score_anchor_weight": 1.0}
    assert variant(residual=True, **anchored).has_scale
    assert not variant(residual=True, scale=False, **anchored).has_scale
    assert variant(scale=True, **anchored).has_scale
    assert not variant(**anchored).has_scale


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"residual": True}, "residual needs score_anchor_weight above 0"),
        (
            {"residual": True, "score_anchor_weight": 1.0, "decoder": "mlp"},
            "score_anchor_weight needs decoder: mixture",
        ),
        ({"scale": True, "decoder": "mlp"}, "scale needs decoder: mixture"),
        ({"residual_detached": True}, "residual_detached needs residual"),
        ({"residual_penalty": -1.0}, "greater than or equal to 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        variant(**settings)


def test_ppo_is_paid_by_a_reward_or_by_its_rated_part():
    method = {"label": "x", "method": "ppo", "reward": "vrm"}
    assert PpoMethod(**method).paid_by == "vrm"
    assert PpoMethod(**method, reward_part="rated").paid_by == "vrm:rated"


@pytest.mark.parametrize("key", ["learning_rate", "epochs"])
def test_a_variant_has_its_own_factor_or_its_kinds_and_the_others_depend_on_it_no_more(key):
    factors = {f"{key}_factors": {"variational": 0.5, "vrm_mse": 3.0}}
    training = RewardTraining(**{key: 2.0}, **factors)
    found = {name: getattr(training.of(name, kind), key) for name, kind in VARIANTS.items()}
    assert found == {"vrm": 1.0, "vrm_mse": 6.0, "rm": 2.0}
    demo = load([ROOT / "config.yaml"]).model_dump(mode="json")
    before, after = (
        parse(merge(demo, {"reward": {"training": {f"{key}_factors": own}}})) for own in ({}, {"vrm": 7.0})
    )
    assert dependencies.train_reward(before, "rm") == dependencies.train_reward(after, "rm")
    assert dependencies.train_reward(before, "vrm_mse") == dependencies.train_reward(after, "vrm_mse")
    assert dependencies.train_reward(before, "vrm") != dependencies.train_reward(after, "vrm")


def test_a_factor_of_nobody_is_an_error_that_names_it():
    demo = load([ROOT / "config.yaml"]).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"epochs_factors.*vrm_mze"):
        parse(merge(demo, {"reward": {"training": {"epochs_factors": {"vrm_mze": 2.0}}}}))


def test_the_bound_is_measured_of_the_vrms_that_are_named():
    demo = load([ROOT / "config.yaml"])
    run = demo.reward.model_copy(update={"run": ["rm", "vrm", "vrm_mse"]})
    named, unnamed = (
        demo.model_copy(update={"reward": run, "report": demo.report.model_copy(update={"bound": names})})
        for names in (["rm", "vrm", "vrm_anchored"], [])
    )
    assert named.bounded_variants == ["vrm"]
    assert unnamed.bounded_variants == ["vrm", "vrm_mse"]


def test_an_outside_model_is_a_directory_or_pinned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "theirs").mkdir(parents=True)
    kinds = {"models/theirs": True, "./absent": True, "a/b/c": True, "owner/name": False}
    assert {path: OutsideModel(label="x", path=path, revision="0" * 40).is_local for path in kinds} == kinds
    with pytest.raises(ValueError, match="revision"):
        OutsideModel(label="x", path="owner/name")


def test_ppo_is_paid_by_an_outside_model_whatever_its_seed():
    outside = {"theirs": {"label": "Theirs", "path": "./theirs"}}
    methods = {name: {"reward": "theirs"} for name in ("ppo", "ppo_vrm")}
    overlay = {"reward": {"outside": outside}, "policy": {"seeds": [7], "run": ["ppo", "ppo_vrm"], "methods": methods}}
    demo = load([ROOT / "config.yaml"]).model_dump(mode="json")
    config = parse(merge(demo, overlay))
    assert {config.policy.methods[name].paid_by for name in config.policy.ppo_run} == {"theirs"}
    assert config.reward.model("theirs").label == "Theirs"
