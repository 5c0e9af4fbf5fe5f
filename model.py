"""The policy network: the Qwen3.5 text model in plain PyTorch, with decoding states that fork.

    policy = model.load("Qwen/Qwen3.5-2B", dtype=torch.bfloat16, device="cuda")     # or a folder
    logits = policy(ids)                                    # (B, T) -> (B, T, V)
    model.save(policy, "runs/x/final", tokenizer)           # a folder that transformers loads

    state = policy.new_state(rows=64, capacity=2048)
    logits = policy.segment(ids, lengths, state)            # prefill or continue padded rows
    logits = policy.step(tokens, state, limit)              # one token per row
    policy.fork(state, [3, 4, 5], other, [0, 0, 0])         # copy rows: fork, refill, compaction

A layer works on *segments*: `mixer(x, past, span) -> (y, past)` takes a piece of the sequence and
what the layer remembers of everything before it. A plain forward is one segment. The loss on many
continuations of one prompt is two: the prompt once, then all continuations from its memory, with
gradients through it. Prefill is a segment that leaves its memory in buffers; decoding is a segment
of one token. Other architectures (Gemma 4, ...) are in lib/adapter.py, behind the same calls.

Shapes: B rows, T tokens, H hidden, V vocabulary; h heads, d head width, C tokens per chunk, n
attended positions; columns: positions that a decoding buffer has room for.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.utils.checkpoint import checkpoint

BUCKET = 64     # decoding buffers are a multiple of this many columns wide
KERNELS: dict[str, Callable] = {}       # faster ones for functions of this file: lib/packages.py
L2_EPS = 1e-6   # under the root, where the DeltaNet normalises queries and keys


@dataclass
class Config:
    """The keys of a Qwen3.5 text config.json that shape the network."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float
    head_dim: int = 256                     # not hidden_size / num_attention_heads
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    rms_norm_eps: float = 1e-6
    partial_rotary_factor: float = 0.25
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    full_attention_interval: int = 4
    layer_types: list[str] = field(default_factory=list)    # default: from full_attention_interval

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is int and not (isinstance(value, int) and value > 0):
                raise ValueError(f"config: {f.name} must be a whole number above 0, not {value!r}")
        if not self.layer_types:
            for i in range(1, self.num_hidden_layers + 1):
                full = i % self.full_attention_interval == 0
                self.layer_types.append("full_attention" if full else "linear_attention")
        unknown = set(self.layer_types) - {"linear_attention", "full_attention"}
        if unknown or len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"config: layer_types must name {self.num_hidden_layers} layers "
                             f"(num_hidden_layers), each linear_attention or full_attention, not "
                             f"{self.layer_types}")
        for many, few in (("num_attention_heads", "num_key_value_heads"),
                          ("linear_num_value_heads", "linear_num_key_heads")):
            if getattr(self, many) % getattr(self, few):
                raise ValueError(f"config: {many} = {getattr(self, many)} must be a multiple of "
                                 f"{few} = {getattr(self, few)}")

    @classmethod
    def from_json(cls, raw: dict) -> "Config":
        """From a text config, or from the composite one of a checkpoint with a vision tower."""
        text = {"tie_word_embeddings": raw.get("tie_word_embeddings", False)}
        text |= raw.get("text_config", raw)
        text |= text.get("rope_parameters") or {}
        supported = {"hidden_act": "silu", "attention_bias": False, "rope_type": "default"}
        for key, only in supported.items():
            if text.get(key, only) != only:
                raise ValueError(f"config: {key} is {text[key]!r}, and this model knows only "
                                 f"{only!r}")
        given = {f.name: text[f.name] for f in fields(cls) if text.get(f.name) is not None}
        missing = [f.name for f in fields(cls)[:7] if f.name not in given]
        if missing:
            raise ValueError(f"config: {', '.join(missing)} missing, which a Qwen3.5 text model "
                             f"needs")
        return cls(**given)

    def to_json(self) -> dict:
        out = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"} | asdict(self)
        # mRoPE has three position rows, and for text they are equal: how they share the frequencies
        # plays no part.
        pairs = int(self.head_dim * self.partial_rotary_factor) // 2
        third = pairs // 3
        out["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": out.pop("rope_theta"),
            "partial_rotary_factor": out.pop("partial_rotary_factor"),
            "mrope_interleaved": True,
            "mrope_section": [pairs - 2 * third, third, third]}
        return out


