"""The watchdog: it bears a while, says which measure_rows, and never lets a number that is none pass."""

import math

import pytest

from vrm.config import PpoLimits
from vrm.training.watchdog import REMEDIES, TrainingError, Watchdog

HEALTHY = {
    "reward": 1.0,
    "kl": 5.0,
    "entropy": 1.0,
    "missing_end": 0.1,
    "explained_variance": 0.3,
    "length": 30.0,
    "policy_loss": 0.0,
}
SICK = {"kl": 1e4, "entropy": 0.0, "missing_end": 1.0, "explained_variance": -99.0, "length": 0.5}


def test_a_healthy_run_is_left_alone():
    dog = Watchdog(PpoLimits())
    for update in range(20):
        dog.check(update, HEALTHY)


@pytest.mark.parametrize("name", SICK)
def test_each_limit_is_borne_for_a_while_and_then_named_with_its_mend(name):
    dog = Watchdog(PpoLimits(patience=3))
    sick = HEALTHY | {name: SICK[name]}
    dog.check(0, sick)
    dog.check(1, sick)
    with pytest.raises(TrainingError, match=f"update 2: {name} is") as error:
        dog.check(2, sick)
    assert REMEDIES[name] in str(error.value)


def test_a_recovery_starts_the_count_anew():
    dog = Watchdog(PpoLimits(patience=2))
    for update in range(10):
        dog.check(update, HEALTHY | ({"kl": 1e4} if update % 2 else {}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["policy_loss", "reward", "kl"])
def test_what_is_not_finite_stops_at_once(name, value):
    with pytest.raises(TrainingError, match=name):
        Watchdog(PpoLimits()).check(0, HEALTHY | {name: value})


def test_the_critic_is_left_alone_while_it_warms_up_and_where_returns_do_not_vary():
    dog = Watchdog(PpoLimits(patience=1), critic_warmup=3)
    for update in range(3):
        dog.check(update, HEALTHY | {"explained_variance": -99.0})
    dog.check(3, HEALTHY | {"explained_variance": math.nan})
    with pytest.raises(TrainingError, match="explained_variance"):
        dog.check(4, HEALTHY | {"explained_variance": -99.0})
