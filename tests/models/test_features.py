"""Frozen features: what they are, and that computing, storing and looking them up come to the same."""

import json

import numpy as np
import pytest
import torch
from contract import CHECKS
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

from vrm.config import CreatedBackbone, Features
from vrm.models import feature_files
from vrm.models.base import as_prompt
from vrm.models.feature_files import StoredEncoder, StoredFeatures, compute_features, features_of, key_of
from vrm.models.features import FeatureForSequenceClassification, FeatureTable
from vrm.models.scoring import HuggingFaceRewardModel, pad_batch
from vrm.models.templates import generation_prompt_ids
from vrm.models.text import TextEncoder, prepare_tokenizer
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import RecordError
from vrm.training.backbones import create_model, save_backbone
from vrm.training.reward import load_feature_model

LIMITS = {"max_prompt_length": 64, "max_length": 96}


@pytest.fixture(scope="module")
def deep(tiny_backbone, tmp_path_factory):
    """Directory of a backbone of three layers, 32 channels wide."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    config = CreatedBackbone(hidden_size=32, layers=3, heads=2, key_value_heads=1, intermediate_size=64)
    directory = tmp_path_factory.mktemp("deep")
    save_backbone(create_model(config, tokenizer, 128), tokenizer, directory)
    return directory


@pytest.fixture
def tokenizer(deep):
    return prepare_tokenizer(AutoTokenizer.from_pretrained(deep))


def feature_model(deep, tokenizer, **settings):
    return load_feature_model(str(deep), None, Features(**settings), False, tokenizer)


@pytest.fixture
def model(deep, tokenizer):
    return feature_model(deep, tokenizer)


@pytest.fixture
def texts(tokenizer):
    """Prompts of several lengths with one to five responses each, one of which quotes the end of a prompt."""
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "good", "bad"]
    prompts, responses = [], []
    for number in range(1, 6):
        for _ in range(number):
            prompts.append(as_prompt(" ".join(words[: number + 1])))
            responses.append(" ".join(rng.choice(words, int(rng.integers(1, 20)))))
    responses[3] = "good <|im_start|>assistant\nbad alpha"
    return TextEncoder(tokenizer, **LIMITS).encode(prompts, responses)


def computed(model, ids):
    """A text's features, by the model that computes them."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).last_hidden_state[0, -1]


def looked_up(stored, ids):
    return stored.vectors[stored.rows[key_of(ids)]]


