"""Scoring with a prompt once for all of its responses against scoring with padded batches."""

import numpy as np
import pytest
import torch
from contract import assert_same, reordered
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config

from vrm.config.reward import BASELINES
from vrm.models import scoring
from vrm.models.baseline_heads import HEADS, BaselineForSequenceClassification
from vrm.models.scoring import HuggingFaceRewardModel
from vrm.models.vrm import VrmForSequenceClassification

LIMITS = {"max_prompt_length": 64, "max_length": 96}
KINDS = ("scalar", "last", "attention", "length_heads", "gated")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.fixture
def texts():
    """Six prompts with 1 to 16 responses, in an order that mixes them; some are too long and get cut."""
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, n)) for n in (1, 5, 30, 80, 12, 3)]
    rows = [
        (prompt, " ".join(rng.choice(WORDS, rng.integers(0, 40))))
        for prompt, count in zip(prompts, (16, 1, 4, 3, 16, 7), strict=True)
        for _ in range(count)
    ]
    rng.shuffle(rows)
    return tuple(map(list, zip(*rows, strict=True)))


def build(kind, backbone):
    """A stock classifier, a VRM by its pooling, or a published model by its name."""
    torch.manual_seed(0)
    tokenizer, head = AutoTokenizer.from_pretrained(backbone), {"aspects": ["clarity", "accuracy", "candour"]}
    if kind == "scalar":
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    elif kind in BASELINES:
        settings = BASELINES[kind]().model_dump(mode="json")
        model = BaselineForSequenceClassification.from_backbone(
            str(backbone), kind=kind, settings=settings, **head if HEADS[kind].rated else {}
        )
    else:
        model = VrmForSequenceClassification.from_backbone(str(backbone), prompt_pooling=kind, **head)
    samples = 4 if kind in ("last", "attention") else 0
    return HuggingFaceRewardModel(model, tokenizer, posterior_samples=samples, **LIMITS)


def encoded(model, texts):
    prompts, responses = texts
    return model.encoder.encode([[{"role": "user", "content": prompt}] for prompt in prompts], responses)


def seen(model, texts):
    """The output, and the tokens of each forward pass, padding included."""
    sizes, embed = [], model.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].numel()))
    output = model.score(*texts)
    handle.remove()
    return output, sizes


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_and_the_shared_one_reads_each_prompt_once(kind, tiny_backbone, texts, monkeypatch):
    model = build(kind, tiny_backbone)
    padded = HuggingFaceRewardModel(
        build(kind, tiny_backbone).model, model.encoder.tokenizer, posterior_samples=model.posterior_samples,
        engine="padded", **LIMITS,
    )  # fmt: skip
    expected, whole = padded.score(*texts), encoded(model, texts)
    assert expected.truncated.any()
    output, sizes = seen(model, texts)
    assert_same(output, expected)
    prompts = {tuple(text.ids[: text.prompt_length]) for text in whole}
    assert sum(sizes) == sum(map(len, prompts)) + sum(len(text.ids) - text.prompt_length for text in whole)

    monkeypatch.setattr(scoring, "MOST_TOKENS", 200)
    budgeted, sizes = seen(model, texts)
    assert_same(budgeted, expected)
    assert len(sizes) > 1
    assert max(sizes) <= 200
    order = np.random.default_rng(1).permutation(len(texts[0]))
    shuffled = model.score(*([column[i] for i in order] for column in texts))
    assert_same(shuffled, reordered(expected, order))


def test_a_model_that_cannot_share_is_scored_in_padded_batches(tiny_backbone, texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer), "num_labels": 1}
    gpt2 = AutoModelForSequenceClassification.from_config(GPT2Config(**size, pad_token_id=tokenizer.pad_token_id))
    gpt2.score.weight.data.normal_()
    model = HuggingFaceRewardModel(gpt2, tokenizer, **LIMITS)
    whole, sizes = seen(model, texts)
    assert whole.mean.std() > 0
    assert sum(sizes) > sum(len(text.ids) for text in encoded(model, texts))
    model.batch_size = 1
    assert_same(model.score(*texts), whole)


def test_a_classifier_whose_texts_end_in_padding_is_read_before_it(tiny_backbone, texts):
    """Where its own forward pass reads a text: a published one with pad == eos gives its card's scores."""
    model = build("scalar", tiny_backbone)
    before = model.score(*texts).mean
    tokenizer = model.encoder.tokenizer
    ends = {text.ids[-1] for text in encoded(model, texts)}
    assert len(ends) == 1
    model.model.config.pad_token_id = ends.pop()
    found = model.score(*texts).mean
    assert np.abs(found - before).max() > 1e-4
    for text, reward in zip(encoded(model, texts)[:10], found[:10], strict=True):
        with torch.no_grad():
            own = model.model(input_ids=torch.tensor([text.ids])).logits.item()
        assert reward == pytest.approx(own, abs=1e-5)
    assert tokenizer.pad_token_id not in text.ids
