"""`vrm train`: one file in, one directory out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from own_files import helpsteer, pairs, ultrafeedback, write
from paths import ROOT

from vrm.cli import main
from vrm.config import ConfigError, load
from vrm.config.reward import PRESETS
from vrm.models.scoring import load_reward_model
from vrm.people.train import TrainOptions, look_at, train, variant_of
from vrm.records import RecordError

QUICK = {"epochs": 2, "learning_rate": 5e-3, "max_prompt_length": 48, "max_length": 96, "held_out": 0.2}


def options(tmp_path, backbone, rows, **more):
    data = write(tmp_path / "mine.jsonl", rows)
    return TrainOptions(data=data, backbone=str(backbone), out=tmp_path / "out", **{**QUICK, **more})


@pytest.fixture(scope="module")
def trained(tiny_backbone, tmp_path_factory):
    """Options and results of a VRM on HelpSteer2's shape."""
    chosen = options(tmp_path_factory.mktemp("trained"), tiny_backbone, helpsteer())
    return chosen, train(chosen)


def test_one_directory_has_everything_and_nothing_is_left_beside_it(trained):
    chosen, results = trained
    names = {path.name for path in chosen.out.iterdir()}
    whole = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "scores.csv", "results.json"}
    assert whole | {"provenance.json", "training.csv", "counts.json"} <= names
    assert {path.name for path in chosen.out.parent.iterdir()} == {"mine.jsonl", "out"}
    assert json.loads((chosen.out / "results.json").read_text()) == results


def test_it_learns_and_says_how_sure_that_is(trained):
    _, results = trained
    accuracy = results["held_out"]["accuracy"]
    assert accuracy["estimate"] > 0.8
    assert results["held_out"]["pairs"] == results["pairs"]["test"] > 0
    assert accuracy["low"] is None or accuracy["low"] <= accuracy["estimate"] <= accuracy["high"]
    assert set(results["held_out"]["by_aspect"]) <= set(results["aspects"])


def test_the_directory_is_a_reward_model_with_the_aspects_of_the_file(trained):
    chosen, _ = trained
    model = load_reward_model(chosen.out)
    assert model.aspects == ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    good, bad = model.score(["alpha beta"] * 2, ["mu good", "mu bad"]).mean
    assert good > bad


