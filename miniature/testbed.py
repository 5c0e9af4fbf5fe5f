"""The exact tabular trial: what each credit aims at, how noisily, where it settles. No network.

    python -m miniature.testbed           # prints the tables; draws testbed.png with matplotlib

Policies and exact gradients are in tabular.py. Part 1 enumerates the estimators of direct policies
and Eq. 11 and 12 at the start. Part 2 compares credits for the solver and for the planner with the
enumerated gradient, by enumeration and in samples. In part 3 all of them learn.

What it shows:
 1. PKPO aims at pass@K itself. Plain GRPO aims elsewhere: with a flat posterior it still reaches
    the best independent policy, from a ratio of about 2.4 on it peaks, then collapses.
 2. Eq. 11 pays a branch for beating its siblings. Where strategies differ in how often they are
    right, it pushes the solver away from what a rare strategy says, although the gradient of pass@K
    pushes towards it. The solver stops listening, and pass@K rises, then falls. Neither happens
    with a flat posterior or a frozen solver.
 3. Marginal credit, what pass@K loses without a branch, aims at pass@K itself; the solver goes on
    listening and pass@K stays near the coordinated ceiling. Its baseline must come from other
    tuples: within the tuple it is biased. Shapley's shares pay duplicates, and inherit the
    collapse.
 4. For the planner, comparing a strategy with tuples that stood alike before it has the expectation
    of Eq. 12 and less noise. Leave-one-out has less noise still and a bias: later strategies read
    earlier ones.

All advantages and the loss are those that train the real model (grpo.py, reward.py), except the
credits that are only compared with here.

Shapes: C settings side by side, P problems, M tuples, K strategies; R, I, D, n as in tabular.py.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import grpo
import reward
from lib import metrics
from miniature.tabular import (
    ALONE,
    POSTERIORS,
    K,
    M,
    N,
    R,
    all_tuples,
    coverage,
    enumerate_estimator,
    gain_of,
    pass_gradient_direct,
    planner_logprobs,
    planner_scores,
    posterior,
    row_divisor,
    sample_tuples,
    solver_gradient,
    start_direct,
    start_planner,
    start_solver,
    tuple_probabilities,
    valid,
)
from rivals import advantages

PROBLEMS = 8                # per step with tuples; twice as many without: equal attempts
LR, STEPS, EVERY = 0.05, 300, 50        # Adam; the curve is measured every EVERY steps
SEEDS = 2
DRAWS = 12_000              # problems sampled in part 2
CHUNK = 2_000               # of them at a time
DIRECT = {"GRPO": "grpo", "pass@K training": "passk", "PKPO": "pkpo"}


# --------------------------------------------------------------------------------------------------
# Credits. All take r (..., M, K); with scale=False they are a credit minus its baseline.

def marginal_credit(r: Tensor) -> Tensor:
    """1 for the branch that alone solves the problem. r is 0 or 1."""
    return r * (r.sum(-1, keepdim=True) == 1)


def shapley_credit(r: Tensor) -> Tensor:
    """Shapley's shares of pass@K: those who solve the problem divide it equally."""
    return r / r.sum(-1, keepdim=True).clamp(min=1)


def divided_by_std(credit: Tensor, of: Tensor) -> Tensor:
    """credit over the std of `of` in each problem; both (..., M, K)."""
    return credit / (of.flatten(-2).std(-1)[..., None, None] + grpo.EPS)


def against_other_tuples(credit: Tensor, scale: bool) -> Tensor:
    """A credit minus its mean over the branches of the other tuples: as grpo.marginal_advantages,
    for any credit."""
    total = credit.sum(-1, keepdim=True)
    baseline = (total.sum(-2, keepdim=True) - total) / ((M - 1) * K)
    return divided_by_std(credit - baseline, credit) if scale else credit - baseline


def siblings(r: Tensor, scale: bool = True) -> Tensor:
    """Eq. 11."""
    return grpo.within_tuple_advantages(r) if scale else r - r.mean(-1, keepdim=True)


def marginal_within(r: Tensor, scale: bool = True) -> Tensor:
    """Marginal credit with the mean of the own tuple as its baseline."""
    d = marginal_credit(r)
    centred = d - d.mean(-1, keepdim=True)
    return divided_by_std(centred, d) if scale else centred


def marginal(r: Tensor, scale: bool = True) -> Tensor:
    return grpo.marginal_advantages(r, scale=scale)


def shapley(r: Tensor, scale: bool = True) -> Tensor:
    return against_other_tuples(shapley_credit(r), scale)


