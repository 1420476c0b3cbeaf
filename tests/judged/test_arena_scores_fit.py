"""Arena-Hard's fits on many resamples: against their definitions, and by simulation with two games a prompt alike."""

import numpy as np
import pytest
from arena_answers import sigmoid

from vrm.judged.arena_scores import (
    COPIES,
    L2,
    SCALE,
    controlled,
    controlled_fit,
    controlled_rates,
    plain_rates,
    resamples,
    standardise,
)
from vrm.statistics.draws import percentiles


def table(rng, questions, strengths=(-1.0, -0.5), own=0.8, games=0.7):
    """Style differences and battles of models whose games on a prompt are alike, and whose length pays.

    Returns:
        Shapes (M, Q, 4), of which the first feature alone varies, and (M, Q, 3).
    """
    models = len(strengths)
    lengths = rng.gamma(4, 12, (models + 1, questions))
    differences = np.zeros((models, questions, 4))
    differences[..., 0] = (lengths[0] - lengths[1:]) / (lengths[0] + lengths[1:] + 1)
    prompt = rng.normal(size=questions) + own * rng.normal(size=(models, questions))
    margin = (np.array(strengths)[:, None] + prompt - 2 * differences[..., 0])[..., None]
    margin = margin + games * rng.normal(size=(models, questions, 2)) + rng.logistic(0, 0.6, (models, questions, 2))
    weight, tie = np.where(np.abs(margin) > 2, 3.0, 1.0), np.abs(margin) < 0.25
    outcomes = ((margin < 0) & ~tie) * weight, tie, ((margin > 0) & ~tie) * weight
    return differences, np.stack([outcome.sum(axis=-1) for outcome in outcomes], axis=-1).astype(float)


def draws_of(rates, counts, number, rng, resample="prompts"):
    return np.concatenate([rates(sample) for sample in resamples(counts, number, rng, resample)])


def test_standardise_is_over_battles_and_constant_columns_are_zero():
    values, weights = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]]), np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 5.0]])
    got = standardise(values, weights)
    for own, weight in zip(got, weights, strict=True):
        copies = np.repeat(values[:, 0], weight.astype(int))
        np.testing.assert_allclose(own[:, 0], (values[:, 0] - copies.mean()) / copies.std())
        assert own[:, 1].tolist() == [0.0] * 3
    np.testing.assert_array_equal(standardise(values, weights[0]), got[0])


def test_one_penalty_on_intercepts_is_upstream_s_on_all_ratings():
    """The gradient in every rating, the baseline's among them, vanishes where the ratings' sum is 0."""
    differences, counts = table(np.random.default_rng(0), 60)
    style = standardise(differences.reshape(-1, 4), counts.sum(axis=-1).ravel()).reshape(differences.shape)
    (fitted,) = controlled_fit(style[None], counts[None])
    log_odds, coefficients = fitted[:2], fitted[2:]
    ratings = np.array([0.0, *(-log_odds / SCALE)])
    ratings -= ratings.mean()
    p = sigmoid(log_odds[:, None] + style @ coefficients)
    residual = COPIES * (p * counts.sum(axis=-1) - counts[..., 0] - counts[..., 1] / 2)
    np.testing.assert_allclose(L2 * ratings[0] + SCALE * residual.sum(), 0, atol=1e-6)
    np.testing.assert_allclose(L2 * ratings[1:] - SCALE * residual.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(L2 * coefficients + np.einsum("mq,mqk->k", residual, style), 0, atol=1e-6)


@pytest.mark.parametrize(("resample", "ratio"), [("prompts", 1.0), ("battles", 0.6)])
def test_one_model_without_style_spreads_as_the_weighted_mean_over_prompts(resample, ratio):
    _, counts = table(np.random.default_rng(1), 150, strengths=(-0.5,))
    weight = counts[0].sum(axis=-1)
    score = (counts[0, :, 2] + counts[0, :, 1] / 2) / weight
    mean = np.average(score, weights=weight)
    error = 100 * np.sqrt(((weight * (score - mean)) ** 2).sum()) / weight.sum()  # of a ratio, to first order
    plain = draws_of(plain_rates, counts, 2000, np.random.default_rng(2), resample)
    assert plain.std() == pytest.approx(ratio * error, rel=0.1)
    assert plain.mean() == pytest.approx(100 * mean, abs=0.3)
    rates, _ = controlled(np.zeros((1, 150, 4)), counts, again=resample == "prompts")
    same = draws_of(rates, counts, 2000, np.random.default_rng(2), resample)
    np.testing.assert_allclose(same, plain, atol=0.1)  # but for the penalty on the ratings


def test_a_draw_is_the_table_of_its_questions_fitted_anew():
    """By hand: the questions' rows repeated, their style centred and scaled by their own battles."""
    differences, counts = table(np.random.default_rng(3), 30)
    rates, _ = controlled(differences, counts, again=True)
    times = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30))
    sample = (times[:, None] * counts)[None]
    rows = np.repeat(np.arange(30), times)
    anew, _ = controlled(differences[:, rows], counts[:, rows], again=True)
    np.testing.assert_allclose(rates(sample), anew(counts[None][:, :, rows]), atol=1e-6)


