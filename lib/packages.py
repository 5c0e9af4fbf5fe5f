"""Faster kernels of other packages for two functions of model.py, where they are installed and
agree with them on this GPU: fla (flash-linear-attention) for the delta rule, causal-conv1d for the
convolution. Neither is needed, and none is used on a CPU or in fp32.

    chosen = packages.use(device, torch.bfloat16)   # {"delta_rule": "fla 0.4.1", ...}; says what is

Nothing of this has met a GPU yet. Only a tiny check at the start of a run stands between a package
that has changed and a run that learns nonsense: forwards and backwards, a state that is handed in
and out, a length that is no multiple of a chunk.
"""

import importlib
from collections.abc import Callable
from importlib import metadata

import torch
from torch import Tensor

import model

TOLERANCE = 0.02        # of the norm: bf16 rounds q, k, v and o by up to 0.4 % each


def fla_delta_rule() -> Callable:
    chunk_gated_delta_rule = importlib.import_module(
        "fla.ops.gated_delta_rule").chunk_gated_delta_rule

    def delta_rule(q, k, v, g, beta, S):
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))         # it refuses fp32
        S = S.expand(len(q), *S.shape[1:]).contiguous()
        return chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0, initial_state=S,
                                      output_final_state=True)
    return delta_rule


def conv1d_short_convolution() -> Callable:
    causal_conv1d_fn = importlib.import_module("causal_conv1d").causal_conv1d_fn

    def short_convolution(window, weight):
        # it pads on the left by as much as the window brings along
        y = causal_conv1d_fn(window.mT, weight.squeeze(1).to(window.dtype), activation=None)
        return y[:, :, weight.shape[-1] - 1:].mT
    return short_convolution


CANDIDATES = {"delta_rule": ("flash-linear-attention", fla_delta_rule),
              "short_convolution": ("causal-conv1d", conv1d_short_convolution)}


def delta_rule_inputs(device: torch.device) -> list[Tensor]:
    stream = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=stream).to(device)
    q, k, v = (draw(2, 130, 2, 64) for _ in range(3))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    return [q, k, v, -draw(2, 130, 2).abs() / 10, draw(2, 130, 2).sigmoid(), draw(1, 2, 64, 64)]


def convolution_inputs(device: torch.device) -> list[Tensor]:
    stream = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=stream).to(device, torch.bfloat16)
    return [draw(2, 133, 64), draw(64, 1, 4)]


INPUTS = {"delta_rule": delta_rule_inputs, "short_convolution": convolution_inputs}


def results(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """What it returns, and the gradients of a weighted sum of that."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    out = list(out) if isinstance(out, tuple) else [out]
    stream = torch.Generator().manual_seed(1)
    loss = sum((x.float() * torch.randn(x.shape, generator=stream).to(x.device)).sum()
               for x in out)
    return out + list(torch.autograd.grad(loss, inputs))


def largest_gap(name: str, function: Callable, device: torch.device) -> float:
    """Largest distance of its results and gradients from those of model.py's own, as a share of the
    latter's norm; nan counts as infinite."""
    inputs, worst = INPUTS[name](device), 0.0
    mine, theirs = results(getattr(model, name), inputs), results(function, inputs)
    for a, b in zip(mine, theirs, strict=True):
        a, b = a.detach().double(), b.detach().double()
        gap = float((a - b).norm() / a.norm())
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def use(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Put installed kernels that agree into model.KERNELS -> {function: what computes it}. Empty
    where only model.py's own are used: on a CPU, in fp32."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return {}
    return {name: choose(name, device) for name in CANDIDATES}


def choose(name: str, device: torch.device) -> str:
    package, make = CANDIDATES[name]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return "torch"
    try:
        function = make()
        gap = largest_gap(name, function, device)
    except Exception as error:          # of a version that does not fit: any
        reason = str(error).strip().partition("\n")[0]
        return f"torch; {package} {version} fails: {type(error).__name__}: {reason}"
    if gap > TOLERANCE:
        return f"torch; {package} {version} differs by {gap:.2%}"
    model.KERNELS[name] = function
    return f"{package} {version}"
