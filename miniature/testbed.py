"""The exact tabular trial: what each estimator aims at, how noisily, where it settles. Seconds, no network.

    python -m miniature.testbed           # prints the tables; draws testbed.png if matplotlib is installed

One statement, R rules, a fresh truth from a fixed posterior at every visit. An attempt writes one rule.
Policies are softmax tables, so that the gradient of pass@K and the expectation and variance of every
estimator can be enumerated:

    direct    q(rule): N independent attempts; plain GRPO, pass@K training, PKPO
    CPPO      q(S) = prod_i q(s_i | s_<i), K strategies, each a rule; p(rule written | strategy told)

The first three and CPPO's planner are one thing here: n samples with 0/1 rewards, c of them rewarded, and
advantages that depend on c. Part 1 sums over c and all R^K tuples; in part 2 the sampled estimators learn.

What it shows:
 1. PKPO aims at pass@K itself. Plain GRPO aims elsewhere: with a flat posterior it still reaches the best
    independent policy, from a ratio of about 2.4 on it peaks, then collapses.
 2. Eq. 11 pays a branch for beating its siblings. Where strategies differ in how often they are right, it
    pushes the solver away from what a rare strategy says although the gradient of pass@K pushes towards it.
    The solver stops listening, and pass@K rises, then falls. Nothing of it with a flat posterior or a frozen
    solver.

Every advantage and the loss are those that train the real model (grpo.py, reward.py).

Shapes: R rules, K strategies, Y = R truths, I items (rules or tuples), D parameters, C settings side by side.
"""

import argparse
import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import grpo
import reward
from lib import metrics
from rivals import advantages

R, K, M, N = 8, 4, 8, 16
PROBLEMS = 8                # a step, for tuples; direct policies get twice as many, for equal attempts
LR, STEPS, EVERY, SEEDS = 0.05, 300, 50, 3      # Adam; the learning curve is measured every so many steps
PEAK, HABIT = 0.7, 2        # the direct policy starts with this share on this rule, not the likeliest one
FAITHFUL, REPULSION = 0.85, 2.0     # the solver starts by obeying this often, the planner by avoiding repeats
POSTERIORS = {              # six rules that matter and two that hardly do, but for the last
    "uniform": [1.0] * 6 + [1e-3] * 2,
    "ratio 1.5": [1.5 ** (-i / 5) for i in range(6)] + [1e-3] * 2,
    "ratio 2.4": [(i + 1) ** -0.5 for i in range(6)] + [1e-3] * 2,
    "Zipf, ratio 8": [1 / (i + 1) for i in range(8)],
}
DIRECT = {"GRPO": "grpo", "pass@K training": "passk", "PKPO": "pkpo"}
TUPLES = {"CPPO": {}, "CPPO, no gate": {"gate": False}, "CPPO, frozen solver": {"frozen": True}}


def posterior(name: str) -> Tensor:
    weights = torch.tensor(POSTERIORS[name], dtype=torch.float64)
    return weights / weights.sum()


# --------------------------------------------------------------------------------------------------- policies

def start_direct() -> Tensor:
    """Logits (R,)."""
    q = torch.full((R,), (1 - PEAK) / (R - 1), dtype=torch.float64)
    q[HABIT] = PEAK
    return q.log()


def start_planner() -> tuple[Tensor, Tensor]:
    """First the logits of each place (K, R), then what each rule already named adds to them (R, R)."""
    return torch.zeros(K, R, dtype=torch.float64), -REPULSION * torch.eye(R, dtype=torch.float64)


def start_solver() -> Tensor:
    """Logits (R strategies, R rules)."""
    table = torch.full((R, R), (1 - FAITHFUL) / (R - 1), dtype=torch.float64)
    return table.fill_diagonal_(FAITHFUL).log()


def all_tuples() -> Tensor:
    """(R^K, K)"""
    return torch.cartesian_prod(*[torch.arange(R)] * K)


def named_before(tuples: Tensor) -> Tensor:
    """(..., K) -> (..., K, R): which rules the strategies before each place have named."""
    one_hot = F.one_hot(tuples, R)
    return ((one_hot.cumsum(-2) - one_hot) > 0).double()