# ------------------------------------------------------------------------------------------- layers

def up(x: Tensor) -> Tensor:
    """At least fp32: what the reference computes in fp32, and float64 tests need in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass
class Span:
    """Where a segment lies in its rows. With `at`, the past is buffers, written in place."""
    rope: tuple[Tensor, Tensor]             # cosine and sine, (B, T, 1, rotary) or (T, 1, rotary)
    mask: Tensor | None = None              # (..., T, n) True where a token may look; None: causal;
                                            # causal_lower_right: after n - T earlier tokens
    lengths: Tensor | None = None           # (B,) real tokens of right-padded rows; None: all T
    at: tuple[Tensor, ...] | None = None    # index of the tokens in buffers (B, h, columns, d)
    limit: int = 0                          # how many columns of the buffers to look at


class RMSNorm(nn.Module):
    """Zero-centred: the weight is an offset from one."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(up(x), x.shape[-1:], 1 + up(self.weight), self.eps).type_as(x)


class GatedNorm(nn.Module):
    """The DeltaNet's output norm: a plain RMSNorm (the weight is the factor) times silu(gate)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = F.rms_norm(up(x), x.shape[-1:], up(self.weight), self.eps)
        return (y * F.silu(up(gate))).type_as(gate)


class Decay(nn.Module):
    """Log of the share of its memory that each DeltaNet head keeps at a token; always below 0.

    A module of its own because these few numbers stay fp32 when all others are bf16, and an FSDP
    unit has one dtype. Released checkpoints store A_log in fp32 for a reason: bf16 rounds it by up
    to 0.01, which changes how long every head remembers by 1 %.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.ones(heads))

    def forward(self, a: Tensor) -> Tensor:
        return -up(self.A_log).exp() * F.softplus(up(a) + up(self.dt_bias))


# The gated delta rule (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv 2412.06464).
#
# A head's memory is a matrix S (dk, dv) that answers a query q with S^T q. At each token the head
#   forgets a little:                       S <- exp(g) S              g < 0, from `Decay`
#   looks up what it holds for the key k:   S^T k
#   moves that towards the value v:         S <- S + k w^T             w = beta (v - S^T k)
#   and answers:                            o = S^T q                  0 < beta < 1
# The difference v - S^T k is the delta. Plain linear attention would add v to what is there
# already, and keys that are not orthogonal would blur each other. `delta_step` is these four lines.
#
# Token by token, that is T dependent steps of little work each. Chunk by chunk it is matrix
# products. With S0 the memory before the chunk and G_i = g_1 + ... + g_i, token i finds
# exp(G_i) S0, and what the tokens j < i of the chunk have written, decayed since then:
# exp(G_i - G_j) k_j w_j^T. So it writes
#   w_i = beta_i (v_i - exp(G_i) S0^T k_i - sum_{j<i} exp(G_i - G_j) (k_i . k_j) w_j)
# which is one triangular system for all writes W (C, dv) of the chunk, known as the UT transform:
#   (I + A) W = beta (V - exp(G) K S0),   A_ij = beta_i exp(G_i - G_j) (k_i . k_j) for j < i, else 0
# A does not depend on S0. So X = (I + A)^-1 beta is found for all chunks in parallel, and only
# these products wait for the chunk before:
#   W = X V - (X exp(G) K) S0
#   o_i = exp(G_i) S0^T q_i + sum_{j<=i} exp(G_i - G_j) (q_i . k_j) w_j
#   S0 of the next chunk = exp(G_C) S0 + sum_j exp(G_C - G_j) k_j w_j^T
# Every exponent is at most 0: nothing overflows.

