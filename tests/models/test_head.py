"""The VRM's head on pooled states: where each option starts, what it adds, and where its gradients go."""

import pytest
import torch

from vrm.models.latents import Weights, objective, sample_pairs, shared_sampler
from vrm.models.vrm import INITIAL_LOG_CONCENTRATION, MINIMUM_CONCENTRATION, VrmHead

HIDDEN, K, D, PAIRS = 8, 3, 5, 6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head(**options):
    return VrmHead(HIDDEN, K, D, "mixture", **options)


def states():
    """Of B prompts, twice, and of 2B texts."""
    return torch.randn(PAIRS, HIDDEN).repeat(2, 1), torch.randn(2 * PAIRS, HIDDEN)


def gradients(module, loss):
    """Largest absolute gradient of each parameter; None where none arrives."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: None if g is None else g.abs().max().item() for name, g in zip(named, found, strict=True)}


def penalty(made, sampler=sample_pairs):
    """The residual's term of the objective alone."""
    chosen, rejected = made(*states(), sampler).halves()
    only = [objective(chosen, rejected, torch.ones(K), Weights(0, 0, residual=weight))[0] for weight in (1.0, 0.0)]
    return only[0] - only[1]


def test_no_option_moves_the_random_numbers_of_the_others():
    torch.manual_seed(0)
    plain, after = head(), torch.rand(1)
    torch.manual_seed(0)
    full = head(prompt_pooling="attention", concentration="scaled", scale=True, residual=True)
    assert torch.equal(torch.rand(1), after)
    for name, weight in plain.state_dict().items():
        assert torch.equal(full.state_dict()[name], weight), name
    assert full.state_dict().keys() - plain.state_dict().keys() == {"query", "scalars", "residual"}


def test_a_concept_residual_head_starts_as_the_anchored_one():
    torch.manual_seed(0)
    plain = head()
    torch.manual_seed(0)
    with_residual, given = head(scale=True, residual=True), states()
    expected, found = plain(*given), with_residual(*given)
    assert torch.equal(found.reward, expected.reward)
    assert torch.equal(found.rated, found.reward)
    assert (found.residual == 0).all()
    assert expected.residual is None
    assert torch.equal(expected.rated, expected.reward)
    torch.testing.assert_close(
        found.reward, ((found.alpha / found.alpha.sum(-1, keepdim=True)) * found.per_objective).sum(-1)
    )


def test_scaled_concentrations_sum_to_c_and_stay_positive():
    made, (prompt, _) = head(concentration="scaled"), states()
    with torch.no_grad():
        made.weight_encoder[-1].weight.mul_(1e3)  # some softmax components underflow to 0
    alpha = made.encode_weights(prompt)
    c = torch.tensor(INITIAL_LOG_CONCENTRATION).exp()
    torch.testing.assert_close(alpha.sum(-1), (c + K * MINIMUM_CONCENTRATION).expand(2 * PAIRS))
    assert (alpha >= MINIMUM_CONCENTRATION).all()
    softplus = head().encode_weights(prompt).sum(-1)
    assert softplus.std() > 1e-3  # which is the other way: there the prompt moves the sum


@pytest.mark.parametrize("detached", [False, True])
def test_the_penaltys_gradient_reaches_b_alone(detached):
    made = head(scale=True, residual=True, residual_detached=detached)
    torch.nn.init.normal_(made.residual)
    found = gradients(made, penalty(made))
    assert found.pop("residual") > 1e-3
    assert all(value is None or value == 0 for value in found.values()), found


@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_residual_sends_z_no_gradient(detached):
    """r - rated is b as it enters the preference loss; nothing but b and, attached, the encoder of z is below it."""
    made = head(scale=True, residual=True, residual_detached=detached)
    torch.nn.init.normal_(made.residual)
    weights, latents = torch.softmax(torch.randn(4, K), -1), torch.randn(4, D, requires_grad=True)
    decoded = made.decode(weights, latents)
    (found,) = torch.autograd.grad((decoded.reward - decoded.rated).sum(), latents, retain_graph=True)
    assert (found.abs().max() < 1e-6) == detached
    assert gradients(made, decoded.reward.sum())["residual"] > 1e-3
    torch.testing.assert_close(decoded.rated + decoded.residual, decoded.reward)