def tuple_credit(J: Tensor, r: Tensor, scale: bool = True) -> Tensor:
    """Eq. 12: one advantage per tuple. J (..., M), r (..., M, K) -> (..., M, K)."""
    R_plan = reward.planner_reward(J, reward.outcome_reward(r))
    A = grpo.across_tuple_advantages(R_plan) if scale else R_plan - R_plan.mean(-1, keepdim=True)
    return A.unsqueeze(-1).expand_as(r)


def place_credit(J: Tensor, r: Tensor, scale: bool = True) -> Tensor:
    R_plan = reward.planner_reward(J, reward.outcome_reward(r))
    return grpo.place_advantages(R_plan, r, scale=scale)


def leave_one_out(J: Tensor, r: Tensor, scale: bool = True) -> Tensor:
    """What J R_out loses without branch i, for the tokens of strategy i."""
    return against_other_tuples(J.unsqueeze(-1) * marginal_credit(r), scale)


@dataclass(frozen=True)
class Credit:
    """advantages: what trains. own: what a tuple contributes to the unscaled estimate in
    expectation, as a function of its own r (..., K) alone."""
    advantages: Callable
    own: Callable


# A baseline from other tuples has expectation 0, whatever it is: `own` leaves it out.
SOLVER_CREDITS = {
    "siblings (Eq. 11)": Credit(siblings, lambda r: siblings(r, scale=False)),
    "Shapley": Credit(shapley, shapley_credit),
    "marginal, within": Credit(marginal_within, lambda r: marginal_within(r, scale=False)),
    "marginal": Credit(marginal, marginal_credit),
}
PLANNER_CREDITS = {"tuple (Eq. 12)": tuple_credit, "by place": place_credit,
                   "leave-one-out": leave_one_out}


@dataclass(frozen=True)
class Variant:
    """One line of part 3."""
    solver: str = "siblings (Eq. 11)"
    planner: str = "tuple (Eq. 12)"
    gate: bool = True
    frozen: bool = False        # the solver does not learn


TUPLES = {
    "Eq. 11, Eq. 12": Variant(),
    "  no gate": Variant(gate=False),
    "  solver frozen": Variant(frozen=True),
    "Shapley": Variant("Shapley"),
    "marginal, within": Variant("marginal, within"),
    "marginal": Variant("marginal"),
    "marginal, by place": Variant("marginal", "by place"),
    "marginal, l.-one-out": Variant("marginal", "leave-one-out"),
}


# --------------------------------------------------------------------------------------------------
# Part 1: the estimators by enumeration, at the start

def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), 0))


def length(a: Tensor, b: Tensor) -> float:
    """Of a beside b."""
    return float(a.norm() / b.norm())


@dataclass
class Start:
    """Planner and solver before training, and their exact gradients."""
    p: Tensor               # (Y,)
    tuples: Tensor          # (I, K)
    q: Tensor               # (I,)
    solver: Tensor          # (R, R) probabilities
    scores: Tensor          # (I, K, D) of each strategy

    @classmethod
    def of(cls, name: str) -> "Start":
        tuples, (places, named) = all_tuples(), start_planner()
        return cls(posterior(name), tuples, tuple_probabilities(places, named, tuples),
                   start_solver().softmax(-1), planner_scores(places, named, tuples))

    def planner_gradient(self, paid: Tensor) -> Tensor:
        """Expectation (D,) of a credit for strategies: paid (Y, I, K), its mean given truth and
        tuple."""
        weight = torch.einsum("y,i,yik->ik", self.p, self.q, paid)
        return torch.einsum("ik,ikd->d", weight, self.scores)

    def tuple_paid(self, gate: bool) -> Tensor:
        """Mean of J R_out, or of R_out, for all strategies of a tuple: (Y, I, K)."""
        paid = coverage(self.solver, self.tuples) * (valid(self.tuples) if gate else 1)
        return paid.unsqueeze(-1).expand(-1, -1, K)

    def alone_paid(self) -> Tensor:
        """Mean of J d_i: the tuple is accepted and branch i alone solves the problem. (Y, I, K)"""
        v = self.solver[self.tuples].permute(2, 0, 1)                           # (Y, I, K)
        missed = (1 - v).unsqueeze(-2).masked_fill(torch.eye(K, dtype=torch.bool), 1).prod(-1)
        return v * missed * valid(self.tuples).unsqueeze(-1)

    def solver_gradient(self, gain: Tensor) -> Tensor:
        return solver_gradient(self.q, self.solver, self.tuples, self.p, gain)


