"""The set-level advantages of the rival methods."""

from math import comb

import torch
from torch import Tensor

from grpo import across_tuple_advantages

SET_ADVANTAGES = ("grpo", "passk", "pkpo")


SKILL_AGGREGATES = ("mean", "sum", "sequence")


UPSKILL_ALPHA = 5.0  # Appendix R


def set_advantages(name: str, rewards: Tensor, k: int) -> Tensor:
    """Advantages of N independent attempts at each of P problems: rewards (P, N) -> (P, N), in float64.

    grpo   (r - mean) / (std + eps), Eq. 17; does not know k.
    passk  Pass@k training (arXiv 2508.10751), analytic: the C(N, k) groups are rewarded by their best member,
           normalised over all groups (population std), and an attempt gets the mean over the groups it is in.
    pkpo   sloo-minus-one of PKPO (arXiv 2505.15201): by how much the attempt raises the best of a k-subset,
           times k / N. The 1/N is inside, so the loss sums over the attempts. Never negative, and raw by
           intention: centring biases it, and z-scoring turns it into plain GRPO for 0/1 rewards.

    A group in which nothing can be learned gets exact zeros from all three.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (problems, attempts), not of shape {tuple(rewards.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards hold a value that is not finite: score a failed attempt as 0")
    n = rewards.shape[1]
    if name == "grpo":
        return across_tuple_advantages(rewards)
    if name not in SET_ADVANTAGES:
        raise ValueError(f"no advantage is called {name!r}: take one of {', '.join(SET_ADVANTAGES)}")
    smallest = 2 if name == "pkpo" else 1  # sloo-minus-one compares with the best of the k - 1 others
    if not smallest <= k <= n:
        raise ValueError(f"{name} needs {smallest} <= k <= N, got k={k} with N={n} attempts a problem")
    values, order = rewards.sort(dim=-1)  # ascending; ties in any order give the same advantages
    transform = _passk if name == "passk" else _pkpo
    return torch.empty_like(values).scatter_(-1, order, transform(values, k))


def _passk(values: Tensor, k: int) -> Tensor:
    """Normalised best-of-k rewards, averaged over the groups an attempt is in. values (P, N) ascending."""
    n = values.shape[1]
    # Chances that rank j is the best: of any group; of a group it is in; of a group with a given lower rank.
    best = values.new_tensor([comb(j, k - 1) / comb(n, k) for j in range(n)])
    own = values.new_tensor([comb(j, k - 1) / comb(n - 1, k - 1) for j in range(n)])
    pairs = [comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(n)]
    above = values.new_tensor([pair / comb(n - 1, k - 1) for pair in pairs])
    later = values * above
    group_mean = values * own + later.sum(-1, keepdim=True) - later.cumsum(-1)
    mean = (values * best).sum(-1, keepdim=True)
    std = ((values - mean).square() * best).sum(-1, keepdim=True).sqrt()
    # The best of a group is at least the k-th smallest: if that equals the largest, all groups are alike.
    # Asked of the rewards themselves, because rounding leaves the std at about 1e-16 instead of 0.
    alike = values[:, k - 1 : k] == values[:, -1:]
    return torch.where(alike, 0.0, (group_mean - mean) / std)


def _pkpo(values: Tensor, k: int) -> Tensor:
    """(k / N) E_J (g_i - max_J g)^+, J a random (k - 1)-subset of the others. values (P, N) ascending."""
    n = values.shape[1]
    # Only smaller rewards contribute, and for those the rank among the others is the rank among all.
    weight = values.new_tensor([k / n * comb(j, k - 2) / comb(n - 1, k - 1) for j in range(n)])
    gain = (values[:, :, None] - values[:, None, :]).clamp(min=0)  # (P, N, N); ties stay exactly 0
    return gain @ weight


def skill_information(logp: Tensor, skill: Tensor, mask: Tensor, aggregate: str = "mean") -> Tensor:
    """UpSkill's mutual-information reward (arXiv 2602.22296): how much a completion tells about its skill.

    logp (..., Z, T): log p(token t | x, skill z, the tokens before) of one completion, under each of the Z
    skills; skill (...): the one it was sampled with; mask (..., T): 1 on its tokens, 0 on padding.
    Returns (...). The mixture it is compared with includes its own skill, so a term is at most log Z.

    mean      sum_t log(p_own / mean_z p_z) / T. The default: comparable with a correctness reward in [0, 1]
              at any length. Appendix R speaks of a token-level reward and is silent on how tokens are joined.
    sum       the formula as published; grows up to T log Z and then drowns correctness.
    sequence  log(P_own / mean_z P_z), P over whole completions: the released code; at most log Z. With
              strategies in the place of skills it also measures whether the solver listens to its strategy.
    """
    if aggregate not in SKILL_AGGREGATES:
        raise ValueError(f"no aggregate is called {aggregate!r}: take one of {', '.join(SKILL_AGGREGATES)}")
    mask = mask.to(logp.dtype)
    logp = torch.where(mask.bool()[..., None, :], logp, 0.0)  # padding may hold anything, also -inf
    if aggregate == "sequence":
        logp = logp.sum(-1, keepdim=True)
    own = logp.take_along_dim(skill[..., None, None], dim=-2).squeeze(-2)
    num_skills = torch.tensor(float(logp.shape[-2]), dtype=logp.dtype)
    terms = own - (logp.logsumexp(dim=-2) - num_skills.log())
    if aggregate == "sequence":
        return terms.squeeze(-1)
    total = (terms * mask).sum(-1)
    return total if aggregate == "sum" else total / mask.sum(-1).clamp(min=1)


def upskill_reward(correct: Tensor, information: Tensor, alpha: float = UPSKILL_ALPHA) -> Tensor:
    """r_correct + alpha * r_mi, one completion a skill; goes through `set_advantages("grpo", ...)`."""
    return correct + alpha * information
