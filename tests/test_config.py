"""The configuration says what is wrong with it, and its presets are usable."""

import re

import pytest
import yaml
from paths import ROOT

from vrm.config import (
    Config,
    ConfigError,
    PolicyTraining,
    PreferenceMethod,
    Section,
    Variant,
    dump,
    json_schema,
    load,
    merge,
    parse,
)
from vrm.config.reward import GatedSettings

DEFAULT = ROOT / "config.yaml"
PRESETS = sorted((ROOT / "workflow" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_overlay_the_default(preset):
    below = [DEFAULT, *(path for path in PRESETS if (preset.stem, path.stem) == ("laptop", "own_data"))]  # as it says
    merged = {}
    for path in (*below, preset):
        merged = merge(merged, yaml.safe_load(path.read_text()))
    if merged["data"]["path"] is None and not merged["data"].get("hub"):
        merged["data"]["path"] = "my_scores.jsonl"
    config = parse(merged)
    assert config.run != "demo"
    ppo = config.policy.ppo
    assert ppo.local_batch(config.policy.training.processes) % (ppo.minibatch_size * ppo.gradient_accumulation) == 0


def test_the_resolved_configuration_is_a_fixed_point(tmp_path):
    config = load([DEFAULT])
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load([tmp_path / "resolved.yaml"]) == config


def test_the_name_of_the_run_is_filled_in_wherever_a_path_is_meant():
    overlay = {"run": "mine", "data": {"label": "of {run}"}, "policy": {"gold": "results/{run}/judge"}}
    config = parse(merge(yaml.safe_load(DEFAULT.read_text()), overlay))
    assert config.data.path == "results/mine/world/ultrafeedback.jsonl"
    assert config.data.benchmarks_dir == "results/mine/world/benchmarks"
    assert config.evaluation.sets["probes"].path == "results/mine/world/probes.jsonl"
    assert (config.policy.gold, config.judge.store) == ("results/mine/judge", "results/mine/replies")  # a default too
    assert config.data.label == "of {run}"


def test_a_set_is_read_by_its_role_whatever_its_name():
    overlay = {
        "evaluation": {"run": ["uf_c", "swaps"], "sets": {"swaps": {"label": "x", "path": "x", "role": "probes"}}}
    }
    evaluation = parse(merge(yaml.safe_load(DEFAULT.read_text()), overlay)).evaluation
    assert (evaluation.probes, evaluation.of_role("measured"), evaluation.of_role("truth")) == ("swaps", ["uf_c"], [])


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"rewards": {}}, "rewards: there is no such key; did you mean reward?"),
        ({"reward": {"training": {"learnin_rate": 1}}}, "reward.training.learnin_rate"),
        ({"reward": {"run": ["rm", "vmr"]}}, "reward.run names vmr, known are: rm, multitask"),
        ({"evaluation": {"run": ["uf"]}}, "evaluation.run names uf"),
        ({"evaluation": {"sets": {"uf_c": {"role": "probes"}}}}, "names uf_c, probes, which have the role probes"),
        ({"report": {"figure5": ["nope"]}}, "report.figure5 names nope"),
        ({"report": {"figure3": []}}, "report.figure3 names no variant"),
        ({"data": {"path": None}}, "exactly one of `path` and `hub`"),
        ({"backbone": {"path": "Qwen/Qwen3-4B"}}, "set the other to null"),
        ({"reward": {"variants": {"vrm": {"decoder": "mlp", "score_anchor_weight": 1}}}}, "needs decoder: mixture"),
        ({"data": {"validation_fraction": 0.6, "test_fraction": 0.4}}, "leave nothing for training"),
        (
            {"policy": {"methods": {"ppo": {"reward": "rn"}}}},
            "policy.methods.ppo.reward names rn, known are: rm, multitask",
        ),
        ({"reward": {"run_outside": ["skywork"]}}, "reward.run_outside names skywork"),
        ({"reward": {"outside": {"rm": {"label": "x", "path": "./x"}}}}, "reward.outside share the name rm"),
        ({"reward": {"outside": {"dpo": {"label": "x", "path": "./x"}}}}, "reward.outside share the name dpo"),
        (
            {"reward": {"outside": {"hub": {"label": "x", "path": "owner/name"}}}},
            "reward.outside.hub: path 'owner/name'",
        ),
        ({"policy": {"methods": {"dpo": {"method": "dpq"}}}}, "policy.methods.dpo"),
        ({"policy": {"methods": {"sft": {"label": "x", "method": "dpo"}}}}, "policy.methods names sft, which is"),
        ({"policy": {"methods": {"best_of_n": {"label": "x", "method": "ppo", "reward": "rm"}}}}, "names best_of_n"),
        ({"policy": {"methods": {"kto": {"batch_size": 5}}}}, "policy.methods.kto: batch_size (5) must divide"),
        ({"policy": {"methods": {"kto": {"batch_size": 1}}}}, "policy.methods.kto: kto estimates its KL term"),
        ({"policy": {"ppo": {"minibatch_size": 48}}}, "prompts_per_update (64) must be a multiple of processes (1)"),
        ({"policy": {"training": {"processes": 8}}}, "must be a multiple of processes (8) x minibatch_size (16)"),
        ({"reward": {"training": {"processes": 4, "nodes": 3}}}, "must be a multiple of nodes (3)"),
        ({"reward": {"training": {"nodes": 2}}}, "reward.training: processes (1) must be a multiple of nodes (2)"),
        ({"policy": {"methods": {"dpo": {"reward": "rm"}}}}, "policy.methods.dpo.dpo.reward: there is no such key"),
        ({"policy": {"run": ["dpo", "orpo"]}}, "policy.run names orpo"),
        (
            {"policy": {"seeds": [7]}},
            "policy.seeds names 7: PPO takes the reward model of the same seed, and reward.seeds are 1, 2, 3",
        ),
        ({"policy": {"ppo": {"updates": 3}}}, "leaves the actor none of the 3 updates"),
        ({"policy": {"generation": {"temperature": 0}}}, "needs a temperature above 0"),
        (
            {"reward": {"training": {"lora": {"load_in_4bit": True}, "processes": 2, "launch": "fsdp2"}}},
            "reward.training: lora.load_in_4bit",
        ),
        (
            {
                "policy": {
                    "difficulty": {"lora": {"load_in_4bit": True}},
                    "training": {"processes": 2, "launch": "fsdp2"},
                }
            },
            "policy: lora.load_in_4bit",
        ),
        (
            {"policy": {"training": {"lora": {"load_in_4bit": True}}, "generation": {"engine": "vllm"}}},
            "use the transformers engine",
        ),
        ({"policy": {"scorers_from": "llama"}}, "policy.scorers_from names llama"),
        ({"policy": {"generation": {"max_new_tokens": 200}}}, "policy.training leaves 128 tokens for a response"),
        ({"policy": {"methods": {"rm": {"label": "x", "method": "dpo"}}}}, "share the name rm"),
        ({"policy": {"run_bases": [], "scorers_from": None}, "benchmarks": {"run": []}}, "which needs policies"),
        ({"policy": {"run_bases": [], "scorers_from": None}}, "no policy is trained"),
        ({"judge": None}, "there is no judge"),
        ({"judge": {"base_url": "http://localhost:1/v1"}}, "say `serve: null`"),
        ({"policy": {"run": ["dpo"]}}, "policy.run has no method that is ppo"),
        ({"run": "a/b"}, "run: String should match"),
        ({"run": ".."}, "run: String should match"),
        ({"run": "features"}, "results/features/ is what all runs share"),
    ],
)
def test_errors_name_the_key(overlay, message):
    with pytest.raises(ConfigError, match="not usable") as error:
        parse(merge(yaml.safe_load(DEFAULT.read_text()), overlay))
    assert message in str(error.value)


