import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from arena_answers import answer, sigmoid
from paths import SHARED

from vrm.judged.arena_hard import LABELS, REASONS, battles, parse_verdict
from vrm.judged.arena_scores import SCALE, Style, leaderboard, style, style_difference
from vrm.statistics.draws import percentiles
from vrm.statistics.logistic import fit_logistic

ARENA_HARD = SHARED / "data" / "benchmarks" / "arena_hard_v0.1"
needs_arena_hard = pytest.mark.skipif(not ARENA_HARD.exists(), reason="../shared, with Arena-Hard's files, is not here")
BASELINE = "gpt-4-0314"


def judged(model, question, *labels):
    """Judgment of `model` with these verdicts in games 1 and 2."""
    games = [{"judgment": None if label is None else f"My final verdict: [[{label}]]."} for label in labels]
    return {"model": model, "question_id": question, "games": games}


MIRRORED = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}


def simulate(answers, strengths, effect, rng, baseline=BASELINE):
    """Judgments from a Bradley-Terry model: log-odds of the baseline = -strength + effect @ style difference.

    A third of the verdicts are `>>`, whoever wins, which leaves the win rates as they are; none is a tie, which
    wouldn't.
    """
    styles = {(a["model_id"], a["question_id"]): style(a) for a in answers}
    judgments = []
    for model, strength in strengths.items():
        for question in sorted({question for _, question in styles}):
            difference = style_difference(styles[baseline, question], styles[model, question])
            labels = []
            for game in (1, 2):
                a_wins = (rng.random() < sigmoid(effect @ difference - strength)) == (game == 1)
                labels.append(("A>>B" if rng.random() < 1 / 3 else "A>B") if a_wins else
                              ("B>>A" if rng.random() < 1 / 3 else "B>A"))  # fmt: skip
            judgments.append(judged(model, question, *labels))
    return judgments


def with_ties(judgments):
    """A tie in game 1 of every fifth judgment."""
    return [
        judgment if i % 5 else judgment | {"games": [{"judgment": "[[A=B]]"}, judgment["games"][1]]}
        for i, judgment in enumerate(judgments)
    ]


def rates(board):
    return dict(zip(board.rows["model"], board.rows["win_rate"], strict=True))


# ---- verdicts and battles


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("My final verdict is tie: [[A=B]].", "A=B"),
        ("[[A>B]] ... so, finally: [[A>B]]", "A>B"),
        ("\nI must think.\nMy final verdict: [[B>>A]]", "B>>A"),
        ("[[A>B]], no, [[A>>B]]", None),
        ("[[A>B]] [see [[note]]]", "A>B"),
        ("A>B", None),
        ("[A>B]", None),
        ("[[A<B]]", None),
        ("[[B=A]]", None),
        ("[[A]]", None),
        ("", None),
    ],
)
def test_all_verdicts_of_a_reply_must_agree(text, label):
    assert parse_verdict(text) == label


@pytest.mark.parametrize(("label", "weight", "first", "second"), [
    ("A>>B", 3, 1.0, 0.0), ("A>B", 1, 1.0, 0.0), ("A=B", 1, 0.5, 0.5), ("B>A", 1, 0.0, 1.0), ("B>>A", 3, 0.0, 1.0),
])  # fmt: skip
def test_the_baseline_is_a_in_game_1_and_b_in_game_2(label, weight, first, second):
    played, dropped = battles([judged("m", "q", label, label)], "base")
    assert played["game"].tolist() == [1, 2]
    assert played["weight"].tolist() == [weight, weight]
    assert played["baseline_score"].tolist() == [first, second]
    assert dropped.empty