def estimator_table(name: str) -> list[list]:
    """Rows of (estimator, cosine to the gradient of pass@K, length beside it, noise of a step)."""
    p, rows = posterior(name), []
    q = start_direct().softmax(0)
    eye = torch.eye(R, dtype=q.dtype)
    truth = pass_gradient_direct(q, p)
    for label, estimator in DIRECT.items():
        mean, variance = enumerate_estimator(estimator, N, q, eye, eye - q, p)
        noise = (variance / (2 * PROBLEMS)) ** 0.5 / float(mean.norm())
        rows.append([label, cosine(mean, truth), length(mean, truth), noise])
    start = Start.of(name)
    w, scores = coverage(start.solver, start.tuples), start.scores.sum(1)
    truth = start.planner_gradient(start.tuple_paid(gate=False))
    gates = {"CPPO planner, no gate": torch.ones(()), "CPPO planner": valid(start.tuples)}
    for label, gate in gates.items():
        mean, variance = enumerate_estimator("cppo", M, start.q, w * gate, scores, p)
        noise = (variance / PROBLEMS) ** 0.5 / float(mean.norm())
        rows.append([label, cosine(mean, truth), length(mean, truth), noise])
    truth = start.solver_gradient(ALONE)
    mean = start.solver_gradient(gain_of(grpo.within_tuple_advantages))
    rows.append(["CPPO solver (Eq. 11)", cosine(mean, truth), length(mean, truth), None])
    return rows


def listening(name: str) -> tuple[float, float]:
    """How the gradient of pass@K and Eq. 11 push the logit of obeying the rarest strategy, at the
    start."""
    start = Start.of(name)
    rarest = 7 if start.p[7] > 0.01 else 5
    gains = (ALONE, gain_of(grpo.within_tuple_advantages))
    true, eq11 = (start.solver_gradient(gain)[rarest, rarest] for gain in gains)
    return float(true), float(eq11)


# --------------------------------------------------------------------------------------------------
# Part 2: credits beside the enumerated gradient, and in samples

class Moments:
    """Running mean and total variance of estimates."""

    def __init__(self):
        self.n, self.total, self.squares = 0, 0.0, 0.0

    def add(self, estimates: Tensor) -> None:
        """estimates (n, D)"""
        self.n += len(estimates)
        self.total = self.total + estimates.sum(0)
        self.squares = self.squares + estimates.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def variance(self) -> Tensor:
        """(D,): of one problem's estimate."""
        return self.squares / self.n - self.mean.square()

    @property
    def noise(self) -> float:
        """Standard deviation of a step's estimate over the length of its mean."""
        return float((self.variance.sum() / PROBLEMS).sqrt() / self.mean.norm())

    def deviation(self, expected: Tensor) -> float:
        """Squared distance of the mean from its expectation, over what that distance is in the
        mean: about 1 if the expectation is right."""
        distance = (self.mean - expected.flatten()).square().sum()
        return float(distance / (self.variance.sum() / self.n))


def solver_estimates(a: Tensor, strategies: Tensor, written: Tensor, solver: Tensor) -> Tensor:
    """sum of a * grad log p(written | strategy) over branches / M: all (n, M, K) -> (n, R R)."""
    n = len(a)
    by_pair = torch.zeros(n, R * R, dtype=a.dtype)
    by_pair.scatter_add_(1, (strategies * R + written).flatten(1), a.flatten(1))
    by_strategy = by_pair.view(n, R, R).sum(-1, keepdim=True)
    return (by_pair.view(n, R, R) - by_strategy * solver).flatten(1) / M