@pytest.mark.parametrize("preset", ["paper", "single_gpu"])
def test_what_a_step_holds_at_full_scale(preset):
    """Steps of 128 for every method, and a KL term of KTO from 8 texts."""
    policy = load([DEFAULT, ROOT / "workflow" / "presets" / f"{preset}.yaml"]).policy
    assert policy.ppo.minibatch_size * policy.ppo.gradient_accumulation == 128
    trained = {name: policy.methods[name].trained_with(policy.training) for name in policy.preference_run}
    assert {own.batch_size * own.gradient_accumulation for own in trained.values()} == {128}
    assert trained["kto"].batch_size == 8


def test_a_methods_own_batch_leaves_the_step_as_large():
    training = PolicyTraining(batch_size=6, gradient_accumulation=4, learning_rate=1e-3)
    method = PreferenceMethod(label="x", method="kto", batch_size=8, epochs=2)
    changed = method.trained_with(training)
    assert (changed.batch_size, changed.gradient_accumulation) == (8, 3)
    assert (changed.learning_rate, changed.epochs) == (1e-3, 2)
    with pytest.raises(ConfigError, match=r"batch_size \(8\) must divide .* \(6\) x gradient_accumulation \(2\)"):
        method.trained_with(training.model_copy(update={"gradient_accumulation": 2}))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load([tmp_path / "absent.yaml"])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping"):
        load([tmp_path / "list.yaml"])
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load([tmp_path / "broken.yaml"])


