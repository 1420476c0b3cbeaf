import numpy as np
import pandas as pd
import pytest

from vrm.evaluation.accuracy import preference_accuracy, wins


def table(**columns):
    n = len(columns["reward_chosen"])
    return pd.DataFrame({"subset": [""] * n, "leaked": [0] * n, "truncated": [0] * n, **columns})


def values(scores):
    return {m.metric: (m.value, m.n) for m in preference_accuracy(scores)}


def test_a_tie_is_a_loss_and_swapping_turns_wins_into_losses():
    chosen, rejected = np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])
    assert wins(chosen, rejected).tolist() == [True, False, False]
    assert wins(rejected, chosen).tolist() == [False, False, True]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_an_error(broken):
    with pytest.raises(ValueError, match="1 of 2 pairs have a reward that is not finite"):
        wins([1.0, broken], [0.0, 0.0])


def test_worked_by_hand():
    scores = table(
        reward_chosen=[1.0, 1.0, 1.0, 0.0, 2.0],
        reward_rejected=[0.0, 1.0, 2.0, -1.0, 1.0],
        subset=["b", "b", "a", "", "a"],
        leaked=[1, 0, 0, 0, 1],
        truncated=[0, 1, 0, 0, 1],
    )
    assert values(scores) == {
        "accuracy": (pytest.approx(3 / 5), 5),
        "accuracy_unleaked": (pytest.approx(1 / 3), 3),
        "leaked_pairs": (2, 5),
        "ties": (1, 5),
        "truncated_pairs": (2, 5),
        "subset/a": (0.5, 2),
        "subset/b": (0.5, 2),
    }


def test_a_set_that_leaks_wholly_has_no_unleaked_accuracy():
    value, n = values(table(reward_chosen=[1.0], reward_rejected=[0.0], leaked=[1]))["accuracy_unleaked"]
    assert np.isnan(value)
    assert n == 0