def test_gradients_are_finite_and_reach_every_parameter_of_every_option():
    made = head(prompt_pooling="attention", concentration="scaled", scale=True, residual=True)
    torch.nn.init.normal_(made.residual)
    hidden, mask = torch.randn(2 * PAIRS, 4, HIDDEN), torch.ones(2 * PAIRS, 4, dtype=torch.long)
    prompt = made.pool_prompt(hidden, mask, torch.full((2 * PAIRS,), 2))
    chosen, rejected = made(prompt, hidden[:, -1], sample_pairs).halves()
    loss, _ = objective(chosen, rejected, torch.ones(K), Weights(residual=0.1))
    found = gradients(made, loss)
    assert all(value is not None and 0 < value < float("inf") for value in found.values()), found


def test_tau_scales_the_reward_and_leaves_the_scores():
    made, given = head(scale=True), states()
    before = made(*given)
    with torch.no_grad():
        made.scalars[1] = 0.7
    after = made(*given)
    torch.testing.assert_close(after.reward, torch.tensor(0.7).exp() * before.reward)
    assert torch.equal(after.per_objective, before.per_objective)


def test_the_gain_multiplies_b_and_its_first_step():
    """Adam's steps are as long whatever the gradient's size, so b moves gain times as far in one."""
    moved = {}
    for gain in (1.0, 5.0):
        torch.manual_seed(0)
        made, given = head(residual=True, residual_gain=gain), states()
        adam = torch.optim.Adam([made.residual], lr=1e-3)
        (-made(*given).reward.sum()).backward()
        adam.step()
        moved[gain] = made(*given).residual
    assert moved[1.0].abs().max() > 1e-4
    torch.testing.assert_close(moved[5.0], 5 * moved[1.0], rtol=1e-3, atol=1e-6)


def test_the_scale_starts_where_it_is_told():
    made, given = head(scale=True, scale_start=4.0), states()
    assert made.tau.exp().item() == pytest.approx(4.0)
    posterior = made(*given)
    weights = posterior.alpha / posterior.alpha.sum(-1, keepdim=True)
    torch.testing.assert_close(posterior.rated, 4 * (weights * posterior.per_objective).sum(-1))


@pytest.mark.parametrize("option", ["scale", "residual"])
def test_what_the_mlp_decoder_has_no_scores_for_is_refused(option):
    with pytest.raises(ValueError, match="mixture decoder"):
        VrmHead(HIDDEN, K, D, "mlp", **{option: True})


def test_several_processes_draw_what_one_draws():
    """Each of two processes has every second pair's half of the batch; a gather hands it the other's alphas."""
    alpha = torch.rand(PAIRS, K) + 0.2
    mu, log_variance = torch.randn(2, 2, PAIRS, D)  # chosen and rejected
    torch.manual_seed(3)
    one_w, one_z = sample_pairs(alpha.repeat(2, 1), mu.flatten(0, 1), log_variance.flatten(0, 1))
    for rank in (0, 1):
        own = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
        torch.manual_seed(3)
        sampler = shared_sampler(lambda _: alpha, rank, 2)
        w, z = sampler(alpha[own].repeat(2, 1), mu[:, own].flatten(0, 1), log_variance[:, own].flatten(0, 1))
        torch.testing.assert_close(w, one_w.view(2, PAIRS, K)[:, own].flatten(0, 1))
        torch.testing.assert_close(z, one_z.view(2, PAIRS, D)[:, own].flatten(0, 1))


def test_one_process_asks_no_other():
    def gather(_):
        raise AssertionError("nothing is to be gathered")

    assert shared_sampler(gather, 0, 1) is sample_pairs
