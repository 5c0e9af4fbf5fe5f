"""lib/packages.py: a package is used only where it agrees. The packages here are made of model.py's
own functions, since the real ones need a GPU."""

import sys
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import model
from lib import packages

CPU = torch.device("cpu")


def fake_fla(change=lambda o, S: (o, S)):
    def chunk_gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state):
        assert q.dtype == torch.bfloat16 and scale == 1.0 and output_final_state
        return change(*model.delta_rule(q.float(), k.float(), v.float(), g, beta, initial_state))
    return types.SimpleNamespace(chunk_gated_delta_rule=chunk_gated_delta_rule)


def fake_conv1d():
    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        padding = weight.shape[1] - 1
        y = torch.nn.functional.conv1d(x, weight.unsqueeze(1), padding=padding, groups=len(weight))
        return y[..., :x.shape[-1]]
    return types.SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn)


@pytest.fixture
def chosen(monkeypatch):
    """chosen(name, module): what is said of the function `name` where `module` is installed."""
    monkeypatch.setattr(model, "KERNELS", {})
    monkeypatch.setattr(packages.metadata, "version", lambda package: "9.9")
    where = {"delta_rule": "fla.ops.gated_delta_rule", "short_convolution": "causal_conv1d"}

    def choose(name, module):
        monkeypatch.setitem(sys.modules, where[name], module)
        return packages.choose(name, CPU)
    return choose


def test_packages_that_agree_are_used(chosen):
    assert chosen("delta_rule", fake_fla()) == "flash-linear-attention 9.9"
    assert chosen("short_convolution", fake_conv1d()) == "causal-conv1d 9.9"
    assert model.KERNELS.keys() == {"delta_rule", "short_convolution"}


@pytest.mark.parametrize("change, reason", [
    (lambda o, S: (o * 1.1, S), "differs by"),                      # another scale
    (lambda o, S: (o, S.mT), "differs by"),                         # a transposed state
    (lambda o, S: (o * torch.nan, S), "differs by"),
    (lambda o, S: (o.detach().requires_grad_(), S), "fails: RuntimeError")])    # no gradient
def test_a_package_that_disagrees_is_named_and_not_used(chosen, change, reason):
    said = chosen("delta_rule", fake_fla(change))
    assert said.startswith("torch; flash-linear-attention 9.9") and not model.KERNELS
    assert reason in said


def test_a_package_of_another_version_is_named_and_not_used(chosen):
    assert "fails: AttributeError" in chosen("delta_rule", types.SimpleNamespace())
    assert not model.KERNELS


def test_nothing_is_asked_for_on_a_cpu_or_in_fp32_and_torch_computes_what_is_not_installed():
    assert packages.use(CPU, torch.bfloat16) == packages.use(torch.device("cuda"), torch.float32)
    assert packages.choose("delta_rule", CPU) == "torch"


class Tf32(TorchDispatchMode):
    """Rounds what goes into matrix products to 10 bits of mantissa, as a GPU does with TF32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname in ("bmm", "mm"):
            args = [rounded(x, 10) for x in args]
        return func(*args, **kwargs or {})


def rounded(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def test_tf32_in_the_delta_rule_costs_less_than_the_bf16_of_what_goes_in():
    """Against float64, forwards and backwards: 0.03 to 0.06 % of the norm, and 0.16 to 0.29 %."""
    inputs = [x.double() for x in packages.delta_rule_inputs(CPU)]
    exact = packages.results(model.delta_rule, inputs)
    with Tf32():
        tf32 = packages.results(model.delta_rule, [x.float() for x in inputs])
    bf16 = [rounded(x, 7) for x in inputs[:3]] + inputs[3:]
    bf16 = packages.results(model.delta_rule, bf16)
    for want, a, b in zip(exact, tf32, bf16, strict=True):
        assert (a - want).norm() < (b - want).norm()
