"""An affine coupling by PyTorch, written from its definition, and how the kernels are held to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from tests.cuda.where import DEVICE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def launchers():
    return pytest.importorskip("pkg.cuda.coupling_flows")


@dataclass(frozen=True)
class Coupling:
    """A coupling: the shape of x, which channels it changes, and whether a mask keeps some."""

    shape: tuple[int, ...] = (3, 5)
    first: int = 0
    changed: int = 0  # 0: all
    mask: bool = False
    bound: float = 2.5

    @property
    def channels(self):
        return self.changed or self.shape[1]

    def draw(self, dtype, seed=0, size=1.0):
        """Return x, raw, shift and the mask or None; raw and shift are two halves of one tensor."""
        generator = torch.Generator().manual_seed(seed)
        batch, _, *rest = self.shape
        x = torch.randn(self.shape, generator=generator)
        both = torch.randn(batch, 2 * self.channels, *rest, generator=generator) * size
        mask = torch.rand(self.shape[1:], generator=generator) < 0.5 if self.mask else None
        raw, shift = both.to(dtype).chunk(2, 1)
        return x.to(dtype), raw, shift, mask

    def plain(self, x, raw, shift, mask, inverse=False):
        """The same by PyTorch, in the type of its inputs."""
        s = self.bound * torch.tanh(raw / self.bound) if self.bound else raw
        old = x[:, self.first : self.first + self.channels]
        new = (old - shift) / s.exp() if inverse else old * s.exp() + shift
        if mask is not None:
            s, new = torch.where(mask, 0.0, s), torch.where(mask, old, new)
        out = torch.cat((x[:, : self.first], new, x[:, self.first + self.channels :]), 1)
        return out, (-s if inverse else s).flatten(1).sum(1)


def on_device(x):
    return None if x is None else x.to(DEVICE)


def arriving(shape, dtype, seed=1):
    """Return gradients by the output and by the log-determinant."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    return (
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn(shape[0], generator=generator).to(wide),
    )


def ours(coupling, tensors, gradients, inverse):
    """Output, log-determinant and the three gradients by the kernels, on the CPU."""
    module = launchers()
    x, raw, shift, mask = (on_device(t) for t in tensors)
    rest = (x, raw, shift, mask, coupling.first, coupling.bound)
    run = module.inverse if inverse else module.forward
    back = module.inverse_backward if inverse else module.backward
    found = (*run(*rest), *back(*(on_device(g) for g in gradients), *rest))
    return [t.cpu() for t in found]


def by_pytorch(coupling, tensors, gradients, inverse, kind):
    *floats, mask = tensors
    leaves = [t.to(kind).requires_grad_() for t in floats]
    found = coupling.plain(*leaves, mask, inverse=inverse)
    by = torch.autograd.grad(found, leaves, [g.to(kind) for g in gradients])
    return [*(t.detach() for t in found), *by]


class Fenced:
    """PyTorch, but each `empty` lies in the middle of a larger tensor, whose rest must stay as it is."""

    def __init__(self):
        self.fields = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, *, dtype, device):
        size, fence = math.prod(shape if isinstance(shape, tuple) else (shape,)), 200
        field = torch.full((size + 2 * fence,), 77.0, dtype=dtype, device=device)
        self.fields.append((field, fence))
        return field[fence:-fence].view(shape)

    def check(self):
        """Assert that nothing was written beside what was asked for."""
        assert self.fields
        for field, fence in self.fields:
            assert (field[:fence] == 77).all()
            assert (field[-fence:] == 77).all()


NAMES = ("out", "log_det", "by_x", "by_raw", "by_shift")


def agree(coupling, dtype, tensors=None, inverse=False, found=None):
    """Compare kernels and PyTorch: error at most twice PyTorch's in the same type."""
    tensors = coupling.draw(dtype) if tensors is None else tensors
    gradients = arriving(coupling.shape, dtype)
    got = found or ours(coupling, tensors, gradients, inverse)
    exact = by_pytorch(coupling, tensors, gradients, inverse, torch.float64)
    theirs = by_pytorch(coupling, tensors, gradients, inverse, dtype)
    for name, mine, true, plain in zip(NAMES, got, exact, theirs, strict=True):
        wanted = torch.float32 if name == "log_det" and dtype.itemsize == 2 else dtype
        assert mine.dtype == wanted, name
        assert mine.shape == true.shape, name
        assert mine.is_contiguous(), name
        error, allowed = ((t.double() - true).norm() for t in (mine, plain))
        # Where PyTorch's error is zero by luck in a small case: a rounding of the result more, and
        # in float32 eight, since exp and tanh are right to some ulp each, not to half of one.
        floor = torch.finfo(dtype).eps * true.norm() * (8 if dtype == torch.float32 else 1)
        assert error <= 2 * allowed + floor, (name, float(error), float(allowed))


def inside_nan(x, margin=3):
    """Return x as a view of rows in a larger tensor whose rest is NaN."""
    if x is None:
        return None
    flat = x.reshape(x.shape[0], -1)
    big = torch.full((flat.shape[0], flat.shape[1] + 2 * margin), torch.nan).to(x)
    big[:, margin:-margin] = flat
    return big[:, margin:-margin].unflatten(1, x.shape[1:])