def test_a_model_beside_its_twin_differs_by_nothing_in_every_draw():
    differences, counts = table(np.random.default_rng(5), 40)
    twins, battles = (np.concatenate([part, part[:1]]) for part in (differences, counts))
    for rates in (plain_rates, controlled(twins, battles, again=True)[0]):
        draws = draws_of(rates, battles, 50, np.random.default_rng(6))
        np.testing.assert_allclose(draws[:, 0], draws[:, 2], rtol=0, atol=1e-7)
        assert draws[:, 0].std() > 1
        assert np.ptp(draws[:, 0] - draws[:, 0]) == 0


def test_a_resample_without_a_battle_of_a_model_has_no_rate_of_it():
    differences, counts = table(np.random.default_rng(7), 20)
    counts[0, 1:] = 0
    rates, _ = controlled(differences, counts, again=True)
    sample = counts[None].copy()
    sample[:, :, 0] = 0
    for found in (rates(sample), plain_rates(sample)):
        assert np.isnan(found[0]).tolist() == [True, False]


def test_the_same_seed_gives_the_same_bytes():
    differences, counts = table(np.random.default_rng(8), 50)
    rates, _ = controlled(differences, counts, again=True)
    first, again, other = (draws_of(rates, counts, 60, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.fixture(scope="module")
def simulated():
    """Of 300 tables, by what is resampled: whether intervals hold the truth, and the differences' hold theirs."""
    rng = np.random.default_rng(9)
    rates, _ = controlled(*(whole := table(rng, 200_000)), again=True)
    (truth,) = rates(whole[1][None])
    held = {"prompts": [], "battles": []}
    differences_held = {"prompts": [], "battles": []}
    for _ in range(300):
        differences, counts = table(rng, 80)
        for resample in held:
            rates, _ = controlled(differences, counts, again=resample == "prompts")
            draws = draws_of(rates, counts, 100, rng, resample)
            low, high = percentiles(np.column_stack([draws, draws[:, 1] - draws[:, 0]]), 0.95)
            covered = (low <= [*truth, truth[1] - truth[0]]) & ([*truth, truth[1] - truth[0]] <= high)
            held[resample] += covered[:2].tolist()
            differences_held[resample].append(covered[2])
    return {name: 100 * np.mean(part) for name, part in held.items()}, {
        name: 100 * np.mean(part) for name, part in differences_held.items()
    }


def test_intervals_over_prompts_hold_the_truth_as_often_as_they_say_and_over_battles_they_do_not(simulated):
    own, differences = simulated
    assert 92 <= own["prompts"] <= 97.5
    assert 91 <= differences["prompts"] <= 98
    assert own["battles"] < 80
    assert differences["battles"] < 91


def test_rates_are_those_of_the_fit_at_a_style_difference_of_zero():
    fitted, sample = np.array([[np.log(3), 0.0, 5.0]]), np.ones((1, 2, 1, 3))
    np.testing.assert_allclose(controlled_rates(fitted, sample), [[25.0, 50.0]])
