"""The policy network: the Qwen3.5 text model in plain PyTorch, with a decoding state that can be forked.

    policy = model.load("Qwen/Qwen3.5-2B", dtype=torch.bfloat16, device="cuda")   # or a folder
    logits = policy(ids)                                       # (B, T) -> (B, T, V)
    model.save(policy, "runs/x/final", tokenizer)              # a folder that transformers loads

Decoding works on a `State` of B rows, and everything that happens to a row is a copy of it:

    state = policy.new_state(rows=64, capacity=2048)
    logits = policy.segment(ids, lengths, state)               # prefill, or go on with, right-padded rows
    logits = policy.step(tokens, state, limit)                 # one token a row
    policy.fork(state, [3, 4, 5], other, [0, 0, 0])            # fork, refill, compaction

The idea that keeps this file short: a layer works on *segments*. `mixer(x, past, span) -> (y, past)` takes a piece
of the sequence and what the layer remembers of everything before it. A plain forward is one segment; the loss on
many continuations of one prompt is two (the prompt once, then all continuations from its memory, gradients included);
prefilling is a segment whose memory is kept; decoding is a segment of one token.

Shapes: B rows, T tokens, H hidden, V vocabulary; h heads, d head width, C chunk.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 64      # tokens that the delta rule handles at once
BUCKET = 64     # the decoding buffers are a multiple of this many positions long
L2_EPS = 1e-6


@dataclass
class Config:
    """The keys of a Qwen3.5 text config.json that shape the network."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 256
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e7
    partial_rotary_factor: float = 0.25
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    layer_types: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not self.layer_types:
            self.layer_types = ["linear_attention" if (i + 1) % 4 else "full_attention"
                                for i in range(self.num_hidden_layers)]

    @classmethod
    def from_json(cls, raw: dict) -> "Config":
        text = raw.get("text_config", raw)
        text = {"tie_word_embeddings": raw.get("tie_word_embeddings", False)} | text
        text |= {k: v for k, v in (text.get("rope_parameters") or {}).items()}
        return cls(**{k: text[k] for k in cls.__dataclass_fields__ if k in text})

    def to_json(self) -> dict:
        half = int(self.head_dim * self.partial_rotary_factor) // 2
        out = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"} | asdict(self)
        out["rope_parameters"] = {"rope_type": "default", "rope_theta": out.pop("rope_theta"),
                                  "partial_rotary_factor": out.pop("partial_rotary_factor"),
                                  "mrope_interleaved": True,
                                  "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
        return out


# ---------------------------------------------------------------------------------------------------------------
# Layers


def up(x: Tensor) -> Tensor:
    """At least fp32: what the reference computes in fp32, and what float64 tests need in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass
class Span:
    """Where a segment lies in its rows."""
    rope: tuple[Tensor, Tensor]             # cosine and sine of its positions, (B or 1, T, 1, d_rotary)
    mask: Tensor | None = None              # (.., T, n) what each token may attend to; None: itself and before
    lengths: Tensor | None = None           # (B,) real tokens of right-padded rows; None: all T
    at: tuple[Tensor, ...] | None = None    # index of its tokens in the decoding buffers (B, heads, T)
    limit: int = 0                          # how many positions of the decoding buffers to look at


class RMSNorm(nn.Module):
    """Zero-centred: the weight is an offset from one."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(up(x), x.shape[-1:], 1 + up(self.weight), self.eps).type_as(x)


class GatedNorm(nn.Module):
    """An ordinary RMSNorm (weight around one) times silu of a gate."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return (F.rms_norm(up(x), x.shape[-1:], up(self.weight), self.eps) * F.silu(up(gate))).type_as(gate)


class Decay(nn.Module):
    """log of the share of its memory that a DeltaNet head keeps at a token; a module, so that it can stay fp32."""

    def __init__(self, heads: int):
        super().__init__()
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.ones(heads))

    def forward(self, a: Tensor) -> Tensor:
        return -up(self.A_log).exp() * F.softplus(up(a) + self.dt_bias)


def invert_unit_lower(A: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A (N, C, C)."""
    N, C, _ = A.shape
    eye = torch.eye(C, dtype=A.dtype, device=A.device)
    with torch.no_grad():
        X, b = eye.repeat(N, 1, 1), 1
        while b < C:
            blocks, system = (M.view(N, C // (2 * b), 2 * b, C // (2 * b), 2 * b).diagonal(dim1=1, dim2=3)
                              .permute(0, 3, 1, 2) for M in (X, A))
            blocks[..., b:, :b] = -(blocks[..., b:, b:] @ system[..., b:, :b] @ blocks[..., :b, :b])
            b *= 2
    return 2 * X - X @ (A + eye) @ X


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, T, h, dk), v (B, T, h, dv), g, beta (B, T, h), S (B, h, dk, dv) -> (B, T, h, dv), S after the last."""
    B, T, h, _ = q.shape
    pad = -T % CHUNK
    q, k, v = (F.pad(x.transpose(1, 2), (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)) for x in (q, k, v))
    g, beta = (F.pad(x.transpose(1, 2), (0, pad)).unflatten(2, (-1, CHUNK)) for x in (g, beta))
    total = g.cumsum(-1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(future, float("-inf")).exp()
    A = (k @ k.mT) * decay.tril(-1) * beta.unsqueeze(-1)
    X = invert_unit_lower(A.flatten(0, 2)).view_as(A) * beta.unsqueeze(-2)
    new, old = X @ v, X @ (k * total.exp().unsqueeze(-1))
    inside = (q @ k.mT) * decay
    q = q * total.exp().unsqueeze(-1)
    k = k * (total[..., -1:] - total).exp().unsqueeze(-1)
    last = total[..., -1].exp()[..., None, None]
    out = []
    for i in range(q.shape[2]):
        write = new[:, :, i] - old[:, :, i] @ S
        out.append(q[:, :, i] @ S + inside[:, :, i] @ write)
        S = S * last[:, :, i] + k[:, :, i].mT @ write
    return torch.stack(out, 2).flatten(2, 3)[:, :, :T].transpose(1, 2), S


def delta_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> Tensor:
    """One token of `delta_rule`, (B, h, ...), with S updated in place."""
    a = g.exp().unsqueeze(-1)
    seen, asked = (torch.stack([k, q], -2) @ S).unbind(-2)
    write = (v - a * seen) * beta.unsqueeze(-1)
    out = a * asked + (q * k).sum(-1, keepdim=True) * write
    S.mul_(a.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), write.unsqueeze(-2))
    return out


class DeltaNet(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.hk, self.hv, self.dk, self.dv = (c.linear_num_key_heads, c.linear_num_value_heads,
                                              c.linear_key_head_dim, c.linear_value_head_dim)
        self.kernel, channels = c.linear_conv_kernel_dim, 2 * self.hk * self.dk + self.hv * self.dv
        self.in_proj_qkv = nn.Linear(c.hidden_size, channels, bias=False)
        self.in_proj_z = nn.Linear(c.hidden_size, self.hv * self.dv, bias=False)
        self.in_proj_b = nn.Linear(c.hidden_size, self.hv, bias=False)
        self.in_proj_a = nn.Linear(c.hidden_size, self.hv, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, self.kernel, groups=channels, bias=False)
        self.decay = Decay(self.hv)
        self.norm = GatedNorm(self.dv, c.rms_norm_eps)
        self.out_proj = nn.Linear(self.hv * self.dv, c.hidden_size, bias=False)

    def buffers_for(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return (like.new_zeros(rows, self.kernel - 1, self.in_proj_qkv.out_features),
                up(like.new_zeros(rows, self.hv, self.dk, self.dv)))

    def forward(self, x: Tensor, past, span: Span):
        B, T, _ = x.shape
        tail, S = past if past is not None else self.buffers_for(B, 0, x)
        qkv, z = self.in_proj_qkv(x), self.in_proj_z(x).unflatten(-1, (self.hv, self.dv))
        g, beta = self.decay(self.in_proj_a(x)), up(self.in_proj_b(x)).sigmoid()
        if span.lengths is not None:       # padding must neither write to the memory nor let it decay
            real = (torch.arange(T, device=x.device) < span.lengths.unsqueeze(1)).unsqueeze(-1)
            g, beta = g * real, beta * real
        window = torch.cat([tail.expand(B, -1, -1), qkv], 1)
        if span.lengths is None:
            tail = window[:, T:]
        else:
            ends = span.lengths.unsqueeze(1) + torch.arange(self.kernel - 1, device=x.device)
            tail = window[torch.arange(B, device=x.device).unsqueeze(1), ends]
        q, k, v = self.heads(F.silu(self.convolve(window)))
        if T == 1 and span.at is not None:
            o = delta_step(*(t.squeeze(1) for t in (q, k, v, g, beta)), S).unsqueeze(1)
        else:
            o, after = delta_rule(q, k, v, g, beta, S.expand(B, -1, -1, -1))
            S = S.copy_(after) if span.at is not None else after
        if span.at is not None:
            past[0].copy_(tail)
        return self.out_proj(self.norm(o, z).flatten(2)), (tail, S)

    def convolve(self, window: Tensor) -> Tensor:
        """Each channel's weighted sum of its last 4 values, (B, 3 + T, channels) -> (B, T, channels)."""
        if window.shape[1] == self.kernel:
            return (window * self.conv1d.weight.squeeze(1).mT).sum(1, keepdim=True)
        # as a 2-D convolution the input is channels-last as it lies: on CPU 9 times faster than conv1d
        return F.conv2d(window.mT.unsqueeze(2), self.conv1d.weight.unsqueeze(2),
                        groups=window.shape[-1]).squeeze(2).mT

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = qkv.split([2 * self.hk * self.dk, self.hv * self.dv], -1)
        qk = up(qk.unflatten(-1, (2 * self.hk, self.dk)))
        qk = qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + L2_EPS)
        q, k = qk.chunk(2, -2)
        if self.hv != self.hk:             # several value heads share a query and key head
            q, k = (x.repeat_interleave(self.hv // self.hk, -2) for x in (q, k))
        return q * self.dk ** -0.5, k, up(v.unflatten(-1, (self.hv, self.dv)))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    x, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    a, b = x.chunk(2, -1)
    return torch.cat([x * cos + torch.cat([-b, a], -1) * sin, rest], -1)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.h, self.kv, self.d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, 2 * self.h * self.d, bias=False)     # per head: query, gate
        self.k_proj = nn.Linear(c.hidden_size, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, c.hidden_size, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.d, c.rms_norm_eps), RMSNorm(self.d, c.rms_norm_eps)

    def buffers_for(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(rows, self.kv, columns, self.d), like.new_zeros(rows, self.kv, columns, self.d)

    def forward(self, x: Tensor, past, span: Span):
        B, T, _ = x.shape
        q, gate = self.q_proj(x).unflatten(-1, (self.h, 2 * self.d)).chunk(2, -1)
        k, v = (p(x).unflatten(-1, (self.kv, self.d)) for p in (self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), span.rope).transpose(1, 2), rotate(self.k_norm(k), span.rope).transpose(1, 2)
        v = v.transpose(1, 2)
        if span.at is not None:
            keys, values = past
            keys[span.at], values[span.at] = k, v
            k, v = keys[:, :, :span.limit], values[:, :, :span.limit]
        elif past is not None:
            k, v = (torch.cat([old.expand(B, -1, -1, -1), x], 2) for old, x in zip(past, (k, v)))
        group = self.h // self.kv
        if span.mask is None:
            o = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1),
                                               is_causal=True)
        else:       # the heads that share keys become further queries, so that keys are never copied
            o = F.scaled_dot_product_attention(q.reshape(B, self.kv, group * T, self.d), k, v,
                                               attn_mask=span.mask.repeat_interleave(1, -2).repeat(
                                                   *([1] * (span.mask.ndim - 2)), group, 1))
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

    def forward(self, xs: list[Tensor], spans: list[Span], past=None) -> list[Tensor]:
        """One segment after another, each from the memory that the one before it left."""
        out = []
        for x, span in zip(xs, spans):
            y, past = self.mixer(self.input_layernorm(x), past, span)
            x = x + y
            out.append(x + self.mlp(self.post_attention_layernorm(x)))
        return out


