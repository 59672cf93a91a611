"""The kernels of dilated convolution touch no byte before or behind their tensors.

A mask that is one too wide gives right results and reads what it should not: on a GPU that ends in an
illegal access, or goes unnoticed for years. Here memory pages that nobody may read lie on both sides.
"""

from __future__ import annotations

import ctypes
import faulthandler
import math
import mmap
import os
from dataclasses import dataclass

import pytest
import torch

from tests.cuda.dilated_oracle import Layer, launchers

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a forked child is watched"),
]
PAGE = mmap.PAGESIZE
_KEPT: list[mmap.mmap] = []  # the memory behind the tensors


def fresh(shape, dtype, behind):
    """Return a tensor that ends (or begins) at a page that nobody may touch."""
    size = math.prod(shape) * dtype.itemsize
    pages = max(-(-size // PAGE), 1)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    _KEPT.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = PAGE + (pages * PAGE - size if behind else 0)
    flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset)
    return flat.view(tuple(shape))


def guarded(x, behind):
    """Return such a copy of x (a bias, an image, a weight), in the layout that the kernels want."""
    if x.ndim == 1:
        return fresh(x.shape, x.dtype, behind).copy_(x)
    if x.shape[1] == 1:  # a depthwise weight: its output channels are the last axis
        last = x.permute(2, 3, 1, 0)
        return fresh(last.shape, x.dtype, behind).copy_(last).permute(3, 2, 0, 1)
    last = x.permute(0, 2, 3, 1)
    return fresh(last.shape, x.dtype, behind).copy_(last).permute(0, 3, 1, 2)


@dataclass
class GuardedTorch:
    """PyTorch for the launchers: what they allocate lies between such pages too."""

    behind: bool

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, dtype, device):
        return fresh(shape, dtype, self.behind).fill_(torch.nan)

    def zeros(self, shape, dtype, device):
        return fresh(shape, dtype, self.behind).zero_()


def in_a_child(work):
    """Return the exit status of `work` in a forked child; negative: the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


LAYERS = {
    "dense": Layer((1, 3, 5), (48, 48), (1, 2), (1, 1), (0, 0, 2, 2), (2, 2)),
    "groups": Layer((1, 4, 5), (32, 32), (2, 1), (2, 1), (3, 0, 0, 0), (3, 1), groups=2),
    "depthwise": Layer((1, 4, 5), (12, 12), (2, 3), (1, 1), (2, 0, 2, 2), (2, 2), groups=12),
    "multiplier": Layer((1, 5, 4), (6, 12), (3, 1), (1, 2), (0, 0, 2, 1), (1, 3), groups=6),
    "many taps": Layer((1, 5, 4), (3, 3), (5, 6), (1, 1), (3, 3, 3, 3), (1, 1), groups=3),
}


@pytest.mark.parametrize("behind", [False, True], ids=["begins", "ends"])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_before_or_behind_a_tensor_is_touched(name, behind, monkeypatch):
    module, layer = launchers(), LAYERS[name]
    monkeypatch.setattr(module.launch, "torch", GuardedTorch(behind))
    x, weight, bias = layer.draw(torch.float32)
    arriving = torch.ones_like(layer.plain(x, weight, None))

    def run():
        near, kernel, given, added = (guarded(t, behind) for t in (x, weight, arriving, bias))
        module.forward(near, kernel, added, *layer.rest)
        module.backward_input(given, kernel, *x.shape[2:], *layer.rest)
        module.backward_weight(given, near, *weight.shape[2:], *layer.rest)

    assert in_a_child(run) == 0, "the kernels touch what is not theirs"


def test_the_guard_is_there():
    """Else the test above could not fail."""
    for behind, outside in ((True, 64), (False, -1)):
        x = guarded(torch.ones(1, 16, 2, 2), behind)
        assert x.sum() == 64
        place = x.data_ptr() + 4 * outside
        assert in_a_child(lambda at=place: ctypes.c_float.from_address(at).value) < 0
