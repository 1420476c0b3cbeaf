import numpy as np
import pytest

from vrm.evaluation.accuracy import wins


def test_a_tie_is_a_loss_and_swapping_turns_wins_into_losses():
    chosen, rejected = np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])
    assert wins(chosen, rejected).tolist() == [True, False, False]
    assert wins(rejected, chosen).tolist() == [False, False, True]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_an_error(broken):
    with pytest.raises(ValueError, match="1 of 2 pairs have a reward that is not finite"):
        wins([1.0, broken], [0.0, 0.0])
