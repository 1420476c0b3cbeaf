"""The variational reward model as a Hugging Face model."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)
from vrm_batch import batch

from vrm.models.latents import sample_pairs
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import INITIAL_LOG_VARIANCE, VrmConfig, VrmForSequenceClassification, VrmHead, last_token, positions


@pytest.fixture
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture
def model(tiny_backbone, tokenizer):
    torch.manual_seed(0)
    return VrmForSequenceClassification.from_backbone(
        str(tiny_backbone),
        aspects=["a", "b", "c"],
        latent_dim=4,
        generation_prompt_ids=generation_prompt_ids(tokenizer),
    ).eval()


def test_weights_depend_on_the_prompt_alone(model, tokenizer):
    """One forward pass serves both encoders: the state of the last prompt token is the same for both responses."""
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad bad bad"])
    out = model(ids, mask, lengths)
    assert torch.equal(out.alpha[0], out.alpha[1])
    assert not torch.allclose(out.mu[0], out.mu[1])


def test_swapping_the_pair_negates_the_logit(model, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad"])
    forward = model(ids, mask, lengths).logits
    backward = model(ids.flip(0), mask.flip(0), lengths.flip(0)).logits
    assert torch.equal(forward[0] - forward[1], -(backward[0] - backward[1]))


def test_the_prompt_is_found_without_being_told_its_length(model, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad"])
    assert torch.equal(model(ids, mask).logits, model(ids, mask, lengths).logits)


def test_a_text_without_generation_prompt_is_an_error(model):
    with pytest.raises(ValueError, match="pass prompt_lengths"):
        model(torch.tensor([[60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76]]))


def test_sampled_pairs_share_their_weights(model, tokenizer):
    """With equal texts and no noise in z both halves must agree, whatever w was drawn."""
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad", "good", "bad bad"])  # chosen half, rejected half
    with torch.no_grad():
        model.head.latent_encoder.weight[4:] = 0
        model.head.latent_encoder.bias[4:] = -100  # log-variance at its floor
    chosen, rejected = model(ids, mask, lengths, sampler=sample_pairs).logits.chunk(2)
    torch.testing.assert_close(chosen, rejected, atol=0.05, rtol=0.05)
    again, _ = model(ids, mask, lengths, sampler=sample_pairs).logits.chunk(2)
    assert not torch.allclose(chosen, again, atol=1e-4)


def test_auto_class_loads_it_from_safetensors(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is VrmForSequenceClassification
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    texts = batch(tokenizer, ["good"])
    torch.testing.assert_close(loaded.eval()(*texts).logits, model(*texts).logits)


def test_a_head_that_the_checkpoint_lacks_starts_as_a_fresh_one(tiny_backbone, tokenizer):
    """`from_pretrained` on a causal LM's directory allocates the head without filling it; `_init_weights` has to."""
    config = VrmConfig(text_config=AutoConfig.from_pretrained(tiny_backbone), aspects=["a", "b", "c"], latent_dim=4)
    torch.manual_seed(0)
    loaded = VrmForSequenceClassification.from_pretrained(tiny_backbone, config=config).eval()
    assert (loaded.head.norm.weight == 1).all()
    assert (loaded.head.norm.bias == 0).all()
    for name, layer in loaded.head.named_modules():
        if isinstance(layer, torch.nn.Linear):
            bound = layer.in_features**-0.5  # PyTorch's, of weight and bias
            for parameter in (layer.weight, layer.bias):
                assert 0.5 * bound < parameter.abs().max() <= bound, name
    log_variance = loaded(*batch(tokenizer, ["good", "bad bad"])).log_variance
    assert (log_variance - INITIAL_LOG_VARIANCE).abs().max() < 2
    trunk = AutoModel.from_pretrained(tiny_backbone).state_dict()
    assert all(torch.equal(weight, trunk[name]) for name, weight in loaded.model.state_dict().items())


def test_a_fresh_head_costs_the_random_numbers_of_one_head(tiny_backbone):
    """So seeds keep their meaning: loading the backbone draws nothing, and the head is drawn once."""
    torch.manual_seed(0)
    model = VrmForSequenceClassification.from_backbone(str(tiny_backbone), aspects=["a", "b"], latent_dim=4)
    after = torch.rand(1)
    torch.manual_seed(0)
    head = VrmHead(32, 2, 4, "mixture")
    assert all(torch.equal(model.head.state_dict()[name], weight) for name, weight in head.state_dict().items())
    assert torch.equal(torch.rand(1), after)


def test_loading_a_trained_model_draws_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    VrmForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_what_it_would_not_heed_is_refused(model, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad"])
    for name, value in {
        "labels": torch.zeros(2),
        "inputs_embeds": torch.zeros(2, 3, 32),
        "output_attentions": True,
    }.items():
        with pytest.raises(TypeError, match=f"does not take {name};"):
            model(ids, mask, lengths, **{name: value})
    expected = model(ids, mask, lengths)
    # what TRL's trainer and PEFT's wrapper of classifiers pass along
    nothing = dict.fromkeys(["labels", "inputs_embeds", "output_attentions", "output_hidden_states"])
    output = model(ids, mask, lengths, **nothing, use_cache=False, return_dict=True)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(model(ids, mask, lengths, return_dict=False)[0], expected.logits)


def test_pefts_wrapper_of_classifiers_can_ask_it(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    texts = dict(zip(("input_ids", "attention_mask", "prompt_lengths"), batch(tokenizer, ["good", "bad"]), strict=True))
    expected = model(**texts).logits
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["head"])
    assert torch.equal(get_peft_model(model, lora).eval()(**texts).logits, expected)


def test_the_head_stays_in_float32_on_a_bfloat16_backbone(tiny_backbone, tokenizer):
    model = VrmForSequenceClassification.from_backbone(str(tiny_backbone), dtype=torch.bfloat16, aspects=["a", "b"])
    out = model(*batch(tokenizer, ["good"]))
    assert next(model.model.parameters()).dtype == torch.bfloat16
    assert out.logits.dtype == out.alpha.dtype == torch.float32


def test_any_causal_lm_can_be_the_backbone(tokenizer, tmp_path):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64))
    gpt2.save_pretrained(tmp_path)
    model = VrmForSequenceClassification.from_backbone(str(tmp_path), aspects=["a", "b"])
    torch.testing.assert_close(model.model.wte.weight, gpt2.transformer.wte.weight)
    assert model(*batch(tokenizer, ["good", "bad"])).logits.shape == (2, 1)