def test_later_files_win_and_lists_are_replaced():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": 4}) == {"a": {"b": 1, "c": [3]}, "d": 4}


def test_a_variant_has_the_settings_of_its_own_kind_alone():
    """A key that nothing reads would be a setting that its writer believes in."""
    assert Variant(label="x", kind="gated").baseline == GatedSettings()
    assert Variant(label="x", kind="gated", gated={"joint": True}).baseline.joint
    assert Variant(label="x").baseline is None
    with pytest.raises(ValueError, match="kind: multitask does not read gated"):
        Variant(label="x", kind="multitask", gated={"joint": True})
    with pytest.raises(ValueError, match="kind: scalar does not read beta_w, supervision_weight"):
        Variant(label="x", kind="scalar", beta_w=1.0, supervision_weight=2.0)
    with pytest.raises(ValueError, match="kind: variational does not read bottleneck"):
        Variant(label="x", bottleneck={})
    with pytest.raises(ValueError, match="set joint: true"):
        Variant(label="x", kind="gated", gated={"sampled": True})
    # a whole configuration written down with its defaults is read again
    for variant in (Variant(label="x", kind="scalar"), Variant(label="x", kind="gated", gated={"joint": True})):
        assert Variant(**variant.model_dump()) == variant


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"kind": "scalar"}, False),
        ({"kind": "bottleneck"}, False),
        ({"kind": "length_heads"}, False),
        ({"kind": "nonnegative"}, False),
        ({"kind": "gaussian"}, False),
        ({"kind": "gaussian", "gaussian": {"anchor_weight": 0.1}}, True),
        ({"kind": "multitask"}, True),
        ({"kind": "multitask", "multitask": {"rating_weight": 0}}, False),
        ({"kind": "gated"}, True),
        ({"supervision_weight": 0}, False),
        ({"supervision_weight": 0.5}, True),
    ],
)
def test_which_variants_need_annotated_scores(settings, needed):
    assert Variant(label="x", **settings).needs_scores == needed


def test_the_committed_schema_is_the_exported_one():
    committed = ROOT / "workflow" / "schemas" / "config.schema.json"
    assert committed.read_text() == json_schema(), f"run: vrm schema --out {committed.relative_to(ROOT)}"


def parts(annotation):
    """A type and everything inside its brackets."""
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from parts(inner)


def sections(model=Config):
    yield model
    for field in model.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, Section):
                yield from sections(part)


def test_every_section_is_looked_at():
    assert {"Lora", "PpoLimits", "PpoMethod", "PreferenceMethod", "Variant"} <= {model.__name__ for model in sections()}


def test_every_leaf_is_described():
    bare = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not field.description and section is not Config
    ]
    assert bare == []


def test_the_documented_policies_for_your_own_data_are_a_valid_configuration(tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()
    snippet = next(part for part in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL) if "policy:" in part)
    (tmp_path / "mine.yaml").write_text("data: {path: my_scores.jsonl}\n" + snippet)
    config = load([DEFAULT, ROOT / "workflow" / "presets" / "own_data.yaml", tmp_path / "mine.yaml"])
    assert config.policy.run == ["dpo", "simpo", "ppo_vrm"]
    assert config.policy.gold is None
