"""Rewards and set-level advantages against enumeration over subsets, and against worked numbers."""

from itertools import combinations, product
from math import comb, log

import pytest
import torch

from reward import outcome_reward, planner_reward
from rivals.advantages import set_advantages, skill_information

TOLERANCE = 1e-9


def subsets(n: int, k: int) -> torch.Tensor:
    """(C(n, k), n): which attempts are in each group."""
    member = torch.zeros(comb(n, k), n, dtype=torch.bool)
    return member.scatter_(1, torch.tensor(list(combinations(range(n), k))), True)


def best(rewards: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    return torch.where(member, rewards[:, None, :], -torch.inf).amax(-1)  # (P, groups)


def passk_by_enumeration(rewards: torch.Tensor, k: int) -> torch.Tensor:
    member = subsets(rewards.shape[1], k)
    group = best(rewards, member)
    normalised = group - group.mean(1, keepdim=True)
    normalised /= group.std(1, correction=0, keepdim=True)
    normalised[group.amax(1) == group.amin(1)] = 0
    return normalised @ member.double() / member.sum(0)


def pkpo_by_enumeration(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """Sloo-minus-one as defined: over the k-subsets with i, best with i less best without i, over
    C(n, k)."""
    n = rewards.shape[1]
    member = subsets(n, k)
    advantages = torch.zeros_like(rewards)
    for i in range(n):
        with_i = member[member[:, i]]
        without_i = with_i & (torch.arange(n) != i)
        advantages[:, i] = (best(rewards, with_i) - best(rewards, without_i)).sum(1) / len(member)
    return advantages


def loo_by_enumeration(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """Sloo as defined: over the k-subsets with i, the best over C(n, k); less k / (n - 1) times the
    mean best of the k-subsets without i."""
    n = rewards.shape[1]
    member = subsets(n, k)
    advantages = torch.zeros_like(rewards)
    for i in range(n):
        gained = best(rewards, member[member[:, i]]).sum(1) / len(member)
        baseline = k / (n - 1) * best(rewards, member[~member[:, i]]).mean(1)
        advantages[:, i] = gained - baseline
    return advantages


ENUMERATED = {"passk": passk_by_enumeration, "pkpo": pkpo_by_enumeration,
              "pkpo-loo": loo_by_enumeration}


def every_count(n: int) -> torch.Tensor:
    """(n + 1, n): 0, 1, ... n attempts correct, in mixed order."""
    generator = torch.Generator().manual_seed(n)
    rows = []
    for c in range(n + 1):
        correct = (torch.arange(n) < c).double()
        rows.append(correct[torch.randperm(n, generator=generator)])
    return torch.stack(rows)


def first_correct(c: int, n: int = 16) -> torch.Tensor:
    """(1, n): c correct attempts, then n - c wrong ones."""
    return torch.tensor([[1.0] * c + [0.0] * (n - c)])


@pytest.mark.parametrize("name", ENUMERATED)
@pytest.mark.parametrize("n", range(1, 17))
def test_set_advantages_equal_enumeration_for_every_number_correct_and_every_k(name, n):
    rewards = every_count(n)
    for k in range(1 if name == "passk" else 2, n if name == "pkpo-loo" else n + 1):
        difference = set_advantages(name, rewards, k) - ENUMERATED[name](rewards, k)
        assert difference.abs().max() < TOLERANCE, k


@pytest.mark.parametrize("name", ENUMERATED)
def test_set_advantages_equal_enumeration_for_graded_rewards_with_ties(name):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randint(-2, 3, (20, 7), generator=generator).double() / 4
    for k in range(2, 7 if name == "pkpo-loo" else 8):
        difference = set_advantages(name, rewards, k) - ENUMERATED[name](rewards, k)
        assert difference.abs().max() < TOLERANCE, k


def test_pkpo_gives_the_worked_numbers():
    worked = set_advantages("pkpo", torch.tensor([[0, 1, 0, 0.5]]), k=2)
    assert worked[0].tolist() == pytest.approx([0, 0.41667, 0, 0.16667], abs=1e-5)
    worked = set_advantages("pkpo-loo", torch.tensor([[0, 1, 0, 0.5]]), k=2)
    assert worked[0].tolist() == pytest.approx([-0.3056, 0.2778, -0.3056, -0.1111], abs=1e-4)
    by_correct = {1: 0.25, 2: 0.2, 3: 0.15714, 4: 0.12088, 6: 0.06593, 8: 0.03077, 10: 0.01099,
                  12: 0.0022, 13: 0.00055}
    for c, gain in by_correct.items():
        advantages = set_advantages("pkpo", first_correct(c), k=4)[0]
        assert advantages[:c].tolist() == pytest.approx([gain] * c, abs=5e-6)
        assert (advantages[c:] == 0).all()
    # nothing solved, or too few failures for a subset that needs this attempt
    for c in (0, 14, 15, 16):
        assert (set_advantages("pkpo", first_correct(c), k=4) == 0).all()


def test_pass_at_k_training_gives_the_worked_numbers():
    worked = {1: (1.73205, -0.11547), 2: (1.10554, -0.15793), 4: (0.61122, -0.20374),
              8: (0.2, -0.2), 12: (0.02345, -0.07034)}
    for c, (right, wrong) in worked.items():
        advantages = set_advantages("passk", first_correct(c), k=4)[0]
        assert advantages[:c].tolist() == pytest.approx([right] * c, abs=5e-6)
        assert advantages[c:].tolist() == pytest.approx([wrong] * (16 - c), abs=5e-6)
    for c in (0, 13, 14, 15, 16):
        assert (set_advantages("passk", first_correct(c), k=4) == 0).all()


def test_pass_at_k_training_with_k_1_is_grpo_with_the_population_std():
    rewards = torch.tensor([[0.0, 1, 1, 0, 0, 1, 0, 0]], dtype=torch.float64)
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    assert torch.allclose(set_advantages("passk", rewards, k=1), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["pkpo", "pkpo-loo"])
def test_the_pkpo_estimate_is_the_gradient_of_pass_at_k(name):
    """Over all outcomes of six Bernoulli(p) attempts, E sum_i A_i dlog p(r_i)/dp is
    d/dp (1 - (1 - p)^3)."""
    p, n, k = 0.3, 6, 3
    estimate = 0.0
    for outcome in product([0.0, 1.0], repeat=n):
        rewards = torch.tensor([outcome], dtype=torch.float64)
        probability = (rewards * p + (1 - rewards) * (1 - p)).prod()
        score = rewards / p - (1 - rewards) / (1 - p)
        advantages = set_advantages(name, rewards, k)
        estimate += (probability * (advantages * score).sum()).item()
    assert estimate == pytest.approx(k * (1 - p) ** (k - 1), abs=1e-12)


def test_grpo_normalises_with_the_unbiased_std_of_the_problem_s_attempts():
    advantages = set_advantages("grpo", torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]), k=4)
    assert advantages[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert (advantages[1] == 0).all()


def test_maxrl_divides_by_the_mean_and_gives_zeros_where_nothing_passes():
    advantages = set_advantages("maxrl", torch.tensor([[1.0, 0, 0, 0], [0] * 4, [1] * 4]), k=4)
    assert advantages.tolist() == [[3, -1, -1, -1], [0] * 4, [0] * 4]


@pytest.mark.parametrize("name", ["grpo", "maxrl", "passk", "pkpo", "pkpo-loo"])
def test_advantages_do_not_depend_on_the_order_of_attempts_or_on_other_problems(name):
    rewards = every_count(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([set_advantages(name, row[None], 3) for row in rewards])
    assert torch.allclose(set_advantages(name, rewards, 3), alone, atol=1e-15)
    assert torch.allclose(set_advantages(name, rewards[:, order], 3), alone[:, order], atol=1e-12)


@pytest.mark.parametrize("name, k, shape, message", [
    ("ppo", 4, (1, 4), "ppo"), ("passk", 5, (1, 4), "k=5 with N=4"), ("pkpo", 1, (1, 4), "2 <= k"),
    ("pkpo-loo", 4, (1, 4), "k <= N - 1, not k=4"),
    ("passk", 0, (1, 4), "k=0"), ("pkpo", 2, (4,), r"\(4,\)")])
def test_a_wrong_name_k_or_shape_is_refused_with_its_value(name, k, shape, message):
    with pytest.raises(ValueError, match=message):
        set_advantages(name, torch.zeros(shape), k)


def test_a_reward_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        set_advantages("grpo", torch.tensor([[0.0, float("nan")]]), 2)


def test_planner_is_paid_only_for_tuples_that_are_valid_and_solved():
    verdicts = torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]])
    valid = torch.tensor([[1.0, 1, 0, 0]])
    outcome = outcome_reward(verdicts)
    assert outcome.tolist() == [[1, 0, 1, 0]]
    assert planner_reward(valid, outcome).tolist() == [[1, 0, 0, 0]]
    assert planner_reward(valid, outcome, "outcome").tolist() == [[1, 0, 1, 0]]
    assert planner_reward(valid, outcome, "gate").tolist() == [[1, 1, 0, 0]]
    with pytest.raises(ValueError, match="'sum'"):
        planner_reward(valid, outcome, "sum")


