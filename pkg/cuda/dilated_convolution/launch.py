"""The launchers: what the operators of `pkg.algos.dilated_convolution` call for CUDA tensors.

`stride` and `dilation` are [height, width], `padding` is [top, bottom, left, right]. Kernels want the
channels last in memory; tensors that have them elsewhere are copied first. The result has the memory
format of the first argument, as PyTorch's own convolution keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.dilated_convolution.configs import choose, precision
from pkg.cuda.dilated_convolution.dense import correlate_kernel, weight_kernel
from pkg.cuda.dilated_convolution.depthwise import depthwise_kernel, depthwise_weight_kernel

#: Programs that keep an H100 or H200 (132 multiprocessors) busy.
_BUSY = 2 * 132
#: Steps of a sum below which a part is not worth a program of its own.
_SHORTEST_PART = 8
#: How much more tiles a depthwise kernel may take to have its pixels a dilation apart.
_RAGGED = 1.25
_KINDS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Places:
    """Along (height, width): place = pixel · step + tap · gap + shift."""

    step: tuple[int, int]
    gap: tuple[int, int]
    shift: tuple[int, int]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the convolution of x with weight, (batch, out_channels, out_height, out_width)."""
    rows, columns = (
        (x.shape[2 + a] + padding[2 * a] + padding[2 * a + 1]
         - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in (0, 1)
    )  # fmt: skip
    output = _channels_last(x, (x.shape[0], weight.shape[0], rows, columns))
    places = _forward_places(stride, padding, dilation)
    _correlate(_dense_channels(x), weight, bias, output, places, groups, False)
    return _in_format_of(x, output)


def backward_input(
    gradient: Tensor, weight: Tensor, height: int, width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient by x, (batch, in_channels, height, width).

    With a stride, inputs whose places leave the same remainders see the same taps: each such class
    is a convolution of stride 1 on views, and no product with a zero between outputs is made.
    """
    shape = (gradient.shape[0], weight.shape[1] * groups, height, width)
    output = _channels_last(gradient, shape)
    source = _dense_channels(gradient)
    by_row = _classes(weight.shape[2], stride[0], padding[0], dilation[0])
    by_column = _classes(weight.shape[3], stride[1], padding[2], dilation[1])
    for a, (row_taps, row_gap, row_shift) in enumerate(by_row):
        for b, (column_taps, column_gap, column_shift) in enumerate(by_column):
            here = output[:, :, a :: stride[0], b :: stride[1]]
            places = Places((1, 1), (row_gap, column_gap), (row_shift, column_shift))
            kernel = weight[:, :, row_taps, column_taps]
            _correlate(source, kernel, None, here, places, groups, True)
    return _in_format_of(gradient, output)


def backward_weight(
    gradient: Tensor, x: Tensor, kernel_height: int, kernel_width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient by weight, (out_channels, in_channels / groups, k_h, k_w), contiguous.

    The pixels are cut into parts that depend on the shapes alone; each is summed in order, and the
    parts are then added in order: no atomics, the same bits in every run.
    """
    _check_kind(gradient)
    outputs, inputs = gradient.shape[1] // groups, x.shape[1] // groups
    shape = (gradient.shape[1], inputs, kernel_height, kernel_width)
    batch, _, rows, columns = gradient.shape
    pixels, taps = batch * rows * columns, kernel_height * kernel_width
    if not pixels:
        return torch.zeros(shape, dtype=gradient.dtype, device=gradient.device)
    depthwise = inputs == 1 and groups > 1
    if depthwise:
        config = choose("depthwise weight", gradient.dtype, gradient.shape[1], taps)
        tiles = _count(gradient.shape[1], config.block_n) * _count(taps, config.block_k)
        length = config.block_m
    else:
        config = choose("weight", gradient.dtype, outputs, inputs)
        tiles = _count(outputs, config.block_m) * _count(inputs, config.block_n) * taps * groups
        length = config.block_k
    wanted = min(_count(_BUSY, tiles), _count(pixels, length * _SHORTEST_PART))
    part = _count(_count(pixels, wanted), length) * length
    parts = _count(pixels, part)
    partial = torch.empty(
        (parts, groups, taps, outputs, inputs), dtype=torch.float32, device=gradient.device
    )
    gradient, x = _dense_channels(gradient), _dense_channels(x)
    places = _forward_places(stride, padding, dilation)
    tensors = (gradient, x, partial, *_pixel_strides(gradient), *_pixel_strides(x), pixels, part)
    maps = (*x.shape[2:], rows, columns, *places.step, *places.gap, *places.shift)
    blocks = {
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip
    with _on(x):
        if depthwise:
            across, slices = _count(gradient.shape[1], config.block_n), _count(taps, config.block_k)
            depthwise_weight_kernel[(across, parts, slices)](
                *tensors, gradient.shape[1], *maps, kernel_width, taps, SHARE=outputs, **blocks
            )
        else:
            weight_kernel[(tiles // groups, parts, groups)](
                *tensors, inputs, outputs, *maps, kernel_width, taps,
                PRECISION=precision(x.dtype), STAGES=config.num_stages, **blocks,
            )  # fmt: skip
    total = partial.sum(0) if parts > 1 else partial[0]
    if depthwise:  # its kernel has all output channels last
        total = total.view(1, taps, -1, 1)
    return total.permute(0, 2, 3, 1).reshape(shape).to(gradient.dtype).contiguous()


# ------------------------------------------------------------------ inside


def _correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, places: Places,
    groups: int, backward: bool,
) -> None:  # fmt: skip
    """Fill `out` (channels dense) with what its places see of x (channels dense)."""
    _check_kind(x)
    if not out.numel():
        return
    if not weight.numel() or not x.numel():  # no tap, or none that meets a pixel
        out.zero_()
        if bias is not None:
            out += bias[:, None, None]
        return
    run = _correlate_depthwise if weight.shape[1] == 1 and groups > 1 else _correlate_dense
    with _on(x):
        run(x, weight, bias, out, places, groups, backward)


def _correlate_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, places: Places,
    groups: int, backward: bool,
) -> None:  # fmt: skip
    outputs, inputs = out.shape[1] // groups, x.shape[1] // groups
    if weight.stride(1) != 1:
        weight = weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    over_o, over_c, over_h, over_w = weight.stride()
    over_group = weight.shape[0] // groups * over_o
    inner_outer = (over_o, over_c) if backward else (over_c, over_o)
    config = choose("correlate", x.dtype, outputs, inputs)
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    tiles = _count(pixels, config.block_m) * _count(outputs, config.block_n)
    correlate_kernel[(tiles, groups)](
        x, weight, x if bias is None else bias, out, *_pixel_strides(x), over_group, *inner_outer,
        over_h, over_w, *_pixel_strides(out), pixels, inputs, outputs, *x.shape[2:], *out.shape[2:],
        *places.step, *places.gap, *places.shift, weight.shape[3], weight.shape[2] * weight.shape[3],
        HAS_BIAS=bias is not None, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_K=config.block_k, PRECISION=precision(x.dtype), STAGES=config.num_stages,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _correlate_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, places: Places,
    groups: int, backward: bool,
) -> None:  # fmt: skip
    multiplier = weight.shape[0] // groups
    kernel = weight[:, 0].permute(1, 2, 0).contiguous()  # (k_h, k_w, out_channels)
    config = choose("depthwise", x.dtype)
    blocks = config.rows, config.block_m // config.rows
    apart, tiles = zip(
        *(
            _spread(size, step, gap, taps, block)
            for size, step, gap, taps, block in zip(
                out.shape[2:], places.step, places.gap, weight.shape[2:], blocks, strict=True
            )
        ),
        strict=True,
    )
    grid = (out.shape[0] * apart[0] * apart[1] * tiles[0] * tiles[1],)
    depthwise_kernel[(*grid, _count(out.shape[1], config.block_n))](
        x, kernel, x if bias is None else bias, out, *_pixel_strides(x), *kernel.stride()[:2],
        *_pixel_strides(out), out.shape[1], *x.shape[2:], *out.shape[2:],
        *places.step, *places.gap, *places.shift, *apart, *tiles,
        HAS_BIAS=bias is not None, KERNEL_H=weight.shape[2], KERNEL_W=weight.shape[3],
        SUM=multiplier if backward else 1, SHARE=1 if backward else multiplier, ROWS=config.rows,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps,
    )  # fmt: skip


def _spread(size: int, step: int, gap: int, taps: int, block: int) -> tuple[int, int]:
    """Return (distance of a tile's pixels, tiles per remainder) along one axis of `size` outputs."""
    apart = abs(gap) // gcd(gap, step) if taps > 1 else 1
    tiles, plain = _count(_count(size, apart), block), _count(size, block)
    return (apart, tiles) if apart * tiles <= _RAGGED * plain else (1, plain)


def _forward_places(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Places:
    shift = (-padding[0], -padding[2])
    return Places((stride[0], stride[1]), (dilation[0], dilation[1]), shift)


def _classes(taps: int, stride: int, padding: int, dilation: int) -> list[tuple[slice, int, int]]:
    """Return, for inputs i ≡ 0, 1, … (mod stride): which taps see them, their gap, their shift.

    Output o sees i by tap k if o · stride = i + padding - k · dilation.
    """
    period = stride // gcd(dilation, stride)
    found = []
    for remainder in range(stride):
        place = remainder + padding
        first = next((k for k in range(taps) if (place - k * dilation) % stride == 0), taps)
        shift = (place - first * dilation) // stride
        found.append((slice(first, None, period), -dilation * period // stride, shift))
    return found


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last where x is that and not also contiguous: what its result will be."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _channels_last(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    batch, channels, height, width = shape
    empty = torch.empty((batch, height, width, channels), dtype=like.dtype, device=like.device)
    return empty.permute(0, 3, 1, 2)


def _in_format_of(x: Tensor, output: Tensor) -> Tensor:
    return output.contiguous(memory_format=_memory_format(x))


def _dense_channels(x: Tensor) -> Tensor:
    """Return x with its channels next to each other in memory."""
    if x.shape[1] == 1 or x.stride(1) == 1:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _pixel_strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(2), x.stride(3)


def _check_kind(x: Tensor) -> None:
    if x.dtype not in _KINDS:
        raise TypeError(f"the kernels take float16, bfloat16 or float32, got {x.dtype}")


def _count(number: int, block: int) -> int:
    """Return how many blocks hold `number`."""
    return -(-number // block)


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
