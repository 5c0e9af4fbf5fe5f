"""lib/schedule.py: every row once an epoch, and a rate that rises and falls."""

import itertools

import pytest

from lib.schedule import learning_rate, schedule


def test_the_schedule_visits_every_row_once_an_epoch_in_an_order_of_its_own():
    steps = schedule(10, 3, 4, seed=0)
    assert [len(s) for s in steps] == [4, 4, 2] * 3
    epochs = [sum(steps[i:i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and epochs[0] != epochs[1]
    assert steps == schedule(10, 3, 4, seed=0) != schedule(10, 3, 4, seed=1)


def test_the_learning_rate_warms_up_and_comes_down_and_is_never_zero():
    rates = [learning_rate(s, 100, 1.0) for s in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[-1] == pytest.approx(1 / 95)
    assert all(a > b for a, b in itertools.pairwise(rates[5:])) and max(rates) == 1.0
    assert learning_rate(0, 1, 1.0) == 1.0
