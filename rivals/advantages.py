"""The set-level advantages of the rivals: GRPO, MaxRL, pass@K training, PKPO, UpSkill's information
reward.

    advantages = set_advantages("pkpo", rewards, k=4)       # (P, N) -> (P, N)

Shapes: P problems, N independent attempts per problem, Z skills, T tokens.
"""

from math import comb

import torch
from torch import Tensor

from grpo import across_tuple_advantages

SET_ADVANTAGES = ("grpo", "maxrl", "passk", "pkpo", "pkpo-loo")
SKILL_AGGREGATES = ("mean", "sum", "sequence")
UPSKILL_ALPHA = 5.0         # Appendix R: weight of the information reward


def set_advantages(name: str, rewards: Tensor, k: int) -> Tensor:
    """Advantages of N independent attempts at each of P problems: rewards (P, N) -> (P, N),
    float64.

    grpo   (r - mean) / (std + eps), Eq. 17; does not know k.
    maxrl  (r - mean) / mean of MaxRL (arXiv 2602.02710); does not know k. Zeros if nothing passes.
    passk  Pass@k training (arXiv 2508.10751), analytic: each of the C(N, k) groups is rewarded by
           its best member, normalised over all groups (population std); an attempt gets the mean
           over the groups that it is in.
    pkpo   sloo-minus-one of PKPO (arXiv 2505.15201): by how much the attempt raises the best of a
           k-subset, times k / N. The 1/N is inside, so the loss sums over the attempts. It is never
           negative, and raw by intention: centring biases it, and z-scoring turns it into plain
           GRPO for 0/1 rewards.
    pkpo-loo  sloo of the same paper: the baseline is the best of k of the others, not of k - 1.
           Failures are paid negatively; equal rewards c give the constant c k (1/N - 1/(N - 1)).

    A group in which nothing can be learned gets exact zeros from all but pkpo-loo.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (problems, attempts), not {tuple(rewards.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards hold a value that is not finite: score a failed attempt as 0")
    if name == "grpo":
        return across_tuple_advantages(rewards)
    if name == "maxrl":
        mean = rewards.mean(-1, keepdim=True)
        return torch.where(mean > 0, (rewards - mean) / mean, 0.0)
    if name not in SET_ADVANTAGES:
        raise ValueError(f"no advantage is called {name!r}: take {', '.join(SET_ADVANTAGES)}")
    n = rewards.shape[1]
    # PKPO compares with the best of k - 1 others, or of k
    smallest = 1 if name == "passk" else 2
    largest = n - 1 if name == "pkpo-loo" else n
    if not smallest <= k <= largest:
        limit = "N - 1" if name == "pkpo-loo" else "N"
        raise ValueError(f"{name} needs {smallest} <= k <= {limit}, not k={k} with N={n} attempts")
    values, order = rewards.sort(dim=-1)        # ascending; ties in any order give equal advantages
    transformed = _passk(values, k) if name == "passk" else _pkpo(values, k)
    if name == "pkpo-loo":
        transformed += k / n * _best_of_others(values, k - 1)
        transformed -= k / (n - 1) * _best_of_others(values, k)
    return torch.empty_like(values).scatter_(-1, order, transformed)


def _passk(values: Tensor, k: int) -> Tensor:
    """Normalised best-of-k rewards, averaged over the groups an attempt is in. (P, N) ascending."""
    n = values.shape[1]
    groups, groups_with = comb(n, k), comb(n - 1, k - 1)
    # The chance that rank j is the best: of any group, of a group that it is in, and of a group
    # that a given lower rank is in.
    best = values.new_tensor([comb(j, k - 1) / groups for j in range(n)])
    own = values.new_tensor([comb(j, k - 1) / groups_with for j in range(n)])
    pairs = [comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(n)]
    above = values.new_tensor([pair / groups_with for pair in pairs])
    later = values * above
    group_mean = values * own + later.sum(-1, keepdim=True) - later.cumsum(-1)
    mean = (values * best).sum(-1, keepdim=True)
    std = ((values - mean).square() * best).sum(-1, keepdim=True).sqrt()
    # The best of a group is at least the k-th smallest reward: if that equals the largest, all
    # groups are alike. Ask the rewards, for rounding leaves the std at about 1e-16 instead of 0.
    alike = values[:, k - 1:k] == values[:, -1:]
    return torch.where(alike, 0.0, (group_mean - mean) / std)


def _pkpo(values: Tensor, k: int) -> Tensor:
    """(k / N) E_S (g_i - max_S g)^+, S a random (k - 1)-subset of the others. (P, N) ascending."""
    n = values.shape[1]
    # Only smaller rewards contribute, and for those the rank among the others is the rank among
    # all.
    ranks = [k / n * comb(j, k - 2) / comb(n - 1, k - 1) for j in range(n)]
    gain = (values[:, :, None] - values[:, None, :]).clamp(min=0)       # (P, N, N); ties stay 0
    return gain @ values.new_tensor(ranks)


def _best_of_others(values: Tensor, m: int) -> Tensor:
    """E max of m of the other attempts, for each attempt. (P, N) ascending -> (P, N)."""
    n = values.shape[1]
    chance = values.new_zeros(n, n)     # that j is the best of m of the attempts other than i
    for i in range(n):
        for j in range(n):
            rank = j - (j > i)
            chance[i, j] = comb(rank, m - 1) / comb(n - 1, m) if j != i else 0
    return values @ chance.T


def skill_information(logp: Tensor, skill: Tensor, mask: Tensor, aggregate: str = "mean") -> Tensor:
    """UpSkill's mutual-information reward (arXiv 2602.22296): what a completion tells of its skill.

    logp (..., Z, T): log p(token t | x, skill z, the tokens before) of one completion, under each
    of the Z skills; skill (...): the one it was sampled with; mask (..., T): 1 on its tokens, 0
    on padding. Returns (...). The mixture it is compared with includes its own skill, so a term
    is at most log Z.

    mean      sum_t log(p_own / mean_z p_z) / T. The default: comparable with a correctness reward
              in [0, 1] at any length. Appendix R does not say how token-level rewards are joined.
    sum       the formula as published; grows up to T log Z and then drowns correctness.
    sequence  log(P_own / mean_z P_z), P over whole completions: the released code; at most log Z.
    """
    if aggregate not in SKILL_AGGREGATES:
        known = ", ".join(SKILL_AGGREGATES)
        raise ValueError(f"no aggregate is called {aggregate!r}: take {known}")
    mask = mask.to(logp.dtype)
    # padding may hold anything, also -inf
    logp = torch.where(mask.bool()[..., None, :], logp, 0.0)
    if aggregate == "sequence":
        logp = logp.sum(-1, keepdim=True)
    own = logp.take_along_dim(skill[..., None, None], dim=-2).squeeze(-2)
    num_skills = torch.tensor(float(logp.shape[-2]), dtype=logp.dtype)
    terms = own - (logp.logsumexp(dim=-2) - num_skills.log())
    if aggregate == "sequence":
        return terms.squeeze(-1)
    total = (terms * mask).sum(-1)
    return total if aggregate == "sum" else total / mask.sum(-1).clamp(min=1)
