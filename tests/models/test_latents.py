"""The variational maths against torch.distributions, and the properties that must hold for any parameters."""

import math

import mpmath
import pytest
import torch
from torch.distributions import Dirichlet, Normal, kl_divergence

from vrm.models.latents import (
    SUPERVISION,
    PairAnnotation,
    Posterior,
    Weights,
    active_units,
    dirichlet_kl,
    dirichlet_mean,
    free_bits,
    gaussian_kl,
    objective,
    sample_dirichlet,
    sample_gaussian,
    weights_sd,
)
from vrm.models.vrm import VrmHead


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def simplex(*shape):
    return torch.rand(*shape).add(0.05).log().softmax(-1)


@pytest.mark.parametrize("k", [2, 4, 7])
def test_dirichlet_kl_equals_torch_distributions(k):
    alpha, prior = torch.rand(50, k) * 20 + 0.05, torch.rand(k) * 5 + 0.1
    expected = kl_divergence(Dirichlet(alpha), Dirichlet(prior))
    torch.testing.assert_close(dirichlet_kl(alpha, prior), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [[1e4] * 4, [1e4, 2e4, 5e3, 1e4], [12345.0, 777.0, 3.0, 9999.0]])
def test_dirichlet_kl_of_large_concentrations_is_exact_in_float64(alpha):
    """Eq. 8 against the uniform prior with 40 digits; float32 errs in the second decimal here."""
    with mpmath.workdps(40):
        total = mpmath.fsum(alpha)
        expected = mpmath.loggamma(total) - mpmath.fsum(map(mpmath.loggamma, alpha)) - mpmath.loggamma(len(alpha))
        expected += mpmath.fsum((a - 1) * (mpmath.digamma(a) - mpmath.digamma(total)) for a in alpha)
    rows = torch.tensor([alpha])
    assert dirichlet_kl(rows.double(), torch.ones(4).double()).item() == pytest.approx(float(expected), abs=1e-8)
    assert abs(dirichlet_kl(rows, torch.ones(4)).item() - float(expected)) > 1e-3


def test_dirichlet_kl_is_zero_at_the_prior():
    prior = torch.tensor([0.3, 1.0, 4.0])
    assert dirichlet_kl(prior.expand(2, 3), prior).abs().max() < 1e-5


def test_gaussian_kl_equals_torch_distributions():
    mu, log_variance = torch.randn(50, 6) * 3, torch.randn(50, 6)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, log_variance), expected)


def test_gaussian_kl_is_summed_over_dimensions_not_taken_of_their_mean():
    """By hand: mu = (2, -2), unit variance. Sum over dimensions 4; of the averaged mu it would be 0."""
    assert gaussian_kl(torch.tensor([[2.0, -2.0]]), torch.zeros(1, 2)).sum().item() == pytest.approx(4.0)


def test_free_bits_never_cost_less_and_zero_bits_are_the_plain_kl():
    kl = torch.rand(8, 5)
    assert free_bits(kl, 0.0) == pytest.approx(kl.sum(-1).mean().item())
    assert free_bits(kl, 0.7) >= free_bits(kl, 0.0)
    assert free_bits(torch.full((8, 5), 0.1), 0.5) == pytest.approx(2.5)


def test_expected_weights_lie_on_the_simplex_of_each_row():
    weights = dirichlet_mean(torch.rand(9, 4) + 0.1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(9))
    assert not torch.allclose(weights.sum(0), torch.full((4,), 9 / 4))  # the batch axis is not the normalised one


def test_gradients_reach_every_encoder_output():
    alpha = torch.rand(4, 3, requires_grad=True)
    mu, log_variance = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    (sample_dirichlet(alpha + 0.5).square().sum() + sample_gaussian(mu, log_variance).square().sum()).backward()
    for leaf in (alpha, mu, log_variance):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize("name", SUPERVISION)
def test_supervision_is_zero_at_its_target_and_positive_at_the_wrong_order(name):
    target = simplex(20, 4)
    assert SUPERVISION[name](target, target).abs().max() < 1e-6
    reversed_order = target.argsort(-1)
    wrong = torch.zeros_like(target).scatter(-1, reversed_order, target.sort(-1, descending=True).values)
    assert (SUPERVISION[name](wrong, target) > 0).all()


def test_supervision_kl_equals_torch_distributions():
    weights, target = simplex(20, 4), simplex(20, 4)
    expected = kl_divergence(torch.distributions.Categorical(target), torch.distributions.Categorical(weights))
    torch.testing.assert_close(SUPERVISION["kl"](weights, target), expected)


def test_rank_supervision_asks_for_gaps_not_values():
    target = torch.tensor([[0.4, 0.35, 0.25]])
    assert SUPERVISION["rank"](torch.tensor([[0.6, 0.3, 0.1]]), target).item() == 0.0
    assert SUPERVISION["rank"](torch.full((1, 3), 1 / 3), target).item() > 0


