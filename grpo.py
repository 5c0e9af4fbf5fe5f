"""The split-region GRPO loss of CPPO (Eq. 11-13, 17, 18), and the update that applies it.

First the mathematics: advantages, log-probabilities, the clipped loss with its KL term. It needs
torch alone. Below the rule: sharding and precision, rows and micro-batches, the update.

    policy = grpo.shard(model.load(path, torch.float32), torch.bfloat16, device)
    reference = model.load(path, torch.bfloat16).requires_grad_(False)
    reference = grpo.shard(reference, torch.bfloat16, device)
    optimizer = grpo.make_optimizer(policy, lr=5e-7)
    metrics = grpo.update(policy, reference, optimizer, rows, temperature=0.7)
    grpo.refresh(sampler, policy)

Where this departs from the paper, or fills in what it leaves open:
 1. Ratios are per token (Eq. 18 writes one per rollout), and a row's loss is the mean over its
    tokens.
 2. Eq. 13 sums over the M*K solver rows and the M planner rows of a problem. `Row.weight` is
    1 / (M * problems of the whole batch): one denominator for both regions and all ranks.
 3. The std of Eq. 11, 12 and 17 is the unbiased one. Equal rewards give exactly 0. M=1 gives A = R.
 4. KL is the k3 estimate with a clamped log difference. Its gradient at ratio 1 is that of
    KL(ref || policy). (TRL now multiplies it by the ratio, which changes that gradient; the paper
    takes GRPO as it was.)
 5. With one update per rollout the ratio is exactly 1. With more, the trainer recomputes the old
    log-probs. The sampler's own are not in the ratio: bf16 decoding and a bf16 forward differ by
    more than the clip range on 1.6 % of tokens (metrics `gap_mean`, `gap_max`). `tis` corrects for
    that difference by a weight.

Shapes: K branches per tuple, M tuples per problem, B rows, P prefix tokens, S suffix tokens, N loss
tokens, H hidden size, V vocabulary.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

EPS = 1e-6                  # Eq. 11, 12, 17: added to the std, outside the root
CLIP = 0.2                  # Eq. 18
BETA = 0.01                 # Eq. 18: weight of the KL to the frozen reference
KL_CLAMP = 10.0             # largest ref - policy that is exponentiated: e^100 is inf in fp32
RATIO_CLAMP = 20.0          # the same for policy - old
TILE_LOGITS = 2 ** 25       # logits of one vocabulary tile, tokens x words: 128 MiB in fp32
SMALLEST_TILE = 1024        # words; below it the matrix products get thin
REPLICATE_BELOW = 20_000_000    # parameters: smaller models are not sharded, see `shard`
REGIONS = ("plan", "solve")


# ----------------------------------------------------------------------------------------------
# Advantages

def standardize(r: Tensor) -> Tensor:
    """Eq. 17 over the last axis: (r - mean) / (std + eps), with the unbiased std.

    NaN entries do not exist: they get 0 and count in neither mean nor std. Equal values get
    exactly 0: the mean of seven 0.1s is not 0.1, and that rounding error divided by eps would be
    an advantage.
    """
    r = r if r.is_floating_point() else r.float()
    exists = ~r.isnan()
    count = exists.sum(-1, keepdim=True)
    mean = r.where(exists, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    centred = (r - mean).where(exists, 0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    largest = r.where(exists, -torch.inf).amax(-1, keepdim=True)
    smallest = r.where(exists, torch.inf).amin(-1, keepdim=True)
    return (centred / (variance.sqrt() + EPS)).where(largest != smallest, 0)


def within_tuple_advantages(r: Tensor) -> Tensor:
    """Eq. 11: branch rewards r (..., K) -> solver advantages (..., K), each branch against its
    siblings.

    Branches that were never sampled, such as those of a plan that does not parse, are NaN in r.
    They get 0 and are no siblings of the others.
    """
    return standardize(r)


def across_tuple_advantages(R: Tensor) -> Tensor:
    """Eq. 12: planner rewards R (..., M) -> planner advantages (..., M), each tuple against the
    others of its problem. M=1 gives A = R: plain REINFORCE, the paper's ablation."""
    if R.shape[-1] == 1:
        return R if R.is_floating_point() else R.float()
    return standardize(R)


