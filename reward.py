"""From verdicts and gate decisions to rewards (Eq. 1, 8, 10, 19, 20).

    R_out = outcome_reward(r)                   # (P, M, K) -> (P, M)   Eq. 1, 8
    R_plan = planner_reward(J, R_out)           # (P, M)                Eq. 10, 20

Advantages, which compare these rewards with each other, are in grpo.py.

Shapes: P problems, M tuples per problem, K strategies per tuple.
"""

from torch import Tensor

PLANNER_REWARDS = ("both", "outcome", "gate")


def outcome_reward(r: Tensor) -> Tensor:
    """Eq. 1 and 8: 1 where at least one of the K branches passed. r (..., K) of 0 and 1 -> (...).

    A branch that does not exist (its plan did not parse) is NaN in r, and solves nothing.
    """
    return r.nan_to_num(nan=0.0).amax(dim=-1)


def planner_reward(J: Tensor, R_out: Tensor, kind: str = "both") -> Tensor:
    """What a tuple's planner tokens are paid. J, R_out (P, M) -> (P, M).

    both     J * R_out   Eq. 10 and 20
    outcome  R_out       the ablation without the gate (Table 6)
    gate     J           the ablation without the outcome, and the warm-up, Eq. 19
    """
    if kind == "both":
        return J * R_out
    if kind == "outcome":
        return R_out
    if kind == "gate":
        return J
    raise ValueError(f"no planner reward is called {kind!r}: take {', '.join(PLANNER_REWARDS)}")
