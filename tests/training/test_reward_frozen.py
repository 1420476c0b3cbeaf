"""Heads on frozen features: they learn, they are whole models, and the backbone is one file for all of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from vrm.config import Features, RewardTraining, Variant
from vrm.models.base import as_prompt
from vrm.models.scoring import load_reward_model
from vrm.records import RecordError, read_pairs, write_jsonl
from vrm.training.reward import RewardJob, make_features, train_reward_model

ASPECTS = ["clarity", "accuracy", "candour"]
TRAINING = RewardTraining(
    epochs=8, learning_rate=3e-3, weight_decay=0.05, max_prompt_length=64, max_length=96, evaluations=4, checkpoints=2
)
SCALAR = Variant(label="RM", kind="scalar")
VRM = Variant(label="VRM", latent_dim=4)
GATED = Variant(label="RM (gated)", kind="gated")
LENGTH_HEADS = Variant(label="RM (length head)", kind="length_heads")
HEAD, BACKBONE = "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def features(tiny_backbone, toy_pairs, tmp_path_factory):
    """Directories of the features of the toy pairs, by split."""
    directory = tmp_path_factory.mktemp("features")
    for split in ("train", "validation"):
        pairs = toy_pairs / f"{split}.jsonl"
        make_features(str(tiny_backbone), None, Features(), TRAINING, 16, pairs, directory / "store", directory / split)
    return directory / "train", directory / "validation"


@pytest.fixture
def job(tiny_backbone, toy_pairs, features, tmp_path):
    places = tmp_path / "checkpoints", tmp_path / "out"
    return RewardJob(VRM, TRAINING, ASPECTS, 1, str(tiny_backbone), None, toy_pairs, *places, features, dropout=0.3)


def margins(model, path):
    pairs = read_pairs(path)
    prompts = [pair.prompt for pair in pairs]
    return model.score(prompts, [p.chosen for p in pairs]).mean - model.score(prompts, [p.rejected for p in pairs]).mean


@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["scalar", "variational"])
def test_a_head_learns_and_its_whole_model_scores_as_the_features_do(job, toy_pairs, features, variant):
    train_reward_model(dataclasses.replace(job, variant=variant))
    whole = load_reward_model(job.out / "model")
    by_features = load_reward_model(job.out / "model", features=features)
    held_out = toy_pairs / "validation.jsonl"
    assert (whole.encoder.max_prompt_length, whole.encoder.max_length) == (64, 96)  # as trained
    np.testing.assert_allclose(margins(whole, held_out), margins(by_features, held_out), rtol=0, atol=1e-5)
    assert (margins(whole, toy_pairs / "train.jsonl") > 0).mean() > 0.8
    assert type(AutoModelForSequenceClassification.from_pretrained(job.out / "model")) is type(whole.model)


@pytest.mark.parametrize("variant", [GATED, LENGTH_HEADS], ids=["gated", "length_heads"])
def test_published_heads_are_told_how_long_responses_are(job, toy_pairs, features, variant):
    """Stored features have one row for all of a response; these heads' formulas have its tokens."""
    train_reward_model(dataclasses.replace(job, variant=variant))
    model = load_reward_model(job.out / "model")
    pairs = read_pairs(toy_pairs / "train.jsonl")
    texts = [
        text
        for side in ("chosen", "rejected")
        for text in model.encoder.encode([pair.prompt for pair in pairs], [getattr(pair, side) for pair in pairs])
    ]
    lengths = np.array([len(text.ids) - text.prompt_length for text in texts])
    assert lengths.std() > 0
    if variant is GATED:
        assert float(model.model.head.length_mean) == pytest.approx(np.log(lengths).mean(), rel=1e-5)
        assert float(model.model.head.length_std) == pytest.approx(np.log(lengths).std(), rel=1e-5)
    else:
        log = pd.read_csv(job.out / "training.csv")
        assert log[log.metric == "length_loss"].value.nunique() > 1  # 1 throughout, were all lengths equal
    by_features = load_reward_model(job.out / "model", features=features)
    held_out = toy_pairs / "validation.jsonl"
    np.testing.assert_allclose(margins(model, held_out), margins(by_features, held_out), rtol=0, atol=1e-5)


