"""Kernels for decoding on a GPU, in Triton, for what model.py does in plain code.

    for line in kernels.speed_up(module): print(line)       # what it uses, and what it cannot use

`speed_up` tries every kernel on the module's device against the plain code before it is used: where
Triton is missing, does not compile or computes something else, decoding goes on with the plain one,
and a line says why. Training never comes here.

A decoding step of one row reads little and computes less, so what counts is how often memory is
passed: S is read and written once here (five passes in plain code), and keys and values are read as
far as each row is long (plain: as far as the longest one).

Shapes: B rows, h heads, d head width, dk and dv those of the DeltaNet; columns: positions that a
decoding buffer has room for.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import model

try:
    import triton
    import triton.language as tl
except ImportError:                 # torch for CPUs comes without it
    triton = None

BLOCK_DV = 32           # columns of S that one program holds: 128 x 32 numbers
BLOCK_KEYS = 16         # keys that one program of attention looks at together; with 32 it spills


if triton:
    @triton.jit
    def delta_kernel(q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, S_ptr, o_ptr,
                     dk: tl.constexpr, dv: tl.constexpr,
                     DK: tl.constexpr, DV: tl.constexpr):
        """One row and head, DV columns of S: `model.delta_step`, line by line. DK is dk, rounded up
        to a power of two."""
        row = tl.program_id(0).to(tl.int64)             # of B * h
        i = tl.arange(0, DK)
        j = tl.program_id(1) * DV + tl.arange(0, DV)
        q = tl.load(q_ptr + row * dk + i, mask=i < dk, other=0.0)
        k = tl.load(k_ptr + row * dk + i, mask=i < dk, other=0.0)
        v = tl.load(v_ptr + row * dv + j, mask=j < dv, other=0.0)
        keep, beta = tl.exp(tl.load(g_ptr + row)), tl.load(beta_ptr + row)
        at = S_ptr + row * dk * dv + i[:, None] * dv + j[None, :]
        inside = (i < dk)[:, None] & (j < dv)[None, :]

        S = keep * tl.load(at, mask=inside, other=0.0)
        w = beta * (v - tl.sum(S * k[:, None], 0))
        S += k[:, None] * w[None, :]
        tl.store(at, S, mask=inside)
        tl.store(o_ptr + row * dv + j, tl.sum(S * q[:, None], 0), mask=j < dv)

    @triton.jit
    def attention_kernel(q_ptr, k_ptr, v_ptr, at_ptr, o_ptr, scale, row_stride, columns, kv,
                         GROUP: tl.constexpr, G: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
                         N: tl.constexpr, PRECISION: tl.constexpr):
        """One row and head of keys: GROUP queries over the keys 0 ... at[row], N at a time, with
        the running maximum and sum of a softmax. G and D are GROUP and d, rounded up."""
        row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        g, i = tl.arange(0, G), tl.arange(0, D)
        place = ((row * kv + head) * GROUP + g)[:, None] * d + i[None, :]
        inside = (g < GROUP)[:, None] & (i < d)[None, :]
        q = tl.load(q_ptr + place, mask=inside, other=0.0).to(tl.float32)
        start = row * row_stride + head.to(tl.int64) * columns * d
        length = tl.load(at_ptr + row) + 1

        most = tl.full((G,), float("-inf"), tl.float32)
        total = tl.zeros((G,), tl.float32)
        o = tl.zeros((G, D), tl.float32)
        first = 0
        while first < length:
            n = first + tl.arange(0, N)
            seen = (n < length)[:, None] & (i < d)[None, :]
            keys = tl.load(k_ptr + start + n[:, None] * d + i[None, :], mask=seen, other=0.0)
            values = tl.load(v_ptr + start + n[:, None] * d + i[None, :], mask=seen, other=0.0)
            keys, values = keys.to(tl.float32), values.to(tl.float32)
            score = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
            score = tl.where((n < length)[None, :], score, float("-inf"))
            highest = tl.maximum(most, tl.max(score, 1))
            p = tl.exp(score - highest[:, None])
            shrink = tl.exp(most - highest)
            total = total * shrink + tl.sum(p, 1)
            o = o * shrink[:, None]
            o += tl.dot(p, values, input_precision=PRECISION)
            most = highest
            first += N
        tl.store(o_ptr + place, o / total[:, None], mask=inside)


# As operators of torch, both can be compiled over, and run on the meta device.

@torch.library.custom_op("cppo::delta_step", mutates_args=("S",))
def delta_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> Tensor:
    """`model.delta_step`, all in fp32: S is read and written once. Updates S in place."""
    q, k, v, g, beta = (t.contiguous() for t in (q, k, v, g, beta))
    B, h, dk, dv = S.shape
    o = torch.empty_like(v)
    delta_kernel[(B * h, triton.cdiv(dv, BLOCK_DV))](
        q, k, v, g, beta, S, o, dk, dv, triton.next_power_of_2(dk), BLOCK_DV)
    return o


@delta_step.register_fake
def _(q, k, v, g, beta, S):
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("cppo::attend_row", mutates_args=())
def attend_row(q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
    """q (B, h, d) over the keys and values 0 ... at[row] of buffers k, v (B, kv, columns, d), at
    (B,) -> o (B, h, d)."""
    B, h, d = q.shape
    kv, columns = k.shape[1:3]
    q, o, group = q.contiguous(), torch.empty(B, h, d, dtype=q.dtype, device=q.device), h // kv
    attention_kernel[(B, kv)](
        q, k, v, at, o, d ** -0.5, k.stride(0), columns, kv, group,
        max(16, triton.next_power_of_2(group)),         # tl.dot takes no fewer
        d, triton.next_power_of_2(d), BLOCK_KEYS,
        # bf16 numbers are TF32 numbers: only the softmax is rounded, to three more bits than bf16's
        "ieee" if q.dtype == torch.float32 else "tf32")
    return o


@attend_row.register_fake
def _(q, k, v, at):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------------------------------- trying

TOLERANCE = {torch.float32: 1e-4}       # other dtypes: 0.03, as shares of the largest number


def speed_up(module: model.Model) -> list[str]:
    """Let the module decode with the kernels that work here. Returns a line for each that does
    not."""
    if triton is None:
        return ["decoding without kernels of our own: this torch comes without Triton"]
    like, lines = module.head_weight, []
    for kind, name, kernel, error_of in (
            (model.DeltaNet, "delta_step", delta_step, delta_error),
            (model.Attention, "attend_row", attend_row, attention_error)):
        mixers = [block.mixer for block in module.layers if isinstance(block.mixer, kind)]
        if not mixers:
            continue
        try:
            error = error_of(mixers[0], like)
            reason = f"it is off by {error:.2g}"
        except Exception as e:          # Triton's compiler and drivers raise whatever they like
            error = float("nan")
            reason = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]:.150}"
        if error < TOLERANCE.get(like.dtype, 0.03):
            for mixer in mixers:
                setattr(mixer, name, kernel)
            module.limit_matters = module.limit_matters and kind is not model.Attention
        else:
            lines.append(f"decoding without the kernel {name}: {reason}")
    return lines


def delta_error(mixer: model.DeltaNet, like: Tensor) -> float:
    """How far the kernel is from the plain code, as a share of the largest number."""
    B, h, dk, dv = 3, mixer.hv, mixer.dk, mixer.dv
    draw = partial(torch.randn, device=like.device)
    q, k = draw(B, h, dk), F.normalize(draw(B, h, dk), dim=-1)
    v, S = draw(B, h, dv), draw(B, h, dk, dv)
    g, beta = -draw(B, h).abs(), draw(B, h).sigmoid()
    S_plain = S.clone()
    want = model.delta_step(q, k, v, g, beta, S_plain)
    return max(apart(delta_step(q, k, v, g, beta, S), want), apart(S, S_plain))


def attention_error(mixer: model.Attention, like: Tensor) -> float:
    """The same for attention, in the dtype of `like`."""
    columns, at = 2 * BLOCK_KEYS + 1, torch.tensor([0, BLOCK_KEYS, 2 * BLOCK_KEYS])
    draw = partial(torch.randn, dtype=like.dtype, device=like.device)
    q, at = draw(3, mixer.h, mixer.d), at.to(like.device)
    k, v = draw(2, 3, mixer.kv, columns, mixer.d)
    mask = torch.arange(columns, device=like.device) <= at[:, None]
    grouped = q.unflatten(1, (mixer.kv, -1))
    score = grouped.float() @ k.float().mT * mixer.d ** -0.5
    score = score.masked_fill(~mask[:, None, None], -torch.inf)
    want = (score.softmax(-1) @ v.float()).flatten(1, 2)
    return apart(attend_row(q, k, v, at), want)


def apart(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())
