"""CPPO on a toy in one file: tables instead of a network, ten seconds on one core.

    python examples/cppo_in_one_file.py

The toy: a problem can be meant in R = 8 ways, and hidden tests know which (rule 1 is the
likeliest, then 2, ...: a Zipf posterior). Nobody can tell from the statement, so the best that
K = 4 attempts can do is to try the four likeliest rules, once each. That is the coordinated
ceiling. Attempts that are drawn independently repeat each other and have a lower one.

  planner  q(s_i | s_1 .. s_i-1)   a table of logits: which rule strategy i names      Eq. 3-4
  solver   p(y_i | s_i)            a table of logits: which rule the program follows   Eq. 5
  reward   r_i = 1 if y_i is what the tests mean; R_out = max_i r_i                    Eq. 8
  gate     J = 1 if the K strategies differ; R_plan = J * R_out                        Eq. 9, 10

Three ways to learn, same number of programs: independent attempts with GRPO; CPPO with the paper's
credit; CPPO with marginal credit. Watch the second one rise and fall: Eq. 11 pays a program for
beating its siblings, so the solver ends up writing the likeliest rule whatever its strategy says.
Everything printed is exact (all 8^4 plans are summed over); only the training samples.

Shapes: P problems per step, M tuples per problem, K strategies per tuple, R rules.
"""

import torch

R, K, M, P = 8, 4, 8, 8
STEPS, LR, EPS = 400, 0.05, 1e-6
POSTERIOR = 1 / torch.arange(1, R + 1).double()
POSTERIOR /= POSTERIOR.sum()                                            # (R,)


# ------------------------------------------------------------------------------------------------
# Credit: everything that is CPPO

def standardize(x, dims):
    """Eq. 17: (x - mean) / (std + eps), equal values give 0."""
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + EPS)


def siblings(r):
    """Eq. 11, the paper's credit for the solver: each branch against the others of its tuple."""
    return standardize(r, -1)                                           # (P, M, K)


def marginal(r):
    """Ours: what pass@K would lose without the branch, against the other tuples' mean."""
    miss = 1 - r
    others_miss = torch.stack([miss[..., [j for j in range(K) if j != i]].prod(-1)
                               for i in range(K)], -1)
    d = r * others_miss                                                 # 1: it alone solves
    total = d.sum(-1, keepdim=True)                                     # (P, M, 1)
    baseline = (total.sum(1, keepdim=True) - total) / ((M - 1) * K)
    return (d - baseline) / (d.std((1, 2), keepdim=True) + EPS)         # (P, M, K)


def across_tuples(R_plan):
    """Eq. 12, the credit for the planner: each tuple against the others of its problem."""
    return standardize(R_plan, 1)                                       # (P, M)


# ------------------------------------------------------------------------------------------------
# The policy: two tables

def make_policy():
    """A planner that knows nothing, and a solver that mostly does what its strategy says."""
    planner = [torch.zeros(R ** i, R, dtype=torch.double, requires_grad=True) for i in range(K)]
    solver = (3.5 * torch.eye(R, dtype=torch.double)).requires_grad_()  # obeys with p = 0.83
    return planner, solver


def sample_plans(planner, n):
    """n plans: strategies (n, K) and their log-probs (n,), one strategy after the other."""
    history = torch.zeros(n, dtype=torch.long)
    strategies, logp = [], torch.zeros(n, dtype=torch.double)
    for table in planner:
        choice = torch.distributions.Categorical(logits=table[history])
        s = choice.sample()
        logp = logp + choice.log_prob(s)
        strategies.append(s)
        history = history * R + s
    return torch.stack(strategies, -1), logp


@torch.no_grad()
def pass_at_k(planner, solver):
    """Exact: the sum over all plans and all meanings of the problem."""
    logp = torch.zeros(1, dtype=torch.double)
    for table in planner:                                               # log q of every plan so far
        logp = (logp[:, None] + table.log_softmax(-1)).flatten()
    plans = torch.cartesian_prod(*[torch.arange(R)] * K)                # (R^K, K)
    miss = (1 - solver.softmax(-1)[plans]).prod(1)                      # (R^K, R): all K fail
    return (logp.exp() @ (1 - miss) @ POSTERIOR).item()