def test_the_card_is_of_these_numbers(trained):
    chosen, results = trained
    text = (chosen.out / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    value = head["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == round(results["held_out"]["accuracy"]["estimate"], 4)
    assert f"{100 * value:.1f} %" in text


def test_provenance_has_the_file_and_the_settings(trained):
    chosen, _ = trained
    record = json.loads((chosen.out / "provenance.json").read_text())
    assert record["inputs"][str(chosen.data)]["rows"] == 120
    assert record["config"]["training"]["learning_rate"] == QUICK["learning_rate"]


def test_a_finished_model_is_never_replaced(trained):
    chosen, results = trained
    with pytest.raises(ConfigError, match="holds a finished model"):
        train(chosen)
    assert train(TrainOptions(**{**vars(chosen), "resume": True})) == results


@pytest.mark.parametrize("kind", ["vrm", "rm"])
def test_plain_pairs_need_no_ratings(kind, tiny_backbone, tmp_path):
    results = train(options(tmp_path, tiny_backbone, pairs(), kind=kind, epochs=1))
    assert results["aspects"] == []
    assert results["held_out"]["pairs"] > 0


@pytest.mark.parametrize("how", [["frozen"], ["lora"], ["lora", "load_in_4bit"]], ids="_".join)
def test_a_head_alone_and_adapters_leave_a_whole_model(how, tiny_backbone, tmp_path):
    if "load_in_4bit" in how:
        pytest.importorskip("bitsandbytes")
    chosen = options(tmp_path, tiny_backbone, ultrafeedback(), epochs=1, **dict.fromkeys(how, True))
    results = train(chosen)
    assert results["aspects"] == ["clarity", "accuracy"]
    output = load_reward_model(chosen.out).score(["alpha"] * 2, ["good", "bad"])
    assert np.isfinite(output.mean).all()


def test_four_bit_weights_are_not_trained_themselves(tiny_backbone, tmp_path):
    with pytest.raises(ConfigError, match="--lora"):
        train(options(tmp_path, tiny_backbone, ultrafeedback(), load_in_4bit=True))


def test_a_killed_training_goes_on(tiny_backbone, tmp_path, monkeypatch):
    from vrm.people import train as module

    chosen = options(tmp_path, tiny_backbone, helpsteer(30), epochs=1)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "held_out", killed)
        with pytest.raises(KeyboardInterrupt):
            train(chosen)
    other = TrainOptions(**{**vars(chosen), "resume": True, "seed": 1})
    with pytest.raises(ConfigError, match="begun with other seed"):
        train(other)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_reward_model", killed)  # it is done already
        assert train(TrainOptions(**{**vars(chosen), "resume": True}))["held_out"]["pairs"] > 0


def test_somebody_elses_directory_is_left_alone(tiny_backbone, tmp_path):
    chosen = options(tmp_path, tiny_backbone, pairs())
    chosen.out.mkdir()
    (chosen.out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        train(chosen)


def test_aspects_that_some_responses_lack_are_left_out(tmp_path):
    found = look_at(options(tmp_path, "none", ultrafeedback()))
    assert found.aspects == ["clarity", "accuracy"]
    assert found.left_out == ["rare"]


def test_what_can_not_be_used_is_kept_with_its_reason(tiny_backbone, tmp_path):
    chosen = options(tmp_path, tiny_backbone, [*pairs(), {"prompt": "p", "chosen": "", "rejected": "r"}], epochs=1)
    train(chosen)
    (refused,) = map(json.loads, (chosen.out / "quarantine.jsonl").read_text().splitlines())
    assert refused["row"] == 61


def test_columns_of_a_table_that_are_numbers_are_its_aspects(tmp_path):
    rows = [{"prompt": "p", "response": f"r{i}", "id": i, "wit": 1 + i % 5, "note": "x"} for i in range(6)]
    assert look_at(options(tmp_path, "none", rows)).aspects == ["wit"]


def test_ratings_in_a_table_may_be_texts(tiny_backbone, tmp_path):
    """As in a CSV, where everything is."""
    rows = [
        {"prompt": f"alpha {i // 3}", "response": f"mu {i}", "clarity": str(1 + i % 3), "candour": f"{1 + i % 5}"}
        for i in range(60)
    ]
    rows[0]["candour"] = ""  # which is missing in the first row alone
    results = train(options(tmp_path, tiny_backbone, rows, frozen=True, epochs=1))
    assert results["aspects"] == ["clarity", "candour"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"learning_rate": 0}, "--learning-rate 0: must be above 0"),
        ({"epochs": -1}, "--epochs -1: must be above 0"),
        ({"max_length": 0}, "--max-length 0: must be 1 or more"),
        ({"aspects": ["clarity", "clarity"]}, "clarity twice"),
        ({"out": Path()}, "name a directory"),
    ],
)
def test_options_that_can_not_be_are_named(more, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(dataclasses.replace(options(tmp_path, "backbone", helpsteer()), **more))


def test_a_reward_model_is_no_backbone(trained, tmp_path):
    with pytest.raises(ConfigError, match="is a reward model already"):
        train(options(tmp_path, trained[0].out, helpsteer()))


def test_a_rating_that_is_left_out_is_named(tiny_backbone, tmp_path, capsys):
    rows = [
        {"prompt": f"alpha {i // 3}", "response": f"mu {i}", "candour": 1 + i % 5, "clarity": "n/a" if i % 3 else 4}
        for i in range(60)
    ]
    train(options(tmp_path, tiny_backbone, rows, frozen=True, epochs=1))
    assert "left out of the ratings: clarity" in capsys.readouterr().err


def test_rows_of_no_known_shape_are_named_with_their_columns(tmp_path):
    with pytest.raises(RecordError, match="columns found: text, score"):
        look_at(options(tmp_path, "none", [{"text": "a", "score": 1}]))


def test_ratings_outside_the_range_name_the_option(tiny_backbone, tmp_path):
    rows = ultrafeedback()
    rows[0]["completions"][0]["annotations"]["clarity"]["Rating"] = "9"
    with pytest.raises(RecordError, match="--rating-range"):
        train(options(tmp_path, tiny_backbone, rows))


def test_a_kind_that_needs_ratings_says_so():
    assert variant_of("vrm", rated=False).supervision_weight == 0
    with pytest.raises(ConfigError, match="needs ratings"):
        variant_of("residual", rated=False)


def test_presets_are_the_settings_of_config_yaml():
    same = {
        "rm": "rm",
        "vrm": "vrm",
        "anchored": "vrm_anchored",
        "residual": "vrm_concept_residual",
        "multitask": "multitask",
        "gated": "gated",
        "concept_bottleneck": "gated_cb",
        "bottleneck": "bottleneck",
        "length_heads": "length_heads",
        "gaussian": "gaussian",
        "nonnegative": "nonnegative",
    }
    assert same.keys() == PRESETS.keys()
    variants = load([ROOT / "config.yaml"]).reward.variants
    assert {name: PRESETS[name].model_dump() for name in same} == {
        name: variants[other].model_dump() for name, other in same.items()
    }


def test_the_command_says_what_is_wrong_in_one_block(tmp_path, capsys):
    given = ["train", "--data", str(tmp_path / "none.jsonl"), "--backbone", "b", "--out", str(tmp_path / "o")]
    assert main(given) == 1
    assert "none.jsonl" in capsys.readouterr().err
