"""Depthwise convolution on the CPU where PyTorch's own leaves its fast path.

With one input channel per output channel there is no matrix product, and what counts is how the
memory is walked. PyTorch's kernels for that (oneDNN's) handle up to seven zeros on a side and, in
the gradients, no dilation; beyond, a general routine takes over that is several times as slow.
Here the zeros are written down first, which puts the convolution back on the fast path; the
gradient by the input is such a convolution too, and the one by the kernels is summed tap by tap.

What is larger than the cache is done in blocks of channels that fit it. The numbers below were
measured on two cores with 1 MiB of second-level cache each; one thread and two agree on them. The
blocks follow each other and PyTorch's own threads work on each: handing whole blocks to threads of
our own took twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pkg.algos.dilated_convolution.arguments import output_shape
from pkg.algos.dilated_convolution.reference import accumulation_dtype

#: Types that oneDNN convolves on every CPU; the others have no fast path to be put on.
ONEDNN = (torch.float32, torch.bfloat16)
#: Zeros on a side from which on PyTorch's own depthwise convolution is the slower one.
WIDE_PADDING = 8
#: Numbers of a block: two megabytes of float32. A tensor of up to twice as many is done at once.
BLOCK = 1 << 19
#: Numbers from which on blocks gain without any zeros to write: PyTorch reorders the whole tensor.
LARGE = 3 << 20
#: Numbers below which a gradient of ours costs more to call than it saves.
SMALL = 1 << 16


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last where x is that and not also contiguous; its result will be the same."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def is_depthwise(channels: int, outputs: int, groups: int) -> bool:
    """Tell whether each channel has a kernel of its own and gives one output."""
    return channels == outputs == groups > 1


def symmetric(padding: Sequence[int]) -> bool:
    """Tell whether both ends of each axis get as many zeros; PyTorch adds no others."""
    top, bottom, left, right = padding
    return top == bottom and left == right


def forward_gains(x: Tensor, padding: Sequence[int]) -> bool:
    """Tell whether `depthwise_forward` has a faster way than PyTorch's own."""
    if not symmetric(padding):
        return True  # PyTorch writes the zeros first, too
    large = x.numel() >= LARGE and memory_format(x) == torch.contiguous_format
    return x.dtype in ONEDNN and (large or max(padding) >= WIDE_PADDING)


def gradient_gains(x: Tensor, dilation: Sequence[int]) -> bool:
    """Tell whether the gradients of this file are faster than PyTorch's own, call included."""
    return max(dilation) > 1 and x.numel() >= SMALL and x.dtype != torch.float64


def depthwise_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """Convolve each channel with its own kernel; `padding` is [top, bottom, left, right]."""
    batch, channels = x.shape[:2]
    top, bottom, left, right = padding
    if not forward_gains(x, padding):
        return conv2d(x, weight, bias, stride, [top, left], dilation, channels)
    last = memory_format(x) == torch.channels_last
    if last or x.numel() <= 2 * BLOCK or x.dtype not in ONEDNN:
        whole = pad(x, (left, right, top, bottom))
        return conv2d(whole, weight, bias, stride, 0, dilation, channels)
    sides, zeros = [top, left], [0, 0, 0, 0]
    if _writes_zeros(padding):
        sides, zeros = [0, 0], [*padding]
    kernels = weight.repeat(batch, 1, 1, 1)
    biases = None if bias is None else bias.repeat(batch)
    sizes = output_shape(x, weight, stride, padding, dilation)
    output = x.new_empty((batch * channels, *sizes))
    for here, block in _padded(x.flatten(0, 1), zeros):
        added = None if biases is None else biases[here]
        output[here] = conv2d(
            block[None], kernels[here], added, stride, sides, dilation, len(block)
        )[0]
    return output.unflatten(0, (batch, channels))


def depthwise_backward_input(
    gradient: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> Tensor | None:
    """Return the gradient by the input at stride 1: a convolution with the kernel turned round.

    None where the layer's padding is wider than its kernel: the sum would begin before its input.
    """
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [reach[side // 2] - zeros for side, zeros in enumerate(padding)]
    if min(sides) < 0:
        return None
    return depthwise_forward(gradient, weight.flip(2, 3), None, [1, 1], sides, dilation)


def depthwise_backward_weight(
    gradient: Tensor, x: Tensor, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """Return the gradient by the kernels: tap by tap, the input shifted, times the gradient, summed.

    A tap that lies on padding has no product: only the pixels that it sees are multiplied.
    """
    kind = accumulation_dtype(x.dtype)
    batch, channels = x.shape[:2]
    rows, columns = (
        [_meeting(tap * dilation[a] - padding[2 * a], stride[a], x.shape[2 + a],
                  gradient.shape[2 + a]) for tap in range(kernel[a])]
        for a in (0, 1)
    )  # fmt: skip
    last = memory_format(x) == torch.channels_last
    if last:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        blocks = [(here, slice(None)) for here in _blocks(batch, x[0].numel(), 1)]
    else:  # every channel of every image is a plane of its own
        x, gradient = x.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
        blocks = [(slice(None), here) for here in _blocks(x.shape[1], x[0, 0].numel())]
    total = x.new_zeros((x.shape[1], *kernel), dtype=kind)
    for here in blocks:
        values, arriving = x[here].to(kind), gradient[here].to(kind)
        for i, (row, to_row) in enumerate(rows):
            for j, (column, to_column) in enumerate(columns):
                product = values[..., row, column] * arriving[..., to_row, to_column]
                total[here[1], i, j] += product.sum((0, 2, 3))
    if not last:
        total = total.unflatten(0, (batch, channels)).sum(0)
    return total.unsqueeze(1).to(gradient.dtype)


def _writes_zeros(padding: Sequence[int]) -> bool:
    return not symmetric(padding) or max(padding) >= WIDE_PADDING


def _blocks(count: int, numbers: int, width: int = 16) -> list[slice]:
    """Return slices of `count` parts of so many numbers that fill a block; 16 is oneDNN's width."""
    step = max(BLOCK // numbers // width * width, width)
    return [slice(start, start + step) for start in range(0, count, step)]


def _padded(planes: Tensor, padding: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Yield (where, planes with zeros around them), block by block, all in the same buffer."""
    top, bottom, left, right = padding
    count, height, width = planes.shape
    size = (height + top + bottom, width + left + right)
    blocks = _blocks(count, size[0] * size[1])
    if not any(padding):
        yield from ((here, planes[here]) for here in blocks)
        return
    buffer = planes.new_zeros((len(planes[blocks[0]]), *size))
    inside = buffer[:, top : top + height, left : left + width]
    for here in blocks:
        block = planes[here]
        inside[: len(block)].copy_(block)
        yield here, buffer[: len(block)]


def _meeting(shift: int, stride: int, size: int, outputs: int) -> tuple[slice, slice]:
    """Return the inputs i and the outputs o with i = o * stride + shift, within their sizes."""
    first = max(0, -(shift // stride))
    end = max(first, min(outputs, (size - 1 - shift) // stride + 1))
    start = first * stride + shift
    return slice(start, start + (end - first) * stride, stride), slice(first, end)