def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
               S: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, T, h, dk), v (B, T, h, dv), g, beta (B, T, h), S (B, h, dk, dv)
    -> o (B, T, h, dv), last S."""
    T = q.shape[1]
    C = 32 if q.is_cpu else 64      # a CPU is 18 % faster with 32; a GPU likes larger products
    pad = -T % C                    # padding neither writes (k = 0) nor forgets (g = 0)
    q, k, v = (F.pad(x.transpose(1, 2), (0, 0, 0, pad)).unflatten(2, (-1, C)) for x in (q, k, v))
    g, beta = (F.pad(x.transpose(1, 2), (0, pad)).unflatten(2, (-1, C)) for x in (g, beta))
    G = g.cumsum(-1)                # (B, h, T/C, C)
    future = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
    decay = (G.unsqueeze(-1) - G.unsqueeze(-2)).masked_fill(future, -torch.inf).exp()
    A = (k @ k.mT) * decay.tril(-1) * beta.unsqueeze(-1)
    X = invert_unit_lower(A) * beta.unsqueeze(-2)
    XV = X @ v
    XK = X @ (k * G.exp().unsqueeze(-1))
    inside = (q @ k.mT) * decay
    q = q * G.exp().unsqueeze(-1)
    k = k * (G[..., -1:] - G).exp().unsqueeze(-1)
    keep = G[..., -1].exp()[..., None, None]
    out = []
    # unbind, not indexing: the backward of an index fills a whole tensor with zeros for every chunk
    chunks = zip(*(x.unbind(2) for x in (q, k, XV, XK, inside, keep)), strict=True)
    for q_c, k_c, XV_c, XK_c, inside_c, keep_c in chunks:
        W = XV_c - XK_c @ S
        out.append(q_c @ S + inside_c @ W)
        S = S * keep_c + k_c.mT @ W
    return torch.stack(out, 2).flatten(2, 3)[:, :, :T].transpose(1, 2), S


def invert_unit_lower(A: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A (..., C, C), C a power of two.

    [[P, 0], [R, Q]] has the inverse [[P', 0], [-Q' R P', Q']], where P' and Q' are the inverses of
    its halves. So inverses of the blocks on the diagonal grow from 1 x 1 to C x C in log2(C) steps.
    (The power series I - A + A^2 ... is off by 1e10 where keys repeat.) No graph is recorded. At
    the end, one Newton step X <- 2X - X (I + A) X with X a constant costs two products and has the
    exact derivative -X dA X.

    Beside torch's triangular solve, forward and backward on one CPU thread, it is as fast at
    dk = 32 and 1.8 times faster at 128. With two threads the solve takes 16 times longer: it has a
    barrier for each small matrix.
    """
    C = A.shape[-1]
    eye = torch.eye(C, dtype=A.dtype, device=A.device)
    with torch.no_grad():
        X = eye.repeat(*A.shape[:-2], 1, 1)
        b = 1
        while b < C:
            blocks, system = diagonal_blocks(X, 2 * b), diagonal_blocks(A, 2 * b)
            P, R, Q = blocks[..., :b, :b], system[..., b:, :b], blocks[..., b:, b:]
            product = tiny_product if b <= 4 else torch.matmul
            blocks[..., b:, :b] = -product(product(Q, R), P)
            b *= 2
    return 2 * X - X @ (A + eye) @ X


def tiny_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices of up to 4 x 4, as a sum. There are so many (135,000 of 1 x 1 in a
    micro-batch of the 2B model) that cuBLAS would have to split the batch; and on a CPU the whole
    inverse takes 15 % less time, equal to the last bit."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def diagonal_blocks(M: Tensor, n: int) -> Tensor:
    """Views (..., C / n, n, n) of the n x n blocks on the diagonal of M (..., C, C)."""
    blocks = M.unflatten(-1, (-1, n)).unflatten(-3, (-1, n))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def delta_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> Tensor:
    """One token: q, k (B, h, dk), v (B, h, dv), g, beta (B, h) -> o (B, h, dv). Updates S
    (B, h, dk, dv) in place.

    S is the largest thing a step touches. It is read once for both look-ups, before it changes:
    o = (exp(g) S + k w^T)^T q = exp(g) S^T q + (q . k) w.
    """
    keep = g.exp().unsqueeze(-1)
    held, asked = (torch.stack([k, q], -2) @ S).unbind(-2)
    w = (v - keep * held) * beta.unsqueeze(-1)
    S.mul_(keep.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), w.unsqueeze(-2))
    return keep * asked + (q * k).sum(-1, keepdim=True) * w


