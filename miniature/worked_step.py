"""One recorded step of CPPO, worked through: 8 plans, 32 verdicts, r, R_out, J, R_plan, a, A, loss.

    python -m miniature.worked_step                                   # recompute what worked_step.jsonl recorded
    python -m miniature.worked_step record runs/NAME/cppo/samples.jsonl    # record step 1 of a run of your own

The record is what train_cppo.py wrote into samples.jsonl for one problem in its first step. Everything from the verdicts on is
computed here again, once by the functions that train (grpo.py, reward.py) and once in plain Python, and compared with what the
run used. At step 1 the policy is the reference and the sampler's weights are the policy's: every ratio is 1 and every KL 0, so
Eq. 13's value is minus a sum of centred advantages, which is 0. The gradient is not: it is what the advantages weigh.
"""

import json
import os
import statistics
import sys

import torch

import grpo
import prompts
import reward

RECORD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worked_step.jsonl")


def by_hand(values: list[float]) -> list[float]:
    """Eq. 11 and 12 in plain Python: (x - mean) / (std + 1e-6), the unbiased std."""
    if max(values) == min(values):
        return [0.0] * len(values)
    mean, std = statistics.mean(values), statistics.stdev(values)
    return [(x - mean) / (std + 1e-6) for x in values]


def record(samples: str) -> None:
    """Keep the problem of step 1 in which most differs: rewards of tuples and of branches."""
    with open(samples, encoding="utf-8") as f:
        rows = [row for row in map(json.loads, f) if row["step"] == 1]
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["problem_id"], []).append(row)
    best = max(groups.values(), key=lambda g: (min(len(t["branches"]) for t in g), len({t["R_plan"] for t in g}),
                                               len({t["J"] for t in g}), sum(any(b["a"] for b in t["branches"]) for t in g)))
    with open(RECORD, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in best)


def main() -> None:
    with open(RECORD, encoding="utf-8") as f:
        tuples = [json.loads(line) for line in f]
    r = torch.tensor([[[b["r"] for b in t["branches"]] for t in tuples]], dtype=torch.float64)        # (1, M, K)
    J = torch.tensor([[t["J"] for t in tuples]], dtype=torch.float64)                                 # (1, M)
    R_out = reward.outcome_reward(r)
    R_plan = reward.planner_reward(J, R_out)
    a, A = grpo.within_tuple_advantages(r), grpo.across_tuple_advantages(R_plan)
    M = len(tuples)
    print(f"problem {tuples[0]['problem_id']}, {M} tuples of {r.shape[-1]} branches\n")
    for m, t in enumerate(tuples):
        print(f"tuple {m}: p(Pass) {t['p_pass']:.2f}  J {t['J']:.0f}  R_out {R_out[0, m]:.0f}  R_plan {R_plan[0, m]:.0f}  "
              f"A {A[0, m]:+.3f}")
        for label, strategy, b, ai in zip(prompts.LABELS, t["strategies"], t["branches"], a[0, m].tolist(), strict=False):
            print(f"   {label}: {strategy:70} {b['status']:13} r {b['r']:.0f}  a {ai:+.3f}")
    for name, ours, hand, used in (
            ("a (Eq. 11)", a[0].flatten().tolist(), [x for t in tuples for x in by_hand([b["r"] for b in t["branches"]])],
             [b["a"] for t in tuples for b in t["branches"]]),
            ("A (Eq. 12)", A[0].tolist(), by_hand(R_plan[0].tolist()), [t["A"] for t in tuples])):
        worst = max(abs(x - y) for pair in zip(ours, hand, used, strict=True) for x in pair for y in pair)
        print(f"\n{name}: grpo.py, plain Python and the run agree to {worst:.0e}", end="")
        assert worst < 1e-9
    loss = -(a.sum() + A.sum()).item() / M
    weight = (a.abs().sum() + A.abs().sum()).item() / M
    print(f"\nloss of this problem (Eq. 13 at ratio 1, KL 0): {abs(loss):.6f}; the advantages weigh {weight:.3f} in its gradient")


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"] and len(sys.argv) == 3:
        record(sys.argv[2])
    main()
