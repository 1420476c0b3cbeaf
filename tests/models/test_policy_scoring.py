"""A policy as a scorer: the shared contract, and log-probabilities against brute force."""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from contract import CHECKS, PROMPTS, RESPONSES, assert_same
from transformers import AutoModelForCausalLM, AutoTokenizer

from vrm.models.base import RewardModel, as_prompt
from vrm.models.policy_scoring import PolicyScorer, ask_reference, load_policy_scorer
from vrm.models.text import CHATML, TextEncoder
from vrm.records import RecordError

LIMITS = {"max_prompt_length": 64, "max_length": 96}


def policy(backbone, noise=0.0):
    """The backbone's causal LM, with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(params=["mean log-probability", "log ratio"])
def model(request, tiny_backbone):
    reference = policy(tiny_backbone) if request.param == "log ratio" else None
    return PolicyScorer(policy(tiny_backbone, 0.1), reference, AutoTokenizer.from_pretrained(tiny_backbone), **LIMITS)


def brute_force(model, text):
    """log p of each response token of one text, without padding, in float64."""
    with torch.no_grad():
        log_probs = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    return np.array([log_probs[t - 1, text.ids[t]] for t in range(text.prompt_length, len(text.ids))])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(model, check):
    assert isinstance(model, RewardModel)
    check(model)


def test_it_is_what_one_text_at_a_time_gives(model):
    texts = model.encoder.encode([as_prompt(prompt) for prompt in PROMPTS], RESPONSES)
    assert {text.ids[-1] for text in texts} == {model.encoder.tokenizer.eos_token_id}
    expected = [brute_force(model.model, text) for text in texts]
    if model.reference is None:
        expected = [row.mean() for row in expected]
    else:
        reference = [brute_force(model.reference, text) for text in texts]
        expected = [(ours - theirs).sum() for ours, theirs in zip(expected, reference, strict=True)]
    np.testing.assert_allclose(model.score(PROMPTS, RESPONSES).mean, expected, rtol=1e-4, atol=1e-4)


def test_a_policy_is_worth_exactly_nothing_against_itself(tiny_backbone):
    scorer = load_policy_scorer(tiny_backbone, tiny_backbone, **LIMITS)
    assert (scorer.score(PROMPTS, RESPONSES).mean == 0).all()


def test_a_bfloat16_reference_is_compared_in_the_policys_float32(tiny_backbone, tmp_path):
    """Hub bases are bfloat16, what is trained from them is float32; untrained, its log ratio is exactly 0."""
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.bfloat16)
    for name, model in (("base", base), ("policy", copy.deepcopy(base).float())):
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / name)
    scorer = load_policy_scorer(tmp_path / "policy", tmp_path / "base", **LIMITS)
    assert scorer.model.dtype == scorer.reference.dtype == torch.float32
    assert (scorer.score(PROMPTS, RESPONSES).mean == 0).all()


def test_loading_changes_nothing(model, tiny_backbone, tmp_path):
    model.model.save_pretrained(tmp_path)
    model.encoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_policy_scorer(tmp_path, tiny_backbone if model.reference else None, **LIMITS)
    assert_same(loaded.score(PROMPTS, RESPONSES), model.score(PROMPTS, RESPONSES), tolerance=1e-6)


def test_no_texts_no_rewards_and_uneven_ones_are_refused(model):
    assert model.score([], []).mean.shape == (0,)
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        model.score(["a", "b"], ["c"])


def test_template_arguments_reach_the_text(model, tiny_backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = "{{ mood }} " + tokenizer.chat_template
    scorer = PolicyScorer(model.model, None, tokenizer, **LIMITS, chat_template_kwargs={"mood": "alpha"})
    assert tokenizer.decode(scorer.encoder.encode([as_prompt("beta")], ["mu"])[0].ids).startswith("alpha ")


@pytest.fixture
def said(tiny_backbone, tmp_path):
    """What the backbone says of the texts, each of them once and in another order."""
    texts = [(as_prompt(prompt), response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    scorer = load_policy_scorer(tiny_backbone, None, **LIMITS)
    ask_reference(scorer, tiny_backbone, None, [*texts[::-1], *texts], tmp_path / "said.parquet")
    return tmp_path / "said.parquet"


def moved(backbone, directory):
    """A policy that has been trained from the backbone, so to say."""
    policy(backbone, 0.1).save_pretrained(directory)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(directory)
    return directory


def test_a_reference_that_has_been_asked_need_not_be_loaded(tiny_backbone, said, tmp_path, monkeypatch):
    trained = moved(tiny_backbone, tmp_path / "policy")
    expected = load_policy_scorer(trained, tiny_backbone, **LIMITS).score(PROMPTS, RESPONSES)
    scorer = load_policy_scorer(trained, tiny_backbone, reference_log_probs=said, **LIMITS)
    assert scorer.reference is None
    monkeypatch.setattr(TextEncoder, "try_encode", None)  # nor a text be encoded again
    assert_same(scorer.score(PROMPTS, RESPONSES), expected, tolerance=1e-4)
    assert np.ptp(expected.mean) > 0.1


def test_a_text_that_it_was_not_asked_of_is_named(tiny_backbone, said, tmp_path):
    scorer = load_policy_scorer(tiny_backbone, tiny_backbone, reference_log_probs=said, **LIMITS)
    with pytest.raises(RecordError, match=r"said\.parquet: .*'something new'.*vrm reference-log-probs"):
        scorer.score([PROMPTS[0]], ["something new"])


def test_what_another_policy_said_is_refused(tiny_backbone, said, tmp_path):
    trained = moved(tiny_backbone, tmp_path / "policy")
    with pytest.raises(RecordError, match=r"said\.parquet.*model\.safetensors.*vrm reference-log-probs"):
        load_policy_scorer(tiny_backbone, trained, reference_log_probs=said, **LIMITS)
    limits = {"max_prompt_length": 64, "max_length": 90}
    with pytest.raises(RecordError, match=r"said\.parquet.*max_length was 96, is 90"):
        load_policy_scorer(tiny_backbone, tiny_backbone, reference_log_probs=said, **limits)


def test_nothing_is_said_of_what_the_template_refuses(tiny_backbone, tmp_path):
    template = "{% if 'no' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML
    scorer = load_policy_scorer(tiny_backbone, None, chat_template=template, **LIMITS)
    texts = [(as_prompt(prompt), "yes") for prompt in ("good", "no good")]
    for some, number in ((texts, 1), (texts[1:], 0), ([], 0)):
        ask_reference(scorer, tiny_backbone, None, some, tmp_path / "said.parquet")
        assert len(pq.read_table(tmp_path / "said.parquet")) == number