def test_a_whole_model_computes_a_prompt_once_for_all_responses(job):
    train_reward_model(job)
    model, sizes = load_reward_model(job.out / "model"), []
    prompts, responses = ["alpha beta gamma delta"] * 12, [f"mu {word}" for word in ("nu", "beta", "xi")] * 4
    texts = model.encoder.encode([as_prompt(prompt) for prompt in prompts], responses)
    model.model.model.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    together = model.score(prompts, responses)
    different = {tuple(text.ids) for text in texts}
    padded = len(different) * max(len(ids) - texts[0].prompt_length for ids in different)
    assert sum(sizes) <= texts[0].prompt_length + padded
    alone = [model.score([prompt], [response]).mean[0] for prompt, response in zip(prompts, responses, strict=True)]
    np.testing.assert_allclose(together.mean, alone, rtol=0, atol=1e-5)
    assert together.mean[:3].std() > 1e-3


def test_a_row_of_the_features_is_never_taken_for_padding(job, toy_pairs, features):
    train_reward_model(dataclasses.replace(job, variant=SCALAR))
    model = load_reward_model(job.out / "model", features=features)
    pair = read_pairs(toy_pairs / "validation.jsonl")[0]
    expected = model.score([pair.prompt], [pair.chosen]).mean
    model.model.config.pad_token_id = model.encoder.encode([pair.prompt], [pair.chosen])[0].ids[-1]
    np.testing.assert_array_equal(model.score([pair.prompt], [pair.chosen]).mean, expected)


def test_the_log_and_the_counts_are_those_of_any_reward_model(job, toy_pairs):
    train_reward_model(job)
    log = pd.read_csv(job.out / "training.csv")
    validation = log[log.split == "validation"].pivot(index="step", columns="metric", values="value")
    expected = {"accuracy", "preference_loss", "kl_w", "kl_z", "supervision_loss", "active_units"}
    assert expected <= set(validation.columns)
    won = margins(load_reward_model(job.out / "model"), toy_pairs / "validation.jsonl") > 0
    assert validation["accuracy"].iloc[-1] == pytest.approx(won.mean())
    assert '"pairs": 96' in (job.out / "counts.json").read_text()


def test_the_seed_decides(job, tmp_path):
    heads = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        train_reward_model(dataclasses.replace(job, seed=seed, out=out))
        heads.append(load_file(out / "model" / HEAD)["head.latent_encoder.weight"])
    assert (heads[0] == heads[1]).all()
    assert (heads[0] != heads[2]).any()


def test_all_heads_have_one_file_of_backbone_weights(job, features, tmp_path):
    for name, variant in (("rm", SCALAR), ("vrm", VRM)):
        train_reward_model(dataclasses.replace(job, variant=variant, out=tmp_path / name))
    files = [tmp_path / name / "model" / BACKBONE for name in ("rm", "vrm")]
    assert files[0].samefile(files[1])
    assert files[0].samefile(features[0] / "backbone.safetensors")
    assert not any("backbone" in name for name in load_file(tmp_path / "vrm" / "model" / HEAD))


def test_features_of_another_recipe_are_not_scored_with(job, tiny_backbone, toy_pairs, tmp_path):
    train_reward_model(job)
    other = tmp_path / "other"
    training = TRAINING.model_copy(update={"bf16": True})
    make_features(
        str(tiny_backbone), None, Features(), training, 16, toy_pairs / "validation.jsonl", tmp_path / "store", other
    )
    with pytest.raises(RecordError, match="not the features"):
        load_reward_model(job.out / "model", features=[other])


def test_a_pair_without_features_stops_the_training(job, toy_pairs, tmp_path):
    pairs = read_pairs(toy_pairs / "train.jsonl")
    write_jsonl(tmp_path / "pairs" / "train.jsonl", [dataclasses.replace(pairs[0], chosen="unheard of"), *pairs[1:]])
    write_jsonl(tmp_path / "pairs" / "validation.jsonl", read_pairs(toy_pairs / "validation.jsonl"))
    with pytest.raises(RecordError, match="1 of 192 texts"):
        train_reward_model(dataclasses.replace(job, pairs=tmp_path / "pairs"))