def test_dropped_games_are_counted_and_named_by_reason():
    judgments = [
        judged("m", "q1", "A>B", None),
        {"model": "m", "question_id": "q2", "games": [{"judgment": " "}, {"judgment": "I decline."}]},
        {"model": "m", "question_id": "q3", "games": [{"judgment": "[[A>B]] or [[B>A]]"}, {"judgment": "[[A<B]]"}]},
        {"model": "n", "question_id": "q1", "games": [None]},
    ]
    board = leaderboard(judgments, [], "base", bootstrap=10)
    assert board.dropped_by_reason == {
        "no reply": 4, "no verdict": 1, "contradictory verdicts": 1, "unknown label": 1,
    }  # fmt: skip
    assert set(board.dropped["reason"]) <= set(REASONS)
    assert board.dropped.iloc[0].to_dict() == {"model": "m", "question_id": "q1", "game": 2, "reason": "no reply"}
    rows = board.rows.set_index("model")
    assert rows.loc["m", ["win_rate", "prompts", "games", "battles", "dropped"]].tolist() == [0.0, 1, 1, 1, 5]
    assert rows.loc["n", ["prompts", "games", "battles", "dropped"]].tolist() == [0, 0, 0, 2]
    assert np.isnan(rows.loc["n", "win_rate"])
    assert board.models == ("m",)  # n is in the table, and in no fit


# ---- win rate


def random_judgments(rng, models, n):
    labels = list(LABELS)
    return [judged(m, f"q{i:03}", *rng.choice(labels, 2).tolist()) for m in models for i in range(n)]


def test_win_rate_is_the_weighted_mean_and_the_bradley_terry_estimate():
    judgments = random_judgments(np.random.default_rng(0), ["m", "n", "o"], 40)
    got = rates(leaderboard(judgments, [], "base", bootstrap=0))
    played, _ = battles(judgments, "base")
    for model, games in played.groupby("model"):
        assert got[model] == pytest.approx(100 * np.average(1 - games["baseline_score"], weights=games["weight"]))
    # unpenalised Bradley-Terry over all models at once, the baseline's strength being 0
    names = sorted(got)
    wide = played.pivot(index="model", columns=["question_id", "game"], values=["baseline_score", "weight"])
    score, weight = (wide[name].to_numpy(dtype=float) for name in ("baseline_score", "weight"))
    outcomes = (weight * (1 - score))[None], (weight * score)[None]
    (strengths,) = fit_logistic(np.zeros((*outcomes[0].shape, 0)), *outcomes, np.zeros((3, 3)))
    np.testing.assert_allclose([got[name] for name in names], 100 * sigmoid(strengths), atol=1e-7)


