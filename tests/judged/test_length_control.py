"""Both length-controlled win rates on resamples: against the same fit of rows that are repeated, and the package."""

from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from alpaca_judgments import accept, gamed, place, random_judgments
from paths import ROOT

from vrm.config import JudgedPolicy, load
from vrm.judged import length_control as alpaca_lc
from vrm.judged.alpaca_eval import alpaca_eval_scores, package
from vrm.judged.length_control import Fitted, at_equal_length, official, terms
from vrm.records import write_json
from vrm.statistics.draws import percentiles, question_draws
from vrm.statistics.intervals import sign_flip
from vrm.statistics.logistic import fit_logistic, sigmoid


@pytest.fixture(scope="module")
def config():
    """Of the default experiment, with one method of three seeds."""
    config = load([ROOT / "config.yaml"])
    policy = config.policy.model_copy(update={"run_bases": ["qwen3"], "run": ["ppo_vrm"], "seeds": [1, 2, 3]})
    bases = {name: base.model_copy(update={"sft": None}) for name, base in policy.bases.items()}
    report = config.report.model_copy(update={"bootstrap_samples": 40})
    return config.model_copy(update={"policy": policy.model_copy(update={"bases": bases}), "report": report})


def as_frame(rows):
    frame = pd.DataFrame(rows)
    return frame.assign(preference=frame["preference"].astype(float))


def write_seed(results, rows, seed):
    policy = JudgedPolicy("qwen3", "ppo_vrm", seed)
    own = [row | {"generator_2": policy.name} for row in rows]
    write_json(results / policy.folder / "judgments" / "alpaca_eval.json", own)


def test_a_draw_is_the_fit_to_its_rows():
    rng = np.random.default_rng(0)
    wins, difference = rng.random(50), np.round(rng.normal(20, 80, 50))
    draws = question_draws(50, 20, rng)
    found = at_equal_length(wins, difference, draws)
    for times, rate in zip(draws, found, strict=True):
        rows = np.repeat(np.arange(50), times)
        assert rate == pytest.approx(at_equal_length(wins[rows], difference[rows], np.ones((1, 50)))[0], abs=1e-9)
    assert np.isnan(at_equal_length(wins, difference, np.zeros((1, 50)))).all()


def test_a_draw_of_one_length_difference_alone_has_a_rate():
    wins, difference = np.array([0.2, 0.9, 0.5]), np.array([0.1, 0.1, 70.3])
    assert 0 < at_equal_length(wins, difference, np.array([[2, 1, 0]]))[0] < 1


def test_draws_are_the_same_instructions_of_every_policy(config, tmp_path):
    """Seed 2 is judged as seed 1 is; seed 3 likewise, but for five instructions that have no judgment."""
    rows = random_judgments()
    fewer = [row | {"preference": None, "failure": "timed out"} if i < 5 else row for i, row in enumerate(rows)]
    place(tmp_path, rows)
    write_seed(tmp_path, rows, 2)
    write_seed(tmp_path, fewer, 3)
    table, _, draws, *_ = alpaca_eval_scores(config, tmp_path)
    first, second, third = (draws[f"qwen3.ppo_vrm.seed{seed}/lc_without_difficulty"] for seed in (1, 2, 3))
    assert draws["draw"].to_list() == list(range(1, 41))
    pd.testing.assert_series_equal(first, second, check_names=False)
    assert np.corrcoef(first, third)[0, 1] > 0.7  # of draws that are drawn apart, 0
    ends = np.array(percentiles(first, config.report.level))
    row = table[(table["metric"] == "lc_without_difficulty") & (table["seed"] == 1)].iloc[0]
    np.testing.assert_allclose([row["low"], row["high"]], ends)


def test_the_official_fit_of_every_row_once_is_the_official_fit(tmp_path, monkeypatch):
    rows = random_judgments(200)
    rows[7] |= {"preference": None, "failure": "timed out"}
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    file = tmp_path / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv"
    once = np.ones((1, 200), dtype=int)
    draws = np.concatenate([once, question_draws(200, 29, np.random.default_rng(1))])
    with package():
        found = official(as_frame(rows), file, draws, "")
    assert found.draws[0] == found.value
    assert found.draws[1:].mean() == pytest.approx(found.value, abs=2)
    assert 1 < found.draws[1:].std() < 8
    assert found.n == 199


