"""One problem, and policies that are softmax tables: all that can happen is enumerated.

One statement has R rules; its truth is drawn from a fixed posterior at each visit; an attempt
writes one rule and passes if it is the truth. Two kinds of policy:

    direct    q(rule): N independent attempts; plain GRPO, pass@K training, PKPO
    CPPO      q(S) = prod_i q(s_i | s_<i), K strategies, each names a rule;
              p(rule written | strategy)

testbed.py compares the estimators that train them. Here are the policies, the exact gradient of
pass@K, and the exact expectation and variance of estimators.

Shapes: R rules, K strategies, Y = R truths, I items (rules or tuples), D parameters, C policies
side by side, n samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import grpo
from rivals import advantages

R, K, M, N = 8, 4, 8, 16
PEAK, HABIT = 0.7, 2        # the direct policy starts with this share on a rule of middling odds
FAITHFUL = 0.85             # how often the solver obeys at the start
REPULSION = 2.0             # how far the planner avoids repeats at the start
POSTERIORS = {              # six rules that matter and two that hardly do, but for the last
    "uniform": [1.0] * 6 + [1e-3] * 2,
    "ratio 1.5": [1.5 ** (-i / 5) for i in range(6)] + [1e-3] * 2,
    "ratio 2.4": [(i + 1) ** -0.5 for i in range(6)] + [1e-3] * 2,
    "Zipf, ratio 8": [1 / (i + 1) for i in range(8)],
}


def posterior(name: str) -> Tensor:
    """(R,)"""
    weights = torch.tensor(POSTERIORS[name], dtype=torch.float64)
    return weights / weights.sum()


# --------------------------------------------------------------------------------------------------
# Policies

def start_direct() -> Tensor:
    """Logits (R,)."""
    q = torch.full((R,), (1 - PEAK) / (R - 1), dtype=torch.float64)
    q[HABIT] = PEAK
    return q.log()


def start_planner() -> tuple[Tensor, Tensor]:
    """Logits of each place (K, R), and what each rule named before adds to them (R, R)."""
    places = torch.zeros(K, R, dtype=torch.float64)
    named = -REPULSION * torch.eye(R, dtype=torch.float64)
    return places, named


def start_solver() -> Tensor:
    """Logits (R strategies, R rules)."""
    table = torch.full((R, R), (1 - FAITHFUL) / (R - 1), dtype=torch.float64)
    return table.fill_diagonal_(FAITHFUL).log()


def all_tuples() -> Tensor:
    """(R^K, K)"""
    return torch.cartesian_prod(*[torch.arange(R)] * K)


def named_before(tuples: Tensor) -> Tensor:
    """(..., K) -> (..., K, R): the rules that earlier strategies have named."""
    one_hot = F.one_hot(tuples, R)
    return ((one_hot.cumsum(-2) - one_hot) > 0).double()


def planner_logprobs(places: Tensor, named: Tensor, tuples: Tensor) -> Tensor:
    """Log-prob of each strategy: places (C, K, R), named (C, R, R), tuples (C or 1, n, K) ->
    (C, n, K)."""
    logits = places.unsqueeze(1) + named_before(tuples) @ named.unsqueeze(1)
    chosen = tuples.expand(len(places), -1, -1).unsqueeze(-1)
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)


def tuple_probabilities(places: Tensor, named: Tensor, tuples: Tensor) -> Tensor:
    """q(S) of one planner: places (K, R), named (R, R), tuples (I, K) -> (I,)."""
    return planner_logprobs(places[None], named[None], tuples[None])[0].sum(-1).exp()


def sample_tuples(places: Tensor, named: Tensor, n: int) -> Tensor:
    """(C, n, K)"""
    C = len(places)
    seen = torch.zeros(C, n, R, dtype=places.dtype)
    chosen = []
    for i in range(K):
        logits = places[:, i].unsqueeze(1) + seen @ named
        rule = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(C, n)
        seen = seen.scatter(-1, rule.unsqueeze(-1), 1.0)
        chosen.append(rule)
    return torch.stack(chosen, -1)


def valid(tuples: Tensor) -> Tensor:
    """The gate: no strategy twice. (..., K) -> (...)"""
    ordered = tuples.sort(-1).values
    return (ordered[..., 1:] != ordered[..., :-1]).all(-1).double()


def coverage(solver: Tensor, tuples: Tensor) -> Tensor:
    """Chance that a tuple solves the problem, by truth: p(rule | strategy) (R, R), tuples (I, K) ->
    (Y, I)."""
    return 1 - (1 - solver[tuples]).prod(-2).T


# --------------------------------------------------------------------------------------------------
# Gradients of pass@K

def pass_gradient_direct(q: Tensor, p: Tensor) -> Tensor:
    """Of sum_y p_y (1 - (1 - q_y)^K), with respect to the logits (R,)."""
    return (p * K * (1 - q) ** (K - 1) * q) @ (torch.eye(R, dtype=q.dtype) - q)


def planner_scores(places: Tensor, named: Tensor, tuples: Tensor) -> Tensor:
    """Gradient of each strategy's log q(s_i | s_<i) with respect to both tables: (I, K, K R + R R).
    """
    before = named_before(tuples)
    error = F.one_hot(tuples, R) - (places + before @ named).softmax(-1)        # (I, K, R)
    # place i has logits of its own: its error stands in row i of the first table alone
    of_places = torch.eye(K, dtype=error.dtype).unsqueeze(-1) * error.unsqueeze(1)
    of_named = torch.einsum("ika,ikb->ikab", before, error)
    return torch.cat([of_places.flatten(2), of_named.flatten(2)], -1)


def solved_by_siblings(v: Tensor, i: int) -> Tensor:
    """Chance that c = 0..K-1 siblings of branch i succeed: v (I, K, Y) -> (I, Y, K)."""
    # given truth and strategies the siblings are independent: one polynomial factor each
    chance = torch.ones_like(v[:, 0]).unsqueeze(-1)
    for j in range(K):
        if j != i:
            s = v[:, j].unsqueeze(-1)
            chance = F.pad(chance * (1 - s), (0, 1)) + F.pad(chance * s, (1, 0))
    return chance


def solver_gradient(q: Tensor, solver: Tensor, tuples: Tensor, p: Tensor, gain: Tensor) -> Tensor:
    """Expectation (R, R) of a credit's estimate with respect to the solver's logits.

    gain (K,): what success of a branch adds to its credit, by how many siblings succeed. With gain
    1, 0, 0, ... it is the gradient of pass@K: a success counts where no sibling has one.
    """
    v = solver[tuples]                                                          # (I, K, Y)
    table = torch.zeros_like(solver)
    for i in range(K):
        worth = solved_by_siblings(v, i) @ gain                                 # (I, Y)
        credit = q.unsqueeze(1) * p * worth * v[:, i]
        # dv / dlogits = v (e_y - row)
        by_strategy = torch.zeros_like(table).index_add_(0, tuples[:, i], credit)
        table += by_strategy - by_strategy.sum(1, keepdim=True) * solver
    return table


ALONE = torch.tensor([1.0] + [0.0] * (K - 1), dtype=torch.float64)


def rewards_by_count(n: int) -> Tensor:
    """(n + 1, n): row c has c ones, then zeros."""
    return (torch.arange(n) < torch.arange(n + 1).unsqueeze(1)).double()


def gain_of(credit) -> Tensor:
    """(K,): the gain of a credit that depends on the own tuple alone, r (..., K) -> (..., K)."""
    paid = credit(rewards_by_count(K))
    return paid[1:, 0] - paid[:-1, -1]


# --------------------------------------------------------------------------------------------------
# Estimators that compare n samples with 0/1 rewards: their advantages depend on how many are
# rewarded. Plain GRPO, pass@K training, PKPO and Eq. 12 are one thing here.

def row_divisor(name: str, n: int) -> int:
    """PKPO's transform holds its 1/N already."""
    return 1 if name == "pkpo" else n