# Three tokens of one completion under four skills, the completion's own first.
WORKED = torch.tensor([[.6, .5, .9], [.2, .5, .8], [.1, .25, .9], [.1, .5, .95]],
                      dtype=torch.float64).log()


@pytest.mark.parametrize("aggregate, worked", [
    ("sum", 1.022986), ("mean", 0.340995), ("sequence", 0.944462)])
def test_skill_information_gives_the_worked_numbers(aggregate, worked):
    padded = torch.cat([WORKED, torch.full((4, 2), -torch.inf)], dim=-1)
    mask = torch.tensor([1, 1, 1, 0, 0])
    information = skill_information(padded, torch.tensor(0), mask, aggregate)
    assert information.item() == pytest.approx(worked, abs=1e-6)


def test_skill_information_takes_each_completion_s_own_skill():
    rolled = torch.stack([WORKED.roll(z, dims=0) for z in range(4)])
    rolled = rolled.expand(2, 4, 4, 3)                                  # (P, N, Z, T)
    own = torch.arange(4).expand(2, 4)                                  # (P, N)
    information = skill_information(rolled, own, torch.ones(2, 4, 3))
    expected = torch.full((2, 4), 0.340995, dtype=torch.float64)
    assert torch.allclose(information, expected, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["mean", "sequence"])
def test_skill_information_is_zero_where_the_skill_makes_no_difference(aggregate):
    same = torch.randn(5, generator=torch.Generator().manual_seed(0)).expand(4, 5)
    assert abs(skill_information(same, torch.tensor(1), torch.ones(5), aggregate)) < 1e-6


@pytest.mark.parametrize("aggregate", ["mean", "sequence"])
def test_skill_information_is_the_log_of_the_skills_where_one_alone_is_possible(aggregate):
    """Its upper bound."""
    certain = torch.full((4, 5), -1000.0)
    certain[2] = 0.0
    information = skill_information(certain, torch.tensor(2), torch.ones(5), aggregate)
    assert information.item() == pytest.approx(log(4))


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(ValueError, match="median"):
        skill_information(torch.zeros(4, 5), torch.tensor(1), torch.ones(5), "median")


def test_a_completion_without_tokens_has_no_information():
    information = skill_information(torch.zeros(4, 3), torch.tensor(0), torch.zeros(3))
    assert information.item() == 0
