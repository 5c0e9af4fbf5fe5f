"""The split-region GRPO loss of CPPO (Eq. 11-13, 17, 18), and the update that applies it.

First the mathematics: advantages, log-probabilities over a tiled vocabulary, the clipped loss with its KL term. Those
functions need torch and nothing else. After the rule: sharding and precision, micro-batches, the update.

    policy = grpo.shard(model.load(path, torch.float32), torch.bfloat16, device)         # fp32 master, bf16 compute
    reference = grpo.shard(model.load(path, torch.bfloat16).requires_grad_(False), torch.bfloat16, device)
    optimizer = grpo.make_optimizer(policy, lr=5e-7)
    metrics = grpo.update(policy, reference, optimizer, rows, temperature=0.7, token_budget=16384)
    grpo.refresh(sampler, policy)

Where this departs from the paper, or fills in what it leaves open:
 1. Ratios are per token (Eq. 18 writes one per rollout), and a row's loss is the mean over its tokens.
 2. Eq. 13 sums over the M*K solver rows and M planner rows of a problem. `Row.weight` carries 1 / (M * problems of the
    whole batch), one denominator for both regions, every rank and every micro-batch.
 3. The std of Eq. 11, 12, 17 is the unbiased one; a group of equal rewards gets exactly 0; M=1 leaves A = R.
 4. KL is the k3 estimate, its log difference clamped. Its gradient at ratio 1 is that of KL(ref || policy).
 5. One update per rollout: the ratio is then exactly 1. With more, old log-probs are recomputed by the trainer in the
    same micro-batches; the sampler's own are only compared with (`gap_mean`, `gap_max`).

Shapes: K branches of a tuple, M tuples of a problem, B rows, P prefix tokens, S suffix tokens, N loss tokens, H hidden,
V vocabulary.
"""

import time
from collections.abc import Iterable
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
KL_CLAMP = 10.0         # largest ref - policy log difference that is exponentiated: e^10 is past any use, e^100 is inf
RATIO_CLAMP = 20.0      # the same for policy - old
VOCAB_TILE = 16384      # vocabulary rows a tile: 2,048 tokens x 16,384 in fp32 are 128 MiB


def _standardise(r: Tensor) -> Tensor:
    """(r - mean) / (std + eps) over the last axis, Eq. 17. Equal values give exactly 0, whatever the rounding of their
    mean; without that a group of seven 0.1s would be pushed by its rounding error divided by eps."""
    r = r if r.is_floating_point() else r.float()
    equal = r.amax(-1, keepdim=True) == r.amin(-1, keepdim=True)
    centred = r - r.mean(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / max(1, r.shape[-1] - 1)).sqrt()
    return torch.where(equal, torch.zeros_like(r), centred / (std + EPS))


def within_tuple_advantages(r: Tensor) -> Tensor:
    """Eq. 11: branch rewards r (..., K) -> solver advantages (..., K), each branch against its siblings in the tuple."""
    return _standardise(r)


def across_tuple_advantages(R: Tensor) -> Tensor:
    """Eq. 12: planner rewards R (..., M) -> (..., M), each tuple against the others of its problem. One tuple has
    nobody to be compared with: A = R, plain REINFORCE (the paper's M=1 ablation)."""
    if R.shape[-1] == 1:
        return R if R.is_floating_point() else R.float()
    return _standardise(R)


