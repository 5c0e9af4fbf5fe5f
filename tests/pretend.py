"""A GPU that is not there: meta tensors claim to be on one.

They have shapes and no values, so whatever would make the host wait for a GPU (`.item()`, `bool()`,
a boolean index, `.cpu()`) raises."""

from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


class Operations(TorchDispatchMode):
    """What a GPU would be asked to do."""

    def __init__(self):
        super().__init__()
        self.counts, self.largest_batch = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._opname] += 1
        if func._opname == "bmm":
            self.largest_batch = max(self.largest_batch, len(args[0]))
        return func(*args, **kwargs or {})


@contextmanager
def gpu():
    """Yields the `Operations` of what runs on the meta device."""
    with ExitStack() as stack:
        claims = property(lambda t: t.is_meta)
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", claims))
        # torch asks the driver, which is not there either
        fits = mock.patch("torch.nn.attention.bias.can_use_flash_attention", lambda *_: True)
        stack.enter_context(fits)
        stack.enter_context(mock.patch("model.causal_lower_right", bias))
        yield stack.enter_context(Operations())


def bias(*size: int) -> torch.Tensor:
    """torch cannot make one under a dispatch mode."""
    with _disable_current_modes():
        return causal_lower_right(*size)