def advantage_tables(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Advantage / row divisor of a rewarded and of an unrewarded sample when c = 0..n are rewarded.
    Entry 0 of the first and entry n of the second stand for no sample."""
    r = rewards_by_count(n)
    if name == "cppo":
        a = grpo.across_tuple_advantages(r)
    else:
        a = advantages.set_advantages(name, r, K)
    return a[:, 0] / row_divisor(name, n), a[:, -1] / row_divisor(name, n)


def enumerate_estimator(name: str, n: int, q: Tensor, w: Tensor, scores: Tensor,
                        p: Tensor) -> tuple[Tensor, float]:
    """Expectation (D,) and total variance of the estimator on one problem.

    Items are sampled from q (I,); w (Y, I) is the chance that an item is rewarded under each truth;
    scores (I, D) are the gradients of log q; p (Y,) is the posterior. Given the truth and c, the
    scores are independent draws of two populations, the rewarded and the others.
    """
    up, down = advantage_tables(name, n)
    # c is binomial; sums over c, never over the I^n ways to draw n items
    c = torch.arange(n + 1, dtype=q.dtype)
    mean, square = torch.zeros(scores.shape[1], dtype=scores.dtype), 0.0
    size = scores.square().sum(-1)
    for p_y, w_y in zip(p, w, strict=True):
        u = (q * w_y).sum()
        rewarded, others = q * w_y / u, q * (1 - w_y) / (1 - u)
        m1, m0 = rewarded @ scores, others @ scores
        v1, v0 = rewarded @ size, others @ size
        binomial = torch.distributions.Binomial(n, probs=u).log_prob(c).exp()
        a, b = binomial * up * c, binomial * down * (n - c)
        mean += p_y * (a.sum() * m1 + b.sum() * m0)
        # pairs of samples: one with itself, two rewarded, two unrewarded, one of each
        itself = (a * up).sum() * v1 + (b * down).sum() * v0
        alike = (a * up * (c - 1)).sum() * (m1 @ m1) + (b * down * (n - c - 1)).sum() * (m0 @ m0)
        mixed = 2 * (a * down * (n - c)).sum() * (m1 @ m0)
        square += p_y * (itself + alike + mixed)
    return mean, float(square - mean @ mean)