def test_features_are_the_last_state_and_two_means_of_each_span(deep, model, texts):
    text = next(t for t in texts if len(t.ids) > t.prompt_length + 3)
    with torch.inference_mode():
        plain = AutoModel.from_pretrained(deep).eval()(torch.tensor([text.ids]), output_hidden_states=True)
    final, middle, p = plain.last_hidden_state[0], plain.hidden_states[2][0], text.prompt_length
    prompt = torch.cat([final[p - 1], final[1:p].mean(0), middle[1:p].mean(0)])
    response = torch.cat([final[-1], final[p:].mean(0), middle[p:].mean(0)])
    assert model.config.layer == 2  # two thirds of three
    torch.testing.assert_close(computed(model, text.ids[:p]), prompt)
    torch.testing.assert_close(computed(model, text.ids), response)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_company_nor_padding_changes_features(model, tokenizer, texts, side):
    ids, mask = pad_batch([text.ids for text in texts], tokenizer, side)
    with torch.inference_mode():
        found = model(ids, mask).last_hidden_state
    for row, text in enumerate(texts):
        places = mask[row].nonzero().squeeze(1)
        torch.testing.assert_close(found[row, places[-1]], computed(model, text.ids), rtol=1e-4, atol=1e-5)
        prompt = computed(model, text.ids[: text.prompt_length])
        torch.testing.assert_close(found[row, places[text.prompt_length - 1]], prompt, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_stored_features_are_those_that_the_model_computes(model, texts, tmp_path, batch_size):
    compute_features(model, texts, 0, batch_size, tmp_path / "store", tmp_path / "out")
    stored = StoredFeatures.read([tmp_path / "out"])
    for text in texts:
        for ids in (text.ids, text.ids[: text.prompt_length]):
            torch.testing.assert_close(looked_up(stored, ids), computed(model, ids), rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_twice(model, texts, tmp_path):
    first = compute_features(model, texts, 0, 4, tmp_path / "store", tmp_path / "first")
    again = compute_features(model, texts[:5], 0, 4, tmp_path / "store", tmp_path / "second")
    prompts = {tuple(text.ids[: text.prompt_length]) for text in texts}
    responses = {tuple(text.ids): len(text.ids) - text.prompt_length for text in texts}
    assert first["tokens_computed"] == sum(map(len, prompts)) + sum(responses.values())  # a prompt once
    assert first["vectors"] == len(prompts) + len(responses)
    assert again["tokens_computed"] == 0
    assert all(key_of(text.ids) in StoredFeatures.read([tmp_path / "second"]).rows for text in texts[:5])


def test_a_killed_job_goes_on_where_it_was(model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "PART_SECONDS", 0.0)
    whole, calls = feature_files._responses, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(feature_files, "_responses", dies)
    with pytest.raises(KeyboardInterrupt):
        compute_features(model, texts, 0, 2, tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(feature_files, "_responses", whole)
    resumed = compute_features(model, texts, 0, 2, tmp_path / "store", tmp_path / "out")
    fresh = compute_features(model, texts, 0, 2, tmp_path / "other", tmp_path / "fresh")
    assert 0 < resumed["tokens_computed"] < fresh["tokens_computed"]
    assert StoredFeatures.read([tmp_path / "out"]).rows.keys() == StoredFeatures.read([tmp_path / "fresh"]).rows.keys()


def test_features_of_two_recipes_are_kept_apart(deep, tokenizer, model, texts, tmp_path):
    compute_features(model, texts, 0, 4, tmp_path / "store", tmp_path / "two")
    other = feature_model(deep, tokenizer, layer=1)
    assert compute_features(other, texts, 0, 4, tmp_path / "store", tmp_path / "one")["found_in_store"] == 0
    with pytest.raises(RecordError, match="recipe"):
        StoredFeatures.read([tmp_path / "one", tmp_path / "two"])


def test_the_recipe_knows_the_weights_and_not_their_place(deep, tokenizer, model, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in deep.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert feature_model(moved, tokenizer).config.recipe == model.config.recipe
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert feature_model(moved, tokenizer).config.recipe != model.config.recipe


def test_dropout_does_not_change_the_recipe_and_a_layer_too_many_is_refused(deep, tokenizer, model):
    assert feature_model(deep, tokenizer, dropout=0.9).config.recipe == model.config.recipe
    with pytest.raises(ValueError, match="3 layers"):
        feature_model(deep, tokenizer, layer=4)


def test_a_text_without_features_is_an_error(model, tokenizer, texts, tmp_path):
    compute_features(model, texts, 0, 4, tmp_path / "store", tmp_path / "out")
    encoder = StoredEncoder(TextEncoder(tokenizer, **LIMITS), StoredFeatures.read([tmp_path / "out"]))
    # the text goes on after the response: the end token, and a newline of the template
    known = tokenizer.decode(texts[0].ids[texts[0].prompt_length :]).partition("<|im_end|>")[0].strip("\n")
    with pytest.raises(RecordError, match="1 of 2"):
        encoder.encode([as_prompt("alpha beta")] * 2, [known, "mu"])
    assert len(encoder.encode([as_prompt("alpha beta")], [known])) == 1


def test_what_the_template_refuses_is_named_and_the_other_texts_are_looked_up(model, tokenizer, texts, tmp_path):
    compute_features(model, texts, 0, 4, tmp_path / "store", tmp_path / "out")
    encoder = StoredEncoder(TextEncoder(tokenizer, **LIMITS), StoredFeatures.read([tmp_path / "out"]))
    known = tokenizer.decode(texts[0].ids[texts[0].prompt_length :]).partition("<|im_end|>")[0].strip("\n")
    found, refused = encoder.try_encode([[], as_prompt("alpha beta")], ["mu", known])
    assert found[0] is None
    assert found[1] == encoder.encode([as_prompt("alpha beta")], [known])[0]
    assert list(refused) == [0]


def test_the_backbone_is_stored_in_the_dtype_that_it_came_in(deep, tokenizer, texts, tmp_path):
    half = tmp_path / "half"
    AutoModel.from_pretrained(deep, dtype=torch.bfloat16).save_pretrained(half)
    tokenizer.save_pretrained(half)
    compute_features(feature_model(half, tokenizer), texts[:1], 0, 4, tmp_path / "store", tmp_path / "out")
    with safe_open(tmp_path / "out" / "backbone.safetensors", "pt") as part:
        assert {part.get_tensor(name).dtype for name in part.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert StoredFeatures.read([tmp_path / "out"]).vectors.dtype == torch.float32


def test_training_rows_are_standardised_by_span_and_a_constant_feature_is_zero(model):
    vectors = torch.randn(40, model.config.hidden_size) * 3 + 2
    vectors[:, 0] = 5.0
    table = FeatureTable(model.config, vectors, torch.full((40,), torch.nan)).eval()
    prompts, responses = list(range(15)), list(range(15, 40))
    table.fit(prompts + prompts, responses)  # a prompt of two pairs counts once
    for span, rows in enumerate((prompts, responses)):
        found = table.finish(vectors[rows], torch.full((len(rows),), span))
        torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.std(0, unbiased=False)[1:], torch.ones(found.shape[1] - 1))
        assert (found[:, 0] == 0).all()


def test_a_response_is_as_long_as_its_tokens_whatever_stands_in_their_place(model, texts):
    with torch.inference_mode():
        table, rows = features_of(model, texts, 0, 4, quiet=True)
    found = table.response_lengths(torch.tensor([row.ids for row in rows]))
    assert found.tolist() == [len(text.ids) - text.prompt_length for text in texts]


def test_dropout_is_for_training_alone(model):
    model.config.dropout = 0.5
    table = FeatureTable(model.config, torch.randn(4, model.config.hidden_size), torch.full((4,), torch.nan))
    rows = torch.tensor([[0, 1], [2, 3]])
    evaluated = table.eval()(rows).last_hidden_state
    trained = table.train()(rows).last_hidden_state
    assert 0.3 < (trained == 0).float().mean() < 0.7
    torch.testing.assert_close(evaluated, table.vectors[rows])
    kept = trained != 0
    torch.testing.assert_close(trained[kept], 2 * evaluated[kept])


@pytest.mark.parametrize("kind", ["scalar", "mixture", "mlp"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_heads_on_features_keep_the_contract_of_reward_models(model, tokenizer, kind, check):
    torch.manual_seed(0)
    if kind == "scalar":
        head = FeatureForSequenceClassification.on(model)
    else:
        ends = generation_prompt_ids(tokenizer)
        aspects = ["clarity", "accuracy", "candour"]
        head = VrmForSequenceClassification.from_backbone(
            model, aspects=aspects, reward_decoder=kind, generation_prompt_ids=ends
        )
    check(HuggingFaceRewardModel(head, tokenizer, posterior_samples=8 if kind != "scalar" else 0, **LIMITS))
