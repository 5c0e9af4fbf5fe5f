"""lib/kernels.py: each kernel against plain code, by Triton's interpreter on a CPU; and what
happens where one does not work."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")      # before Triton is imported

from types import SimpleNamespace

import pytest
import torch

import model
from bench.rollout import NoWords
from lib import kernels
from rollout import Engine, Job

triton_only = pytest.mark.skipif(kernels.triton is None or torch.cuda.is_available(),
                                 reason="needs Triton, and interprets it without a GPU")
SIZES = dict(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
             full_attention_interval=2, num_attention_heads=6, num_key_value_heads=2, head_dim=24,
             linear_key_head_dim=24, linear_value_head_dim=40, linear_num_key_heads=2,
             linear_num_value_heads=4)


@triton_only
@pytest.mark.parametrize("dk,dv", [(16, 16), (24, 40), (128, 128)])
def test_the_delta_kernel_is_the_plain_step(dk, dv):
    mixer = SimpleNamespace(hv=2, dk=dk, dv=dv)
    assert kernels.delta_error(mixer, torch.zeros(1)) < 2e-6


@triton_only
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("h,kv,d", [(4, 2, 16), (8, 2, 256), (6, 1, 48)])
def test_attention_by_true_length_is_that_with_a_mask(h, kv, d, dtype, bound):
    mixer = SimpleNamespace(h=h, kv=kv, d=d)
    assert kernels.attention_error(mixer, torch.zeros(1, dtype=dtype)) < bound


def greedy(module) -> list[list[int]]:
    jobs = [Job(list(range(3, 5 + 11 * i)), (0, i), 2 + i, tag=i) for i in range(3)]
    engine = Engine(module, NoWords(300), 2, temperature=0)
    return [sample.ids for _, sample in sorted(engine.run(jobs), key=lambda done: done[0].tag)]


@triton_only
def test_a_model_decodes_the_same_tokens_with_its_kernels():
    module = model.build(SIZES)
    want = greedy(module)
    assert kernels.speed_up(module) == []
    assert not module.limit_matters and module.layers[0].mixer.delta_step is kernels.delta_step
    assert greedy(module) == want


def test_a_kernel_that_fails_or_is_wrong_is_named_and_not_used(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image is available\nfor this device")
    monkeypatch.setattr(kernels, "triton", object())
    monkeypatch.setattr(kernels, "delta_step", broken)
    monkeypatch.setattr(kernels, "attend_row", lambda q, k, v, at: 2 * q)
    module = model.build(SIZES)
    first, second = kernels.speed_up(module)
    assert first == ("decoding without the kernel delta_step: RuntimeError: no kernel image is "
                     "available")
    assert second.startswith("decoding without the kernel attend_row: it is off by ")
    assert module.limit_matters and module.layers[1].mixer.attend_row is None
    monkeypatch.setattr(kernels, "triton", None)
    assert kernels.speed_up(module) == [
        "decoding without kernels of our own: this torch comes without Triton"]