def marginal_advantages(r: Tensor, scale: bool = True) -> Tensor:
    """Marginal credit for the solver, instead of Eq. 11: r (..., M, K) -> (..., M, K).

    A branch is paid what pass@K loses without it: d_i = R - R_-i = r_i * prod_{j != i} (1 - r_j), 1
    if it alone solves the problem. R_-i does not depend on what branch i wrote, so E[d_i grad log
    p(y_i)] is the gradient of pass@K (difference rewards). Eq. 11 also pays a branch whose sibling
    has solved the problem already; that draws all branches to the likeliest program.

    The baseline is the mean of d over the branches of the other M - 1 tuples: independent of this
    tuple, so it adds no bias (the mean within the tuple does). `scale` divides by the unbiased std
    of d over the problem's branches, plus eps. That std contains the branch itself: GRPO's usual
    small bias.

    Branches that were never sampled are NaN in r; they get 0 and count nowhere. Zeros where
    nothing can be compared: M = 1, no branches in the other tuples, equal d (so also where no
    branch alone solves the problem).
    """
    r = r if r.is_floating_point() else r.float()
    exists = ~r.isnan()
    r = r.where(exists, 0)
    itself = torch.eye(r.shape[-1], dtype=torch.bool, device=r.device)
    no_sibling_solves = (1 - r).unsqueeze(-2).masked_fill(itself, 1).prod(-1)
    d = r * no_sibling_solves

    count = exists.sum(-1, keepdim=True)                            # (..., M, 1) branches per tuple
    total = d.sum(-1, keepdim=True)
    others = count.sum(-2, keepdim=True) - count
    baseline = (total.sum(-2, keepdim=True) - total) / others.clamp(min=1)
    largest = d.where(exists, -torch.inf).amax((-2, -1), keepdim=True)
    smallest = d.where(exists, torch.inf).amin((-2, -1), keepdim=True)
    compared = exists & (others > 0) & (largest != smallest)
    advantages = (d - baseline).where(compared, 0)
    if not scale:
        return advantages
    n = count.sum(-2, keepdim=True)
    mean = total.sum(-2, keepdim=True) / n.clamp(min=1)
    squares = (d - mean).where(exists, 0).square().sum((-2, -1), keepdim=True)
    return advantages / ((squares / (n - 1).clamp(min=1)).sqrt() + EPS)


def place_advantages(R_plan: Tensor, r: Tensor, scale: bool = True) -> Tensor:
    """Credit by place for the planner, instead of Eq. 12: R_plan (..., M), r (..., M, K) -> an
    advantage per strategy, (..., M, K).

    Whether the branches before i have solved the problem does not depend on strategy i. So its
    tokens are compared with those tuples alone that stood as this one did when it was written:

        A_i = R_plan - mean of R_plan over the other tuples that had (not) solved the problem
              before place i, as this one had (not)

    Without such a tuple the mean is over all others. Unbiased for J * R_out like Eq. 12, with a
    smaller variance. `scale` divides by the unbiased std of R_plan over the tuples, plus eps.

    Branches that were never sampled are NaN in r and have solved nothing. Their places get an
    advantage, too: the tuple counts with its R_plan. Zeros where R_plan is equal in all tuples, and
    for M = 1.
    """
    R_plan = R_plan if R_plan.is_floating_point() else R_plan.float()
    M = R_plan.shape[-1]
    r = r.nan_to_num(nan=0.0)
    solved_before = r.cumsum(-1) - r > 0                            # (..., M, K)
    others = ~torch.eye(M, dtype=torch.bool, device=r.device).unsqueeze(-1)         # (M, M, 1)
    alike = solved_before.unsqueeze(-2) == solved_before.unsqueeze(-3)
    alike = alike & others                                          # (..., M, other tuple, K)
    nobody = ~alike.any(-2, keepdim=True)
    peers = (alike | (nobody & others)).to(R_plan.dtype)
    peer_sum = torch.einsum("...n,...mnk->...mk", R_plan, peers)
    baseline = peer_sum / peers.sum(-2).clamp(min=1)

    differs = R_plan.amax(-1) > R_plan.amin(-1)                     # (...)
    differs = differs[..., None, None]
    advantages = (R_plan.unsqueeze(-1) - baseline).where(differs, 0)
    if not scale:
        return advantages
    centred = R_plan - R_plan.mean(-1, keepdim=True)
    std = (centred.square().sum(-1) / max(1, M - 1)).sqrt()
    return advantages / (std[..., None, None] + EPS)


# ----------------------------------------------------------------------------------------------
# Log-probabilities

def tile_logits(hidden: Tensor, weight: Tensor, temperature: float,
                softcap: float | None) -> Tensor:
    """(N, H), (tile, H) -> (N, tile) logits over the temperature in fp32 or better."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        # the fp32 sum of the matrix product as it is, not rounded to bf16
        z = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        z = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if softcap:
        z = z.div_(softcap).tanh_().mul_(softcap)
    return z.div_(temperature) if temperature != 1.0 else z


def locate(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Column (N, 1) of each target in the tile that begins at word `start`, and whether it lies
    there (N,)."""
    column = targets - start
    inside = (column >= 0) & (column < width)
    return column.clamp(0, width - 1).unsqueeze(1), inside