def planner_logprobs(places: Tensor, named: Tensor, tuples: Tensor) -> Tensor:
    """Log-prob of each strategy: places (C, K, R), named (C, R, R), tuples (C or 1, n, K) -> (C, n, K)"""
    logits = places.unsqueeze(1) + named_before(tuples) @ named.unsqueeze(1)
    return logits.log_softmax(-1).gather(-1, tuples.expand(len(places), -1, -1).unsqueeze(-1)).squeeze(-1)


def valid(tuples: Tensor) -> Tensor:
    """The gate: no strategy twice. (..., K) -> (...)"""
    ordered = tuples.sort(-1).values
    return (ordered[..., 1:] != ordered[..., :-1]).all(-1).double()


def coverage(solver: Tensor, tuples: Tensor) -> Tensor:
    """Chance that a tuple solves the problem, by truth: p(rule | strategy) (R, R), tuples (I, K) -> (Y, I)"""
    return 1 - (1 - solver[tuples]).prod(-2).T


# ---------------------------------------------------------------------------------------- part 1: enumeration

def advantage_tables(name: str, n: int) -> tuple[Tensor, Tensor]:
    """What a rewarded and an unrewarded sample count when c = 0..n are rewarded: advantage / row divisor.
    Entry 0 of the first and entry n of the second stand for no sample."""
    r = (torch.arange(n) < torch.arange(n + 1).unsqueeze(1)).double()          # row c: c ones, then zeros
    a = grpo.across_tuple_advantages(r) if name == "cppo" else advantages.set_advantages(name, r, K)
    return a[:, 0] / row_divisor(name, n), a[:, -1] / row_divisor(name, n)


def row_divisor(name: str, n: int) -> int:
    """PKPO's transform holds its 1/N already."""
    return 1 if name == "pkpo" else n


def enumerate_estimator(name: str, n: int, q: Tensor, w: Tensor, scores: Tensor,
                        p: Tensor) -> tuple[Tensor, float]:
    """Expectation (D,) and total variance of the estimator on one problem.

    q (I,) is sampled, w (Y, I) is the chance that an item is rewarded under each truth, scores (I, D) are the
    gradients of log q, p (Y,) is the posterior. Given c, the scores are independent draws of two populations.
    """
    up, down = advantage_tables(name, n)
    mean, square = torch.zeros(scores.shape[1], dtype=scores.dtype), 0.0
    size = scores.square().sum(-1)
    for p_y, w_y in zip(p, w):
        u = (q * w_y).sum()
        one, zero = (q * w_y / u), (q * (1 - w_y) / (1 - u))
        m1, m0, v1, v0 = one @ scores, zero @ scores, one @ size, zero @ size
        c = torch.arange(n + 1, dtype=q.dtype)
        binomial = torch.distributions.Binomial(n, probs=u).log_prob(c).exp()
        a, b = binomial * up * c, binomial * down * (n - c)
        mean += p_y * (a.sum() * m1 + b.sum() * m0)
        square += p_y * ((a * up).sum() * v1 + (a * up * (c - 1)).sum() * (m1 @ m1)
                         + (b * down).sum() * v0 + (b * down * (n - c - 1)).sum() * (m0 @ m0)
                         + 2 * (a * down * (n - c)).sum() * (m1 @ m0))
    return mean, float(square - mean @ mean)


def pass_gradient_direct(q: Tensor, p: Tensor) -> Tensor:
    """Of sum_y p_y (1 - (1 - q_y)^K), with respect to the logits (R,)."""
    return (p * K * (1 - q) ** (K - 1) * q) @ (torch.eye(R, dtype=q.dtype) - q)


def planner_scores(places: Tensor, named: Tensor, tuples: Tensor) -> Tensor:
    """Gradients of log q(S) with respect to both tables: (I, K R + R R)"""
    before = named_before(tuples)
    error = F.one_hot(tuples, R) - (places + before @ named).softmax(-1)     # (I, K, R)
    return torch.cat([error.flatten(1), torch.einsum("ika,ikb->iab", before, error).flatten(1)], 1)


