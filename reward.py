"""From verdicts and gate decisions to rewards, and the set-level advantages of the rival methods.

    outcome = outcome_reward(verdicts)                    # (P, M, K) -> (P, M)   Eq. 1, 8
    planner = planner_reward(valid, outcome)              # (P, M)                Eq. 10, 20
    advantages = set_advantages("pkpo", rewards, k=4)     # (P, N) -> (P, N)

Shapes: P problems, M tuples a problem, K strategies a tuple, N independent attempts a problem, Z skills,
T tokens. CPPO's own advantages (Eq. 11, 12) are in grpo.py; what stands here is what goes into them, and what
takes their place when the attempts of a problem are independent draws.
"""


from torch import Tensor

PLANNER_REWARDS = ("both", "outcome", "gate")


def outcome_reward(verdicts: Tensor) -> Tensor:
    """Eq. 1 and 8: 1 where at least one of the K branches passed. verdicts (..., K) of 0 and 1 -> (...)."""
    return verdicts.amax(dim=-1)


def planner_reward(valid: Tensor, outcome: Tensor, kind: str = "both") -> Tensor:
    """What a tuple's planner tokens are paid. valid: J (P, M); outcome: R_out (P, M).

    both     J * R_out   Eq. 10 and 20
    outcome  R_out       the ablation without the gate (Table 6)
    gate     J           the ablation without the outcome, and the warm-up, Eq. 19
    """
    if kind == "both":
        return valid * outcome
    if kind == "outcome":
        return outcome
    if kind == "gate":
        return valid
    raise ValueError(f"no planner reward is called {kind!r}: take one of {', '.join(PLANNER_REWARDS)}")