def short_convolution(window: Tensor, weight: Tensor) -> Tensor:
    """Each channel's weighted sum of its last `kernel` inputs: window
    (B, kernel - 1 + T, channels), weight (channels, 1, kernel) -> (B, T, channels)."""
    if window.is_cpu:
        # As an image of height 1 the input is channels-last just as it lies; conv1d would transpose
        # it. On a CPU 9 times faster, 6 times with the backward, and equal to the last bit.
        image = window.mT.unsqueeze(2)
        return F.conv2d(image, weight.unsqueeze(2), groups=len(weight)).squeeze(2).mT
    # Elsewhere the sum as it stands, also equal to the last bit in fp32: for bf16 images of height
    # 1, cuDNN has slow kernels or none.
    T = window.shape[1] - weight.shape[-1] + 1
    wide, taps = up(window), up(weight).squeeze(1).unbind(-1)
    y = wide[:, :T] * taps[0]
    for i, tap in enumerate(taps[1:], 1):
        y = torch.addcmul(y, wide[:, i:i + T], tap)
    return y.type_as(window)


def fastest(function: Callable, x: Tensor) -> Callable:
    """A kernel of another package for what `function` computes, where one is known."""
    fits = x.is_cuda and x.dtype == torch.bfloat16
    return KERNELS.get(function.__name__, function) if fits else function


