"""Variants of reward models that ask for what can't be, and what they leave to the defaults."""

import pytest

from vrm.config import PpoMethod, Variant


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
