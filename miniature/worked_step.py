"""One recorded step of CPPO, worked through: 8 plans, 32 verdicts, r, R_out, J, R_plan, a, A, loss.

    python -m miniature.worked_step                               # recompute worked_step.jsonl
    python -m miniature.worked_step record runs/NAME/cppo/samples.jsonl    # keep a step of your run
    python -m miniature.worked_step draw results/tuple.png                 # tuple 4; matplotlib

The record holds what train_cppo.py wrote into samples.jsonl for one problem in its first step.
Everything from the verdicts on is computed again, by the functions that train (grpo.py, reward.py)
and in plain Python, and compared with what the run used.

At step 1 the policy is the reference and the sampler's weights are the policy's: every ratio is 1
and every KL 0, so Eq. 13's value is minus a sum of centred advantages, which is 0. Its gradient is
not 0: there the advantages are the weights.
"""

import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

import grpo
import prompts
import reward
from lib import files
from miniature import world

RECORD = Path(__file__).with_name("worked_step.jsonl")
DRAWN = 4           # the tuple that docs/tutorial.md follows


def standardize(values: list[float]) -> list[float]:
    """Eq. 11 and 12 in plain Python: (x - mean) / (std + 1e-6), the unbiased std."""
    if max(values) == min(values):
        return [0.0] * len(values)
    mean, std = statistics.mean(values), statistics.stdev(values)
    return [(x - mean) / (std + 1e-6) for x in values]


def interest(tuples: list[dict]) -> tuple:
    """How much of a problem's step differs: complete tuples first, then R_plan, J, and tuples
    whose branches differ."""
    branches = min(len(t["branches"]) for t in tuples)
    distinct_R = len({t["R_plan"] for t in tuples})
    distinct_J = len({t["J"] for t in tuples})
    mixed = sum(any(b["a"] for b in t["branches"]) for t in tuples)
    return branches, distinct_R, distinct_J, mixed


def record(samples: str) -> None:
    """Keep the problem of step 1 in which most differs."""
    by_problem: dict[str, list[dict]] = {}
    for _, row in files.read_lines(samples):
        if row["step"] == 1:
            by_problem.setdefault(row["problem_id"], []).append(row)
    files.save_lines(RECORD, max(by_problem.values(), key=interest))


def draw(tuples: list[dict], out: str) -> None:
    """The tuple that the tutorial follows, as paper/figures.py draws Figure 1."""
    import matplotlib  # optional, as figures is

    from paper import figures
    chosen = tuples[DRAWN]
    [problem] = [p for p in world.problems("train") if p.id == chosen["problem_id"]]
    with matplotlib.rc_context(figures.STYLE):
        figures.overview(chosen, problem.statement).savefig(out, dpi=120)


def show(tuples: list[dict], R_out: Tensor, R_plan: Tensor, a: Tensor, A: Tensor) -> None:
    for m, t in enumerate(tuples):
        print(f"tuple {m}: p(Pass) {t['p_pass']:.2f}  J {t['J']:.0f}  R_out {R_out[0, m]:.0f}  "
              f"R_plan {R_plan[0, m]:.0f}  A {A[0, m]:+.3f}")
        for i, branch in enumerate(t["branches"]):
            print(f"   {prompts.LABELS[i]}: {t['strategies'][i]:70} {branch['status']:13} "
                  f"r {branch['r']:.0f}  a {a[0, m, i]:+.3f}")


def compare(name: str, ours: list[float], by_hand: list[float], used: list[float]) -> None:
    """Print the largest difference between the three; assert that they agree."""
    worst = 0.0
    for values in zip(ours, by_hand, used, strict=True):
        worst = max(worst, max(values) - min(values))
    print(f"\n{name}: grpo.py, plain Python and the run agree to {worst:.0e}", end="")
    assert worst < 1e-9


def read() -> list[dict]:
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    tuples = read()
    rewards = [[branch["r"] for branch in t["branches"]] for t in tuples]
    r = torch.tensor([rewards], dtype=torch.float64)                        # (1, M, K)
    J = torch.tensor([[t["J"] for t in tuples]], dtype=torch.float64)       # (1, M)
    R_out = reward.outcome_reward(r)
    R_plan = reward.planner_reward(J, R_out)
    a, A = grpo.within_tuple_advantages(r), grpo.across_tuple_advantages(R_plan)
    M, K = r.shape[1:]
    print(f"problem {tuples[0]['problem_id']}, {M} tuples of {K} branches\n")
    show(tuples, R_out, R_plan, a, A)

    by_hand, used = [], []
    for t, values in zip(tuples, rewards, strict=True):
        by_hand += standardize(values)
        used += [branch["a"] for branch in t["branches"]]
    compare("a (Eq. 11)", a.flatten().tolist(), by_hand, used)
    by_hand, used = standardize(R_plan[0].tolist()), [t["A"] for t in tuples]
    compare("A (Eq. 12)", A[0].tolist(), by_hand, used)
    loss = -(a.sum() + A.sum()).item() / M
    weight = (a.abs().sum() + A.abs().sum()).item() / M
    print(f"\nloss of this problem (Eq. 13 at ratio 1, KL 0): {abs(loss):.6f}; the advantages "
          f"weigh {weight:.3f} in its gradient")


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"] and len(sys.argv) == 3:
        record(sys.argv[2])
    if sys.argv[1:2] == ["draw"] and len(sys.argv) == 3:
        draw(read(), sys.argv[2])
    main()
