"""The split-region GRPO loss of CPPO (Eq. 11-13, 17, 18), and the update that applies it.

First the mathematics: advantages, log-probabilities over a tiled vocabulary, the clipped loss with its KL
term; these need torch and nothing else. After the rule: sharding, micro-batches, the update.

    policy = grpo.shard(model.load(path, torch.float32), torch.bfloat16, device)     # fp32 master weights
    reference = grpo.shard(model.load(path, torch.bfloat16).requires_grad_(False), torch.bfloat16, device)
    optimizer = grpo.make_optimizer(policy, lr=5e-7)
    metrics = grpo.update(policy, reference, optimizer, rows, temperature=0.7, token_budget=16384)
    grpo.refresh(sampler, policy)

Where this departs from the paper, or fills in what it leaves open:
 1. Ratios are per token (Eq. 18 writes one per rollout), and a row's loss is the mean over its tokens.
 2. Eq. 13 sums over the M*K solver rows and the M planner rows of a problem. `Row.weight` holds
    1 / (M * problems of the whole batch): one denominator for both regions, every rank, every micro-batch.
 3. The std of Eq. 11, 12 and 17 is the unbiased one. A group of equal rewards gets exactly 0; with M=1, A =
    R.
 4. KL is the k3 estimate, its log difference clamped. Its gradient at ratio 1 is that of KL(ref || policy).
    (TRL now multiplies it by the ratio, which changes that gradient; the paper takes GRPO as it was.)
 5. One update per rollout: the ratio is then exactly 1. With more, old log-probs are recomputed by the
    trainer in the same micro-batches; the sampler's own are only compared with (`gap_mean`, `gap_max`): bf16
    decoding and a bf16 forward differ by more than the clip range on 1.6 % of tokens.

Shapes: K branches a tuple, M tuples a problem, B rows, P prefix tokens, S suffix tokens, N loss tokens,
H hidden, V vocabulary.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

EPS = 1e-6              # Eq. 11, 12, 17: added to the std, outside the root
CLIP = 0.2              # Eq. 18
BETA = 0.01             # Eq. 18: weight of the KL to the frozen reference
KL_CLAMP = 10.0         # largest ref - policy log difference that is exponentiated; e^100 would be inf
RATIO_CLAMP = 20.0      # the same for policy - old
LOGITS_AT_ONCE = 2 ** 25    # logits of one vocabulary tile, tokens x words: 128 MiB in fp32
SMALLEST_TILE = 1024        # words; below it the matrix products get thin


def _standardise(r: Tensor) -> Tensor:
    """(r - mean) / (std + eps) over the last axis, Eq. 17. Equal values give exactly 0: the mean of seven
    0.1s is not 0.1, and its rounding error over eps would be an advantage."""
    r = r if r.is_floating_point() else r.float()
    equal = r.amax(-1, keepdim=True) == r.amin(-1, keepdim=True)
    centred = r - r.mean(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / max(1, r.shape[-1] - 1)).sqrt()
    return torch.where(equal, torch.zeros_like(r), centred / (std + EPS))


def within_tuple_advantages(r: Tensor) -> Tensor:
    """Eq. 11: branch rewards r (..., K) -> solver advantages (..., K), each branch against its siblings."""
    return _standardise(r)


def across_tuple_advantages(R: Tensor) -> Tensor:
    """Eq. 12: planner rewards R (..., M) -> (..., M), each tuple against the others of its problem. A single
    one has nobody to be compared with: A = R, plain REINFORCE (the paper's M=1 ablation)."""
    if R.shape[-1] == 1:
        return R if R.is_floating_point() else R.float()
    return _standardise(R)


def marginal_advantages(r: Tensor, exists: Tensor | None = None, scale: bool = True) -> Tensor:
    """Marginal credit for the solver, instead of Eq. 11: r (..., M, K) -> (..., M, K).

    A branch is paid what pass@K loses without it: d_i = R - R_-i = r_i * prod_{j != i} (1 - r_j), 1
    if it alone solves the problem. R_-i does not depend on what branch i wrote, so E[d_i grad log
    p(y_i)] is the gradient of pass@K (difference rewards). Eq. 11 also pays a branch whose sibling
    has solved the problem already; that draws all branches to the likeliest program.

    The baseline is the mean of d over the branches of the other M - 1 tuples: independent of this
    tuple, so it adds no bias (the mean within the tuple does). `scale` divides by the unbiased std
    of d over the problem's branches, plus eps. That std contains the branch itself: GRPO's usual
    small bias.

    exists (..., M, K): False for branches that were never sampled. They get 0 and count nowhere.
    Zeros where nothing can be compared: M = 1, no branches in the other tuples, equal d (so also
    where no branch alone solves the problem).
    """
    r = r if r.is_floating_point() else r.float()
    if exists is None:
        exists = torch.ones_like(r, dtype=torch.bool)
    r = r.where(exists, 0)
    K = r.shape[-1]
    itself = torch.eye(K, dtype=torch.bool, device=r.device)
    no_sibling_solves = (1 - r).unsqueeze(-2).masked_fill(itself, 1).prod(-1)
    d = r * no_sibling_solves

    count = exists.sum(-1, keepdim=True)                            # (..., M, 1) branches per tuple
    total = d.sum(-1, keepdim=True)
    others = count.sum(-2, keepdim=True) - count
    baseline = (total.sum(-2, keepdim=True) - total) / others.clamp(min=1)
    compared = exists & (others > 0) & _differs(d, exists)
    advantages = (d - baseline).where(compared, 0)
    if not scale:
        return advantages
    n = count.sum(-2, keepdim=True)
    mean = total.sum(-2, keepdim=True) / n.clamp(min=1)
    squares = (d - mean).where(exists, 0).square().sum((-2, -1), keepdim=True)
    return advantages / ((squares / (n - 1).clamp(min=1)).sqrt() + EPS)


def _differs(d: Tensor, exists: Tensor) -> Tensor:
    """Whether the existing entries of d (..., M, K) differ, (..., 1, 1)."""
    largest = d.where(exists, -torch.inf).amax((-2, -1), keepdim=True)
    smallest = d.where(exists, torch.inf).amin((-2, -1), keepdim=True)
    return largest > smallest


def place_advantages(R_plan: Tensor, r: Tensor, exists: Tensor | None = None,
                     scale: bool = True) -> Tensor:
    """Credit by place for the planner, instead of Eq. 12: R_plan (..., M), r (..., M, K) -> an
    advantage per strategy, (..., M, K).

    Whether the branches before i have solved the problem does not depend on strategy i. So its
    tokens are compared with those tuples alone that stood as this one did when it was written:

        A_i = R_plan - mean of R_plan over the other tuples that had (not) solved the problem
              before place i, as this one had (not)

    Without such a tuple the mean is over all others. Unbiased for J * R_out like Eq. 12, with a
    smaller variance. `scale` divides by the unbiased std of R_plan over the tuples, plus eps.

    exists (..., M, K): False for branches that were never sampled; they have solved nothing. Their
    places get an advantage, too: the tuple counts with its R_plan. Zeros where R_plan is equal in
    all tuples, and for M = 1.
    """
    R_plan = R_plan if R_plan.is_floating_point() else R_plan.float()
    M = R_plan.shape[-1]
    if exists is not None:
        r = r.where(exists, 0)
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


def _logits(hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None) -> Tensor:
    """(N, H), (tile, H) -> (N, tile) logits over the temperature, fp32 or better, in memory of their own."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        z = torch.mm(hidden, weight.T, out_dtype=torch.float32)     # the accumulator, not rounded to bf16
    else:
        z = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if softcap:
        z = z.div_(softcap).tanh_().mul_(softcap)
    return z.div_(temperature) if temperature != 1.0 else z


class _TiledLogProbs(torch.autograd.Function):
    """log softmax at the targets, a tile of the vocabulary at a time, its logits made again for the backward.

    fp32 logits of 2,048 tokens x 248,320 words with their gradient take 5.7 GiB; this takes the weight's
    gradient and a few tiles. Tiles of the vocabulary, not chunks of rows: each slice of the weight's gradient
    is written once, where every chunk of rows would add to all of it (bench/logprob.py)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, vocab, softcap, tile, want_entropy):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        lse = hidden.new_full((len(hidden),), -torch.inf, dtype=dtype)
        target_logit = lse.clone()                  # stays -inf for a target outside the softmax
        mean_logit = torch.zeros_like(lse)          # E_p[z]; the entropy is lse - E_p[z]
        for start in range(0, vocab, tile):
            z = _logits(hidden, weight[start:min(start + tile, vocab)], temperature, softcap)
            at = targets - start
            inside = (at >= 0) & (at < z.shape[1])
            picked = z.gather(1, at.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
            target_logit = torch.where(inside, picked, target_logit)
            total = torch.logaddexp(lse, z.logsumexp(-1))
            if want_entropy:
                mean_logit = mean_logit * (lse - total).exp() + ((z - total.unsqueeze(1)).exp_() * z).sum(-1)
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
        for start in range(0, vocab, tile):
            w = weight[start:min(start + tile, vocab)]
            z = _logits(hidden, w, temperature, softcap)
            slope = 1 - (z * (temperature / softcap)).square_() if softcap else None
            p = z.sub_(lse.unsqueeze(1)).exp_().mul_(-grad.unsqueeze(1))        # d logp / dz = onehot - p
            at = targets - start
            inside = (at >= 0) & (at < p.shape[1])
            p.scatter_add_(1, at.clamp(0, p.shape[1] - 1).unsqueeze(1), (grad * inside).unsqueeze(1))
            p = (p.mul_(slope) if softcap else p).div_(temperature).to(hidden.dtype)
            grad_hidden += p @ w
            if grad_weight is not None:
                torch.mm(p.T, hidden, out=grad_weight[start:start + len(w)])
        if grad_weight is not None:
            grad_weight[vocab:] = 0
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   vocab: int | None = None, softcap: float | None = None, tile: int | None = None,
                   entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs (N,) of targets (N,) under softmax(hidden (N, H) @ weight (V, H).T / temperature).

    Only ids below `vocab` are in the softmax (checkpoints pad their vocabulary); a target beyond it has
    log-prob -inf. `softcap` c bounds logits to c * tanh(z / c), before the temperature. `tile` is in words of
    the vocabulary (None: what LOGITS_AT_ONCE allows). With `entropy` a pair comes back, the second (N,) in
    nats and without a gradient. Results are fp32 or better. Under FSDP call it inside the root's forward:
    only there is the weight whole."""
    tile = tile or max(SMALLEST_TILE, LOGITS_AT_ONCE // max(1, len(hidden)))
    vocab = vocab or len(weight)
    logp, nats = _TiledLogProbs.apply(hidden, weight, targets, temperature, vocab, softcap, tile, entropy)
    return (logp, nats) if entropy else logp


def clipped_loss(logp: Tensor, old: Tensor | None, ref: Tensor | None, advantage: Tensor, clip: float = CLIP,
                 beta: float = BETA) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 18, negated, per token: -min(rho A, clip(rho, 1 -+ clip) A) + beta * KL. All (N,), and so is the
    result; with it "kl", "ratio" and "clipped" of each token.

    `old=None` stands for the first update after a rollout: rho is exactly 1, its gradient A. `ref=None`
    leaves the KL out. KL is k3, exp(d) - d - 1 with d = ref - logp: never negative, of small variance. Its
    clamp ends the gradient where the policy has all but given up a token; without it such a token makes inf,
    then 0 * inf."""
    old = logp.detach() if old is None else old
    ratio = (logp - old).clamp(-RATIO_CLAMP, RATIO_CLAMP).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    kl = torch.zeros_like(logp)
    if ref is not None:
        d = (ref - logp).clamp(max=KL_CLAMP)
        kl = d.exp() - d - 1
    with torch.no_grad():       # a token is clipped where the minimum has cut its gradient off
        clipped = ((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
    return beta * kl - surrogate, {"kl": kl.detach(), "ratio": ratio.detach(), "clipped": clipped}


# ------------------------------------------------------------------------------------------------------------
# Sharding and precision

def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM) -> Tensor:
    """Over all ranks, in place; nothing to do for one."""
    if world_size() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def local(p: Tensor) -> Tensor:
    """This rank's shard of a parameter, or the parameter itself."""
    return p.to_local() if isinstance(p, DTensor) else p


def shard(module: nn.Module, compute_dtype: torch.dtype, device: torch.device | str = "cpu",
          replicate: bool = False) -> nn.Module:
    """FSDP2 in place: the fp32 units, each block, then the root. Parameters keep their dtype (fp32 in a
    policy: the master weights), gathers and arithmetic are in `compute_dtype`, gradients are reduced in fp32.

    A_log and dt_bias set how fast the recurrent state forgets and bf16 rounds them by up to 0.4 %, hence
    units of their own that stay fp32. Inputs are not cast: blocks hand an fp32 recurrent state around. One
    process that computes in the dtype of its weights needs none of this and keeps a plain module.

    `replicate`: every rank keeps the whole module and only gradients travel, once an update. For models so small
    that waiting for shards costs more than holding them (a million parameters on two CPU ranks: a third of a step)."""
    module.to(device)
    if replicate and any(p.dtype != compute_dtype for p in module.parameters()) and compute_dtype != torch.float32:
        raise ValueError(f"replicated weights compute in their own dtype, not in {compute_dtype}: leave --replicate out")
    if replicate:
        return module
    trains = any(p.requires_grad for p in module.parameters())
    if world_size() == 1 and (not trains or all(p.dtype == compute_dtype for p in module.parameters())):
        return module
    if not dist.is_initialized():
        raise ValueError(f"computing in {compute_dtype} over other master weights needs a process group, if "
                         f"only of one: call lib.run.setup first, or compute in the dtype of the weights")
    wide = torch.promote_types(compute_dtype, torch.float32)
    low = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=wide, cast_forward_inputs=False)
    full = MixedPrecisionPolicy(param_dtype=wide, reduce_dtype=wide, cast_forward_inputs=False)
    for unit in module.fp32_units:
        fully_shard(unit, mp_policy=full)
    for block in module.blocks:
        fully_shard(block, mp_policy=low)
    # By default the root stays whole until its backward: after a forward without one, parameters() would hand
    # out whole tensors whose memory is freed later (seen: a segmentation fault). It costs one more gather.
    return fully_shard(module, mp_policy=low, reshard_after_forward=True)


@torch.no_grad()
def refresh(sampler: nn.Module, policy: nn.Module) -> None:
    """Copy the policy into the sampler, parameter by parameter, into the same storage: CUDA graphs captured
    over it stay valid. The shard is cast before it is gathered: half the traffic, never a whole fp32 model.
    Collective."""
    if sampler is policy:
        return
    source = dict(policy.named_parameters())
    for name, target in sampler.named_parameters():
        p = source.pop(name).to(target.dtype)
        target.copy_(p.full_tensor() if isinstance(p, DTensor) else p)
    assert not source, f"the sampler lacks {sorted(source)[:3]}"


def make_optimizer(module: nn.Module, lr: float, weight_decay: float = 0.0,
                   betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over the master weights. Norms, biases, A_log and dt_bias (one axis) are not decayed."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    # fused: one pass, and no temporaries as large as the model
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def average_gradients(module: nn.Module) -> None:
    """Of a replicated module, over ranks, in one message: what FSDP does for shards."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = all_reduce(torch.cat([g.flatten() for g in grads])).div_(world_size())
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def apply_gradients(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor,
                    max_grad_norm: float = 1.0, lr: float | None = None) -> tuple[float, bool]:
    """Clip and step, or drop the gradients if the loss (already summed over ranks) or their norm is not
    finite; every rank sees the same two numbers, so all decide the same. Returns (norm before clipping,
    stepped). max_grad_norm 0: no clipping."""
    if world_size() > 1 and not isinstance(next(module.parameters()), DTensor):
        average_gradients(module)
    norm = nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm), finite


# ------------------------------------------------------------------------------------------------------------
# Rows and micro-batches

REGIONS = ("plan", "solve")


@dataclass
class Row:
    """One sampled sequence, whoever collected it. Tokens suffix[start:] were sampled and carry the loss;
    prefix and suffix[:start] are its prompt, the prefix being what it shares with its siblings."""
    prefix: list[int]
    suffix: list[int]
    start: int
    advantage: float
    weight: float                           # 1 / (M * problems of the whole batch): the one denominator
    region: str                             # "plan" | "solve"
    logprobs: list[float] | None = None     # the sampler's, of suffix[start:]; never trained on


@dataclass
class MicroBatch:
    """Rows on the device, right padded (causal attention needs no mask for that), and their loss tokens."""
    ids: Tensor                 # (1, P) the prefix they share; plain: (B, T) prefix and suffix of each row
    suffixes: Tensor | None     # (B, S); plain: None
    at: Tensor                  # (N,) the states that predict the loss tokens, in (B, S) or (B, T) flattened
    targets: Tensor             # (N,)
    advantage: Tensor           # (N,)
    scale: Tensor               # (N,) the row's weight / its number of loss tokens
    region: Tensor              # (N,) index into REGIONS
    sampled: Tensor             # (N,) the sampler's log-probs, nan where unknown
    dummy: bool                 # of weight 0, to keep this rank in step with a busier one


def micro_batches(rows: list[Row], token_budget: int, shared: bool = True) -> list[list[Row]]:
    """Rows of one prefix together, longest suffix first, as long as prefix + B * longest suffix is within the
    budget (plain: B * longest row). A row beyond the budget goes alone. The costliest batch comes first:
    ranks wait for each other at every block, so batches that meet should be of a size."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prefix) if shared else (), []).append(row)
    batches = []                # (tokens with padding, rows)
    for prefix, group in groups.items():
        lengths = [len(row.suffix) + (0 if shared else len(row.prefix)) for row in group]
        order = sorted(range(len(group)), key=lambda i: -lengths[i])
        while order:
            longest = lengths[order[0]]
            n = min(len(order), max(1, (token_budget - len(prefix)) // longest))
            batches.append((len(prefix) + n * longest, [group[i] for i in order[:n]]))
            order = order[n:]
    return [batch for _, batch in sorted(batches, key=lambda pair: -pair[0])]


def collate(rows: list[Row], device: torch.device, shared: bool = True) -> MicroBatch:
    """Tensors of one micro-batch; no rows at all make a dummy."""
    dummy = not rows
    rows = rows or [Row([0], [0], 0, 0.0, 0.0, REGIONS[0])]
    sequences = [row.suffix if shared else row.prefix + row.suffix for row in rows]
    width = max(map(len, sequences))
    padded = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=device)
    at, targets, values = [], [], []
    for i, row in enumerate(rows):
        tokens = row.suffix[row.start:]
        logprobs = [float("nan")] * len(tokens) if row.logprobs is None else row.logprobs
        if not tokens or len(logprobs) != len(tokens):
            raise ValueError(f"a row has {len(tokens)} sampled tokens and {len(logprobs)} log-probs of the "
                             f"sampler: it needs at least one token, and one log-prob a token or None")
        # the state that predicts suffix token t: place t beside a shared prefix, P - 1 + t in a plain row
        first = i * width + row.start + (0 if shared else len(row.prefix) - 1)
        at += range(first, first + len(tokens))
        targets += tokens
        constant = row.advantage, row.weight / len(tokens), REGIONS.index(row.region)
        values += [(*constant, logprob) for logprob in logprobs]
    advantage, scale, region, sampled = torch.tensor(values, dtype=torch.float64, device=device).unbind(1)
    return MicroBatch(ids=torch.tensor([rows[0].prefix], device=device) if shared else padded,
                      suffixes=padded if shared else None, at=torch.tensor(at, device=device),
                      targets=torch.tensor(targets, device=device), advantage=advantage, scale=scale,
                      region=region.long(), sampled=sampled, dummy=dummy)


def row_logprobs(module: nn.Module, batch: MicroBatch, temperature: float = 1.0, vocab: int | None = None,
                 entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs (N,) of a micro-batch's loss tokens, with their entropies on request. It all happens inside
    the root's forward, and states that predict a prompt token are dropped before the head."""
    def head(hidden: Tensor, weight: Tensor, softcap: float | None):
        states = hidden.flatten(0, 1).index_select(0, batch.at)
        return token_logprobs(states, weight, batch.targets, temperature, vocab, softcap, entropy=entropy)
    if batch.suffixes is None:
        return module(batch.ids, head=head)
    return module(batch.ids, batch.suffixes, head=head)


# ------------------------------------------------------------------------------------------------------------
# The update

clock = time.perf_counter       # bench/step.py puts process CPU seconds here


class Tally:
    """What `update` measures: by region and by phase, over micro-batches and then over ranks."""
    PHASES = ("reference", "forward", "backward", "optimizer")

    def __init__(self, device: torch.device):
        make = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)
        self.sums, self.maxima = make(len(REGIONS), 7), make(len(REGIONS), 2)       # columns: see `add`
        self.seconds = make(len(self.PHASES))

    @contextmanager
    def time(self, phase: str):
        """Seconds until the device is done: one wait for it in a phase of some hundred milliseconds."""
        start = clock()
        yield
        if self.sums.is_cuda:
            torch.cuda.synchronize(self.sums.device)
        self.seconds[self.PHASES.index(phase)] += clock() - start

    @torch.no_grad()
    def add(self, batch: MicroBatch, loss: Tensor, logp: Tensor, parts: dict[str, Tensor],
            entropy: Tensor | None, first: bool) -> None:
        """`first`: the weights are still those that sampled, so a gap to the sampler means something."""
        if batch.dummy:
            return
        known = ~batch.sampled.isnan() & first
        gap = torch.where(known, (logp - batch.sampled).abs(), 0.0)
        ones = torch.ones_like(gap)
        entropy = torch.zeros_like(gap) if entropy is None else entropy
        sums = torch.stack([ones, loss, parts["kl"], parts["clipped"], entropy, known, gap], 1)
        self.sums.index_add_(0, batch.region, sums)
        maxima = torch.stack([parts["ratio"], gap], 1)
        self.maxima.scatter_reduce_(0, batch.region.unsqueeze(1).expand_as(maxima), maxima, "amax")

    def reduce(self, turns: int, want_entropy: bool) -> dict[str, float]:
        """{"plan/kl": ..., "solve/kl": ..., "tokens": ..., "seconds_forward": ...}: means over tokens,
        seconds of the slowest rank. What was not measured is left out, as is a region without tokens."""
        sums = all_reduce(self.sums).tolist()
        maxima = all_reduce(self.maxima, dist.ReduceOp.MAX).tolist()
        seconds = all_reduce(self.seconds, dist.ReduceOp.MAX).tolist()
        metrics = {"tokens": sum(values[0] for values in sums) / turns}
        for region, values, (ratio_max, gap_max) in zip(REGIONS, sums, maxima):
            tokens, loss, kl, clipped, entropy, gap_tokens, gap = values
            if tokens:
                found = {"tokens": tokens / turns, "loss": loss / tokens, "kl": kl / tokens,
                         "clip_fraction": clipped / tokens, "ratio_max": ratio_max}
                found |= {"entropy": entropy / tokens} if want_entropy else {}
                found |= {"gap_mean": gap / gap_tokens, "gap_max": gap_max} if gap_tokens else {}
                metrics |= {f"{region}/{name}": value for name, value in found.items()}
        return metrics | {f"seconds_{name}": value for name, value in zip(self.PHASES, seconds)}


def update(policy: nn.Module, reference: nn.Module | None, optimizer: torch.optim.Optimizer, rows: list[Row],
           *, temperature: float = 1.0, clip: float = CLIP, beta: float = BETA, vocab: int | None = None,
           token_budget: int = 16384, updates: int = 1, max_grad_norm: float = 1.0, lr: float | None = None,
           shared: bool = True, want_entropy: bool = False, want_bf16_share: bool = False
           ) -> dict[str, float]:
    """Eq. 13 over the rows of all ranks, of which these are one's own: `updates` optimizer steps, and
    metrics.

    loss = sum over rows of weight * mean over the row's sampled tokens of Eq. 18. `token_budget` bounds the
    padded tokens of a micro-batch; the result does not depend on it. Every rank runs as many micro-batches as
    the busiest, since FSDP's collectives must match. A non-finite loss or gradient skips the step on all
    ranks and ends the update ("skipped": 1). `shared=False` gives each row its own copy of the prompt, for
    models that need it."""
    for row in rows:
        if vocab and max(row.suffix[row.start:], default=0) >= vocab:
            raise ValueError(f"a sampled id {max(row.suffix[row.start:])} is outside the vocabulary of "
                             f"{vocab}: sample with the same limit")
    params = [p for p in policy.parameters() if p.requires_grad]
    device = params[0].device
    reference = reference if beta else None
    groups = micro_batches(rows, token_budget, shared)
    count = int(all_reduce(torch.tensor(len(groups), device=device), dist.ReduceOp.MAX))
    batches = [collate(group, device, shared) for group in groups + [[]] * (count - len(groups))]
    old, ref = [None] * count, [None] * count
    tally, losses, norms, stepped = Tally(device), [], [], True

    try:
        if updates > 1:
            with torch.no_grad(), tally.time("forward"):
                old = [row_logprobs(policy, batch, temperature, vocab) for batch in batches]
        for turn in range(updates):
            loss = torch.zeros((), dtype=torch.float64, device=device)
            for i, batch in enumerate(batches):
                if reference is not None and turn == 0:
                    with torch.no_grad(), tally.time("reference"):
                        ref[i] = row_logprobs(reference, batch, temperature, vocab)
                with tally.time("forward"):
                    out = row_logprobs(policy, batch, temperature, vocab, want_entropy)
                    logp, entropy = out if want_entropy else (out, None)
                    advantage, scale = batch.advantage.to(logp.dtype), batch.scale.to(logp.dtype)
                    tokens, parts = clipped_loss(logp, old[i], ref[i], advantage, clip, beta)
                    part = (tokens * scale).sum()
                with tally.time("backward"):
                    (part * world_size()).backward()        # FSDP averages; the denominator is in the weights
                loss += part.detach()
                tally.add(batch, tokens.detach(), logp.detach(), parts, entropy, first=turn == 0)
            with tally.time("optimizer"):
                if turn == 0:       # not sooner: the copy takes the room that activations have just left
                    before = [local(p).detach().clone() for p in params]
                norm, stepped = apply_gradients(policy, optimizer, all_reduce(loss), max_grad_norm, lr)
            losses.append(float(loss))
            norms.append(norm)
            if not stepped:
                break
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"out of GPU memory with micro-batches of up to {token_budget} tokens: "
                                     f"lower --token-budget ({str(error).split('.')[0]})") from error

    moved = torch.zeros(3, dtype=torch.float64, device=device)     # squared step, changed bf16 values, values
    for p, was in zip(params, before):
        now = local(p).detach()
        if want_bf16_share:
            moved[1] += (now.bfloat16() != was.bfloat16()).sum()
            moved[2] += now.numel()
        moved[0] += torch.linalg.vector_norm(was.sub_(now), dtype=torch.float64).square()
    squared, changed, values = (all_reduce(moved) if isinstance(params[0], DTensor) else moved).tolist()
    metrics = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms),
               "step_norm": squared ** 0.5, "skipped": int(not stepped), "micro_batches": count,
               **tally.reduce(len(losses), want_entropy)}
    return metrics | {"bf16_changed": changed / values} if want_bf16_share else metrics