def sampled_moments(start: Start) -> dict[tuple[str, bool], Moments]:
    """(credit, scaled) -> moments of its estimate, all from the same sampled problems."""
    # All credits see the same samples: what differs between rows is the credit alone.
    moments: dict[tuple[str, bool], Moments] = {}
    for _ in range(DRAWS // CHUNK):
        truth = torch.multinomial(start.p, CHUNK, replacement=True)[:, None, None]
        drawn = torch.multinomial(start.q, CHUNK * M, replacement=True).view(CHUNK, M)
        strategies = start.tuples[drawn]                                        # (n, M, K)
        written = torch.multinomial(start.solver[strategies.flatten()], 1).view_as(strategies)
        r, J = (written == truth).double(), valid(strategies)
        scores = start.scores[drawn].flatten(1, 2)                              # (n, M K, D)
        for scale in (False, True):
            for name, credit in SOLVER_CREDITS.items():
                a = credit.advantages(r, scale)
                estimates = solver_estimates(a, strategies, written, start.solver)
                moments.setdefault((name, scale), Moments()).add(estimates)
            for name, advantages_of in PLANNER_CREDITS.items():
                A = advantages_of(J, r, scale).flatten(1)
                estimates = (A.unsqueeze(1) @ scores).squeeze(1) / M
                moments.setdefault((name, scale), Moments()).add(estimates)
    return moments


def credit_table(name: str, seed: int) -> list[list]:
    """Rows of (credit; by enumeration: cosine, length; in samples without scale: noise, deviation
    from the enumeration; in samples with scale: cosine, noise).

    Solver credits are beside the gradient of pass@K, planner credits beside that of E[J R_out].
    """
    torch.manual_seed(seed)
    start, rows = Start.of(name), []
    sampled = sampled_moments(start)
    truth = start.solver_gradient(ALONE)
    expected = {label: start.solver_gradient(gain_of(credit.own))
                for label, credit in SOLVER_CREDITS.items()}
    rows += [credit_row(label, mean, truth, sampled) for label, mean in expected.items()]
    truth = start.planner_gradient(start.tuple_paid(gate=True))
    # Eq. 12's mean holds the own tuple, which shortens its estimate by 1/M
    expected = {"tuple (Eq. 12)": truth * (1 - 1 / M), "by place": truth,
                "leave-one-out": start.planner_gradient(start.alone_paid())}
    rows += [credit_row(label, mean, truth, sampled) for label, mean in expected.items()]
    return rows


def credit_row(label: str, mean: Tensor, truth: Tensor, sampled: dict) -> list:
    plain, scaled = sampled[label, False], sampled[label, True]
    return [label, cosine(mean, truth), length(mean, truth), plain.noise, plain.deviation(mean),
            cosine(scaled.mean, truth), scaled.noise]


# --------------------------------------------------------------------------------------------------
# Part 3: learning

def learn_direct(estimator: str, seed: int) -> dict[int, Tensor]:
    """pass@K by step, (posteriors, SEEDS): the sampled estimator, Adam, KL to the start."""
    torch.manual_seed(seed)
    p = torch.stack([posterior(name) for name in POSTERIORS])
    p = p.repeat_interleave(SEEDS, 0)                                           # (C, R)
    C, problems = len(p), 2 * PROBLEMS
    reference = start_direct().log_softmax(0)
    logits = reference.repeat(C, 1).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LR)
    curve = {}
    for step in range(STEPS + 1):
        q = logits.detach().softmax(-1)
        if step % EVERY == 0:
            curve[step] = (p * (1 - (1 - q) ** K)).sum(-1).view(-1, SEEDS)
        truth = torch.multinomial(p, problems, replacement=True)                # (C, P)
        written = torch.multinomial(q, problems * N, replacement=True).view(C, -1, N)
        r = (written == truth.unsqueeze(-1)).double()
        a = advantages.set_advantages(estimator, r.flatten(0, 1), K).view_as(r)
        # loss.mean below divides by N, which PKPO's advantages hold already
        a = a * N / row_divisor(estimator, N)
        written = written.flatten(1)
        logp = logits.log_softmax(-1).gather(1, written)
        loss, _ = grpo.clipped_loss(logp, None, reference[written], a.flatten(1))
        optimizer.zero_grad()
        loss.mean(-1).sum().backward()
        optimizer.step()
    return curve


