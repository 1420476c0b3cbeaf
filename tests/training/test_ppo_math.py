"""PPO's mathematics: against brute force, by hand, and the properties that padding and chunking must not change."""

import json
import math

import numpy as np
import pytest
import torch

from vrm.training.ppo import (
    RunningMoments,
    approximate_kl,
    explained_variance,
    gae,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

B, T, CLIP = 6, 9, 0.2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def ragged():
    """Lengths from 1 to T, both among them, as a mask (B, T)."""
    lengths = torch.cat([torch.tensor([1, T]), torch.randint(1, T + 1, (B - 2,))])
    return (torch.arange(T) < lengths[:, None]).double()


def noise(*shape):
    """Junk on padding as well, which must not matter."""
    return torch.randn(*(shape or (B, T)), dtype=torch.float64)


def test_masked_mean_by_hand():
    assert masked_mean(t([1, 2, 99], [6, 99, 99]), t([1, 1, 0], [1, 0, 0])).item() == 3


def test_whitened_tokens_have_mean_0_and_variance_1():
    x, mask = 5 + 3 * noise(), ragged()
    white = whiten(x, mask)
    assert white[mask == 1].mean().item() == pytest.approx(0, abs=1e-9)
    assert white[mask == 1].var(unbiased=False).item() == pytest.approx(1)
    assert (white[mask == 0] == 0).all()


def test_parts_are_whitened_by_the_moments_of_the_whole():
    x, mask = noise(), ragged()
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    parts = [whiten(x[rows], mask[rows], mean, variance) for rows in (slice(2), slice(2, None))]
    torch.testing.assert_close(torch.cat(parts), whiten(x, mask))


def test_equal_advantages_whiten_to_nothing():
    assert whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)).abs().max() == 0