def _logits(hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None) -> Tensor:
    """(N, H), (tile, H) -> (N, tile) scaled logits, at least fp32. A fresh tensor: the caller may write into it."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        z = torch.mm(hidden, weight.T, out_dtype=torch.float32)     # the tensor cores' own accumulator, not rounded
    else:
        z = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if softcap:
        z = z.div_(softcap).tanh_().mul_(softcap)
    return z.div_(temperature) if temperature != 1.0 else z


class _TiledLogProbs(torch.autograd.Function):
    """log softmax(softcap(hidden @ weight.T) / temperature) at the targets, one tile of the vocabulary at a time, logits
    recomputed in the backward pass. Full fp32 logits of 2,048 tokens x 248,320 words and their gradient take 5.7 GiB;
    this takes the weight's gradient and a few tiles. Tiles of the vocabulary, not of rows: each slice of the weight's
    gradient is then written once, while chunks of rows add to all of it every time (measured: twice the time)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, vocab, softcap, tile, want_entropy):
        N, dtype = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        lse = hidden.new_full((N,), -torch.inf, dtype=dtype)
        target_logit = lse.clone()                                  # stays -inf where the target is not in the softmax
        mean_logit = hidden.new_zeros(N, dtype=dtype)               # E_p[z], as entropy = lse - E_p[z]
        for start in range(0, vocab, tile):
            z = _logits(hidden, weight[start:min(start + tile, vocab)], temperature, softcap)
            at = targets - start
            inside = (at >= 0) & (at < z.shape[1])
            target_logit = torch.where(inside, z.gather(1, at.clamp(0, z.shape[1] - 1)[:, None])[:, 0], target_logit)
            total = torch.logaddexp(lse, z.logsumexp(-1))
            if want_entropy:
                mean_logit = mean_logit * (lse - total).exp() + ((z - total[:, None]).exp_() * z).sum(-1)
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
            slope = (1 - (z * (temperature / softcap)).square_()) if softcap else None
            p = z.sub_(lse[:, None]).exp_().mul_(-grad[:, None])    # d logp / dz = onehot - p
            at = targets - start
            inside = (at >= 0) & (at < p.shape[1])
            p.scatter_add_(1, at.clamp(0, p.shape[1] - 1)[:, None], (grad * inside)[:, None])
            p = (p.mul_(slope) if softcap else p).div_(temperature).to(hidden.dtype)
            grad_hidden += p @ w
            if grad_weight is not None:
                torch.mm(p.T, hidden, out=grad_weight[start:start + len(w)])
        if grad_weight is not None:
            grad_weight[vocab:] = 0
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, vocab: int | None = None,
                   softcap: float | None = None, tile: int = VOCAB_TILE, entropy: bool = False):
    """Log-probabilities (N,) of targets (N,) under softmax(hidden (N, H) @ weight (V, H).T / temperature), fp32 or better.

    Only ids below `vocab` are in the softmax (checkpoints pad their vocabulary); a target beyond it has log-prob -inf.
    `softcap` c bounds the logits as c * tanh(z / c), before the temperature. With `entropy` a pair comes back, the
    second (N,) in nats and without gradient. Under FSDP call it inside the root's forward: only there is the weight
    whole."""
    logp, nats = _TiledLogProbs.apply(hidden, weight, targets, temperature, vocab or len(weight), softcap, tile, entropy)
    return (logp, nats) if entropy else logp