def test_terms_are_what_the_fit_loses_without_an_instruction(tmp_path, monkeypatch):
    """Against the package's own fit of all rows but one, at the same penalty; their mean is LC."""
    rows = random_judgments(100)
    rows[7] |= {"preference": None, "failure": "timed out"}
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    file, frame = tmp_path / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv", as_frame(rows)
    without = np.ones((12, 100), dtype=int) - np.eye(100, dtype=int)[:12]
    with package():
        found = official(frame, file, without, "")
    lost = 99 * (found.value - found.draws)
    assert found.terms.mean() == pytest.approx(found.value, abs=1e-9)
    assert np.corrcoef(found.terms[:12], lost)[0, 1] > 0.99
    np.testing.assert_allclose(found.terms[:12] - found.value, lost, atol=4)


def simulated(length_shift, rng, number=120):
    """Terms of a policy that wins by a logistic law, fitted without a penalty; u is shared by both policies."""

    def policy(u, difficulty, gamed):
        difference = 60 * rng.normal(size=number) + length_shift
        length = np.tanh(difference / difference.std(ddof=1))
        x = np.stack([length, difficulty, np.ones(number)], axis=1)
        own = NormalDist().cdf
        mixed = np.array([own(value) for value in np.sqrt(0.5) * (u + rng.normal(size=number))])
        wins = (np.log(mixed / (1 - mixed)) + x @ TRUE > 0).astype(float)
        every, won = np.concatenate([x, gamed[0]]), np.concatenate([wins, gamed[1]])
        weights = np.concatenate([np.ones(number), np.full(len(gamed[1]), 0.1)])
        beta = fit_logistic(every[None, None], *((weights * part)[None, None] for part in (won, 1 - won)), RIDGE)[0]
        fitted = Fitted(every, won, weights, beta[1:], np.inf)
        at_equal = np.stack([0 * length, difficulty, np.ones(number)], axis=1)
        value = sigmoid(at_equal @ beta[1:]).mean()
        return value + terms(fitted, difference, difficulty, np.ones(number, dtype=bool))

    return policy


TRUE = np.array([-1.0, 0.5, -0.8])

RIDGE = np.diag([1e9, 1e-6, 1e-6, 1e-6])  # the intercept, which `fit_logistic` always has, is held at 0


@pytest.mark.parametrize("shift", [0.0, 60.0])
def test_two_equal_policies_differ_at_the_tests_level(shift):
    """Simulated: the same law, the second as long or longer by a standard deviation of the length differences."""
    rng, rejected, times = np.random.default_rng(8), 0, 300
    for _ in range(times):
        difficulty, u = rng.normal(size=(2, 120))
        x = np.stack([np.tanh(rng.normal(size=240)), np.tile(difficulty, 2), np.zeros(240)], axis=1)
        gamed_rows = x, sigmoid(x @ TRUE)
        first, second = (simulated(s, rng)(u, difficulty, gamed_rows) for s in (0.0, shift))
        rejected += sign_flip(first - second, rng, 199) <= 0.05
    assert 0.02 <= rejected / times <= 0.085  # 5 % of 300, give or take 2.7 standard errors


def test_a_row_keeps_its_difficulty_in_every_draw(tmp_path, monkeypatch):
    """Only the difficulty tells the instructions apart: easy ones alone are won, hard ones alone are lost."""
    rng = np.random.default_rng(2)
    rows = random_judgments(100)
    table = gamed(rows)
    hard = table["instruction_difficulty"].to_numpy()[:100] > 0
    rows = [row | {"preference": 1.1 + 0.05 * rng.random() if h else 1.9} for row, h in zip(rows, hard, strict=True)]
    accept(monkeypatch, rows, table, tmp_path)
    easy = np.where(hard, 0, 1)
    draws = np.stack([rng.multinomial(100, part / part.sum()) for part in (easy, 1 - easy)])
    with package():
        found = official(as_frame(rows), tmp_path / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv", draws, "")
    assert found.draws[0] > 80
    assert found.draws[1] < 20


def test_the_official_fit_has_no_more_draws_than_it_says(tmp_path, monkeypatch):
    rows = random_judgments()
    accept(monkeypatch, rows, gamed(rows), tmp_path)
    monkeypatch.setattr(alpaca_lc, "OFFICIAL_DRAWS", 3)
    draws = question_draws(60, 5, np.random.default_rng(3))
    draws[1] = 0
    draws[1, 0] = 60  # one instruction alone has no fit
    with package():
        found = official(as_frame(rows), tmp_path / "judged" / "sets" / "alpaca_eval" / "df_gamed.csv", draws, "")
    assert np.isnan(found.draws).tolist() == [False, True, False, True, True]