class DeltaNet(nn.Module):
    """Remembers its convolution's last inputs (B, kernel - 1, channels) and S (B, h, dk, dv)."""
    delta_step = staticmethod(delta_step)       # lib/kernels.py puts a faster one here on a GPU

    def __init__(self, c: Config):
        super().__init__()
        self.hk, self.dk = c.linear_num_key_heads, c.linear_key_head_dim
        self.hv, self.dv = c.linear_num_value_heads, c.linear_value_head_dim
        self.kernel = c.linear_conv_kernel_dim
        channels = 2 * self.hk * self.dk + self.hv * self.dv
        self.in_proj_qkv = nn.Linear(c.hidden_size, channels, bias=False)
        self.in_proj_z = nn.Linear(c.hidden_size, self.hv * self.dv, bias=False)
        self.in_proj_b = nn.Linear(c.hidden_size, self.hv, bias=False)
        self.in_proj_a = nn.Linear(c.hidden_size, self.hv, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, self.kernel, groups=channels, bias=False)
        self.decay = Decay(self.hv)
        self.norm = GatedNorm(self.dv, c.rms_norm_eps)
        self.out_proj = nn.Linear(self.hv * self.dv, c.hidden_size, bias=False)

    def memory(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        tail = like.new_zeros(rows, self.kernel - 1, self.conv1d.in_channels)
        S = up(like.new_zeros(rows, self.hv, self.dk, self.dv))     # a sum over all tokens: fp32
        return tail, S

    def forward(self, x: Tensor, past: tuple | None, span: Span) -> tuple[Tensor, tuple]:
        B, T, _ = x.shape
        tail, S = past if past is not None else self.memory(B, 0, x)
        qkv, z = self.in_proj_qkv(x), self.in_proj_z(x).unflatten(-1, (self.hv, self.dv))
        g, beta = self.decay(self.in_proj_a(x)), up(self.in_proj_b(x)).sigmoid()
        window = torch.cat([tail.expand(B, -1, -1), qkv], 1)
        if span.lengths is None:
            tail = window[:, T:]
        else:
            # Padding must neither write nor forget, and the convolution's memory ends before it.
            ends = span.lengths.unsqueeze(1)
            real = (torch.arange(T, device=x.device) < ends).unsqueeze(-1)
            g, beta = g * real, beta * real
            last = ends + torch.arange(self.kernel - 1, device=x.device)
            tail = window[torch.arange(B, device=x.device).unsqueeze(1), last]
        one_token = span.at is not None and T == 1
        convolve = short_convolution if one_token else fastest(short_convolution, x)
        q, k, v = self.heads(F.silu(convolve(window, self.conv1d.weight)))
        if one_token:
            o = self.delta_step(*(t.squeeze(1) for t in (q, k, v, g, beta)), S).unsqueeze(1)
        else:
            o, S = fastest(delta_rule, x)(q, k, v, g, beta, S)
        if span.at is not None:
            past[0].copy_(tail)
            if past[1] is not S:
                past[1].copy_(S)
        return self.out_proj(self.norm(o, z).flatten(2)), (tail, S)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = qkv.split([2 * self.hk * self.dk, self.hv * self.dv], -1)
        qk = up(qk.unflatten(-1, (2 * self.hk, self.dk)))
        qk = qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + L2_EPS)
        q, k = qk.chunk(2, -2)
        if self.hv != self.hk:              # several value heads share a query and a key head
            q, k = (x.repeat_interleave(self.hv // self.hk, -2) for x in (q, k))
        return q * self.dk ** -0.5, k, up(v.unflatten(-1, (self.hv, self.dv)))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q (B, h, T, d) over k, v (B, h, n, d), causal without a mask (..., T, n)."""
    if not q.is_cuda or q.dtype == torch.float64:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    # Fused kernels only. Where they do not fit, torch would silently take the plain one, which
    # holds all T x n scores.
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of the first `rotary` numbers of each head, in pairs (i, i + rotary / 2)."""
    cos, sin = rope
    x, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    a, b = x.chunk(2, -1)
    return torch.cat([x * cos + torch.cat([-b, a], -1) * sin, rest], -1)


class Attention(nn.Module):
    """Softmax attention, gated by its input. Remembers keys and values (B, kv, columns, d)."""
    attend_row = None       # lib/kernels.py: decoding that reads no further than each row's length

    def __init__(self, c: Config):
        super().__init__()
        self.h, self.kv, self.d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, 2 * self.h * self.d, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.d, c.rms_norm_eps)
        self.k_norm = RMSNorm(self.d, c.rms_norm_eps)

    def memory(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = rows, self.kv, columns, self.d
        return like.new_zeros(shape), like.new_zeros(shape)

    def forward(self, x: Tensor, past: tuple | None, span: Span) -> tuple[Tensor, tuple]:
        B, T, _ = x.shape
        # query and gate alternate head by head: splitting the output in the middle would be wrong
        q, gate = self.q_proj(x).unflatten(-1, (self.h, 2 * self.d)).chunk(2, -1)
        k, v = (proj(x).unflatten(-1, (self.kv, self.d)) for proj in (self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), span.rope), rotate(self.k_norm(k), span.rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if span.at is not None:
            past[0][span.at], past[1][span.at] = k, v
            k, v = (buffer[:, :, :span.limit] for buffer in past)
        elif past is not None:
            k = torch.cat([past[0].expand(B, -1, -1, -1), k], 2)
            v = torch.cat([past[1].expand(B, -1, -1, -1), v], 2)
        group = self.h // self.kv           # query heads that share keys and values
        if self.attend_row is not None and span.at is not None and T == 1:
            o = self.attend_row(q.squeeze(2), *past, span.at[2].flatten()).unsqueeze(2)
        elif span.mask is None or isinstance(span.mask, CausalBias):
            o = attend(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), span.mask)
        else:
            # With a mask they can as well be further queries of one head: keys are not copied.
            mask = span.mask if T == 1 else torch.cat([span.mask] * group, -2)
            o = attend(q.reshape(B, self.kv, group * T, self.d), k, v, mask)
            o = o.reshape(B, self.h, T, self.d)
        return self.o_proj(o.transpose(1, 2).flatten(2) * gate.flatten(2).sigmoid()), (k, v)


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config, kind: str):
        super().__init__()
        if kind == "linear_attention":
            self.linear_attn = DeltaNet(c)
        else:
            self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    @property
    def mixer(self) -> nn.Module:
        return self.linear_attn if hasattr(self, "linear_attn") else self.self_attn

    def forward(self, xs: list[Tensor], spans: list[Span], past: tuple | None = None,
                recompute: bool = False) -> list[Tensor]:
        if recompute:       # in here, not around the block: FSDP's hooks must not run a second time
            return checkpoint(self.run, xs, spans, past, use_reentrant=False,
                              preserve_rng_state=False)
        return self.run(xs, spans, past)

    def run(self, xs: list[Tensor], spans: list[Span], past: tuple | None) -> list[Tensor]:
        """One segment after another, each from the memory that the one before it left."""
        out = []
        for x, span in zip(xs, spans, strict=True):
            y, past = self.mixer(self.input_layernorm(x), past, span)
            x = x + y
            out.append(x + self.mlp(self.post_attention_layernorm(x)))
        return out


# -------------------------------------------------------------------------------------- the network

@dataclass
class State:
    """Decoding buffers of some rows. A row's memory is its slice of every tensor in `layers`."""
    layers: list[tuple[Tensor, ...]]    # keys and values (rows, h, columns + 1, d); or tail and S
    pos: Tensor                         # (rows,) tokens that each row has read
    columns: int                        # tokens a row can hold; one more column takes the padding
    rope: tuple[Tensor, Tensor] | None = None   # of every position, (columns + 1, 1, rotary)
    wave: tuple | None = None           # only where a model cannot fork, see lib/adapter.py

    def first_rows(self, n: int) -> "State":
        """The first n rows, as views into this state."""
        layers = [tuple(t[:n] for t in layer) for layer in self.layers]
        return replace(self, pos=self.pos[:n], layers=layers)


class Model(nn.Module):
    can_fork = True
    shares_prompts = True   # the loss computes a prompt once for all rows that continue it
    can_capture = True      # a CUDA graph may record `step`: no host sync, only the state's buffers
    limit_matters = True    # False: lib/kernels.py reads each row as far as it is long
    decode_block = staticmethod(Block.__call__)     # rollout.Engine puts a compiled one here
    per_layer_tables = ()   # embeddings too large to train by default, see lib/adapter.py

    def __init__(self, c: Config):
        super().__init__()
        self.config, self.eos_ids, self.checkpointing = c, set(), False
        self.source = None          # where it was loaded from, see lib/weights.py
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, kind) for kind in c.layer_types)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        tied = c.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def fp32_units(self) -> list[nn.Module]:
        """Small modules that stay at least fp32, each an FSDP unit of its own."""
        return [unit for unit in self.modules() if isinstance(unit, Decay | GatedNorm)]

    @property
    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, ids: Tensor, suffixes: Tensor | None = None, head: Callable | None = None):
        """ids (B, T) -> logits (B, T, V), or with `head` what head(hidden (B, T, H), weight (V, H),
        softcap) returns. It is called in here because only here a sharded model has whole weights.

        With suffixes (B, S), ids are the one prompt (1, P) that they all continue, computed once.
        Then hidden[:, t] is the state that predicts suffixes[:, t]: for t = 0 the prompt's last.
        Padding on the right needs no mask, since nothing looks ahead.
        """
        P, xs = ids.shape[1], [self.embed_tokens(ids)]
        spans = [Span(self._rope(0, P, xs[0]))]
        if suffixes is not None:
            S = suffixes.shape[1]
            xs.append(self.embed_tokens(suffixes))
            if ids.is_cpu:
                mask = torch.ones(S, P + S, dtype=torch.bool).tril(P)
            else:           # the same without a matrix, which flash attention does not take
                mask = causal_lower_right(S, P + S)
            spans.append(Span(self._rope(P, P + S, xs[1]), mask))
        recompute = self.checkpointing and torch.is_grad_enabled()
        for block in self.layers:
            xs = block(xs, spans, recompute=recompute)
        x = xs[0]
        if suffixes is not None:
            x = torch.cat([x[:, -1:].expand(len(suffixes), -1, -1), xs[1][:, :-1]], 1)
        x = self.norm(x)
        return self._logits(x) if head is None else head(x, self.head_weight, None)

    def _logits(self, x: Tensor) -> Tensor:
        return head_logits(x, self.head_weight)

    def _rope(self, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions start ... end - 1, each (T, 1, rotary)."""
        rotary = int(self.config.head_dim * self.config.partial_rotary_factor)
        # Frequencies are fp32 numbers by definition, whatever the arithmetic is.
        frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, rotary, 2).float() / rotary)
        position = torch.arange(start, end).to(up(like).dtype)
        angle = torch.outer(position, frequency.to(position.dtype))
        angle = torch.cat([angle, angle], -1).unsqueeze(1).to(like.device)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)

    def new_state(self, rows: int, capacity: int) -> State:
        columns = round_to_bucket(capacity)
        like = self.embed_tokens.weight.detach()
        layers = [block.mixer.memory(rows, columns + 1, like) for block in self.layers]
        pos = torch.zeros(rows, dtype=torch.long, device=like.device)
        return State(layers, pos, columns, self._rope(0, columns + 1, like))

    @torch.no_grad()
    def segment(self, ids: Tensor, lengths: Tensor, state: State) -> Tensor:
        """Continue the state's rows with right-padded ids (B, T), of which lengths (B,) are real
        -> logits (B, V) after each row's last. The host waits for the device once."""
        if ids.is_meta:
            longest = state.columns                     # memory.py plans on the meta device
        else:
            longest = int((state.pos + lengths).max())
        if longest > state.columns:
            raise ValueError(f"a row would hold {longest} tokens; this state has room for "
                             f"{state.columns}")
        i = torch.arange(ids.shape[1], device=ids.device)
        # padding goes to the spare column
        at = torch.where(i < lengths.unsqueeze(1), state.pos.unsqueeze(1) + i, state.columns)
        x = self._advance(ids, at, round_to_bucket(longest), lengths, state)
        state.pos += lengths
        return self._logits(x[torch.arange(len(ids), device=ids.device), lengths - 1])

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, limit: int) -> Tensor:
        """One token for each of the first B rows: ids (B,) -> logits (B, V).

        Attention reads the first `limit` columns: more than the `pos` of any row that matters. Idle
        rows may be left alone: a full row goes on in the spare column.
        """
        if len(ids) < len(state.pos):
            state = state.first_rows(len(ids))
        at = state.pos.clamp(max=state.columns).unsqueeze(1)
        x = self._advance(ids.unsqueeze(1), at, min(limit, state.columns), None, state)
        state.pos += 1
        return self._logits(x.squeeze(1))

    def _advance(self, ids: Tensor, at: Tensor, limit: int, lengths: Tensor | None,
                 state: State) -> Tensor:
        """Hidden states (B, T, H) of ids at positions `at` (B, T); the state's buffers change."""
        x = self.embed_tokens(ids)
        n = torch.arange(limit, device=ids.device)
        mask = (n <= at.unsqueeze(-1)).unsqueeze(1)                         # (B, 1, T, n)
        index = buffer_index(at, self.config.num_key_value_heads)
        span = Span(tuple(t[at] for t in state.rope), mask, lengths, index, limit)
        run = self.decode_block if lengths is None else Block.__call__
        for block, past in zip(self.layers, state.layers, strict=True):
            x, = run(block, [x], [span], past)
        return self.norm(x)

    @torch.no_grad()
    def grow(self, state: State, capacity: int) -> None:
        """Room for `capacity` tokens in each row, in place: layer by layer, since all old and all
        new buffers together may not fit into memory."""
        columns = round_to_bucket(capacity)
        more = (0, 0, 0, columns - state.columns)
        for i, layer in enumerate(state.layers):
            # dimension 2 counts columns or is the width of a head, which is even
            grows = [t.ndim == 4 and t.shape[2] == state.columns + 1 for t in layer]
            state.layers[i] = tuple(F.pad(t, more) if grow else t
                                    for t, grow in zip(layer, grows, strict=True))
        state.columns = columns
        if state.rope is not None:
            state.rope = self._rope(0, columns + 1, state.rope[0])

    @torch.no_grad()
    def fork(self, dst: State, dst_rows: Tensor | list,
             src: State, src_rows: Tensor | list) -> None:
        """dst[dst_rows[i]] = src[src_rows[i]]. The two may be one state or differ in columns."""
        dst_rows = torch.as_tensor(dst_rows, device=dst.pos.device)
        src_rows = torch.as_tensor(src_rows, device=dst.pos.device)
        dst.pos[dst_rows] = src.pos[src_rows]
        for mine, theirs in zip(dst.layers, src.layers, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                n = min(a.shape[2], b.shape[2])     # dimension 2 differs where it counts columns
                a[dst_rows, :, :n] = b[src_rows, :, :n]


def head_logits(x: Tensor, weight: Tensor) -> Tensor:
    """(..., H), (V, H) -> (..., V). On a GPU fp32 from bf16 numbers: the sums as the matrix product
    has them, like the trainer's (grpo.tile_logits). Rounded to bf16, at 16 to 32 in steps of 0.125,
    they would be the largest part of the gap between sampler and trainer."""
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(x.flatten(0, -2), weight.T, out_dtype=torch.float32).unflatten(
            0, x.shape[:-1])
    return F.linear(x, weight)


def round_to_bucket(columns: int) -> int:
    """Round a column count up to a multiple of BUCKET."""
    return -(-columns // BUCKET) * BUCKET


def buffer_index(at: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Index of positions `at` (B, T) in buffers (B, heads, columns, d)."""
    rows = torch.arange(len(at), device=at.device)
    head = torch.arange(heads, device=at.device)
    return rows[:, None, None], head[None, :, None], at.unsqueeze(1)


def cast(module: Model, dtype: torch.dtype) -> Model:
    """`module` in dtype, less its fp32 units."""
    module.to(dtype)
    for unit in module.fp32_units:
        unit.to(torch.promote_types(dtype, torch.float32))
    return module


# -------------------------------------------------------------------------------------- checkpoints

# lib/weights.py reads and writes checkpoint folders. It imports this file, so it is imported late.

def build(config: dict | Config, dtype: torch.dtype = torch.float32,
          device: torch.device | str = "cpu", seed: int = 0) -> Model:
    """A randomly initialised Qwen3.5; a dict has keys of `Config`, of which six are required."""
    from lib import weights
    return weights.build(config, dtype, device, seed)


def load(path_or_id: str | Path, dtype: torch.dtype = torch.float32,
         device: torch.device | str = "cpu", revision: str | None = None) -> nn.Module:
    """A checkpoint folder or hub id: Qwen3.5 as a `Model`, others as an `Adapter`."""
    from lib import weights
    return weights.load(path_or_id, dtype, device, revision)


def save(module: nn.Module, folder: str | Path, tokenizer=None) -> None:
    """Write a Hugging Face folder. Collective: every rank calls, the first one writes."""
    from lib import weights
    weights.save(module, folder, tokenizer)


def find(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, or found in the hub's cache."""
    from lib import weights
    return weights.find(path_or_id, revision)


def check_fits(module: nn.Module, tokenizer, rows: Iterable[tuple[str, int]] = ()) -> None:
    """ValueError if the tokenizer has ids without an embedding, or one of `rows` (problem, tokens)
    exceeds the context."""
    from lib import weights
    weights.check_fits(module, tokenizer, rows)