class _TiledLogProbs(torch.autograd.Function):
    """log softmax at the targets, with one tile of the vocabulary in memory at a time."""
    # The (tokens x vocabulary) matrix of logits z, in forward and in backward:
    #
    #      word 0         start      start + tile       vocab      V
    #  token 0  +-----------+-------------+---------------+---------+
    #     :     |   freed   |  z (N, tile) |   not made    | padding |
    #  token N  +-----------+-------------+---------------+---------+
    #
    # Forward: each tile adds to lse (N,), the log of the sum of exp(z). lse alone is kept.
    # Backward: the tile is computed again, dz = grad * (onehot - softmax). dz @ weight[tile] adds
    # to the gradient of hidden (N, H); dz.T @ hidden is all of weight's gradient for these words.
    #
    # Full fp32 logits of 2,048 tokens x 248,320 words with their gradient take 5.7 GiB, this a few
    # tiles. Chunks of tokens would not do as well: each would add to the whole gradient of the
    # weight, where a tile of words writes its part once (bench/logprob.py).

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, vocab, softcap, tile, want_entropy):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        lse = hidden.new_full((len(hidden),), -torch.inf, dtype=dtype)
        target_logit = lse.clone()                  # stays -inf for a target outside the softmax
        mean_logit = torch.zeros_like(lse)          # E_p[z]; the entropy is lse - E_p[z]
        for start in range(0, vocab, tile):
            w = weight[start:min(start + tile, vocab)]
            z = tile_logits(hidden, w, temperature, softcap)
            column, inside = locate(targets, start, len(w))
            target_logit = torch.where(inside, z.gather(1, column).squeeze(1), target_logit)
            # z.logsumexp, with the exponentials kept for the entropy: what costs time is how often
            # the tile is read and written
            largest = z.amax(-1)
            e = (z - largest.unsqueeze(1)).exp_()
            total = torch.logaddexp(lse, e.sum(-1).log_().add_(largest))
            if want_entropy:
                weighted = e.mul_(z).sum(-1) * (largest - total).exp()
                mean_logit = mean_logit * (lse - total).exp() + weighted
            lse = total
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.settings = temperature, vocab, softcap, tile
        entropy = lse - mean_logit
        ctx.mark_non_differentiable(entropy)
        return target_logit - lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        hidden, weight, targets, lse = ctx.saved_tensors
        temperature, vocab, softcap, tile = ctx.settings
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad = grad / temperature               # d (z / temperature), once for all words
        for start in range(0, vocab, tile):
            w = weight[start:min(start + tile, vocab)]
            z = tile_logits(hidden, w, temperature, softcap)
            if softcap:     # d tanh = 1 - tanh^2
                slope = 1 - (z * (temperature / softcap)).square_()
            column, inside = locate(targets, start, len(w))
            dz = z.sub_(lse.unsqueeze(1)).exp_().mul_(-grad.unsqueeze(1))
            dz.scatter_add_(1, column, (grad * inside).unsqueeze(1))
            if softcap:
                dz = dz.mul_(slope)
            dz = dz.to(hidden.dtype)
            grad_hidden += dz @ w
            if grad_weight is not None:
                torch.mm(dz.T, hidden, out=grad_weight[start:start + len(w)])
        if grad_weight is not None:
            grad_weight[vocab:] = 0
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   vocab: int | None = None, softcap: float | None = None, tile: int | None = None,
                   entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs (N,) of targets (N,) under softmax(hidden (N, H) @ weight (V, H).T / temperature),
    in fp32 or better.

    vocab: only ids below it are in the softmax, since checkpoints pad their vocabulary; a target
        beyond it has log-prob -inf.
    softcap: c bounds logits to c * tanh(z / c), before the temperature.
    tile: words computed at a time; by default what TILE_LOGITS allows.
    entropy: return a pair, the second the entropies (N,) in nats, without a gradient.

    Under FSDP call it inside the root's forward: only there is the weight whole.
    """
    tile = tile or max(SMALLEST_TILE, TILE_LOGITS // max(1, len(hidden)))
    vocab = vocab or len(weight)
    logp, nats = _TiledLogProbs.apply(
        hidden, weight, targets, temperature, vocab, softcap, tile, entropy)
    return (logp, nats) if entropy else logp


# ----------------------------------------------------------------------------------------------
# The loss

def clipped_loss(logp: Tensor, old: Tensor | None, ref: Tensor | None, advantage: Tensor,
                 clip: float = CLIP, beta: float = BETA, clip_high: float | None = None,
                 sampled: Tensor | None = None,
                 tis: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 18, negated, per token: -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + beta * KL.

    All tensors are (N,). Returns the loss and {"kl", "ratio", "clipped", "tis", "mismatch"} of each
    token.
    clip_high: the upper clip range if it is another one (DAPO's clip-higher).
    sampled, tis: the sampler's log-probs and the cap of `importance_weights`, which multiply the
        surrogate, not the KL; tis 0: none.
    old: log-probs of the policy that sampled. None: the first update after a rollout, where rho is
        exactly 1 and its gradient A.
    ref: log-probs of the reference. None leaves the KL out.
    """
    old = logp.detach() if old is None else old
    ratio = (logp - old).clamp(-RATIO_CLAMP, RATIO_CLAMP).exp()
    high = clip if clip_high is None else clip_high
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + high) * advantage)
    weight = mismatch = torch.zeros_like(logp)
    if tis:
        weight, mismatch = importance_weights(old, sampled, tis)
        surrogate = surrogate * weight
    kl = torch.zeros_like(logp)
    if ref is not None:
        # k3: never negative, of small variance. The clamp ends the gradient where the policy has
        # all but given up a token; without it such a token makes inf, then 0 * inf.
        d = (ref - logp).clamp(max=KL_CLAMP)
        kl = d.exp() - d - 1
    with torch.no_grad():       # a token is clipped where the minimum has cut its gradient off
        too_high = (ratio > 1 + high) & (advantage > 0)
        too_low = (ratio < 1 - clip) & (advantage < 0)
    parts = {"kl": kl.detach(), "ratio": ratio.detach(), "clipped": too_high | too_low,
             "tis": weight, "mismatch": mismatch}
    return beta * kl - surrogate, parts