def test_a_model_that_wins_or_loses_everything():
    always = [judged("m", q, "B>A", "A>>B") for q in "abc"] + [judged("n", q, "A>B", "B>A") for q in "abc"]
    board = leaderboard(always, [], "base", bootstrap=20)
    assert board.rows[["win_rate", "low", "high"]].to_numpy().tolist() == [[100.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(("resample", "independent"), [("prompts", 400), ("battles", 800)])
def test_intervals_are_those_of_the_binomial(resample, independent):
    """Both games of a prompt say the same, so that 800 battles are 400 independent ones, whatever upstream takes."""
    judgments = [judged("m", i, "A>B" if i % 4 else "B>A", "B>A" if i % 4 else "A>B") for i in range(400)]
    board = leaderboard(judgments, [], "base", bootstrap=2000, resample=resample)
    deviation = 100 * np.sqrt(0.25 * 0.75 / independent)
    row = board.rows.iloc[0]
    assert row["win_rate"] == 25.0
    np.testing.assert_allclose([row["low"], row["high"]], 25 + 1.96 * deviation * np.array([-1, 1]), atol=0.3)
    narrow = leaderboard(judgments, [], "base", bootstrap=2000, level=0.5, resample=resample).rows.iloc[0]
    np.testing.assert_allclose([narrow["low"], narrow["high"]], 25 + 0.674 * deviation * np.array([-1, 1]), atol=0.25)


def test_no_bootstraps_no_intervals():
    board = leaderboard([judged("m", "q", "A>B", "A>B")], [], "base", bootstrap=0)
    assert board.rows[["low", "high"]].isna().all(axis=None)
    assert board.draws.shape == (0, 1)
    assert board.rows["win_rate"].tolist() == [50.0]


# ---- on the published answers


@pytest.fixture(scope="module")
def published():
    """The published answers to all 500 questions of the three models."""
    files = sorted((ARENA_HARD / "model_answer").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def with_wordy(published):
    """And of a fourth, `wordy`: gpt-4-0613's answers, every second twice as long, two in three with a bold list."""
    wordy = []
    for i, original in enumerate(a for a in published if a["model_id"] == "gpt-4-0613"):
        turn = original["choices"][0]["turns"][0]
        extra = "\n- **one**\n- **two**" if i % 3 else ""
        wordy.append(
            answer("wordy", original["question_id"], turn["content"] + extra, round(turn["token_len"] * (1 + i % 2)))
        )
    return [*published, *wordy]


EFFECT = np.array([1.5, 0.0, 1.0, -2.0])  # that of a style difference of 1, in nats
STRENGTHS = {"gpt-3.5-turbo-0125": -1.0, "gpt-4-0613": -0.3, "wordy": -0.3}


@needs_arena_hard
def test_style_of_the_published_answers_is_read_for_every_model(published):
    questions = [json.loads(line)["question_id"] for line in (ARENA_HARD / "question.jsonl").read_text().splitlines()]
    styles = {(a["model_id"], a["question_id"]): style(a) for a in published}
    totals = {}
    for model in dict.fromkeys(model for model, _ in styles):
        totals[model] = np.sum([styles[model, question] for question in questions], axis=0).tolist()
    assert len(styles) == 1500
    # token lengths summed from the files; counts by upstream's count_markdown_elements and remove_pattern
    assert totals == {
        "gpt-3.5-turbo-0125": [164864, 23, 2204, 553],
        "gpt-4-0314": [211631, 9, 2572, 45],
        "gpt-4-0613": [177443, 1, 1784, 603],
    }


@needs_arena_hard
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_estimates_recover_the_simulated_truth(with_wordy, seed):
    judgments = simulate(with_wordy, STRENGTHS, EFFECT, np.random.default_rng(seed))
    board = leaderboard(judgments, with_wordy, BASELINE, style_control=True, bootstrap=200, level=0.99)
    assert board.models == tuple(sorted(STRENGTHS))
    assert (board.baseline, board.style_control) == (BASELINE, True)
    styles = {(a["model_id"], a["question_id"]): style(a) for a in with_wordy}
    played, _ = battles(judgments, BASELINE)
    keys = list(zip(played["model"], played["question_id"], strict=True))
    differences = style_difference([styles[BASELINE, q] for _, q in keys], [styles[key] for key in keys])
    mean = np.average(differences, axis=0, weights=played["weight"])
    deviation = np.sqrt(np.average((differences - mean) ** 2, axis=0, weights=played["weight"]))
    # the truth at the mean style difference, for that is where upstream's centring compares
    for row in board.rows.itertuples():
        assert row.low < 100 * sigmoid(STRENGTHS[row.model] - EFFECT @ mean) < row.high
    np.testing.assert_allclose(list(board.style_coefficients.values()), EFFECT * deviation, atol=0.2)
    assert list(board.style_coefficients) == list(Style._fields)


@needs_arena_hard
def test_style_control_removes_the_style_effect(with_wordy):
    judgments = simulate(with_wordy, STRENGTHS, np.array([4.0, 0.0, 1.0, 1.0]), np.random.default_rng(3))
    plain = rates(leaderboard(judgments, with_wordy, BASELINE, bootstrap=0))
    controlled = rates(leaderboard(judgments, with_wordy, BASELINE, style_control=True, bootstrap=0))
    assert plain["wordy"] - plain["gpt-4-0613"] > 15  # equally strong, and wordiness wins
    assert abs(controlled["wordy"] - controlled["gpt-4-0613"]) < 5
    assert controlled["gpt-4-0613"] - controlled["gpt-3.5-turbo-0125"] > 10  # what is not style stays


@needs_arena_hard
def test_without_a_style_effect_control_changes_little(with_wordy):
    judgments = simulate(with_wordy, STRENGTHS, np.zeros(4), np.random.default_rng(4))
    plain = rates(leaderboard(judgments, with_wordy, BASELINE, bootstrap=0))
    controlled = rates(leaderboard(judgments, with_wordy, BASELINE, style_control=True, bootstrap=0))
    assert controlled == pytest.approx(plain, abs=3)


@needs_arena_hard
def test_style_control_depends_on_the_models_in_the_table(with_wordy):
    judgments = simulate(with_wordy, STRENGTHS, np.array([4.0, 0.0, 1.0, 1.0]), np.random.default_rng(5))
    few = [judgment for judgment in judgments if judgment["model"] != "wordy"]
    for control, changes in ((False, False), (True, True)):
        boards = [leaderboard(some, with_wordy, BASELINE, control, bootstrap=0) for some in (judgments, few)]
        moved = abs(rates(boards[0])["gpt-4-0613"] - rates(boards[1])["gpt-4-0613"])
        assert (moved > 1) == changes
        assert [len(board.models) for board in boards] == [3, 2]


@needs_arena_hard
@pytest.mark.parametrize("control", [False, True])
def test_a_seed_fixes_the_intervals_and_the_order_of_rows_does_not_matter(published, control):
    judgments = simulate(published, {"gpt-4-0613": -0.3}, EFFECT, np.random.default_rng(6))
    judgments += simulate(published, {"gpt-3.5-turbo-0125": -1.0}, EFFECT, np.random.default_rng(7))
    before = copy.deepcopy(judgments)
    once = leaderboard(judgments, published, BASELINE, control)
    again = leaderboard(judgments[::-1], published[::-1], BASELINE, control)
    assert judgments == before
    assert once.rows.equals(again.rows)
    assert once.dropped.equals(again.dropped)
    assert once.draws.tobytes() == again.draws.tobytes()
    assert once.style_coefficients == again.style_coefficients
    other = leaderboard(judgments, published, BASELINE, control, seed=43)
    assert other.rows["win_rate"].equals(once.rows["win_rate"])
    assert (other.rows["low"] != once.rows["low"]).all()
    assert (once.rows["low"] < once.rows["win_rate"]).all()
    assert (once.rows["win_rate"] < once.rows["high"]).all()
    ends = dict(zip(once.models, np.column_stack(percentiles(once.draws, 0.95)).tolist(), strict=True))
    assert once.rows[["low", "high"]].to_numpy().tolist() == [ends[model] for model in once.rows["model"]]
    assert (once.level, once.resample, once.bootstrap, once.seed) == (0.95, "prompts", 100, 42)
    assert once.rows["tokens"].tolist() == pytest.approx([354.886, 329.728])


@needs_arena_hard
@pytest.mark.parametrize("control", [False, True])
def test_swapping_baseline_and_model_mirrors_the_win_rate(published, control):
    model = "gpt-4-0613"
    judgments = with_ties(simulate(published, {model: -0.3}, EFFECT, np.random.default_rng(8)))
    swapped = [judgment | {"model": BASELINE, "games": judgment["games"][::-1]} for judgment in judgments]
    there = leaderboard(judgments, published, BASELINE, control, bootstrap=0)
    back = leaderboard(swapped, published, model, control, bootstrap=0)
    assert rates(there)[model] == pytest.approx(100 - rates(back)[BASELINE], abs=1e-6)
    assert back.style_coefficients == pytest.approx(there.style_coefficients, abs=1e-6)
    # and so does a judge who always says the contrary
    contrary = [
        judged(model, judgment["question_id"], *(MIRRORED[parse_verdict(g["judgment"])] for g in judgment["games"]))
        for judgment in judgments
    ]
    board = leaderboard(contrary, published, BASELINE, control, bootstrap=0)
    assert rates(board)[model] == pytest.approx(100 - rates(there)[model], abs=1e-6)


@needs_arena_hard
def test_the_controlled_fit_is_upstream_s_minimum(published):
    """Upstream's objective, written out battle by battle as `construct_style_matrices` and `fit_bt` have it."""
    strengths = {"gpt-4-0613": -0.3, "gpt-3.5-turbo-0125": -1.0}
    judgments = with_ties(simulate(published, strengths, EFFECT, np.random.default_rng(9)))
    board = leaderboard(judgments, published, BASELINE, style_control=True, bootstrap=0)
    styles = {(a["model_id"], a["question_id"]): style(a) for a in published}
    played, _ = battles(judgments, BASELINE)
    copies = played.loc[played.index.repeat(played["weight"] * 2)]
    models = [BASELINE, *board.models]
    a = np.array([styles[BASELINE, q] for q in copies["question_id"]], dtype=float)
    b = np.array([styles[key] for key in zip(copies["model"], copies["question_id"], strict=True)], dtype=float)
    ratio = (a - b) / (a + b + 1)
    design = np.zeros((len(copies), 7))
    design[:, 0] = np.log(10)
    design[np.arange(len(copies)), [models.index(model) for model in copies["model"]]] = -np.log(10)
    design[:, 3:] = (ratio - ratio.mean(axis=0)) / ratio.std(axis=0)
    won = copies["baseline_score"].to_numpy()
    got = rates(board)
    # ratings up to a constant from the win rates; the penalty makes their sum 0
    ratings = np.array([0.0, *(np.log(got[m] / (100 - got[m])) / SCALE for m in board.models)])
    w = np.concatenate([ratings - ratings.mean(), list(board.style_coefficients.values())])
    gradient = w + design.T @ (sigmoid(design @ w) - won)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


# ---- errors, and what is imported


@pytest.mark.parametrize(
    ("judgments", "message"),
    [
        ([judged("base", "q", "A>B", "A>B")], "base is the baseline, and judged against itself on q"),
        ([judged("m", "q", "A>B", "A>B")] * 2, "m is judged twice on q"),
        ([judged("m", "q", "A>B", "A>B", "A>B")], "m has 3 games on q, more than two"),
        ([judged("m", "q", None, None)], "none of 2 games has a verdict"),
        ([], "none of 0 games has a verdict"),
    ],
)
def test_judgments_that_clash_are_an_error(judgments, message):
    with pytest.raises(ValueError, match=message):
        leaderboard(judgments, [], "base")


def test_answers_that_style_control_lacks_are_an_error():
    judgments = [judged("m", q, "A>B", "A>B") for q in "ab"]
    answers = [answer("m", "a"), answer("m", "b"), answer("base", "a")]
    with pytest.raises(ValueError, match="lacks 1 answers, the first of them that of base to b"):
        leaderboard(judgments, answers, "base", style_control=True)
    with pytest.raises(ValueError, match="base answers a twice"):
        leaderboard(judgments, [*answers, answers[-1]], "base")
    with pytest.raises(ValueError, match="base to b has no token_len"):
        leaderboard(judgments, [*answers, answer("base", "b", tokens=None)], "base", style_control=True)
    unknown = leaderboard(judgments, [answer("m", "a"), answer("m", "b", tokens=None)], "base", bootstrap=0)
    assert unknown.rows["tokens"].isna().all()


def test_a_level_outside_0_to_1_is_an_error():
    with pytest.raises(ValueError, match="not at 95"):
        leaderboard([], [], "base", level=95)


def test_resamples_of_anything_else_are_an_error():
    with pytest.raises(ValueError, match="of prompts or battles, not of games"):
        leaderboard([], [], "base", resample="games")


def test_neither_module_imports_heavy_packages():
    code = "import sys, vrm.judged.arena_scores, vrm.judged.mt_bench; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "sklearn", "scipy"} & set(loaded)