def solver_gradients(q: Tensor, solver: Tensor, tuples: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of pass@K and expectation of Eq. 11's estimator, each (R, R), for the solver's logits.

    Both sum, over tuples, truths and branches, a credit times the gradient of the branch's own success v: the
    chance that no sibling succeeds, or the expected advantage of success over failure.
    """
    r = (torch.arange(K) < torch.arange(K + 1).unsqueeze(1)).double()          # row c: c ones, then zeros
    a = grpo.within_tuple_advantages(r)
    alone = torch.tensor([1.0] + [0.0] * (K - 1), dtype=q.dtype)
    v = solver[tuples]                                                         # (I, K, Y)
    out = []
    for gain in (alone, a[1:, 0] - a[:-1, -1]):                                # by how many siblings succeed
        table = torch.zeros_like(solver)
        for i in range(K):
            right = torch.ones_like(v[:, 0]).unsqueeze(-1)                     # (I, Y, siblings right)
            for j in range(K):
                if j != i:
                    s = v[:, j].unsqueeze(-1)
                    right = F.pad(right * (1 - s), (0, 1)) + F.pad(right * s, (1, 0))
            credit = q.unsqueeze(1) * p * (right @ gain) * v[:, i]             # dv/dlogits = v (e_y - row)
            per = torch.zeros_like(table).index_add_(0, tuples[:, i], credit)
            table += per - per.sum(1, keepdim=True) * solver
        out.append(table)
    return out[0], out[1]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0))


def estimator_table(name: str) -> list[list]:
    """Rows of (estimator, cosine to the gradient of pass@K, length beside it, noise to signal of a step)."""
    p, rows = posterior(name), []
    q = start_direct().softmax(0)
    eye = torch.eye(R, dtype=q.dtype)
    truth = pass_gradient_direct(q, p)
    for label, estimator in DIRECT.items():
        mean, variance = enumerate_estimator(estimator, N, q, eye, eye - q, p)
        rows.append([label, cosine(mean, truth), float(mean.norm() / truth.norm()),
                     (variance / (2 * PROBLEMS)) ** 0.5 / float(mean.norm())])
    tuples, (places, named), solver = all_tuples(), start_planner(), start_solver().softmax(-1)
    q = planner_logprobs(places[None], named[None], tuples[None])[0].sum(-1).exp()
    w, scores = coverage(solver, tuples), planner_scores(places, named, tuples)
    truth = ((q * w) @ scores).T @ p
    for label, gate in (("CPPO planner, no gate", torch.ones(())), ("CPPO planner", valid(tuples))):
        mean, variance = enumerate_estimator("cppo", M, q, w * gate, scores, p)
        rows.append([label, cosine(mean, truth), float(mean.norm() / truth.norm()),
                     (variance / PROBLEMS) ** 0.5 / float(mean.norm())])
    truth, mean = solver_gradients(q, solver, tuples, p)
    rows.append(["CPPO solver (Eq. 11)", cosine(mean, truth), float(mean.norm() / truth.norm()), None])
    return rows


def listening(name: str) -> tuple[float, float]:
    """How pass@K's gradient and Eq. 11 push the logit of obeying the rarest strategy, at the start."""
    p, tuples = posterior(name), all_tuples()
    (places, named), solver = start_planner(), start_solver().softmax(-1)
    q = planner_logprobs(places[None], named[None], tuples[None])[0].sum(-1).exp()
    rarest = 7 if p[7] > 0.01 else 5
    return tuple(float(g[rarest, rarest]) for g in solver_gradients(q, solver, tuples, p))


# ------------------------------------------------------------------------------------------- part 2: learning

def learn_direct(estimator: str, seed: int) -> dict[int, Tensor]:
    """pass@K by step, (posteriors, SEEDS): the sampled estimator, Adam, KL to the start."""
    torch.manual_seed(seed)
    p = torch.stack([posterior(name) for name in POSTERIORS]).repeat_interleave(SEEDS, 0)      # (C, R)
    reference = start_direct().log_softmax(0)
    logits = reference.repeat(len(p), 1).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LR)
    curve = {}
    for step in range(STEPS + 1):
        q = logits.detach().softmax(-1)
        if step % EVERY == 0:
            curve[step] = (p * (1 - (1 - q) ** K)).sum(-1).view(-1, SEEDS)
        truth = torch.multinomial(p, 2 * PROBLEMS, replacement=True)                           # (C, P)
        wrote = torch.multinomial(q, 2 * PROBLEMS * N, replacement=True).view(len(p), -1, N)   # (C, P, N)
        r = (wrote == truth.unsqueeze(-1)).double()
        a = advantages.set_advantages(estimator, r.flatten(0, 1), K).view_as(r) * N / row_divisor(estimator, N)
        logp = logits.log_softmax(-1).gather(1, wrote.flatten(1))
        loss, _ = grpo.clipped_loss(logp, None, reference[wrote.flatten(1)], a.flatten(1))
        optimizer.zero_grad()
        loss.mean(-1).sum().backward()
        optimizer.step()
    return curve