@pytest.mark.parametrize("decoder", ["mixture", "mlp"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_strict_negative_elbo_is_at_least_log_2_for_any_parameters(decoder, scale):
    """Both priors are independent of (x, y), so by symmetry the model's marginal preference is 1/2 for every pair."""
    samples, k, d = 4000, 4, 3
    for trial in range(5):
        torch.manual_seed(trial)
        head = VrmHead(8, k, d, decoder)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_(0.0, scale)
            alpha = (torch.rand(1, k) * 10 * scale + 0.05).expand(samples, k)
            mu = (torch.randn(2, 1, d) * scale).expand(2, samples, d)
            log_variance = torch.randn(2, 1, d).expand(2, samples, d)
            weights = sample_dirichlet(alpha)
            rewards = [head.decode(weights, sample_gaussian(mu[i], log_variance[i])).reward for i in (0, 1)]
            pairs = (Posterior(alpha, mu[i], log_variance[i], rewards[i], rewards[i]) for i in (0, 1))
            loss, _ = objective(*pairs, torch.ones(k), Weights())
            spread = torch.nn.functional.softplus(rewards[1] - rewards[0]).std() / samples**0.5
        assert loss >= math.log(2) - 4 * spread


def collapsed(pairs, k=3):
    """A posterior equal to its prior, of texts that all have the reward 0."""
    zeros = torch.zeros(pairs, 2)
    return Posterior(torch.ones(pairs, k), zeros, zeros, torch.zeros(pairs), torch.zeros(pairs))


def random_posterior(pairs, alpha, residual=False):
    mu, log_variance = torch.randn(2, pairs, 2)
    rated, b = torch.randn(2, pairs)
    reward = rated + b if residual else rated
    return Posterior(alpha, mu, log_variance, reward, rated, torch.randn(pairs, 3), b if residual else None)


def random_pairs(residual=False):
    alpha = torch.rand(6, 3) + 0.5
    return random_posterior(6, alpha, residual), random_posterior(6, alpha, residual)


def annotation():
    return PairAnnotation(simplex(6, 3), torch.randn(6, 3), torch.randn(6, 3))


def test_the_collapsed_posterior_attains_log_2():
    loss, terms = objective(collapsed(6), collapsed(6), torch.ones(3), Weights())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms["negative_elbo"] == loss


@pytest.mark.parametrize("residual", [False, True])
def test_the_objective_adds_its_weighted_terms(residual):
    chosen, rejected = random_pairs(residual)
    weights = Weights(0.2, 0.3, 0.5, 0.7, residual=0.9 if residual else 0.0)
    loss, terms = objective(chosen, rejected, torch.ones(3), weights, "mse", annotation())
    expected = terms["preference_loss"] + 0.2 * terms["kl_w"] + 0.3 * terms["kl_z"]
    expected = expected + 0.5 * terms["supervision_loss"] + 0.7 * terms["anchor_loss"]
    assert ("residual_loss" in terms) == residual
    if residual:
        penalty = sum((a - b) ** 2 for a, b in zip(chosen.residual, rejected.residual, strict=True)) / 6
        torch.testing.assert_close(terms["residual_loss"], penalty)
        expected = expected + 0.9 * penalty
    torch.testing.assert_close(loss, expected)


def test_swapping_the_pair_negates_the_margin_and_nothing_else_counts_sides():
    """The likelihoods of a pair and of its swap add up to 1; the other terms do not know which one was chosen."""
    chosen, rejected = (each.select(slice(1)) for each in random_pairs(residual=True))
    (_, one), (_, other) = (
        objective(*pair, torch.ones(3), Weights(residual=1.0)) for pair in [(chosen, rejected), (rejected, chosen)]
    )
    assert math.exp(-one["preference_loss"]) + math.exp(-other["preference_loss"]) == pytest.approx(1, abs=1e-6)
    for name in ("kl_w", "kl_z", "residual_loss"):
        torch.testing.assert_close(one[name], other[name])


def test_supervision_without_annotations_is_an_error():
    with pytest.raises(ValueError, match="need annotated scores"):
        objective(collapsed(2), collapsed(2), torch.ones(3), Weights(supervision=1.0))


def test_a_penalty_on_a_residual_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="needs a residual"):
        objective(collapsed(2), collapsed(2), torch.ones(3), Weights(residual=1.0))


@pytest.mark.parametrize("residual", [False, True])
def test_a_posterior_is_its_parts(residual):
    chosen, rejected = random_pairs(residual)
    whole = Posterior.concatenate([chosen, rejected])
    again = Posterior.concatenate(whole.halves())
    assert whole.filled().keys() == again.filled().keys() == chosen.filled().keys()
    assert ("residual" in whole.filled()) == residual
    for name, value in whole.filled().items():
        assert torch.equal(value, again.filled()[name]), name
        assert torch.equal(value[:6], chosen.filled()[name]), name
        assert torch.equal(whole.select(torch.tensor([7, 2])).filled()[name], value[[7, 2]]), name


def test_the_weights_spread_is_over_prompts_and_not_over_objectives():
    one_sided = torch.tensor([[8.0, 1.0, 1.0]]).expand(20, 3)  # far from uniform, and the same for all
    assert weights_sd(one_sided) == pytest.approx(0, abs=1e-7)
    two = torch.tensor([[3.0, 1.0], [1.0, 3.0]])  # E[w] is 3/4 or 1/4
    assert weights_sd(two) == pytest.approx(0.25)


def test_active_units_counts_dimensions_whose_mean_varies():
    mu = torch.zeros(100, 4)
    mu[:, 1], mu[:, 2] = torch.randn(100), 5.0  # one varies, one is a constant
    assert active_units(mu) == 1
