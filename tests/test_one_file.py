"""examples/cppo_in_one_file.py: its ceilings, its exact pass@K, and what it is there to show."""

import itertools

import pytest
import torch

from examples import cppo_in_one_file as toy
from lib import metrics


def test_its_ceilings_are_those_of_the_library():
    posterior = toy.POSTERIOR.tolist()
    independent = metrics.independent_ceiling(posterior, toy.K)
    assert toy.independent_ceiling() == pytest.approx(independent, abs=1e-6)
    coordinated = metrics.coordinated_ceiling(posterior, toy.K, toy.K)
    assert toy.coordinated_ceiling() == pytest.approx(coordinated, abs=1e-12)


def test_its_pass_at_k_is_the_sum_over_plans_by_hand():
    """A planner that always names rules 0, 1, 2, 3 and a solver that always obeys reach the
    coordinated ceiling; one that names rule 0 four times has the chance of rule 0."""
    def planner(*names):
        tables = [torch.full((toy.R ** i, toy.R), -1e9, dtype=torch.double) for i in range(toy.K)]
        for table, name in zip(tables, names, strict=True):
            table[:, name] = 0.0
        return tables
    obedient = 1e9 * torch.eye(toy.R, dtype=torch.double)
    assert toy.pass_at_k(planner(0, 1, 2, 3), obedient) == pytest.approx(toy.coordinated_ceiling())
    assert toy.pass_at_k(planner(0, 0, 0, 0), obedient) == pytest.approx(toy.POSTERIOR[0].item())


def test_its_marginal_credit_is_what_the_tuple_loses_without_the_branch():
    """Before baseline and scale: d_i = R - R without i, for every outcome of a tuple."""
    for outcome in itertools.product((0.0, 1.0), repeat=toy.K):
        r = torch.zeros(1, 2, toy.K, dtype=torch.double)
        r[0, 0] = torch.tensor(outcome)
        without = [max(outcome[:i] + outcome[i + 1:]) for i in range(toy.K)]
        d = torch.zeros_like(r)
        d[0, 0] = torch.tensor([max(outcome) - w for w in without])
        baseline = d.flip(1).mean(-1, keepdim=True)
        expected = (d - baseline) / (d.std((1, 2), keepdim=True) + toy.EPS)
        original, toy.M = toy.M, 2
        torch.testing.assert_close(toy.marginal(r), expected)
        toy.M = original


def test_the_solver_stops_listening_under_eq_11_and_not_under_marginal_credit():
    torch.manual_seed(0)
    [(_, start, _), (_, _, paper_obeys)] = toy.train_cppo(toy.siblings, steps=100, every=100)
    [_, (_, marginal_pass, marginal_obeys)] = toy.train_cppo(toy.marginal, steps=100, every=100)
    assert paper_obeys < 0.6 < 0.7 < marginal_obeys
    assert marginal_pass > start + 0.15
