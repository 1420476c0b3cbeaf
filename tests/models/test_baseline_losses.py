"""The maths of the published reward models: golden values, degenerate cases, and the released faults not copied."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from vrm.models import baseline_losses as losses
from vrm.models.latents import gaussian_kl, preference_loss

NAN = float("nan")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def normal(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# Ratings


def test_rating_loss_is_the_mean_squared_error_of_what_is_rated(rng):
    scores, ratings = normal(rng, 6, 3), normal(rng, 6, 3)
    assert losses.rating_loss(scores, ratings).item() == pytest.approx(F.mse_loss(scores, ratings).item())
    ratings[0, 1] = ratings[4] = NAN
    kept = ~ratings.isnan()
    expected = (scores[kept] - ratings[kept]).square().mean()
    assert losses.rating_loss(scores, ratings).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", ["rating", "aspect", "anchor"])
def test_nothing_rated_costs_nothing_and_has_a_finite_gradient(rng, loss):
    scores = normal(rng, 4, 3).requires_grad_()
    missing = torch.full((4, 3), NAN, dtype=torch.float64)
    found = {
        "rating": lambda: losses.rating_loss(scores, missing),
        "aspect": lambda: losses.aspect_preference_loss(scores, scores * 2, missing, missing),
        "anchor": lambda: losses.anchor_loss(
            scores[:, 0], scores[:, 1].exp(), missing[:, 0], torch.tensor([-0.5, 0.5])
        ),
    }[loss]()
    found.backward()
    assert found.item() == 0
    assert (scores.grad == 0).all()


def test_one_missing_rating_leaves_the_other_gradients_as_they_are(rng):
    scores, ratings = normal(rng, 4, 3).requires_grad_(), normal(rng, 4, 3)
    ratings[1, 2] = NAN
    losses.rating_loss(scores, ratings).backward()
    assert scores.grad[1, 2] == 0
    assert scores.grad.isfinite().all()
    assert (scores.grad != 0).sum() == 11


def test_aspect_preferences_have_labels_one_zero_and_a_half():
    chosen = torch.tensor([[1.0, 1.0, 1.0]])
    rejected = torch.zeros(1, 3)
    found = losses.aspect_preference_loss(
        chosen, rejected, torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    )
    gap = torch.tensor(1.0)
    higher, lower = F.softplus(-gap), F.softplus(gap)
    assert found.item() == pytest.approx(((higher + lower + 0.5 * (higher + lower)) / 3).item())


# Length


def test_pearson_equals_scipys(rng):
    x, y = normal(rng, 20), normal(rng, 20)
    assert losses.pearson(x, y).item() == pytest.approx(stats.pearsonr(x, y).statistic)
    assert losses.pearson(x, -3 * x).item() == pytest.approx(-1)


def test_a_constant_has_no_correlation_and_no_gradient(rng):
    x = normal(rng, 8).requires_grad_()
    for lengths in (torch.full((8,), 7.0, dtype=torch.float64), torch.arange(8.0, dtype=torch.float64)):
        values = x if lengths[0] == lengths[1] else torch.zeros_like(x) * x
        rho = losses.pearson(lengths, values)
        rho.backward()
        assert rho.item() == 0
    assert x.grad.isfinite().all()
    loss, _ = losses.length_correlation_loss(x, x, torch.full((8,), 7.0, dtype=torch.float64))
    assert loss.item() == 1  # |0| + 1 - 0


def test_length_loss_ends_where_length_is_in_its_own_head_alone(rng):
    lengths, other = torch.arange(40.0, dtype=torch.float64), normal(rng, 40)
    free = other - losses.pearson(other, lengths) * other.std() / lengths.std() * lengths
    loss, rho = losses.length_correlation_loss(free, lengths, lengths)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert rho.tolist() == pytest.approx([0, 1], abs=1e-9)
    # a negative correlation of quality costs as much as a positive one
    assert losses.length_correlation_loss(-lengths, lengths, lengths)[0].item() == pytest.approx(1)


def test_spearman_equals_scipys_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = rng.integers(0, 6, 30).astype(float), rng.standard_normal(30)
        assert losses.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert losses.spearman(np.ones(5), np.arange(5.0)) == 0


def test_the_smallest_correction_that_is_enough_is_taken():
    rng = np.random.default_rng(1)
    verbosity, other = rng.standard_normal((2, 2000))
    scores = np.stack([other, 0.5 * verbosity + 0.1 * other, 2 * verbosity, -verbosity], axis=1)
    found, left = losses.length_corrections(scores, verbosity, limit=0.03)
    assert found[0] == 0
    assert 0.45 <= found[1] <= 0.5
    assert losses.spearman(scores[:, 1] - (found[1] - 0.05) * verbosity, verbosity) > 0.03
    assert found[2] == 0.95  # not enough, and its rest is told
    assert left[2] > 0.9
    assert found[3] == 0
    assert (left[[0, 1, 3]] <= 0.03).all()


def test_constant_length_needs_no_correction():
    scores = np.random.default_rng(2).standard_normal((50, 3))
    found, left = losses.length_corrections(scores, np.zeros(50), limit=0.03)
    assert not found.any()
    assert not left.any()


# Bottleneck


def test_the_averaged_kl_of_the_release_is_at_most_the_mean_over_dimensions(rng):
    mu, log_variance = normal(rng, 50, 7), normal(rng, 50, 7)
    summed = gaussian_kl(mu, log_variance).sum(-1)
    averaged = losses.averaged_kl(mu, log_variance)
    assert (averaged <= summed / 7 + 1e-12).all()
    torch.testing.assert_close(losses.averaged_kl(mu[:, :1], log_variance[:, :1]), summed * 0 + gaussian_kl(
        mu[:, :1], log_variance[:, :1]).sum(-1))  # fmt: skip
    # means that cancel hide any amount of information
    cancelling = torch.tensor([[5.0, -5.0]])
    assert losses.averaged_kl(cancelling, torch.zeros(1, 2)).item() == 0
    assert gaussian_kl(cancelling, torch.zeros(1, 2)).sum().item() == pytest.approx(25)


# Gaussian rewards


def test_thurstone_is_minus_ln_phi(rng):
    difference, variance = normal(rng, 10), normal(rng, 10).exp()
    expected = -stats.norm.logcdf(difference / variance.sqrt()).mean()
    assert losses.thurstone_loss(difference, variance).item() == pytest.approx(expected)
    far = losses.thurstone_loss(torch.tensor([-40.0]), torch.tensor([1.0]))  # Phi itself would underflow
    assert far.item() == pytest.approx(-stats.norm.logcdf(-40), rel=1e-5)


def test_the_slope_of_thurstone_at_zero_is_that_of_phi():
    """DPL's release is pi/2 times as steep."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    losses.thurstone_loss(x, torch.ones(1, dtype=torch.float64)).backward()
    assert -0.5 * x.grad.item() == pytest.approx(stats.norm.pdf(0))  # d Phi / dx = -Phi dloss/dx
    assert torch.sigmoid(torch.tensor((2 * np.pi) ** 0.5 * 1e-4)).item() - 0.5 == pytest.approx(
        np.pi / 2 * stats.norm.pdf(0) * 1e-4, rel=1e-2
    )