def clipped_loss(logp: Tensor, old: Tensor | None, ref: Tensor | None, advantage: Tensor, clip: float = CLIP,
                 beta: float = BETA) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 18, negated, for each token: -min(rho A, clip(rho, 1 -+ clip) A) + beta * KL. All arguments (N,).

    `old=None` stands for the first update after a rollout: rho is exactly 1 and its gradient is A. `ref=None` leaves
    the KL out. KL is k3, exp(d) - d - 1 with d = ref - logp: never negative, small variance. The clamp of d ends its
    gradient where the policy has all but abandoned a token; without it one such token makes inf, then 0 * inf."""
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


# ---------------------------------------------------------------------------------------------------------------------
# The update: rows in, a step of the optimizer and its metrics out.

REGIONS = ("plan", "solve")
clock = time.perf_counter       # bench/step.py puts process CPU seconds here


@dataclass
class Row:
    """One sampled sequence, whoever collected it. Tokens suffix[start:] were sampled and carry the loss; prefix and
    suffix[:start] are its prompt, the prefix being what it shares with its siblings."""
    prefix: list[int]
    suffix: list[int]
    start: int
    advantage: float
    weight: float                           # 1 / (M * problems of the whole batch): the one denominator
    region: str                             # "plan" | "solve"
    logprobs: list[float] | None = None     # the sampler's, of suffix[start:]; compared with, never trained on


@dataclass
class MicroBatch:
    """Rows of one prefix, right padded (causality makes masks unnecessary), and where their loss tokens are."""
    ids: Tensor                 # (1, P) the shared prefix; plain: (B, T) prefix and suffix of each row
    suffixes: Tensor | None     # (B, S); plain: None
    at: Tensor                  # (N,) places of the states that predict the loss tokens, in (B, S) or (B, T) flattened
    targets: Tensor             # (N,)
    advantage: Tensor           # (N,)
    scale: Tensor               # (N,) weight / number of tokens in the row
    region: Tensor              # (N,) index into REGIONS
    sampled: Tensor             # (N,) the sampler's log-probs, nan where unknown
    dummy: bool                 # keeps this rank in step with one that has more; weight 0, not counted


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


def shard(module: nn.Module, compute_dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """FSDP2 in place: fp32 units, then blocks, then the root. The parameters keep their dtype (fp32 for a policy, the
    master weights); all-gathers and arithmetic are in `compute_dtype`, gradients are reduced in fp32.

    A_log and dt_bias decide how fast the recurrent state forgets; bf16 rounds them by up to 0.4 %, so they are units of
    their own and stay fp32. Inputs are not cast: blocks hand an fp32 recurrent state around. One process computing in
    the dtype of its weights needs none of this and stays a plain module."""
    module.to(device)
    trains = any(p.requires_grad for p in module.parameters())
    if world_size() == 1 and (not trains or all(p.dtype == compute_dtype for p in module.parameters())):
        return module
    if not dist.is_initialized():
        raise ValueError(f"training in {compute_dtype} over other master weights needs a process group, of one at least: "
                         f"call common.setup first, or compute in the dtype of the weights")
    wide = torch.promote_types(compute_dtype, torch.float32)
    low = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=wide, cast_forward_inputs=False)
    full = MixedPrecisionPolicy(param_dtype=wide, reduce_dtype=wide, cast_forward_inputs=False)
    for unit in module.fp32_units:
        fully_shard(unit, mp_policy=full)
    for block in module.blocks:
        fully_shard(block, mp_policy=low)
    # by default the root stays whole until its backward: after a forward without one, parameters() would hand out
    # whole tensors whose memory is freed later (measured: a segmentation fault). One more gather of the embedding.
    return fully_shard(module, mp_policy=low, reshard_after_forward=True)


@torch.no_grad()
def refresh(sampler: nn.Module, policy: nn.Module) -> None:
    """Copy the policy into the sampler, parameter by parameter and into the same storage, so that CUDA graphs captured
    over it stay valid. The shard is cast before it is gathered: half the traffic, and never a whole fp32 model."""
    if sampler is policy:
        return
    source = dict(policy.named_parameters())
    for name, target in sampler.named_parameters():
        p = source.pop(name).to(target.dtype)
        target.copy_(p.full_tensor() if isinstance(p, DTensor) else p)
    assert not source, f"the sampler lacks {sorted(source)[:3]}"


def make_optimizer(module: nn.Module, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
                   eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over the fp32 masters. Norms, biases, A_log and dt_bias (one axis) are not decayed."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    # fused: no temporaries the size of the model, and one pass over it
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def micro_batches(rows: list[Row], token_budget: int, shared: bool = True) -> list[list[Row]]:
    """Rows of one prefix together, the longest suffixes first, until prefix + B * longest suffix passes the budget
    (plain rows: B * longest row). A row that is longer than the budget goes alone. Largest first, so that ranks, which
    wait for each other block by block, meet batches of similar size."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prefix) if shared else (), []).append(row)
    length = (lambda row: len(row.suffix)) if shared else (lambda row: len(row.prefix) + len(row.suffix))
    batches, cost = [], []
    for prefix, group in groups.items():
        group = sorted(group, key=length, reverse=True)
        while group:
            n = max(1, (token_budget - len(prefix)) // length(group[0]))
            batches.append(group[:n])
            cost.append(len(prefix) + min(n, len(group)) * length(group[0]))
            group = group[n:]
    return [batches[i] for i in sorted(range(len(batches)), key=lambda i: -cost[i])]


def collate(rows: list[Row], device: torch.device, shared: bool = True) -> MicroBatch:
    """Tensors of one micro-batch; no rows at all make a dummy of two tokens and weight 0."""
    dummy = not rows
    rows = rows or [Row([0], [0], 0, 0.0, 0.0, REGIONS[0])]
    sequences = [row.suffix if shared else row.prefix + row.suffix for row in rows]
    width = max(map(len, sequences))
    padded = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=device)
    at, targets, advantage, scale, region, sampled = [], [], [], [], [], []
    for i, row in enumerate(rows):
        tokens = row.suffix[row.start:]
        n = len(tokens)
        if n == 0 or row.logprobs is not None and len(row.logprobs) != n:
            raise ValueError(f"a row has {n} sampled tokens and {len(row.logprobs or [])} log-probs: it needs one of each")
        # hidden[:, t] predicts suffixes[:, t]; of a plain row, it predicts the id after t
        first = i * width + (row.start if shared else len(row.prefix) + row.start - 1)
        at += range(first, first + n)
        targets += tokens
        advantage += [row.advantage] * n
        scale += [row.weight / n] * n
        region += [REGIONS.index(row.region)] * n
        sampled += row.logprobs or [float("nan")] * n
    make = lambda values, dtype: torch.tensor(values, dtype=dtype, device=device)
    return MicroBatch(
        ids=torch.tensor([rows[0].prefix], device=device) if shared else padded,
        suffixes=padded if shared else None,
        at=make(at, torch.long), targets=make(targets, torch.long), region=make(region, torch.long),
        advantage=make(advantage, torch.float64), scale=make(scale, torch.float64), sampled=make(sampled, torch.float64),
        dummy=dummy)


