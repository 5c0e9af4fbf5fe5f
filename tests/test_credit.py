"""Marginal credit and credit by place (grpo.py): worked by hand, and against enumeration.

A tiny policy: 2 rules, tuples of 2 strategies, 2 tuples per problem, a solver that may write any
rule whatever it is told, and a truth from a posterior. All that can happen is enumerated.
"""

import itertools

import pytest
import torch

import grpo
import prompts
import rollout

R, K, M = 2, 2, 2
POSTERIOR = torch.tensor([0.7, 0.3], dtype=torch.float64)


def policy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the first strategy (R,), of the second by the first (R, R), and of the written
    rule by the strategy (R, R)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((R,), (R, R), (R, R))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
                 for shape in shapes)


def one_tuple(first, second, solver):
    """(strategies, written, log p of each strategy (K,), of each program (K,)) of all tuples."""
    for told in itertools.product(range(R), repeat=K):
        for written in itertools.product(range(R), repeat=K):
            plan = torch.stack([first.log_softmax(-1)[told[0]],
                                second.log_softmax(-1)[told[0], told[1]]])
            solve = torch.stack([solver.log_softmax(-1)[told[i], written[i]] for i in range(K)])
            yield told, written, plan, solve


def accepted(told) -> float:
    return float(told[0] != told[1])


def objectives(parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """pass@K, and E[J R_out]."""
    passed, paid = 0.0, 0.0
    for told, written, plan, solve in one_tuple(*parameters):
        chance = (plan.sum() + solve.sum()).exp()
        covered = POSTERIOR[list(set(written))].sum()
        passed = passed + chance * covered
        paid = paid + accepted(told) * chance * covered
    return passed, paid


def expected_gradients(parameters, credit) -> tuple[torch.Tensor, ...]:
    """E[sum of advantages x grad log p] / M over all that M tuples and the truth can be. credit(r,
    J) gives advantages (M, K) of strategies and of programs."""
    surrogate = 0.0
    everything = list(one_tuple(*parameters))
    for tuples in itertools.product(everything, repeat=M):
        logp = sum(plan.sum() + solve.sum() for _, _, plan, solve in tuples)
        for y in range(R):
            chance = (POSTERIOR[y] * logp.exp()).detach()
            r = torch.tensor([[float(w == y) for w in written] for _, written, _, _ in tuples],
                             dtype=torch.float64)
            J = torch.tensor([accepted(told) for told, _, _, _ in tuples], dtype=torch.float64)
            A, a = credit(r, J)
            for m, (_, _, plan, solve) in enumerate(tuples):
                surrogate = surrogate + chance * ((A[m] * plan).sum() + (a[m] * solve).sum()) / M
    return torch.autograd.grad(surrogate, parameters, allow_unused=True)


def test_marginal_credit_is_unbiased_for_pass_at_k():
    parameters = policy()
    truth = torch.autograd.grad(objectives(parameters)[0], parameters[2])[0]

    def credit(r, J):
        return torch.zeros_like(r), grpo.marginal_advantages(r, scale=False)

    torch.testing.assert_close(expected_gradients(parameters, credit)[2], truth)


def test_eq_11_is_not_although_it_is_not_scaled():
    parameters = policy()
    truth = torch.autograd.grad(objectives(parameters)[0], parameters[2])[0]

    def credit(r, J):
        return torch.zeros_like(r), r - r.mean(-1, keepdim=True)

    biased = expected_gradients(parameters, credit)[2]
    assert (biased - truth).norm() > 0.1 * truth.norm()


def test_credit_by_place_is_unbiased_for_the_planners_reward():
    parameters = policy()
    truth = torch.autograd.grad(objectives(parameters)[1], parameters[:2])

    def credit(r, J):
        return grpo.place_advantages(J * r.amax(-1), r, scale=False), torch.zeros_like(r)

    for ours, true in zip(expected_gradients(parameters, credit)[:2], truth, strict=True):
        torch.testing.assert_close(ours, true)


def test_marginal_credit_by_hand():
    """d = 1 for the one branch that alone solves; the baseline of tuple 0 is the mean of d over
    tuple 1, and the other way round."""
    r = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    a = grpo.marginal_advantages(r, scale=False)
    torch.testing.assert_close(a, torch.tensor([[1.0, 0.0, 0.0], [-1 / 3, -1 / 3, -1 / 3]]))
    std = torch.tensor([1.0, 0, 0, 0, 0, 0]).std()
    torch.testing.assert_close(grpo.marginal_advantages(r), a / (std + 1e-6))


def test_marginal_credit_of_rewards_between_0_and_1_is_what_pass_at_k_loses():
    r = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = grpo.marginal_advantages(r, scale=False)
    for m, i in itertools.product(range(2), range(4)):
        def lost(m, i):
            without = r[m].clone()
            without[i] = 0
            return (1 - without).prod() - (1 - r[m]).prod()
        baseline = sum(lost(1 - m, j) for j in range(4)) / 4
        assert a[m, i] == pytest.approx(float(lost(m, i) - baseline))


def test_credit_by_place_by_hand():
    """At place 1 tuples 0 and 1 had solved it, 2 and 3 had not; at place 0 all stand alike."""
    r = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    R_plan = torch.tensor([1.0, 0.0, 1.0, 0.0])         # tuple 1 was refused
    A = grpo.place_advantages(R_plan, r, scale=False)
    first = [1 - 1 / 3, 0 - 2 / 3, 1 - 1 / 3, 0 - 2 / 3]
    torch.testing.assert_close(A, torch.tensor([first, [1.0, -1.0, 1.0, -1.0]]).T)
    torch.testing.assert_close(grpo.place_advantages(R_plan, r), A / (R_plan.std() + 1e-6))


def test_a_tuple_that_stands_alone_at_a_place_is_compared_with_all_others():
    r = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    A = grpo.place_advantages(torch.tensor([1.0, 1.0, 0.0]), r, scale=False)
    torch.testing.assert_close(A[:, 1], torch.tensor([0.5, 1.0, -1.0]))


@pytest.mark.parametrize("r", [torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3, 1)],
                         ids=["none solved", "nobody alone", "each alone"])