@pytest.mark.parametrize("loss", [losses.marginal_loss, losses.expected_loss])
def test_quadrature_agrees_with_monte_carlo_and_without_noise_is_bradley_terry(rng, loss):
    difference, variance = torch.tensor([-1.0, 0.3, 2.0]).double(), torch.tensor([0.5, 2.0, 4.0]).double()
    z = difference + variance.sqrt() * normal(rng, 200_000, 3)
    expected = -z.sigmoid().mean(0).log() if loss is losses.marginal_loss else F.softplus(-z).mean(0)
    assert loss(difference, variance).item() == pytest.approx(expected.mean().item(), rel=5e-3)
    no_noise = loss(difference, torch.full_like(variance, 1e-12))
    assert no_noise.item() == pytest.approx(preference_loss(difference, torch.zeros_like(difference)).item(), rel=1e-5)


def test_thurstone_does_not_change_with_the_scale_and_anchors_do(rng):
    mean, variance = normal(rng, 8, 2), normal(rng, 8, 2).exp()

    def thurstone(scale):
        return losses.thurstone_loss(scale * (mean[:, 0] - mean[:, 1]), scale**2 * variance.sum(-1)).item()

    def anchors(scale):
        score = torch.linspace(-1, 1, 8, dtype=torch.float64)
        thresholds = torch.tensor([-0.5, 0.5]).double()
        return losses.anchor_loss(scale * mean[:, 0], scale**2 * variance[:, 0], score, thresholds).item()

    assert thurstone(5.0) == pytest.approx(thurstone(1.0))
    assert abs(anchors(5.0) - anchors(1.0)) > 1e-2