def test_gradients_are_finite_and_reach_every_head_parameter(model, tokenizer):
    model.train()(*batch(tokenizer, ["good", "bad"]), sampler=sample_pairs).logits.diff(dim=0).sum().backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_positions_and_last_token_for_both_padding_sides():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert last_token(mask).tolist() == [3, 2]
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


CONCEPT_RESIDUAL = {"prompt_pooling": "attention", "concentration": "scaled", "scale": True, "residual": True}


@pytest.fixture
def full(tiny_backbone, tokenizer):
    """A concept-residual VRM, moved away from where its options start."""
    torch.manual_seed(0)
    made = VrmForSequenceClassification.from_backbone(
        str(tiny_backbone), aspects=["a", "b", "c"], latent_dim=4, **CONCEPT_RESIDUAL
    ).eval()
    with torch.no_grad():
        for parameter in (made.head.query, made.head.scalars, made.head.residual):
            parameter.add_(torch.randn_like(parameter))
    return made


def test_attention_over_the_prompt_sees_no_response_and_no_padding(full, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad bad bad"])
    out = full(ids, mask, lengths)
    torch.testing.assert_close(out.alpha[0], out.alpha[1])
    assert not torch.allclose(out.mu[0], out.mu[1])
    bare, padding = int(mask[0].sum()), int((1 - mask[0]).sum())
    assert padding > 0
    alone = full(ids[:1, :bare], None, lengths[:1])
    left = full(ids[:1].roll(padding, 1), mask[:1].roll(padding, 1), lengths[:1])
    for name in ("logits", "alpha", "rated", "residual"):
        torch.testing.assert_close(alone[name], out[name][:1])
        torch.testing.assert_close(left[name], out[name][:1])
    with torch.no_grad():
        full.head.query.zero_()
    assert not torch.allclose(full(ids, mask, lengths).alpha, out.alpha)


def test_swapping_the_pair_negates_every_part_of_the_margin(full, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad"])
    forward, backward = full(ids, mask, lengths), full(ids.flip(0), mask.flip(0), lengths.flip(0))
    for name in ("logits", "rated", "residual"):
        assert torch.equal(forward[name][0] - forward[name][1], backward[name][1] - backward[name][0]), name
        assert (forward[name][0] - forward[name][1]).abs() > 1e-4, name


def test_the_output_is_the_record_and_back(full, tokenizer):
    texts = batch(tokenizer, ["good", "bad bad"])
    out = full(*texts)
    posterior = out.posterior
    again = type(out).of(posterior)
    assert list(again.keys()) == list(out.keys())
    assert all(torch.equal(again[name], out[name]) for name in out.keys())  # noqa: SIM118
    torch.testing.assert_close(posterior.rated + posterior.residual, posterior.reward)


def test_every_option_survives_saving(full, tokenizer, tmp_path):
    full.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == full.state_dict().keys()
    texts = batch(tokenizer, ["good", "bad bad"])
    expected, found = full(*texts), loaded(*texts)
    for name in ("logits", "alpha", "rated", "residual"):
        assert torch.equal(found[name], expected[name]), name


def test_a_model_saved_before_the_options_existed_loads_as_it_was(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    added = (
        "prompt_pooling",
        "concentration",
        "scale",
        "scale_start",
        "residual",
        "residual_gain",
        "residual_detached",
    )
    for name in added:
        del config[name]
    file.write_text(json.dumps(config))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    texts = batch(tokenizer, ["good", "bad bad"])
    # up to rounding: where weights lie in memory decides how some libraries multiply
    torch.testing.assert_close(loaded(*texts).logits, model(*texts).logits)
    assert loaded(*texts).residual is None


def test_options_that_the_checkpoint_lacks_start_where_fresh_ones_do(tiny_backbone, tokenizer):
    text_config = AutoConfig.from_pretrained(tiny_backbone)
    config = VrmConfig(text_config=text_config, aspects=["a", "b"], latent_dim=4, **CONCEPT_RESIDUAL)
    head = VrmForSequenceClassification.from_pretrained(tiny_backbone, config=config).head
    fresh = VrmHead(32, 2, 4, "mixture", **CONCEPT_RESIDUAL)
    for name in ("query", "scalars", "residual"):
        assert torch.equal(head.state_dict()[name], fresh.state_dict()[name]), name


def test_a_forward_pass_with_a_sampler_draws_from_it_alone(full, tokenizer):
    """And so talks to no other process: what would have to is the sampler, which the trainer makes."""
    asked = []

    def means(alpha, mu, log_variance):
        asked.append((alpha.shape, mu.shape, log_variance.shape))
        return alpha / alpha.sum(-1, keepdim=True), mu

    texts = batch(tokenizer, ["good", "bad bad"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(full(*texts, sampler=means).logits, full(*texts).logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert asked == [((2, 3), (2, 4), (2, 4))]
