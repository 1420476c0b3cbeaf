"""The published reward models as Hugging Face models: what each head computes, and what it is saved with."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vrm_batch import batch

from vrm.config.reward import BASELINES
from vrm.models.baseline_heads import HEADS, BaselineConfig, BaselineForSequenceClassification, Noise, States
from vrm.models.baseline_losses import spearman
from vrm.models.latents import preference_loss
from vrm.models.templates import generation_prompt_ids

KINDS = [(kind, {}) for kind in HEADS] + [
    ("gated", {"joint": True, "sampled": True}),
    ("gated", {"prompt_pooling": "attention"}),
]


def settings(kind, **changes):
    return BASELINES[kind](**changes).model_dump(mode="json")


def head(kind, hidden=8, aspects=3, **changes):
    torch.manual_seed(0)
    return HEADS[kind](hidden, aspects, **settings(kind, **changes)).double()


def states(texts=6, hidden=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    final, prompt = torch.randn(2, texts, hidden, generator=generator, dtype=torch.float64)
    lengths = torch.randint(3, 40, (texts,), generator=generator).double()
    return States(final, prompt, lengths)


@pytest.fixture
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


def build(kind, changes, backbone, tokenizer):
    torch.manual_seed(0)
    return BaselineForSequenceClassification.from_backbone(
        str(backbone),
        kind=kind,
        settings=settings(kind, **changes),
        aspects=["a", "b", "c"] if HEADS[kind].rated else [],
        generation_prompt_ids=generation_prompt_ids(tokenizer),
    ).eval()


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_the_auto_class_loads_it_with_all_buffers(kind, changes, tiny_backbone, tokenizer, tmp_path):
    model = build(kind, changes, tiny_backbone, tokenizer)
    with torch.no_grad():
        for buffer in model.head.buffers():
            buffer.copy_(torch.arange(buffer.numel()) + 1.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is BaselineForSequenceClassification
    assert loaded.config.num_labels == 1
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    texts = batch(tokenizer, ["good", "bad bad bad"])
    # up to rounding: where weights lie in memory decides how some libraries multiply
    torch.testing.assert_close(loaded(*texts).logits, model(*texts).logits)
    assert model(*texts).logits.shape == (2, 1)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.head.parameters())


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_the_prompt_is_found_without_being_told_its_length(kind, changes, tiny_backbone, tokenizer):
    model = build(kind, changes, tiny_backbone, tokenizer)
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad"])
    told, found = model(ids, mask, lengths), model(ids, mask)
    assert torch.equal(told.logits, found.logits)
    for name, part in told.parts.items():
        torch.testing.assert_close(part, found.parts[name], equal_nan=True)


def test_lengths_are_those_of_the_response(tiny_backbone, tokenizer):
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad"])
    model = build("length_heads", {}, tiny_backbone, tokenizer)
    assert torch.equal(model(ids, mask, lengths).parts["lengths"], (mask.sum(-1) - lengths).float())


def test_a_head_that_a_checkpoint_lacks_starts_as_a_fresh_one(tiny_backbone):
    from transformers import AutoConfig

    backbone = AutoConfig.from_pretrained(tiny_backbone)
    for kind, changes in KINDS:
        config = BaselineConfig(
            text_config=backbone, kind=kind, settings=settings(kind, **changes), aspects=["a", "b", "c"]
        )
        fresh = HEADS[kind](backbone.hidden_size, 3, **settings(kind, **changes))
        loaded = BaselineForSequenceClassification.from_pretrained(tiny_backbone, config=config).head
        for name, tensor in [*fresh.named_buffers(), *fresh.named_parameters()]:
            if tensor.unique().numel() == 1:  # a constant start value, NaN included
                torch.testing.assert_close(loaded.state_dict()[name], tensor.detach(), equal_nan=True)


def test_rated_heads_need_aspects(tiny_backbone):
    with pytest.raises(ValueError, match="at least one aspect"):
        BaselineForSequenceClassification.from_backbone(str(tiny_backbone), kind="multitask", aspects=[])


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_only_a_noise_makes_rewards_random(kind, changes):
    module, texts = head(kind, **changes), states()
    assert torch.equal(module(texts)["reward"], module(texts)["reward"])
    first, second = (module(texts, Noise())["reward"] for _ in range(2))
    random = kind in ("bottleneck", "nonnegative") or changes.get("sampled", False)
    assert torch.equal(first, second) != random


@pytest.mark.parametrize(
    ("kind", "changes"), [("bottleneck", {}), ("nonnegative", {}), ("gated", {"joint": True, "sampled": True})]
)
def test_the_stated_variance_is_that_of_samples(kind, changes):
    module, texts = head(kind, **changes), states(2)
    with torch.no_grad():
        many = States(
            texts.final.repeat(20_000, 1), texts.prompt.repeat(20_000, 1), texts.response_lengths.repeat(20_000)
        )
        if kind == "nonnegative":  # the weights' noise is common to a batch, so many batches
            draws = torch.stack([module(texts, Noise())["reward"] for _ in range(4000)])
        else:
            draws = module(many, Noise())["reward"].reshape(20_000, 2)
        found = module(texts)
    torch.testing.assert_close(draws.var(0), found["variance"], rtol=0.12, atol=0)
    spread = 5 * (found["variance"] / len(draws)).sqrt()
    assert ((draws.mean(0) - found["reward"]).abs() < spread).all()  # evaluation is the mean of what is trained


def test_processes_share_a_batchs_noise():
    """Two processes with half of the pairs each draw what one draws with all: chosen rows, then rejected rows."""
    whole, half = torch.zeros(8, 3), torch.zeros(4, 3)
    for draw in (Noise.normal, Noise.uniform):
        torch.manual_seed(3)
        expected = draw(Noise(), whole).reshape(2, 4, 3)
        parts = []
        for rank in range(2):
            torch.manual_seed(3)
            parts.append(draw(Noise(rank, 2), half).reshape(2, 2, 3))
        assert torch.equal(torch.cat(parts, dim=1), expected)


# Each kind


def test_a_bottleneck_without_noise_is_a_linear_reward():
    module, texts = head("bottleneck", latent_dim=5), states()
    h = module.norm(texts.final)
    weight = module.decoder.weight @ module.latent_encoder.weight[:5]
    bias = module.decoder.weight @ module.latent_encoder.bias[:5]
    torch.testing.assert_close(module(texts)["reward"], (h @ weight.T + bias).squeeze(-1))


def test_ratings_with_weight_zero_leave_the_gradients_of_a_scalar_model():
    module, texts = head("multitask"), states()
    chosen, rejected = module(texts)["reward"].chunk(2)
    preference_loss(chosen, rejected).backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert set(gradients) == {"norm.weight", "norm.bias", "reward.weight"}
    module.zero_grad()
    scalar = (module.norm(texts.final) @ module.reward.weight.T).squeeze(-1)
    preference_loss(*scalar.chunk(2)).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(module.get_parameter(name).grad, gradient)


def test_one_aspect_has_all_the_weight():
    assert (head("gated", aspects=1)(states())["weights"] == 1).all()


def test_the_gate_reads_the_prompt_and_is_a_softmax_over_aspects():
    """ArmoRM's release takes it over the pair's two rows, where both weights are near 1/2 whatever the prompt."""
    module, texts = head("gated"), states()
    with torch.no_grad():
        module.gate[2].weight.mul_(300)
    weights = module(texts)["weights"]
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (weights.std(0) > 0.02).all()
    other = States(states(seed=9).final, texts.prompt, texts.response_lengths)
    assert torch.equal(module(other)["weights"], weights)  # whatever the response


def test_preferences_train_the_gate_alone_in_two_phases():
    module, texts = head("gated"), states()
    found = module(texts)
    found["ratings"].retain_grad()
    preference_loss(*found["reward"].chunk(2)).backward()
    assert found["ratings"].grad is None
    trained = {name for name, p in module.named_parameters() if p.grad is not None}
    assert {name for name in trained if not name.startswith("norm")} == {
        "tau", "gate.0.weight", "gate.0.bias", "gate.2.weight", "gate.2.bias",
    }  # fmt: skip
    assert not trained & {"norm.weight", "norm.bias"}
    joint = head("gated", joint=True)
    preference_loss(*joint(texts)["reward"].chunk(2)).backward()
    assert all(p.grad is not None for p in joint.parameters())


@pytest.mark.parametrize("joint", [False, True])
def test_attention_over_the_prompt_learns_in_the_gates_phase(joint, tiny_backbone, tokenizer):
    changes = {"prompt_pooling": "attention", "joint": joint}
    model = build("gated", changes, tiny_backbone, tokenizer)
    ids, mask, lengths = batch(tokenizer, ["good", "bad bad bad"])
    found = model(ids, mask, lengths)
    assert torch.equal(*found.parts["weights"])  # whatever the response
    preference_loss(*found.logits.squeeze(-1)).backward()
    assert model.head.query.grad.abs().sum() > 0
    assert model.head.of_gate("model.head.query")
    assert (next(model.model.parameters()).grad is not None) == joint


def test_the_correction_is_used_in_the_reward():
    """ArmoRM's release fits it and goes on with the scores as they were."""
    module, texts = head("gated"), states()
    module.set_lengths(texts.response_lengths)
    before = module(texts)
    module.set_correction(torch.tensor([0.5, 0.0, 0.2]))
    after = module(texts)
    v = module.verbosity(texts.response_lengths)
    expected = before["reward"] - (after["weights"] * torch.tensor([0.5, 0.0, 0.2])).sum(-1) * v
    torch.testing.assert_close(after["reward"], expected)
    assert spearman(v.numpy(), texts.response_lengths.numpy()) == pytest.approx(1)
    assert v.mean().item() == pytest.approx(0, abs=1e-6)
    assert v.std(unbiased=False).item() == pytest.approx(1, rel=1e-6)