def row_logprobs(module: nn.Module, batch: MicroBatch, temperature: float, vocab: int | None, entropy: bool = False):
    """Log-probs (N,) of a micro-batch's loss tokens, and their entropies on request. Everything runs in the root's
    forward, where FSDP has the head's weight whole; states that predict a prompt token are dropped before the head."""
    def head(hidden: Tensor, weight: Tensor, softcap: float | None):
        states = hidden.flatten(0, 1).index_select(0, batch.at)
        return token_logprobs(states, weight, batch.targets, temperature, vocab, softcap, entropy=entropy)
    if batch.suffixes is None:
        return module(batch.ids, head=head)
    return module(batch.ids, batch.suffixes, head=head)


def apply_gradients(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float = 1.0,
                    lr: float | None = None) -> tuple[float, bool]:
    """Clip and step, or drop the gradients if the loss (summed over ranks) or their norm is not finite. Every rank sees
    the same two numbers and so decides the same. Returns (norm before clipping, stepped). max_grad_norm 0: no clipping."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm), finite


class Tally:
    """What `update` measures: sums and maxima a region, seconds a phase; over micro-batches, then over ranks."""
    SUMS = ("tokens", "loss", "kl", "clip_fraction", "entropy", "gap_tokens", "gap_mean")
    MAXIMA = ("ratio_max", "gap_max")
    PHASES = ("reference", "forward", "backward", "optimizer")

    def __init__(self, device: torch.device):
        self.device = device
        self.sums = torch.zeros(len(REGIONS), len(self.SUMS), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(REGIONS), len(self.MAXIMA), dtype=torch.float64, device=device)
        self.seconds = dict.fromkeys(self.PHASES, 0.0)

    @contextmanager
    def time(self, phase: str):
        """Seconds between two points at which the device has finished; a wait a phase, of some hundred milliseconds."""
        start = clock()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += clock() - start

    @torch.no_grad()
    def add(self, batch: MicroBatch, loss: Tensor, logp: Tensor, parts: dict[str, Tensor], entropy: Tensor | None,
            first: bool) -> None:
        """`first`: the weights are still those that sampled, so the gap to the sampler means something."""
        if batch.dummy:
            return
        known = ~batch.sampled.isnan() & first
        gap = torch.where(known, (logp - batch.sampled).abs(), 0.0)
        ones = torch.ones_like(gap)
        sums = [ones, loss, parts["kl"], parts["clipped"], 0 * ones if entropy is None else entropy, known, gap]
        self.sums.index_add_(0, batch.region, torch.stack([s.double() for s in sums], 1))
        maxima = torch.stack([parts["ratio"].double(), gap.double()], 1)
        self.maxima.scatter_reduce_(0, batch.region[:, None].expand_as(maxima), maxima, "amax")

    def reduce(self, turns: int, want_entropy: bool) -> dict[str, float]:
        """{"plan/kl": ..., "solve/kl": ..., "tokens": ..., "seconds_forward": ...}; a region without tokens is left out.
        Seconds are those of the slowest rank."""
        sums, maxima = all_reduce(self.sums).tolist(), all_reduce(self.maxima, dist.ReduceOp.MAX).tolist()
        seconds = torch.tensor(list(self.seconds.values()), dtype=torch.float64, device=self.device)
        metrics = {"tokens": sum(row[0] for row in sums) / turns}
        for region, values, largest in zip(REGIONS, sums, maxima):
            total = dict(zip(self.SUMS, values))
            tokens, gap_tokens = total.pop("tokens"), total.pop("gap_tokens")
            if not tokens:
                continue
            gap = total.pop("gap_mean")
            means = {name: value / tokens for name, value in total.items()} | dict(zip(self.MAXIMA, largest))
            if gap_tokens:
                means["gap_mean"] = gap / gap_tokens
            else:
                del means["gap_max"]
            if not want_entropy:
                del means["entropy"]
            metrics |= {f"{region}/tokens": tokens / turns} | {f"{region}/{name}": value for name, value in means.items()}
        slowest = all_reduce(seconds, dist.ReduceOp.MAX).tolist()
        return metrics | {f"seconds_{name}": value for name, value in zip(self.PHASES, slowest)}


def update(policy: nn.Module, reference: nn.Module | None, optimizer: torch.optim.Optimizer, rows: Iterable[Row], *,
           temperature: float = 1.0, clip: float = CLIP, beta: float = BETA, vocab: int | None = None,
           token_budget: int = 16384, updates: int = 1, max_grad_norm: float = 1.0, lr: float | None = None,
           shared: bool = True, want_entropy: bool = False, want_bf16_share: bool = False) -> dict[str, float]:
    """Eq. 13 over this rank's rows and those of all others: `updates` optimizer steps on them, metrics of the whole batch.

    loss = sum over rows of weight * mean over the row's sampled tokens of Eq. 18. `token_budget` bounds the padded tokens
    of a micro-batch; the result does not depend on it. Every rank runs as many micro-batches as the busiest (FSDP's
    collectives must match), the rest being dummies. A non-finite loss or gradient skips the step on all ranks and ends
    the update ("skipped": 1). `shared=False` runs each row with its own copy of the prompt."""
    device = next(policy.parameters()).device
    reference = reference if beta else None
    groups = micro_batches(list(rows), token_budget, shared)
    count = int(all_reduce(torch.tensor(len(groups), device=device), dist.ReduceOp.MAX))
    batches = [collate(group, device, shared) for group in groups + [[]] * (count - len(groups))]
    old, ref = [None] * count, [None] * count
    tally = Tally(device)

    if updates > 1:
        with torch.no_grad(), tally.time("forward"):
            old = [row_logprobs(policy, batch, temperature, vocab) for batch in batches]
    params = [p for p in policy.parameters() if p.requires_grad]
    before = [local(p).detach().clone() for p in params]
    losses, norms, skipped = [], [], 0
    for turn in range(updates):
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for i, batch in enumerate(batches):
            if reference is not None and turn == 0:
                with torch.no_grad(), tally.time("reference"):
                    ref[i] = row_logprobs(reference, batch, temperature, vocab)
            with tally.time("forward"):
                out = row_logprobs(policy, batch, temperature, vocab, want_entropy)
                logp, entropy = out if want_entropy else (out, None)
                tokens, parts = clipped_loss(logp, old[i], ref[i], batch.advantage.to(logp.dtype), clip, beta)
                part = (tokens * batch.scale.to(logp.dtype)).sum()
            with tally.time("backward"):
                (part * world_size()).backward()       # FSDP averages over ranks; the denominator is already in the weights
            loss += part.detach()
            tally.add(batch, tokens.detach(), logp.detach(), parts, entropy, first=turn == 0)
        with tally.time("optimizer"):
            norm, stepped = apply_gradients(policy, optimizer, all_reduce(loss), max_grad_norm, lr)
        losses.append(float(loss))
        norms.append(norm)
        if not stepped:
            skipped = 1
            break

    moved = torch.zeros(3, dtype=torch.float64, device=device)      # squared step, bf16 values that changed, values
    for p, was in zip(params, before):
        now = local(p).detach()
        moved[0] += (now - was).double().square().sum()
        if want_bf16_share:
            moved[1] += (now.bfloat16() != was.bfloat16()).sum()
            moved[2] += now.numel()
    if any(isinstance(p, DTensor) for p in params):
        all_reduce(moved)
    squared, changed, values = moved.tolist()
    metrics = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms), "step_norm": squared ** 0.5,
               "skipped": skipped, "micro_batches": count, **tally.reduce(len(losses), want_entropy)}
    if want_bf16_share:
        metrics["bf16_changed"] = changed / values
    return metrics