# ---------------------------------------------------------------------------------------------------------------
# The network


@dataclass
class State:
    """Decoding buffers of some rows. `pos[b]` counts the tokens that row b has read."""
    layers: list[tuple[Tensor, Tensor]]
    pos: Tensor                                 # (rows,)
    rope: tuple[Tensor, Tensor]                 # cosine and sine of every position, (columns, 1, d_rotary)
    capacity: int


class Model(nn.Module):
    can_fork = True

    def __init__(self, c: Config):
        super().__init__()
        self.config, self.checkpointing, self.eos_ids = c, False, set()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, kind) for kind in c.layer_types)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = None if c.tie_word_embeddings else nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def fp32_units(self) -> list[nn.Module]:
        return [unit for unit in self.modules() if isinstance(unit, (Decay, GatedNorm))]

    @property
    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def rope(self, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        r = int(self.config.head_dim * self.config.partial_rotary_factor)
        frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, r, 2).float() / r)
        angle = torch.outer(torch.arange(start, end).to(up(like).dtype), frequency.to(up(like).dtype))
        angle = torch.cat([angle, angle], -1).unsqueeze(1)
        return angle.cos().to(like), angle.sin().to(like)

    def forward(self, ids: Tensor, suffixes: Tensor | None = None, head=None):
        x = self.embed_tokens(ids)
        P = ids.shape[1]
        xs, spans = [x], [Span(self.rope(0, P, x))]
        if suffixes is not None:
            S = suffixes.shape[1]
            mask = torch.ones(S, P + S, dtype=torch.bool, device=x.device).tril(P)
            xs.append(self.embed_tokens(suffixes))
            spans.append(Span(self.rope(P, P + S, x), mask))
        for block in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                xs = checkpoint(block, xs, spans, use_reentrant=False)
            else:
                xs = block(xs, spans)
        x = xs[0]
        if suffixes is not None:      # the prompt's last state predicts the first token of every suffix
            x = torch.cat([x[:, -1:].expand(len(suffixes), -1, -1), xs[1][:, :-1]], 1)
        x = self.norm(x)
        return F.linear(x, self.head_weight) if head is None else head(x, self.head_weight, None)

    def new_state(self, rows: int, capacity: int) -> State:
        columns = -(-(capacity + 1) // BUCKET) * BUCKET        # one to spare: padding is written behind the row
        like = self.embed_tokens.weight.new_zeros(())
        return State([block.mixer.buffers_for(rows, columns, like) for block in self.layers],
                     torch.zeros(rows, dtype=torch.long, device=like.device), self.rope(0, columns, like), columns)

    def _advance(self, ids: Tensor, at: Tensor, limit: int, lengths, state: State) -> Tensor:
        x = self.embed_tokens(ids)
        mask = (torch.arange(limit, device=ids.device) <= at.unsqueeze(-1)).unsqueeze(1)       # (B, 1, T, n)
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        heads = torch.arange(self.config.num_key_value_heads, device=ids.device)[None, :, None]
        span = Span(tuple(t[at] for t in state.rope), mask, lengths, (rows, heads, at.unsqueeze(1)), limit)
        for block, buffers in zip(self.layers, state.layers):
            x, = block([x], [span], buffers)
        return x

    @torch.no_grad()
    def segment(self, ids: Tensor, lengths: Tensor, state: State) -> Tensor:
        at = torch.minimum(state.pos.unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device),
                           (state.pos + lengths).unsqueeze(1))
        limit = -(-(int(at.max()) + 1) // BUCKET) * BUCKET
        x = self._advance(ids, at, limit, lengths, state)
        state.pos += lengths
        x = x[torch.arange(len(ids), device=ids.device), lengths - 1]
        return F.linear(self.norm(x), self.head_weight)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, limit: int) -> Tensor:
        x = self._advance(ids.unsqueeze(1), state.pos.unsqueeze(1), limit, None, state)
        state.pos += 1
        return F.linear(self.norm(x.squeeze(1)), self.head_weight)

    @torch.no_grad()
    def fork(self, dst: State, dst_rows, src: State, src_rows) -> None:
        dst_rows, src_rows = (torch.as_tensor(r, device=dst.pos.device) for r in (dst_rows, src_rows))
        dst.pos[dst_rows] = src.pos[src_rows]
        for block, mine, theirs in zip(self.layers, dst.layers, src.layers):
            for a, b in zip(mine, theirs):
                if isinstance(block.mixer, Attention):
                    n = min(a.shape[2], b.shape[2])
                    a, b = a[:, :, :n], b[:, :, :n]
                a[dst_rows] = b[src_rows]