def test_equal_lengths_have_no_verbosity():
    module = head("gated")
    module.set_lengths(torch.full((10,), 7.0))
    assert (module.verbosity(torch.tensor([1.0, 7.0, 90.0])) == 0).all()


def test_both_length_heads_are_centred_and_of_length_one():
    """No scale and no constant of the weights changes a reward."""
    module, texts = head("length_heads"), states()
    before = module(texts)
    with torch.no_grad():
        module.rows.weight.mul_(7).add_(3)
    after = module(texts)
    for name in ("reward", "length_reward", "overlap"):
        torch.testing.assert_close(after[name], before[name])
    assert 0 <= before["overlap"][0] <= 1
    with torch.no_grad():
        module.rows.weight[1] = -module.rows.weight[0]
    assert module(texts)["overlap"][0].item() == pytest.approx(1)


def test_non_negative_rewards_are_not_negative_and_dead_units_tie():
    module, texts = head("nonnegative", units=16), states()
    assert (module(texts)["reward"] >= 0).all()
    assert (module(texts, Noise())["reward"] >= 0).all()
    with torch.no_grad():
        module.local.weight.zero_()
        module.local.bias.fill_(-1.0)
    found = module(texts)
    assert (found["reward"] == found["reward"][0]).all()
    assert all(value.isfinite().all() for value in found.values())
    module(texts, Noise())["reward"].sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