def test_groups_without_spread_give_exact_zeros(r):
    assert not grpo.marginal_advantages(r).any()
    assert not grpo.place_advantages(r.amax(-1), r).any()


def test_a_single_tuple_has_nothing_to_be_compared_with_and_gives_zeros():
    r = torch.tensor([[1.0, 0.0]])
    assert not grpo.marginal_advantages(r).any()
    assert not grpo.place_advantages(torch.ones(1), r).any()


def test_branches_that_do_not_exist_get_zeros_and_count_nowhere():
    """A plan that did not parse keeps its advantages of the planner: R_plan = 0, nothing solved."""
    r = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [0.0, 1.0], [0.0, 0.0]])
    a = grpo.marginal_advantages(r)
    torch.testing.assert_close(a[[0, 2, 3]], grpo.marginal_advantages(r[[0, 2, 3]]))
    assert not a[1].any()
    R_plan = torch.tensor([1.0, 0.0, 1.0, 0.0])
    A = grpo.place_advantages(R_plan, r)
    torch.testing.assert_close(A, grpo.place_advantages(R_plan, r.nan_to_num()))
    assert (A[1] < 0).all()
    assert not grpo.marginal_advantages(r[:2]).any()                # no other branches


def test_leading_dimensions_are_independent_problems():
    r = torch.randint(0, 2, (5, 4, 3), generator=torch.Generator().manual_seed(1)).double()
    R_plan = r.amax(-1)
    torch.testing.assert_close(grpo.marginal_advantages(r),
                               torch.stack([grpo.marginal_advantages(x) for x in r]))
    each = [grpo.place_advantages(R, x) for R, x in zip(R_plan, r, strict=True)]
    torch.testing.assert_close(grpo.place_advantages(R_plan, r), torch.stack(each))


# --------------------------------------------------------------------------------------------------
# Which strategy a token of a plan belongs to

def places(tokens: list[str], k: int = 2, opened: str = "", finish: str = "length") -> list[int]:
    """strategy_of_tokens for a plan whose tokens decode to these texts (or bytes)."""
    class Pieces:
        @staticmethod
        def decode(ids, **_):
            pieces = [tokens[i] for i in ids]
            whole = b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)
            return whole.decode("utf-8", errors="replace")

    ids = list(range(len(tokens)))
    text = opened + Pieces.decode(ids[:-1] if finish == "eos" else ids)
    plan = rollout.Sample(ids, [0.0] * len(ids), text, finish)
    t = rollout.Tuple([1], plan, prompts.parse_plan(text, k), None, [])
    return rollout.strategy_of_tokens(Pieces, t, k)


@pytest.mark.parametrize("tokens, expected", [
    (["A", ":", " Sort", ".", "\n", "B", ":", " Count", "."], [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    (["A: Sort", ".\nB:", " Count."], [0, 0, 1]),               # a label in its neighbour's token
    (["Plans:\n", "A: x\n", "B: y\n", "Done."], [0, 0, 1, 1]),  # before the first, after the last
    (["A: é", b"\xc3", b"\xa9\n", "B", ": y"], [0, 0, 0, 1, 1]),     # half a character
    (["A: ", b"\xe6\x95", b"\xb0", "\n", "B: ", b"\xe6", b"\x95\xb0"], [0, 0, 0, 0, 1, 1, 1])])
def test_a_token_belongs_to_the_last_label_that_starts_at_or_before_it(tokens, expected):
    assert places(tokens) == expected


def test_a_thought_belongs_to_the_first_strategy_whatever_labels_it_holds():
    thought = ["<think>", "B: no", "\nA: nor", "</think>", "\n"]
    plan = ["A: x", "\n", "B: y"]
    assert places(thought + plan) == [0] * 7 + [1]
    # opened by the prompt: its mark is in the text, and in no token
    assert places(thought[1:] + plan, opened="<think>") == [0] * 6 + [1]


def test_the_end_of_the_turn_belongs_to_the_last_strategy():
    assert places(["A: x\n", "B: y", "<end>"], finish="eos") == [0, 1, 1]


def test_a_plan_that_does_not_parse_is_one_place():
    t = rollout.Tuple([1], rollout.Sample([1, 2, 3], [0.0] * 3, "A: x", "length"), None, "?", [])
    assert rollout.strategy_of_tokens(None, t, 2) == [0, 0, 0]


def test_a_row_takes_an_advantage_per_token():
    """The gradient of a row of two tokens paid 1 and -2 is that of two rows of one token each."""
    row = grpo.Row([1], [5, 6], 0, [1.0, -2.0], 1.0, "plan")
    batch = grpo.collate([row], torch.device("cpu"))
    assert batch.advantage.tolist() == [1.0, -2.0] and batch.scale.tolist() == [0.5, 0.5]
