"""lib/schedule.py: every row once an epoch, a rate that rises and falls, and when a curve is
flat."""

import itertools

import numpy as np
import pytest

from lib.schedule import gain_bound, learning_rate, plateau, schedule


def test_the_schedule_visits_every_row_once_an_epoch_in_an_order_of_its_own():
    steps = schedule(10, 3, 4, seed=0)
    assert [len(s) for s in steps] == [4, 4, 2] * 3
    epochs = [sum(steps[i:i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and epochs[0] != epochs[1]
    assert steps == schedule(10, 3, 4, seed=0) != schedule(10, 3, 4, seed=1)


def test_the_learning_rate_warms_up_and_comes_down_and_is_never_zero():
    rates = [learning_rate(s, 100, 1.0) for s in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(1 / 95)
    assert all(a > b for a, b in itertools.pairwise(rates[5:])) and max(rates) == 1.0
    assert learning_rate(0, 1, 1.0) == 1.0


# --------------------------------------------------------------------------------------------------
# The plateau rule

def accepted_shares(rises_until: int, correlation: float, steps: int, rng) -> list[float]:
    """The accepted share of 8 problems x 8 tuples a step: from 0.5 to 0.9, then flat. Tuples of a
    problem resemble each other: its own chance is drawn from a Beta with this correlation."""
    shares = []
    for step in range(steps):
        p = 0.5 + 0.4 * min(1.0, step / rises_until)
        of_problems = np.full(8, p)
        if correlation:
            n = 1 / correlation - 1
            of_problems = rng.beta(p * n, (1 - p) * n, size=8)
        shares.append(rng.binomial(8, of_problems).sum() / 64)
    return shares


def stops_at(curve: list[float]) -> int | None:
    # not before a window is full: looking at every fifth step is enough for a test
    return next((n for n in range(110, len(curve) + 1, 5) if plateau(curve[:n])), None)


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_the_warm_up_stops_after_the_true_plateau_and_at_most_a_window_late(correlation):
    """In 95 % of simulated runs; the rule before this one stopped at a median step of 130, 81 and
    67 of these 300."""
    rng = np.random.default_rng(0)
    stops = [stops_at(accepted_shares(300, correlation, 405, rng)) for _ in range(40)]
    in_time = sum(stop is not None and 300 <= stop <= 405 for stop in stops)
    assert in_time >= 0.95 * len(stops), stops


def test_the_bound_on_the_gain_by_hand():
    """0, 1, 2, 3 is its own line: slope 1, nothing left over. 0, 1, 0, 1: slope 0.2, residuals
    -0.2, 0.6, -0.6, 0.2, so their squares are 0.8 over 2 degrees of freedom and 5 of x: 0.283."""
    assert gain_bound([0, 1, 2, 3], 2.0) == pytest.approx(4.0)
    assert gain_bound([0, 1, 0, 1], 0.0) == pytest.approx(0.8)
    assert gain_bound([0, 1, 0, 1], 1.0) == pytest.approx(4 * (0.2 + (0.8 / 2 / 5) ** 0.5))


def test_a_short_curve_is_not_flat_yet_and_a_constant_one_is():
    assert not plateau([0.5] * 108) and plateau([0.5] * 109)
    assert not plateau([i / 500 for i in range(200)])