def learn_tuples(seed: int) -> dict[int, dict[str, Tensor]]:
    """CPPO and its variants side by side: by step what `measure` says, each (variants, posteriors, SEEDS)."""
    torch.manual_seed(seed)
    settings = [(posterior(name), flags) for flags in TUPLES.values() for name in POSTERIORS
                for _ in range(SEEDS)]
    p = torch.stack([p for p, _ in settings])
    ungated = torch.tensor([not flags.get("gate", True) for _, flags in settings]).view(-1, 1, 1)
    learning = torch.tensor([not flags.get("frozen", False) for _, flags in settings]).double().view(-1, 1, 1)
    C = len(p)
    start = [*start_planner(), start_solver()]
    places, named, solver = (t.repeat(C, 1, 1).requires_grad_() for t in start)
    optimizer = torch.optim.Adam([places, named, solver], lr=LR)
    every = all_tuples()
    told_rows = torch.arange(C).view(-1, 1, 1, 1)
    curve = {}
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                curve[step] = measure(p, places, named, solver.softmax(-1), every)
        truth = torch.multinomial(p, PROBLEMS, replacement=True).view(C, PROBLEMS, 1, 1)
        told = sample_tuples(places.detach(), named.detach(), PROBLEMS * M).view(C, PROBLEMS, M, K)
        table = solver.log_softmax(-1)
        wrote = torch.multinomial(table.detach()[told_rows, told].exp().flatten(0, 3), 1).view_as(told)
        r = (wrote == truth).double()
        accepted = torch.where(ungated, 1.0, valid(told))
        A = grpo.across_tuple_advantages(reward.planner_reward(accepted, reward.outcome_reward(r)))
        a = grpo.within_tuple_advantages(r)
        flat = told.flatten(1, 2)
        planned, before = (planner_logprobs(*tables, flat).view_as(r) for tables in
                           ((places, named), (start[0].expand_as(places), start[1].expand_as(named))))
        plan_loss, _ = grpo.clipped_loss(planned, None, before, A.unsqueeze(-1))
        solved, was = table[told_rows, told, wrote], start[2].log_softmax(-1)[told, wrote]
        solve_loss, _ = grpo.clipped_loss(solved, None, was, a)
        optimizer.zero_grad()
        ((plan_loss.mean(-1) + solve_loss.sum(-1)).sum() / (M * PROBLEMS)).backward()
        solver.grad *= learning
        optimizer.step()
    return curve


def sample_tuples(places: Tensor, named: Tensor, n: int) -> Tensor:
    """(C, n, K)"""
    C, chosen = len(places), []
    seen = torch.zeros(C, n, R, dtype=places.dtype)
    for i in range(K):
        logits = places[:, i].unsqueeze(1) + seen @ named
        chosen.append(torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(C, n))
        seen = seen.scatter(-1, chosen[-1].unsqueeze(-1), 1.0)
    return torch.stack(chosen, -1)