@torch.no_grad()
def obeys(planner, solver):
    """How often the solver does what it is told, for strategies that the planner names."""
    strategies, _ = sample_plans(planner, 2000)
    return solver.softmax(-1).diagonal()[strategies].mean().item()


# ------------------------------------------------------------------------------------------------
# Training

def train_cppo(solver_credit, steps=STEPS, every=50):
    """Algorithm 1. Returns [(step, pass@K, share of programs that obey), ...]."""
    planner, solver = make_policy()
    optimizer = torch.optim.Adam([*planner, solver], lr=LR)
    curve = []
    for step in range(steps + 1):
        if step % every == 0:
            curve.append((step, pass_at_k(planner, solver), obeys(planner, solver)))
        strategies, plan_logp = sample_plans(planner, P * M)
        programs = torch.distributions.Categorical(logits=solver[strategies])
        y = programs.sample()                                           # (P * M, K)
        truth = torch.multinomial(POSTERIOR, P, replacement=True)       # (P,) what the tests mean

        r = (y.view(P, M, K) == truth[:, None, None]).double()          # the verifier
        R_out = r.amax(-1)                                              # (P, M)     Eq. 8
        in_order = strategies.view(P, M, K).sort(-1).values
        J = (in_order.diff(dim=-1) > 0).all(-1).double()                # the gate   Eq. 9
        R_plan = J * R_out                                              #            Eq. 10

        a = solver_credit(r)                                            # (P, M, K)
        A = across_tuples(R_plan)                                       # (P, M)
        solver_loss = -(a * programs.log_prob(y).view(P, M, K)).sum(-1).mean()
        planner_loss = -(A * plan_logp.view(P, M)).mean()
        optimizer.zero_grad()
        (solver_loss + planner_loss).backward()                         # Eq. 13 at ratio 1, no KL
        optimizer.step()
    return curve


def train_independent(steps=STEPS, every=50):
    """Plain GRPO: M * K independent programs per problem from one distribution (Eq. 2, 17)."""
    logits = torch.zeros(R, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LR)
    curve = []
    for step in range(steps + 1):
        if step % every == 0:
            q = logits.detach().softmax(-1)
            curve.append((step, (POSTERIOR * (1 - (1 - q) ** K)).sum().item()))
        programs = torch.distributions.Categorical(logits=logits)
        y = programs.sample((P, M * K))
        truth = torch.multinomial(POSTERIOR, P, replacement=True)
        r = (y == truth[:, None]).double()
        loss = -(standardize(r, -1) * programs.log_prob(y)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


# ------------------------------------------------------------------------------------------------
# The best that each kind of policy can do

def coordinated_ceiling():
    """The K likeliest rules, once each."""
    return POSTERIOR.sort(descending=True).values[:K].sum().item()


def independent_ceiling():
    """max over q of sum_i p_i (1 - (1 - q_i)^K). At the best q every rule that is tried at all has
    the same marginal gain K p_i (1 - q_i)^(K-1): find that gain by bisection."""
    low, high = 0.0, K * POSTERIOR.max().item()
    for _ in range(100):
        gain = (low + high) / 2
        q = (1 - (gain / (K * POSTERIOR)) ** (1 / (K - 1))).clamp(min=0)
        low, high = (gain, high) if q.sum() > 1 else (low, gain)
    return (POSTERIOR * (1 - (1 - q) ** K)).sum().item()


def main(seed=0):
    torch.manual_seed(seed)
    print(f"exact pass@{K}; ceilings: independent attempts {independent_ceiling():.3f}, "
          f"coordinated ones {coordinated_ceiling():.3f}\n")
    independent = train_independent()
    paper = train_cppo(siblings)
    ours = train_cppo(marginal)
    print("        independent   CPPO, Eq. 11 and 12     CPPO, marginal credit")
    print("step       GRPO       pass@4  solver obeys    pass@4  solver obeys")
    for (step, i), (_, p, p_obeys), (_, m, m_obeys) in zip(independent, paper, ours, strict=True):
        print(f"{step:4}      {i:.3f}        {p:.3f}      {p_obeys:.2f}         "
              f"{m:.3f}      {m_obeys:.2f}")


if __name__ == "__main__":
    main()
