"""Depthwise convolution on the CPU where PyTorch's own leaves its fast path.

With one input channel per output channel there is no matrix product, and what counts is how the
memory is walked. PyTorch's kernels for that (oneDNN's) handle up to seven zeros on a side and, in
the gradients, no dilation; beyond, a general routine takes over that is several times as slow.
Here the zeros are written down first, a block of channels at a time, in a buffer that is used
again: then no padding is left, and the fast path applies. The buffer stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pkg.algos.dilated_convolution.reference import accumulation_dtype

#: Zeros on a side from which on PyTorch's own depthwise convolution is the slower one.
WIDE_PADDING = 8
#: Numbers in the buffer: one megabyte of float32; with channels last the blocks are wider. Several
#: threads get four times as much, because they have to wait for each other after every block.
BUFFER, BUFFER_LAST = 1 << 18, 1 << 19


def _channels_at_once(numbers: int, area: int, least: int, channels: int) -> int:
    """Return how many channels of `area` fit a buffer; a multiple of 16, as oneDNN's blocks are."""
    if torch.get_num_threads() > 1:
        numbers *= 4
    return min(max(numbers // area // 16 * 16, least), channels)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last where x is that and not also contiguous; its result will be the same."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def is_depthwise(channels: int, outputs: int, groups: int) -> bool:
    """Tell whether each channel has a kernel of its own and gives one output."""
    return channels == outputs == groups > 1


def depthwise_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """Convolve each channel with its own kernel; `padding` is [top, bottom, left, right]."""
    if memory_format(x) == torch.channels_last:
        return _channels_last_forward(x, weight, bias, stride, padding, dilation)
    batch, channels = x.shape[:2]
    kernels = weight.repeat(batch, 1, 1, 1)
    biases = None if bias is None else bias.repeat(batch)
    output = None
    for start, block in _padded_blocks(x.flatten(0, 1), padding, x.dtype):
        here = slice(start, start + len(block))
        found = conv2d(
            block[None], kernels[here], None if biases is None else biases[here], stride, 0,
            dilation, len(block),
        )[0]  # fmt: skip
        if output is None:
            output = x.new_empty((batch * channels, *found.shape[1:]))
        output[here] = found
    assert output is not None, "there is at least one image and one channel"
    return output.unflatten(0, (batch, channels))


def _channels_last_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """The same, image by image, in buffers whose channels are last too."""
    top, bottom, left, right = padding
    batch, channels, height, width = x.shape
    size = (height + top + bottom, width + left + right)
    step = _channels_at_once(BUFFER_LAST, size[0] * size[1], 32, channels)
    buffer = x.new_zeros((1, *size, step)).permute(0, 3, 1, 2)
    inside = buffer[:, :, top : top + height, left : left + width]
    output = None
    for start in range(0, channels, step):
        here = slice(start, start + step)
        kernel, added = weight[here], None if bias is None else bias[here]
        count = len(kernel)
        for image in range(batch):
            inside[0, :count].copy_(x[image, here])
            found = conv2d(buffer[:, :count], kernel, added, stride, 0, dilation, count)[0]
            if output is None:
                shape = (batch, channels, *found.shape[1:])
                output = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            output[image, here] = found
    assert output is not None, "there is at least one image and one channel"
    return output


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
    """Return the gradient by the kernels: tap by tap, the input shifted, times the gradient, summed."""
    if memory_format(x) == torch.channels_last:
        return _channels_last_weight(gradient, x, kernel, stride, padding, dilation)
    batch, channels = x.shape[:2]
    kind = accumulation_dtype(x.dtype)
    rows, columns = gradient.shape[2:]
    flat = gradient.flatten(0, 1)
    found = gradient.new_zeros((batch * channels, *kernel), dtype=kind)
    for start, block in _padded_blocks(x.flatten(0, 1), padding, kind):
        here = slice(start, start + len(block))
        part = flat[here].to(kind)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                top, left = i * dilation[0], j * dilation[1]
                tap = block[
                    :,
                    top : top + (rows - 1) * stride[0] + 1 : stride[0],
                    left : left + (columns - 1) * stride[1] + 1 : stride[1],
                ]
                found[here, i, j] = (tap * part).sum((1, 2))
    total = found.unflatten(0, (batch, channels)).sum(0)
    return total.unsqueeze(1).to(gradient.dtype)


def _channels_last_weight(
    gradient: Tensor, x: Tensor, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """The same where channels are last: blocks of channels, image by image."""
    top, bottom, left, right = padding
    batch, channels, height, width = x.shape
    rows, columns = gradient.shape[2:]
    kind, step = accumulation_dtype(x.dtype), min(32, channels)
    buffer = x.new_zeros((height + top + bottom, width + left + right, step), dtype=kind)
    product = x.new_empty((rows, columns, step), dtype=kind)
    total = x.new_zeros((*kernel, channels), dtype=kind)
    for start in range(0, channels, step):
        here = slice(start, start + step)
        count = min(step, channels - start)
        block, into = buffer[..., :count], product[..., :count]
        for image in range(batch):
            block[top : top + height, left : left + width] = x[image, here].permute(1, 2, 0)
            part = gradient[image, here].permute(1, 2, 0).to(kind).contiguous()
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    low, near = i * dilation[0], j * dilation[1]
                    tap = block[
                        low : low + (rows - 1) * stride[0] + 1 : stride[0],
                        near : near + (columns - 1) * stride[1] + 1 : stride[1],
                    ]
                    total[i, j, here] += torch.mul(tap, part, out=into).sum((0, 1))
    return total.permute(2, 0, 1).unsqueeze(1).to(gradient.dtype).contiguous()


def _padded_blocks(
    planes: Tensor, padding: Sequence[int], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first plane, padded planes), block by block, all in the same buffer."""
    top, bottom, left, right = padding
    count, height, width = planes.shape
    size = (height + top + bottom, width + left + right)
    step = _channels_at_once(BUFFER, size[0] * size[1], 16, count)
    buffer = planes.new_zeros((step, *size), dtype=dtype)
    inside = buffer[:, top : top + height, left : left + width]
    for start in range(0, count, step):
        block = planes[start : start + step]
        inside[: len(block)].copy_(block)
        yield start, buffer[: len(block)]