@pytest.mark.parametrize("difference", [-1.5, 1.5])
def test_expected_pushes_the_variance_down_and_marginal_up_only_where_the_pair_is_lost(difference):
    difference = torch.tensor([difference], dtype=torch.float64)

    def slope(loss):
        variance = torch.ones(1, dtype=torch.float64, requires_grad=True)
        loss(difference, variance).backward()
        return variance.grad.item()

    assert slope(losses.expected_loss) > 0  # Jensen: no variance is better than none
    assert (slope(losses.marginal_loss) < 0) == (difference.item() < 0)
    assert (slope(losses.thurstone_loss) < 0) == (difference.item() < 0)


def test_anchors_are_the_probabilities_of_three_grades():
    mean, variance = torch.tensor([0.3]), torch.tensor([4.0])
    thresholds = torch.tensor([-1.0, 1.0])
    grades = stats.norm.cdf(-1.3 / 2), stats.norm.cdf(1.3 / 2) - stats.norm.cdf(-0.7 / 2), stats.norm.cdf(-0.7 / 2)
    assert sum(grades) == pytest.approx(1)
    for score, expected in zip((-2.0, 0.0, 2.0), grades, strict=True):
        found = losses.anchor_loss(mean, variance, torch.tensor([score]), thresholds)
        assert found.item() == pytest.approx(-np.log(expected), rel=1e-5)
    at_threshold = losses.anchor_loss(mean, variance, torch.tensor([1.0]), thresholds)
    assert at_threshold.item() == pytest.approx(-np.log(grades[2]), rel=1e-5)  # in the grade above


@pytest.mark.parametrize("mean", [-40.0, -8.0, 0.0, 8.0, 40.0])
def test_a_grade_far_from_the_reward_has_a_finite_loss_and_gradient(mean):
    mean = torch.tensor([mean], requires_grad=True)
    thresholds = torch.tensor([-1.0, 1.0])
    for score in (-2.0, 0.0, 2.0):
        loss = losses.anchor_loss(mean, torch.ones(1), torch.tensor([score]), thresholds)
        (slope,) = torch.autograd.grad(loss, mean)
        assert loss.isfinite()
        assert slope.isfinite().all()
        if score == 0.0 and mean.abs() >= 8:
            assert slope * mean > 0  # towards the middle grade


def test_thresholds_are_quartiles_and_equal_ones_are_an_error():
    assert losses.anchor_thresholds(np.arange(5.0)) == (1.0, 3.0)
    with pytest.raises(ValueError, match="no three grades"):
        losses.anchor_thresholds(np.array([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]))


# Weibull units


def test_weibull_kl_is_zero_at_the_prior_and_agrees_with_monte_carlo():
    one = torch.ones(1, dtype=torch.float64)
    assert losses.weibull_kl(one, one).item() == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    for shape, scale in ((1.5, 0.7), (3.0, 2.0), (1.0, 0.2)):
        weibull = stats.weibull_min(shape, scale=scale)
        x = weibull.rvs(400_000, random_state=rng)
        expected = (weibull.logpdf(x) - stats.gamma(1).logpdf(x)).mean()
        found = losses.weibull_kl(torch.tensor([shape]).double(), torch.tensor([scale]).double()).item()
        assert found == pytest.approx(expected, abs=2e-2)
        assert found > 0


def test_weibull_moments_and_samples_are_scipys():
    shape, mean = torch.tensor([1.7]).double(), torch.tensor([0.6]).double()
    scale = losses.weibull_scale(shape, mean)
    weibull = stats.weibull_min(shape.item(), scale=scale.item())
    assert weibull.mean() == pytest.approx(0.6)
    assert losses.weibull_second_moment(shape, scale).item() == pytest.approx(weibull.var() + 0.36)
    u = torch.tensor([0.1, 0.5, 0.99]).double()
    assert losses.weibull_sample(shape, scale, u).tolist() == pytest.approx(weibull.ppf(u).tolist())


def test_a_sample_at_the_edge_of_the_noise_has_a_finite_gradient():
    shape = torch.tensor([1.0, 2.0], requires_grad=True)
    losses.weibull_sample(shape, torch.ones(2), torch.tensor([0.0, 1 - 2**-24])).sum().backward()
    assert shape.grad.isfinite().all()