def test_the_score_is_paid_on_the_last_real_token_and_the_penalty_on_all():
    mask = t([1, 1, 1], [1, 1, 0], [1, 0, 0])
    rewards = token_rewards(t(10, 20, 30), t([1, 2, 3], [4, 5, 6], [7, 8, 9]), mask, 0.5)
    torch.testing.assert_close(rewards, t([-0.5, -1, 8.5], [-2, 17.5, 0], [26.5, 0, 0]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_gae_equals_the_double_sum_of_discounted_errors(gamma, gae_lambda):
    rewards, values, mask = noise(), noise(), ragged()
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    expected = torch.zeros_like(advantages)
    for row, length in enumerate(mask.sum(1).int().tolist()):
        v = [*values[row, :length].tolist(), 0.0]
        errors = [rewards[row, i].item() + gamma * v[i + 1] - v[i] for i in range(length)]
        for i in range(length):
            expected[row, i] = sum((gamma * gae_lambda) ** (k - i) * errors[k] for k in range(i, length))
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, (expected + values) * mask)


def test_lambda_0_is_the_one_step_error_and_lambda_1_the_discounted_return_less_the_value():
    """By hand: two tokens, rewards 1 and 2, values 0.5 and 4, gamma 0.5; then padding."""
    arguments = t([1, 2, 99]), t([0.5, 4, 99]), t([1, 1, 0]), 0.5
    torch.testing.assert_close(gae(*arguments, 0.0)[0], t([1 + 0.5 * 4 - 0.5, 2 - 4, 0]))
    advantages, returns = gae(*arguments, 1.0)
    torch.testing.assert_close(returns, t([1 + 0.5 * 2, 2, 0]))
    torch.testing.assert_close(advantages, t([2 - 0.5, 2 - 4, 0]))


def test_nothing_depends_on_the_width_of_the_padding():
    mask = ragged()
    rewards, values, old, returns, score = noise(), noise(), noise(), noise(), noise(B)

    def everything(pad):
        def wide(x, junk=7.0):
            return torch.cat([x, torch.full((B, pad), junk, dtype=x.dtype)], 1)

        real, r, v, o, g = wide(mask, 0.0), *(wide(x) for x in (rewards, values, old, returns))
        columns = [
            *gae(r, v, real, 0.9, 0.95),
            *policy_loss(v, o, r, real, CLIP),
            token_rewards(score, r, real, 0.1),
            value_loss(v, o, g, real, CLIP),
            whiten(r, real),
        ]
        assert all((x[real == 0] == 0).all() for x in columns)
        return [x[:, :T] for x in columns] + [masked_mean(r, real), explained_variance(v, g, real)]

    for narrow, wide in zip(everything(0), everything(5), strict=True):
        torch.testing.assert_close(narrow, wide)


def test_the_policy_loss_at_ratio_1_is_minus_the_mean_advantage():
    logp, advantages, mask = noise(), noise(), ragged()
    loss, clipped = policy_loss(logp, logp, advantages, mask, CLIP)
    torch.testing.assert_close(masked_mean(loss, mask), -masked_mean(advantages, mask))
    assert clipped.sum() == 0


def test_the_policy_loss_clips_only_what_has_gone_too_far_the_right_way():
    """Ratios 1.5, 1.1, 0.5, 0.9 under a positive advantage, then under a negative one."""
    ratio, advantage = t([1.5, 1.1, 0.5, 0.9] * 2), t([2, 2, 2, 2, -2, -2, -2, -2])
    logp = ratio.log().requires_grad_()
    loss, _ = policy_loss(logp, torch.zeros_like(ratio), advantage, torch.ones_like(ratio), CLIP)
    torch.testing.assert_close(loss, t([-2.4, -2.2, -1, -1.8, 3, 2.2, 1.6, 1.8]))
    loss.sum().backward()
    stopped = torch.tensor([[True, False, False, False, False, False, True, False]])
    assert (logp.grad[stopped] == 0).all()
    assert (logp.grad.sign() == -advantage.sign())[~stopped].all()


def test_the_policy_loss_says_where_it_clips():
    ratio = t([1.5, 1.1, 0.5])
    _, clipped = policy_loss(ratio.log(), torch.zeros_like(ratio), t([1, 1, -1]), t([1, 1, 1]), CLIP)
    assert clipped.tolist() == [[1, 0, 1]]


def test_the_value_loss_takes_the_worse_of_the_free_and_the_clipped_value():
    """Old value 0: near it; beyond the clip towards the return, which stops; beyond it away from the return."""
    values, returns = t([0.1, 0.8, -0.8]).requires_grad_(), t([1, 1, 1])
    loss = value_loss(values, torch.zeros_like(returns), returns, torch.ones_like(returns), CLIP)
    torch.testing.assert_close(loss, 0.5 * t([0.9**2, 0.8**2, 1.8**2]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, t([-0.9, 0, -1.8]))


def test_explained_variance_of_perfect_useless_and_harmful_critics():
    returns, mask = noise(), ragged()
    shifted = returns + 3  # a constant error leaves no variance unexplained
    assert explained_variance(shifted, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.ones(B, T), returns, mask).item() == pytest.approx(0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_explained_variance_of_constant_returns_is_nan(value):
    assert explained_variance(torch.randn(B, T), torch.full((B, T), value), ragged()).isnan()


def test_approximate_kl_is_the_kl_from_old_to_new_in_expectation():
    old, new = noise(50).log_softmax(0), noise(50).log_softmax(0)
    estimate = approximate_kl(new - old)
    assert (estimate >= 0).all()
    expected = (old.exp() * (old - new)).sum()
    torch.testing.assert_close((old.exp() * estimate).sum(), expected)
    assert approximate_kl(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("sizes", [[1000], [1, 999], [400, 1, 599], [50] * 20])
def test_running_moments_equal_those_of_all_values_at_once(sizes):
    values = 1e4 + 3 * noise(1000)
    moments = RunningMoments()
    for part in values.split(sizes):
        moments.update(part)
    assert moments.count == 1000
    assert moments.mean == pytest.approx(values.numpy().mean(), rel=1e-12)
    assert moments.std == pytest.approx(np.std(values.numpy()), rel=1e-9)
    normal = moments.normalise(values)
    assert (normal.mean().item(), normal.std(unbiased=False).item()) == pytest.approx((0, 1), abs=1e-6)


def test_running_moments_go_on_from_a_json_file_as_if_never_interrupted():
    whole, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    early, late = noise(30), noise(20)
    for part in (early, late):
        whole.update(part)
    first.update(early)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update(late)
    assert second.state_dict() == whole.state_dict()


def test_equal_values_are_normalised_to_0_not_to_infinity():
    moments = RunningMoments()
    moments.update(torch.full((8,), 0.7))
    normal = moments.normalise(torch.tensor([0.7, 0.8]))
    assert normal[0].item() == pytest.approx(0, abs=1e-3)
    assert math.isfinite(normal[1].item())