def measure(p: Tensor, places: Tensor, named: Tensor, solver: Tensor, every: Tensor) -> dict[str, Tensor]:
    """pass@K, share of tuples with a repeat, how often the solver obeys: exact, over all R^K tuples."""
    q = planner_logprobs(places, named, every[None]).sum(-1).exp()             # (C, I)
    solved = torch.stack([(q_c * (p_c @ coverage(s, every))).sum() for q_c, p_c, s in zip(q, p, solver)])
    use = torch.einsum("ci,ikr->cr", q, F.one_hot(every, R).double()) / K
    obeyed = (use * solver.diagonal(dim1=1, dim2=2)).sum(-1)
    shape = (len(TUPLES), len(POSTERIORS), SEEDS)
    return {"pass": solved.view(shape), "repeat": (1 - q @ valid(every)).view(shape),
            "obeyed": obeyed.view(shape)}


# --------------------------------------------------------------------------------------------- print and draw

def print_row(cells: list, widths: tuple = (22,), width: int = 10) -> None:
    text = ["-" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells]
    print(text[0].ljust(widths[0]) + "".join(t.rjust(width) for t in text[1:]))


def draw(path: str, curves: dict[str, dict[int, Tensor]], tuples: dict[int, dict[str, Tensor]]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("\nmatplotlib is not installed: nothing was drawn (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, len(POSTERIORS), figsize=(4 * len(POSTERIORS), 3.4), sharey=True)
    for i, (name, axis) in enumerate(zip(POSTERIORS, axes)):
        for label, curve in curves.items():
            axis.plot(list(curve), [v[i].mean() for v in curve.values()], label=label)
        for j, label in enumerate(TUPLES):
            axis.plot(list(tuples), [v["pass"][j, i].mean() for v in tuples.values()], "--", label=label)
        axis.axhline(metrics.independent_ceiling(posterior(name).tolist(), K), color="grey", lw=0.8)
        axis.axhline(metrics.coordinated_ceiling(posterior(name).tolist(), K), color="black", lw=0.8)
        axis.set(title=name, xlabel="step")
    axes[0].set_ylabel(f"pass@{K}")
    axes[0].legend(fontsize=7)
    figure.suptitle("Sampled estimators in tables. Grey: best independent policy; black: best coordinated")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The exact tabular trial of pass@K estimators.")
    parser.add_argument("--out", default="testbed.png", help="picture of the curves (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of part 2 (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)        # tables this small are faster without a pool

    print(f"Part 1, enumerated at the start: {R} rules, K={K}, {N} attempts or {M} tuples a problem.\n"
          f"cosine, length: the expected estimate beside the gradient of pass@{K}; noise: standard deviation "
          f"of\na step's estimate ({2 * PROBLEMS} problems direct, {PROBLEMS} with tuples: equal attempts) "
          f"over the length of its expectation")
    for name in POSTERIORS:
        print(f"\n{name}: {' '.join(f'{x:.2f}' for x in posterior(name))}")
        print_row(["", "cosine", "length", "noise"])
        for row in estimator_table(name):
            print_row(row)
        true, eq11 = listening(name)
        print(f"obeying the rarest strategy: pushed {true:+.4f} by pass@{K}, {eq11:+.4f} by Eq. 11")

    curves = {label: learn_direct(name, args.seed) for label, name in DIRECT.items()}
    tuples = learn_tuples(args.seed)
    marks = [m for m in (0, 50, 100, 200) if m < STEPS] + [STEPS]
    print(f"\nPart 2, sampled and learned: pass@{K} by step, mean of {SEEDS} seeds")
    for i, name in enumerate(POSTERIORS):
        p = posterior(name).tolist()
        print(f"\n{name}: best independent {metrics.independent_ceiling(p, K):.3f}, "
              f"best coordinated {metrics.coordinated_ceiling(p, K):.3f}")
        print_row(["", *(f"step {m}" for m in marks), "repeats", "obeys"])
        for label, curve in curves.items():
            print_row([label, *(float(curve[m][i].mean()) for m in marks), None, None])
        for j, label in enumerate(TUPLES):
            last = tuples[STEPS]
            print_row([label, *(float(tuples[m]["pass"][j, i].mean()) for m in marks),
                       float(last["repeat"][j, i].mean()), float(last["obeyed"][j, i].mean())])
    print(f"\nat step {STEPS}, repeats: share of tuples that name a rule twice; obeys: how often the solver "
          f"writes what it is told")
    draw(args.out, curves, tuples)


if __name__ == "__main__":
    main()