@torch.no_grad()
def importance_weights(old: Tensor, sampled: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Truncated importance weights min(p_old / p_sampled, cap), and the ratios themselves, (N,)
    each, from log-probs; 1 where `sampled` is nan.

    Tokens come from the sampler, whose probabilities differ from the trainer's by its bf16 and its
    kernels. The ratio makes the gradient unbiased for the policy, and the cap bounds its variance
    (Yao et al. 2025; TRL and verl have it for the same reason).
    """
    difference = (old - sampled.to(old.dtype)).nan_to_num(nan=0.0)
    ratio = difference.clamp(-RATIO_CLAMP, RATIO_CLAMP).exp()
    return ratio.clamp(max=cap), ratio


# ==================================================================================================
# Everything above is mathematics on tensors. Everything below is how to apply it to a large model
# on several devices.
# ==================================================================================================
# Sharding and precision

class Policy(Protocol):
    """What `shard` and `update` ask of an nn.Module.

    model.Model and lib.adapter.Adapter have it; tests/test_grpo.py gives it to a model of
    transformers. `update` on one process needs forward alone, `shard` the two lists.
    """
    blocks: Sequence[nn.Module]         # the decoder layers: each is gathered by itself
    fp32_units: Sequence[nn.Module]     # small parts that compute in fp32 always; may be empty

    def forward(self, ids: Tensor, suffixes: Tensor | None = None,
                head: Callable[[Tensor, Tensor, float | None], Tensor] | None = None) -> Tensor:
        """Returns head(hidden, weight (V, H), softcap), called inside forward.

        ids (B, T): hidden (B, T, H), the last state of each token.
        ids (1, P), suffixes (B, S): B rows that continue one prompt. hidden (B, S, H): state t
            predicts suffix token t, so state 0 is that of the last prompt token. `update` asks for
            this unless shared=False.
        """


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM) -> Tensor:
    """Reduce over all ranks, in place; nothing happens on one process. Collective."""
    if world_size() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def local(p: Tensor) -> Tensor:
    """This rank's shard of a parameter, or the parameter itself."""
    return p.to_local() if isinstance(p, DTensor) else p


def mesh_of_ranks(device_type: str) -> DeviceMesh:
    """All ranks in a row; on several nodes (nodes, ranks of a node): weights are sharded within a
    node, where gathers are fast, and only gradients travel between nodes.

    The device type is named because FSDP would else take whatever accelerator the machine has, and
    a model on the CPU may be on a machine with one.
    """
    world = world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))       # torchrun sets it
    if world > here and world % here == 0:
        return init_device_mesh(device_type, (world // here, here), mesh_dim_names=("node", "rank"))
    return init_device_mesh(device_type, (world,), mesh_dim_names=("rank",))


def shard(module: nn.Module, compute_dtype: torch.dtype,
          device: torch.device | str = "cpu") -> nn.Module:
    """FSDP2 in place: each block, then the root. The fp32 units stay whole on every rank.

    Parameters keep their dtype (fp32 in a policy: the master weights). Gathers and arithmetic are
    in `compute_dtype`, gradients are reduced in fp32.
    """
    module.to(device)
    params = list(module.parameters())
    one_dtype = all(p.dtype == compute_dtype for p in params)
    trains = any(p.requires_grad for p in params)
    small = sum(p.numel() for p in params) < REPLICATE_BELOW
    # A plain module will do for one process without mixed precision. Small models stay whole on
    # every rank, and only gradients travel (`average_gradients`): waiting for the shards of a
    # million parameters took a third of a step on two CPU ranks.
    if one_dtype and (small or world_size() == 1):
        return module
    if not trains and world_size() == 1:
        return module
    if not dist.is_initialized():
        raise ValueError(f"computing in {compute_dtype} over other master weights needs a process "
                         f"group, even of one process: call lib.run.setup first, or compute in the "
                         f"dtype of the weights")
    # inputs are not cast: blocks hand an fp32 recurrent state around
    precision = MixedPrecisionPolicy(
        compute_dtype, torch.promote_types(compute_dtype, torch.float32), cast_forward_inputs=False)
    # A_log and dt_bias set how fast the recurrent state forgets; bf16 rounds them by up to 0.4 %.
    # They keep their dtype, and all together they are a few thousand numbers: as units of their own
    # they took 144 of 221 collectives of a micro-batch (24 layers), now none.
    small = {p for unit in module.fp32_units for p in unit.parameters()}
    sharded = partial(fully_shard, mesh=mesh_of_ranks(torch.device(device).type),
                      mp_policy=precision, ignored_params=small)
    for block in module.blocks:
        sharded(block)
    # By default the root stays whole until its backward: after a forward without one, parameters()
    # would return whole tensors whose memory is freed later (seen: a segmentation fault).
    # Resharding costs one more gather.
    return sharded(module, reshard_after_forward=True)


@torch.no_grad()
def refresh(sampler: nn.Module, policy: nn.Module) -> None:
    """Copy the policy's weights into the sampler. Collective.

    Each is cast before it is gathered: half the traffic, and never a whole fp32 model. The sampler
    keeps its storage, so CUDA graphs captured over it stay valid.
    """
    if sampler is policy:
        return
    source = dict(policy.named_parameters())
    for name, target in sampler.named_parameters():
        p = source.pop(name).to(target.dtype)
        target.copy_(p.full_tensor() if isinstance(p, DTensor) else p)
    assert not source, f"the sampler lacks {sorted(source)[:3]}"


def make_optimizer(module: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over the master weights. Norms, biases, A_log and dt_bias (one axis) do not decay."""
    # tensors that `shard` leaves whole are a group of their own: one fused kernel takes either kind
    whole = {p for unit in getattr(module, "fp32_units", ()) for p in unit.parameters()}
    decaying, vectors, units = [], [], []
    for p in module.parameters():
        if p.requires_grad:
            (units if p in whole else decaying if p.ndim >= 2 else vectors).append(p)
    groups = [{"params": decaying, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}, {"params": units, "weight_decay": 0.0}]
    # fused: one pass, and no temporaries as large as the model
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def average_gradients(grads: list[Tensor]) -> None:
    """Average the gradients of what is whole on every rank, in one message: what FSDP does for
    shards. Collective."""
    flat = all_reduce(torch.cat([g.flatten() for g in grads])).div_(world_size())
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def apply_gradients(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor,
                    max_grad_norm: float = 1.0, lr: float | None = None) -> tuple[float, bool]:
    """Clip and step, or drop the gradients if the loss or their norm is not finite. Collective.

    loss: summed over ranks already, so that all ranks decide alike. max_grad_norm 0: no clipping.
    Returns (norm before clipping, whether a step was made).
    """
    sharded, whole = [], []             # torch has no kernels for both kinds in one list
    for p in module.parameters():
        if p.grad is not None:
            (sharded if isinstance(p, DTensor) else whole).append(p)
    if whole and world_size() > 1:
        average_gradients([p.grad for p in whole])
    norms = []
    for params in filter(None, (sharded, whole)):
        norm = nn.utils.get_total_norm([p.grad for p in params])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    norm = torch.stack(norms).norm() if len(norms) > 1 else (norms or [torch.zeros_like(loss)])[0]
    for params in filter(None, (sharded, whole)):
        nn.utils.clip_grads_with_norm_(params, max_grad_norm or float("inf"), norm)
    finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm), finite


# ----------------------------------------------------------------------------------------------
# Rows and micro-batches

@dataclass
class Row:
    """One sampled sequence. Tokens suffix[start:] were sampled and carry the loss; prefix and
    suffix[:start] are its prompt, the prefix being what it shares with its siblings."""
    prefix: list[int]
    suffix: list[int]
    start: int
    advantage: float | list[float]          # one for the row, or one per sampled token
    weight: float                           # 1 / (M * problems of the whole batch)
    region: str                             # "plan" or "solve"
    logprobs: list[float] | None = None     # the sampler's, of suffix[start:]; for `tis` and gaps


@dataclass
class MicroBatch:
    """Rows on the device and their loss tokens. Padding is on the right, where causal attention
    needs no mask for it."""
    ids: Tensor                 # (1, P) the prefix they share; plain: (B, T) prefix and suffix
    suffixes: Tensor | None     # (B, S); plain: None
    at: Tensor                  # (N,) the states that predict the loss tokens, in (B, S) or (B, T)
    targets: Tensor             # (N,)
    advantage: Tensor           # (N,)
    scale: Tensor               # (N,) the row's weight / its number of loss tokens
    region: Tensor              # (N,) index into REGIONS
    sampled: Tensor             # (N,) the sampler's log-probs, nan where unknown
    dummy: bool                 # of weight 0, to keep this rank in step with a busier one


def pack(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of sequences, longest first, in batches whose number times their longest is within
    the budget. A sequence longer than that goes alone."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        n = max(1, budget // lengths[order[0]])
        batches.append(order[:n])
        order = order[n:]
    return batches


def micro_batches(rows: list[Row], token_budget: int, shared: bool = True) -> list[list[Row]]:
    """Rows of one prefix together, with prefix + B * longest suffix within the budget (plain:
    B * longest row). The costliest batch comes first: ranks wait for each other at every block, so
    batches that meet should be of a size."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prefix) if shared else (), []).append(row)
    batches = []                # (tokens with padding, rows)
    for prefix, group in groups.items():
        lengths = [len(row.suffix) if shared else len(row.prefix + row.suffix) for row in group]
        for places in pack(lengths, token_budget - len(prefix)):
            tokens = len(prefix) + len(places) * lengths[places[0]]
            batches.append((tokens, [group[i] for i in places]))
    batches.sort(key=lambda batch: -batch[0])
    return [batch for _, batch in batches]


def collate(rows: list[Row], device: torch.device, shared: bool = True) -> MicroBatch:
    """Tensors of one micro-batch; no rows at all make a dummy."""
    dummy = not rows
    rows = rows or [Row([0], [0], 0, 0.0, 0.0, REGIONS[0])]
    sequences = [row.suffix if shared else row.prefix + row.suffix for row in rows]
    width = max(len(sequence) for sequence in sequences)
    padded = [sequence + [0] * (width - len(sequence)) for sequence in sequences]
    at, targets, advantage, scale, region, sampled = [], [], [], [], [], []
    for i, row in enumerate(rows):
        tokens = row.suffix[row.start:]
        n = len(tokens)
        logprobs = [float("nan")] * n if row.logprobs is None else row.logprobs
        if not tokens or len(logprobs) != n:
            raise ValueError(f"a row has {n} sampled tokens and {len(logprobs)} log-probs of the "
                             f"sampler: it needs at least one token, and one log-prob each or None")
        # suffix token t is predicted by state t after a shared prefix, by P - 1 + t in a plain row
        first = i * width + row.start + (0 if shared else len(row.prefix) - 1)
        at += range(first, first + n)
        targets += tokens
        one_for_all = not isinstance(row.advantage, list)
        advantage += [row.advantage] * n if one_for_all else row.advantage
        scale += [row.weight / n] * n
        region += [REGIONS.index(row.region)] * n
        sampled += logprobs
    tensor = partial(torch.tensor, device=device)
    double = partial(tensor, dtype=torch.float64)
    return MicroBatch(
        ids=tensor([rows[0].prefix] if shared else padded),
        suffixes=tensor(padded) if shared else None,
        at=tensor(at), targets=tensor(targets), advantage=double(advantage), scale=double(scale),
        region=tensor(region), sampled=double(sampled), dummy=dummy)


def collate_all(rows: list[Row], token_budget: int, device: torch.device,
                shared: bool = True) -> list[MicroBatch]:
    """This rank's micro-batches, filled up with dummies to the number of the busiest rank, since
    FSDP's collectives must match. Collective."""
    groups = micro_batches(rows, token_budget, shared)
    count = all_reduce(torch.tensor(len(groups), device=device), dist.ReduceOp.MAX)
    groups += [[]] * (int(count) - len(groups))
    return [collate(group, device, shared) for group in groups]


def row_logprobs(module: nn.Module, batch: MicroBatch, temperature: float = 1.0,
                 vocab: int | None = None, entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs (N,) of a micro-batch's loss tokens, with their entropies on request."""
    def head(hidden: Tensor, weight: Tensor, softcap: float | None):
        # states that predict a prompt token are dropped before the head's matrix product
        states = hidden.flatten(0, 1).index_select(0, batch.at)
        return token_logprobs(states, weight, batch.targets, temperature, vocab, softcap,
                              entropy=entropy)
    if batch.suffixes is None:
        return module(batch.ids, head=head)
    return module(batch.ids, batch.suffixes, head=head)


# ----------------------------------------------------------------------------------------------
# The update

clock = time.perf_counter       # bench/step.py puts process CPU seconds here


class Tally:
    """What `update` measures, by region and by phase: over micro-batches, then over ranks."""
    PHASES = ("reference", "forward", "backward", "optimizer")

    def __init__(self, device: torch.device):
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.sums = zeros(len(REGIONS), 8)          # the columns of `add`
        self.maxima = zeros(len(REGIONS), 3)
        self.seconds = zeros(len(self.PHASES))

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the seconds until the device is done: one wait per phase of some 100 ms."""
        start = clock()
        yield
        if self.sums.is_cuda:
            torch.cuda.synchronize(self.sums.device)
        self.seconds[self.PHASES.index(phase)] += clock() - start

    @torch.no_grad()
    def add(self, batch: MicroBatch, loss: Tensor, logp: Tensor, entropy: Tensor,
            parts: dict[str, Tensor], first: bool) -> None:
        """Count the tokens (N,) of a micro-batch. `first`: the weights are still those that
        sampled, so that the gap to the sampler's log-probs means something."""
        if batch.dummy:
            return
        known = ~batch.sampled.isnan() & first
        gap = torch.where(known, (logp - batch.sampled).abs(), 0.0)
        columns = [torch.ones_like(gap), loss, parts["kl"], parts["clipped"], entropy, known, gap,
                   parts["tis"]]
        self.sums.index_add_(0, batch.region, torch.stack(columns, 1))
        maxima = torch.stack([parts["ratio"], gap, parts["mismatch"]], 1)
        region = batch.region.unsqueeze(1).expand_as(maxima)
        self.maxima.scatter_reduce_(0, region, maxima, "amax")

    def metrics(self, turns: int) -> dict[str, float]:
        """{"plan/kl": ..., "solve/kl": ..., "tokens": ..., "seconds_forward": ...}: means over
        tokens, seconds of the slowest rank. A region without tokens is left out. Collective."""
        sums = all_reduce(self.sums).tolist()
        maxima = all_reduce(self.maxima, dist.ReduceOp.MAX).tolist()
        seconds = all_reduce(self.seconds, dist.ReduceOp.MAX).tolist()
        metrics = {f"seconds_{phase}": value for phase, value in zip(self.PHASES, seconds)}
        metrics["tokens"] = sum(values[0] for values in sums) / turns
        for region, values, (ratio_max, gap_max, tis_max) in zip(REGIONS, sums, maxima):
            tokens, loss, kl, clipped, entropy, gap_tokens, gap, tis = values
            if not tokens:
                continue
            metrics[f"{region}/tokens"] = tokens / turns
            metrics[f"{region}/loss"] = loss / tokens
            metrics[f"{region}/kl"] = kl / tokens
            metrics[f"{region}/clip_fraction"] = clipped / tokens
            metrics[f"{region}/ratio_max"] = ratio_max
            metrics[f"{region}/entropy"] = entropy / tokens
            if tis:
                metrics[f"{region}/tis_mean"] = tis / tokens
                metrics[f"{region}/tis_max"] = tis_max          # before the cap
            if gap_tokens:
                metrics[f"{region}/gap_mean"] = gap / gap_tokens
                metrics[f"{region}/gap_max"] = gap_max
        return metrics


def check_ids(rows: list[Row], vocab: int | None) -> None:
    """ValueError if a sampled id lies outside the softmax: its log-prob would be -inf."""
    for row in rows:
        largest = max(row.suffix[row.start:], default=0)
        if vocab and largest >= vocab:
            raise ValueError(f"a sampled id {largest} is outside the vocabulary of {vocab}: sample "
                             f"with the same limit")


@contextmanager
def explain_out_of_memory(token_budget: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(".")[0]
        raise torch.OutOfMemoryError(
            f"out of GPU memory with micro-batches of up to {token_budget} tokens: lower "
            f"--token-budget ({reason})") from error


def distance(params: list[Tensor], before: list[Tensor]) -> float:
    """Length of the step that led from `before` (this rank's shards, overwritten) to `params`.
    Collective."""
    sharded, whole = torch.zeros(2, dtype=torch.float64, device=params[0].device)
    mesh = None
    for p, was in zip(params, before, strict=True):
        moved = was.sub_(local(p).detach())
        squared = torch.linalg.vector_norm(moved, dtype=torch.float64).square()
        if isinstance(p, DTensor):
            mesh = p.device_mesh
            sharded += squared
        else:
            whole += squared
    if mesh is not None:            # the last axis holds the shards, other nodes have the same ones
        dist.all_reduce(sharded, group=mesh.get_group(mesh.ndim - 1))
    return float(sharded + whole) ** 0.5


def update(policy: Policy, reference: Policy | None, optimizer: torch.optim.Optimizer,
           rows: list[Row], *, temperature: float = 1.0, clip: float = CLIP, beta: float = BETA,
           vocab: int | None = None, token_budget: int = 16384, updates: int = 1,
           max_grad_norm: float = 1.0, lr: float | None = None, shared: bool = True,
           want_step_norm: bool = False, clip_high: float | None = None,
           tis: float = 0.0) -> dict[str, float]:
    """`updates` optimizer steps on Eq. 13, and their metrics. `rows`: this rank's. Collective.

    loss = sum over rows of weight * mean over the row's sampled tokens of Eq. 18
    token_budget: padded tokens of a micro-batch. The result does not depend on it.
    shared: compute a prompt once for all rows that continue it. False: each row has its own copy.
    want_step_norm: measure how far the weights moved; takes a copy of them.
    tis: cap of the importance weights (`importance_weights`); 0: none.
    A non-finite loss or gradient skips the step on all ranks and ends the update ("skipped": 1).
    """
    check_ids(rows, vocab)
    params = [p for p in policy.parameters() if p.requires_grad]
    batches = collate_all(rows, token_budget, params[0].device, shared)
    old, ref = [None] * len(batches), [None] * len(batches)
    logprobs = partial(row_logprobs, temperature=temperature, vocab=vocab)
    tally, losses, norms = Tally(params[0].device), [], []

    with explain_out_of_memory(token_budget):
        if updates > 1:             # the ratio is to the policy that sampled
            with torch.no_grad(), tally.time("forward"):
                old = [logprobs(policy, batch) for batch in batches]
        if reference is not None and beta:
            with torch.no_grad(), tally.time("reference"):
                ref = [logprobs(reference, batch) for batch in batches]
        for turn in range(updates):
            loss = torch.zeros((), dtype=torch.float64, device=params[0].device)
            for batch, old_logp, ref_logp in zip(batches, old, ref, strict=True):
                if isinstance(policy, FSDPModule):      # between nodes gradients travel once a step
                    policy.set_requires_all_reduce(batch is batches[-1])
                with tally.time("forward"):
                    logp, entropy = logprobs(policy, batch, entropy=True)
                    advantage = batch.advantage.to(logp.dtype)
                    tokens, parts = clipped_loss(logp, old_logp, ref_logp, advantage, clip, beta,
                                                 clip_high, batch.sampled, tis)
                    part = (tokens * batch.scale.to(logp.dtype)).sum()
                with tally.time("backward"):
                    # gradients are averaged over ranks, but the weights hold the denominator
                    (part * world_size()).backward()
                loss += part.detach()
                tally.add(batch, tokens.detach(), logp.detach(), entropy, parts, first=turn == 0)
            if want_step_norm and turn == 0:    # not sooner: activations have just left this room
                before = [local(p).detach().clone() for p in params]
            with tally.time("optimizer"):
                all_reduce(loss)
                norm, stepped = apply_gradients(policy, optimizer, loss, max_grad_norm, lr)
            losses.append(float(loss))
            norms.append(norm)
            if not stepped:
                break

    metrics = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms),
               "skipped": int(not stepped), "micro_batches": len(batches)}
    if want_step_norm:
        metrics["step_norm"] = distance(params, before)
    return metrics | tally.metrics(len(losses))
