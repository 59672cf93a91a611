"""A convolution by PyTorch, and how the kernels are compared with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import conv2d, pad

from tests.cuda.where import DEVICE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def launchers():
    return pytest.importorskip("pkg.cuda.dilated_convolution")


@dataclass(frozen=True)
class Layer:
    """A convolution and the size of what it gets."""

    size: tuple[int, int, int] = (2, 9, 13)  # batch, height, width
    channels: tuple[int, int] = (5, 7)  # in, out
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    @property
    def rest(self):
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def draw(self, dtype, seed=0):
        """Return x, weight and bias, or None for the last."""
        generator = torch.Generator().manual_seed(seed)
        batch, height, width = self.size
        inputs, outputs = self.channels
        shapes = [
            (batch, inputs, height, width),
            (outputs, inputs // self.groups, *self.kernel),
            (outputs,),
        ]
        x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        return x, weight, bias if self.bias else None

    def plain(self, x, weight, bias):
        """The same by PyTorch, in the type of its inputs."""
        top, bottom, left, right = self.padding
        x = pad(x, (left, right, top, bottom))
        return conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


def on_device(x):
    return None if x is None else x.to(DEVICE)


def ours(layer, x, weight, bias, arriving):
    """Output and both gradients by the kernels, on the CPU."""
    module = launchers()
    x, weight, bias, arriving = (on_device(t) for t in (x, weight, bias, arriving))
    found = (
        module.forward(x, weight, bias, *layer.rest),
        module.backward_input(arriving, weight, *x.shape[2:], *layer.rest),
        module.backward_weight(arriving, x, *weight.shape[2:], *layer.rest),
    )
    return [part.cpu() for part in found]


def by_pytorch(layer, x, weight, bias, arriving, kind):
    leaves = [t.to(kind).requires_grad_() for t in (x, weight)]
    output = layer.plain(*leaves, None if bias is None else bias.to(kind))
    return [output.detach(), *torch.autograd.grad(output, leaves, arriving.to(kind))]


def agree(layer, dtype, tensors=None):
    """Compare kernels and PyTorch: error at most twice PyTorch's in the same type."""
    x, weight, bias = tensors or layer.draw(dtype)
    shape = layer.plain(x.double(), weight.double(), None).shape
    arriving = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = ours(layer, x, weight, bias, arriving)
    exact = by_pytorch(layer, x, weight, bias, arriving, torch.float64)
    plain = by_pytorch(layer, x, weight, bias, arriving, dtype)
    for name, mine, true, theirs in zip(("out", "dx", "dw"), got, exact, plain, strict=True):
        assert mine.dtype == dtype, name
        assert mine.shape == true.shape, name
        error, allowed = ((t.double() - true).norm() for t in (mine, theirs))
        # One rounding of the result more, for a plain error that is zero by luck in a small case;
        # in float32 the sum of a hundred products in another order: 8 roundings.
        floor = torch.finfo(dtype).eps * true.norm() * (8 if dtype == torch.float32 else 1)
        assert error <= 2 * allowed + floor, (name, float(error), float(allowed))


def inside_nan(x, margin=2):
    """Return x as a view, channels last, into a larger tensor whose rest is NaN."""
    batch, channels, height, width = x.shape
    big = torch.full((batch, height + 2 * margin, width + 2 * margin, channels), torch.nan).to(x)
    view = big[:, margin:-margin, margin:-margin].permute(0, 3, 1, 2)
    return view.copy_(x)
