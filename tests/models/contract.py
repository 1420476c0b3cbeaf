"""The contract of `vrm.models.base.RewardModel` as checks; every reward model is run through all of them."""

from dataclasses import replace

import numpy as np

PROMPTS = [
    "alpha beta gamma",
    [{"role": "user", "content": "delta"}, {"role": "assistant", "content": "eta"}, {"role": "user", "content": "mu?"}],
    "theta iota kappa lambda mu alpha beta",
    "alpha beta gamma",
]
RESPONSES = ["good alpha", "bad beta gamma delta epsilon zeta eta theta iota", "", "good alpha"]


def arrays(output):
    """The filled fields of a RewardOutput."""
    fields = ("mean", "truncated", "std", "weights", "per_objective", "rated", "residual")
    return {name: getattr(output, name) for name in fields if getattr(output, name) is not None}


def assert_same(first, second, tolerance=1e-5):
    """Two outputs agree in every field."""
    first, second = arrays(first), arrays(second)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=tolerance, atol=tolerance, err_msg=name)


def reordered(output, order):
    """An output's rows in another order."""
    return type(output)(**{name: value[order] for name, value in arrays(output).items()})


def check_shapes(model):
    """One row a text; K columns where there are objectives."""
    output, n, k = model.score(PROMPTS, RESPONSES), len(PROMPTS), len(model.aspects)
    assert output.mean.shape == (n,)
    assert np.isfinite(output.mean).all()
    if k == 0:
        assert output.weights is None
        assert output.per_objective is output.rated is output.residual is None
        return
    assert output.weights.shape == (n, k)
    np.testing.assert_allclose(output.weights.sum(1), 1, rtol=1e-5)
    if output.per_objective is not None:
        assert output.per_objective.shape == (n, k)
        np.testing.assert_allclose((output.weights * output.per_objective).sum(1), output.rated, rtol=1e-3, atol=1e-4)
    assert output.rated.shape == (n,)
    residual = np.zeros(n) if output.residual is None else output.residual
    np.testing.assert_allclose(output.rated + residual, output.mean, rtol=1e-4, atol=1e-5)


def check_the_rated_part_can_be_asked_alone(model):
    """Everything but mean and std stays; a model without a residual has no other reward to give."""
    whole, model.reward = model.score(PROMPTS, RESPONSES), "rated"
    alone = model.score(PROMPTS, RESPONSES)
    expected = whole.mean if whole.rated is None else whole.rated
    np.testing.assert_allclose(alone.mean, expected, rtol=1e-6)
    if whole.residual is None:
        assert_same(alone, whole)
    else:
        assert np.abs(alone.mean - whole.mean).max() > 1e-3
        assert np.abs(alone.std - whole.std).max() > 1e-3
        assert_same(replace(alone, mean=whole.mean, std=whole.std), whole)


def check_batch_size_invariance(model):
    """Padding and company change nothing."""
    whole = model.score(PROMPTS, RESPONSES)
    model.batch_size = 1
    assert_same(model.score(PROMPTS, RESPONSES), whole)


def check_padding_side_invariance(model):
    """Left and right padding give the same rewards."""
    right = model.score(PROMPTS, RESPONSES)
    model.encoder.tokenizer.padding_side = "left"
    assert_same(model.score(PROMPTS, RESPONSES), right)


def check_order_invariance(model):
    """Results follow their texts; equal texts have equal results."""
    output, order = model.score(PROMPTS, RESPONSES), [2, 0, 3, 1]
    shuffled = model.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    assert_same(shuffled, reordered(output, order))
    np.testing.assert_allclose(output.mean[0], output.mean[3], rtol=1e-5)


def check_pad_equal_to_eos(model):
    """With pad == eos the token that is read is still the last real one."""
    before = model.score(PROMPTS, RESPONSES)
    tokenizer = model.encoder.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    model.model.config.pad_token_id = tokenizer.eos_token_id
    assert_same(model.score(PROMPTS, RESPONSES), before)


def check_truncation_is_counted(model):
    """Texts that do not fit are named, and counted once each."""
    long = "alpha beta " * 200
    output = model.score(["alpha", "alpha", long], ["good", long, "good"])
    np.testing.assert_array_equal(output.truncated, [False, True, True])
    assert model.encoder.truncation.as_dict() == {"texts": 3, "prompts_cut": 1, "responses_cut": 1}


def check_the_response_matters(model):
    """Different responses to one prompt get different rewards."""
    rewards = model.score(["alpha", "alpha"], ["good", "bad bad bad"]).mean
    assert abs(rewards[0] - rewards[1]) > 1e-6


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