class Learners:
    """All variants of TUPLES on all posteriors with all seeds, C policies side by side."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.per_variant = len(POSTERIORS) * SEEDS
        by_posterior = torch.stack([posterior(name) for name in POSTERIORS])
        self.p = by_posterior.repeat_interleave(SEEDS, 0).repeat(len(TUPLES), 1)    # (C, R)
        self.start = [*start_planner(), start_solver()]
        C = len(self.p)
        self.tables = [table.repeat(C, 1, 1).requires_grad_() for table in self.start]
        self.places, self.named, self.solver = self.tables
        self.optimizer = torch.optim.Adam(self.tables, lr=LR)
        learns = [0.0 if variant.frozen else 1.0 for variant in TUPLES.values()]
        learns = torch.tensor(learns, dtype=torch.float64)
        self.solver_learns = learns.repeat_interleave(self.per_variant).view(-1, 1, 1)
        self.rows = torch.arange(C).view(-1, 1, 1, 1)

    def collect(self) -> tuple[Tensor, Tensor, Tensor]:
        """Strategies, written rules and verdicts of a step, (C, P, M, K) each."""
        C = len(self.p)
        truth = torch.multinomial(self.p, PROBLEMS, replacement=True).view(C, PROBLEMS, 1, 1)
        strategies = sample_tuples(self.places.detach(), self.named.detach(), PROBLEMS * M)
        strategies = strategies.view(C, PROBLEMS, M, K)
        chances = self.solver.detach().softmax(-1)[self.rows, strategies]
        written = torch.multinomial(chances.flatten(0, 3), 1).view_as(strategies)
        return strategies, written, (written == truth).double()

    def credit(self, strategies: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages of strategies and of programs, (C, P, M, K) each."""
        A, a = torch.zeros_like(r), torch.zeros_like(r)
        accepted = valid(strategies)
        for i, variant in enumerate(TUPLES.values()):
            mine = slice(i * self.per_variant, (i + 1) * self.per_variant)
            J = accepted[mine] if variant.gate else torch.ones_like(accepted[mine])
            A[mine] = PLANNER_CREDITS[variant.planner](J, r[mine])
            a[mine] = SOLVER_CREDITS[variant.solver].advantages(r[mine])
        return A, a

    def update(self, strategies: Tensor, written: Tensor, A: Tensor, a: Tensor) -> None:
        """Eq. 13: the mean over a plan's strategies, the sum over branches."""
        flat = strategies.flatten(1, 2)
        before = [table.expand_as(now) for table, now in
                  zip(self.start[:2], self.tables[:2], strict=True)]
        planned = planner_logprobs(self.places, self.named, flat).view_as(A)
        planned_before = planner_logprobs(*before, flat).view_as(A)
        plan_loss, _ = grpo.clipped_loss(planned, None, planned_before, A)
        solved = self.solver.log_softmax(-1)[self.rows, strategies, written]
        solved_before = self.start[2].log_softmax(-1)[strategies, written]
        solve_loss, _ = grpo.clipped_loss(solved, None, solved_before, a)
        # every policy has a loss of its own: their sum trains them side by side
        self.optimizer.zero_grad()
        total = (plan_loss.mean(-1) + solve_loss.sum(-1)).sum()
        (total / (M * PROBLEMS)).backward()
        self.solver.grad *= self.solver_learns          # 0 for a frozen solver
        self.optimizer.step()

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """pass@K, share of tuples with a repeat, how often the solver obeys: exact, over all R^K
        tuples; (variants, posteriors, SEEDS) each."""
        tuples, solver = all_tuples(), self.solver.softmax(-1)
        q = planner_logprobs(self.places, self.named, tuples[None]).sum(-1).exp()      # (C, I)
        solved = [(q_c * (p_c @ coverage(solver_c, tuples))).sum()
                  for q_c, p_c, solver_c in zip(q, self.p, solver, strict=True)]
        use = torch.einsum("ci,ikr->cr", q, F.one_hot(tuples, R).double()) / K
        obeyed = (use * solver.diagonal(dim1=1, dim2=2)).sum(-1)
        shape = (len(TUPLES), len(POSTERIORS), SEEDS)
        return {"pass": torch.stack(solved).view(shape), "obeyed": obeyed.view(shape),
                "repeat": (1 - q @ valid(tuples)).view(shape)}


def learn_tuples(seed: int) -> dict[int, dict[str, Tensor]]:
    """By step what `Learners.measure` returns."""
    learners, curve = Learners(seed), {}
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            curve[step] = learners.measure()
        strategies, written, r = learners.collect()
        A, a = learners.credit(strategies, r)
        learners.update(strategies, written, A, a)
    return curve


# --------------------------------------------------------------------------------------------------
# Print and draw

def print_row(cells: list, width: int = 10) -> None:
    texts = []
    for cell in cells[1:]:
        text = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
        texts.append("-" if cell is None else text)
    print(str(cells[0]).ljust(22) + "".join(text.rjust(width) for text in texts))


def print_estimators() -> None:
    print(f"Part 1, enumerated at the start: {R} rules, K={K}, {N} attempts or {M} tuples per "
          f"problem.\n"
          f"cosine, length: the expected estimate beside the gradient of pass@{K}\n"
          f"noise: standard deviation of a step's estimate over the length of its expectation\n"
          f"({2 * PROBLEMS} problems direct, {PROBLEMS} with tuples: equal attempts)")
    for name in POSTERIORS:
        print(f"\n{name}: {' '.join(f'{x:.2f}' for x in posterior(name))}")
        print_row(["", "cosine", "length", "noise"])
        for row in estimator_table(name):
            print_row(row)
        true, eq11 = listening(name)
        print(f"obeying the rarest strategy: pushed {true:+.4f} by pass@{K}, {eq11:+.4f} by Eq. 11")