# ---------------------------------------------------------------------------------------------------------------
# Folders


def checkpoint_name(name: str) -> str:
    return name.replace(".decay.", ".")


def build(config: dict | Config, dtype=torch.float32, device="cpu", seed: int = 0) -> Model:
    """A randomly initialised model."""
    c = config if isinstance(config, Config) else Config.from_json({"tie_word_embeddings": True} | config)
    module = Model(c)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("A_log"):
                p.uniform_(1, 16, generator=generator).log_()
            elif name.endswith("dt_bias"):          # such that softplus(dt_bias) is log-uniform in 0.001 to 0.1
                dt = torch.empty_like(p).uniform_(generator=generator).mul_(4.6).sub_(6.9).exp_()
                p.copy_(dt + (-(-dt).expm1()).log())
            elif name.endswith("conv1d.weight"):
                p.uniform_(-0.5, 0.5, generator=generator)
            elif p.ndim == 2:
                p.normal_(0, c.initializer_range, generator=generator)
    module = module.to(device, dtype)
    for unit in module.fp32_units:
        unit.to(torch.promote_types(dtype, torch.float32))
    module.raw, module.prefix, module.folder = c.to_json(), "model.language_model.", None
    module.eos_ids = ids_of(c.eos_token_id)
    return module


def ids_of(value) -> set[int]:
    return set() if value is None else set(value) if isinstance(value, list) else {value}


def load(path_or_id: str, dtype=torch.float32, device="cpu", revision: str | None = None) -> nn.Module:
    folder = Path(path_or_id)
    raw = json.loads((folder / "config.json").read_text())
    c = Config.from_json(raw)
    module = build(c, dtype, device)
    files = sorted(folder.glob("*.safetensors"))
    own = {checkpoint_name(n): p for n, p in module.named_parameters()}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                for prefix in ("model.language_model.", "model.", ""):
                    if name.startswith(prefix) and name.removeprefix(prefix) in own:
                        own[name.removeprefix(prefix)].data.copy_(tensors.get_tensor(name))
                        break
    module.raw, module.folder = raw, folder
    generation = folder / "generation_config.json"
    if generation.exists():
        module.eos_ids |= ids_of(json.loads(generation.read_text()).get("eos_token_id"))
    return module


def save(module: nn.Module, folder: str, tokenizer=None) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    raw = dict(module.raw, dtype=str(module.head_weight.dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    tensors = {("" if n.startswith("lm_head") else module.prefix) + checkpoint_name(n): p.detach().contiguous()
               for n, p in module.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if module.folder is not None:
        for file in module.folder.glob("*.json"):
            if file.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copy(file, folder / file.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
