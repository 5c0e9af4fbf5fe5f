"""bench/simulate.py: the engine's rules and the verifier's queue on cases done by hand."""

import pytest

from bench import simulate

ONE_MS = {4: 1.0, 8: 2.0}       # a step of more than four rows takes twice as long


def design(waits_for=1 / 64):
    return simulate.Design("by hand", ONE_MS, waits_for, 10, 0)


def test_a_branch_starts_when_its_plan_has_ended():
    """Plans of 10 and 30 tokens with a branch of 50 and one of 20: both end at token 60 and 50."""
    last, ended = simulate.sample(design(), [10, 30], [[50], [20]], slots=8)
    assert last == pytest.approx(0.060) and sorted(ended) == pytest.approx([0.050, 0.060])


def test_steps_of_more_rows_take_longer():
    """Six branches of 10 tokens after a plan of 5: 5 steps of one row, 10 of six."""
    assert simulate.sample(design(), [5], [[10] * 6], 8)[0] == pytest.approx(0.005 + 10 * 0.002)


def test_a_branch_that_waits_for_others_ends_later():
    """Half of the slots must be free and asked for, or as many jobs wait as rows decode: the first
    plan's branch waits for the second plan to end, at token 40, instead of 10."""
    plans, programs = [10, 40, 40, 40], [[100], [1], [1], [1]]
    assert simulate.sample(design(), plans, programs, 4)[0] == pytest.approx(0.110)
    assert simulate.sample(design(0.75), plans, programs, 4)[0] == pytest.approx(0.140)


def test_verdicts_wait_for_a_free_worker():
    assert simulate.verify([1.0, 2.0, 0.0], [10.0, 1.0, 1.0], workers=1) == pytest.approx(12.0)
    assert simulate.verify([1.0, 2.0, 0.0], [10.0, 1.0, 1.0], workers=2) == pytest.approx(10.0)


def test_the_command_says_that_its_numbers_are_modelled(monkeypatch, capsys):
    flags = "--samples 2 --gpus 2 --problems 2 --step-ms 4:1,32:2".split()
    monkeypatch.setattr("sys.argv", ["simulate", *flags])
    simulate.main()
    printed = capsys.readouterr().out
    assert "MODELLED" in printed and "given" in printed