def print_credits(seed: int) -> None:
    print(f"\nPart 2, credits at the start, {DRAWS:,} sampled problems.\n"
          f"cosine, length: the enumerated expectation of credit minus baseline, beside the\n"
          f"gradient of pass@{K} (solver) or of E[J R_out] (planner)\n"
          f"noise: of a step of {PROBLEMS} problems, sampled\n"
          f"off: squared distance of the samples' mean from the enumeration, over the\n"
          f"expectation of that distance: about 1 if they agree\n"
          f"trained: cosine and noise in samples with the division by a std (the cosine of an\n"
          f"unbiased estimate would be 0.997 or so: {DRAWS:,} samples)")
    for name in POSTERIORS:
        print(f"\n{name}")
        print_row(["", "cosine", "length", "noise", "off", "trained:", "noise"])
        for row in credit_table(name, seed):
            print_row(row)


def print_learning(curves: dict[str, dict[int, Tensor]],
                   tuples: dict[int, dict[str, Tensor]]) -> None:
    marks = [mark for mark in (0, 50, 100, 200) if mark < STEPS] + [STEPS]
    print(f"\nPart 3, sampled and learned: pass@{K} by step, mean of {SEEDS} seeds")
    last = tuples[STEPS]
    for i, name in enumerate(POSTERIORS):
        p = posterior(name).tolist()
        print(f"\n{name}: best independent {metrics.independent_ceiling(p, K):.3f}, "
              f"best coordinated {metrics.coordinated_ceiling(p, K):.3f}")
        print_row(["", *(f"step {mark}" for mark in marks), "repeats", "obeys"])
        for label, curve in curves.items():
            print_row([label, *(float(curve[mark][i].mean()) for mark in marks), None, None])
        for j, label in enumerate(TUPLES):
            reached = [float(tuples[mark]["pass"][j, i].mean()) for mark in marks]
            print_row([label, *reached, float(last["repeat"][j, i].mean()),
                       float(last["obeyed"][j, i].mean())])
    print(f"\nat step {STEPS}, repeats: share of tuples that name a rule twice; obeys: how often "
          f"the solver writes\nwhat its strategy names")


DRAWN = {"Eq. 11, Eq. 12": "C3", "  solver frozen": "C7", "Shapley": "C1",
         "marginal, within": "C9", "marginal": "C0", "marginal, by place": "C2"}


def draw(path: str, tuples: dict[int, dict[str, Tensor]]) -> None:
    """pass@K above, how often the solver obeys below, over the steps; a column per posterior."""
    try:
        import matplotlib
    except ImportError:
        print("\nmatplotlib is not installed: nothing was drawn (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    columns = len(POSTERIORS)
    figure, axes = pyplot.subplots(2, columns, figsize=(3.4 * columns, 5.6), sharex=True,
                                   sharey="row")
    for i, name in enumerate(POSTERIORS):
        for row, quantity in enumerate(("pass", "obeyed")):
            for label, color in DRAWN.items():
                j = list(TUPLES).index(label)
                values = [measured[quantity][j, i].mean() for measured in tuples.values()]
                axes[row, i].plot(list(tuples), values, color=color, label=label.strip())
        p = posterior(name).tolist()
        axes[0, i].axhline(metrics.coordinated_ceiling(p, K), color="black", lw=0.8)
        axes[0, i].axhline(metrics.independent_ceiling(p, K), color="black", lw=0.8, ls=":")
        axes[0, i].set(title=name)
        axes[1, i].set(xlabel="step", ylim=(0, 1))
    axes[0, 0].set_ylabel(f"pass@{K}")
    axes[1, 0].set_ylabel("solver obeys its strategy")
    axes[1, 0].legend(fontsize=7)
    figure.suptitle("Where each credit settles. Black: coordinated ceiling; dotted: independent")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The exact tabular trial of pass@K credits.")
    parser.add_argument("--out", default="testbed.png", help="the picture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of parts 2 and 3 (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)        # tables this small are faster without a pool
    print_estimators()
    print_credits(args.seed)
    curves = {label: learn_direct(name, args.seed) for label, name in DIRECT.items()}
    tuples = learn_tuples(args.seed)
    print_learning(curves, tuples)
    draw(args.out, tuples)


if __name__ == "__main__":
    main()
