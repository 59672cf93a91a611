"""The launchers: what the operators of `pkg.algos.dilated_convolution` call for CUDA tensors.

`stride` and `dilation` are [height, width], `padding` is [top, bottom, left, right]. Kernels want the
channels last in memory, at addresses that vectors of 16 bytes can be loaded from; other tensors are
copied first. The dense kernels also want a multiple of 16 channels: they get zeros for the rest. The
result has the memory format of the first argument, as PyTorch's own convolution keeps it. float64 is
refused here; `dilated_conv1d` and `dilated_conv2d` leave it to PyTorch's own convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
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
#: Channels of a group are filled up to a multiple of this in the dense kernels.
_WIDTH = 16
#: Pixels are counted in 32 bits; the last tile may reach a little further.
_MOST_PIXELS = 2**31 - 2**16
_KINDS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Places:
    """Along (height, width): place = pixel · step + tap · gap + shift."""

    step: tuple[int, int]
    gap: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Which outputs (rows, columns) see which taps at which places."""

    rows: slice
    columns: slice
    row_taps: slice
    column_taps: slice
    places: Places


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
    shape = (x.shape[0], weight.shape[0], rows, columns)
    everything = Piece(*(slice(None),) * 4, _forward_places(stride, padding, dilation))
    return _correlate(x, weight, bias, shape, [everything], groups, False)


def backward_input(
    gradient: Tensor, weight: Tensor, height: int, width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient by x, (batch, in_channels, height, width).

    With a stride, inputs whose places leave the same remainders see the same taps: each such class
    is a convolution of stride 1 on views, and no product with a zero between outputs is made.
    """
    shape = (gradient.shape[0], weight.shape[1] * groups, height, width)
    pieces = [
        Piece(
            slice(a, None, stride[0]), slice(b, None, stride[1]), row_taps, column_taps,
            Places((1, 1), (row_gap, column_gap), (row_shift, column_shift)),
        )
        for a, (row_taps, row_gap, row_shift) in enumerate(
            _classes(weight.shape[2], stride[0], padding[0], dilation[0])
        )
        for b, (column_taps, column_gap, column_shift) in enumerate(
            _classes(weight.shape[3], stride[1], padding[2], dilation[1])
        )
    ]  # fmt: skip
    return _correlate(gradient, weight, None, shape, pieces, groups, True)


def backward_weight(
    gradient: Tensor, x: Tensor, kernel_height: int, kernel_width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient by weight, (out_channels, in_channels / groups, k_h, k_w), contiguous.

    The pixels are cut into parts that depend on the shapes alone; each is summed in order, and then
    the parts are added: no atomics, the same bits in every run.
    """
    outputs, inputs = gradient.shape[1] // groups, x.shape[1] // groups
    pixels, taps = gradient.numel() // gradient.shape[1], kernel_height * kernel_width
    _check(gradient, pixels)
    if not pixels:
        shape = (gradient.shape[1], inputs, kernel_height, kernel_width)
        return torch.zeros(shape, dtype=gradient.dtype, device=gradient.device)
    places = _forward_places(stride, padding, dilation)
    sum_up = _sum_depthwise if inputs == 1 and groups > 1 else _sum_dense
    with _on(x):
        total = sum_up(gradient, x, pixels, kernel_width, taps, places, groups)
    total = total.permute(0, 2, 3, 1)[:, :outputs, :inputs]  # (groups, out, in, taps)
    total = total.reshape(gradient.shape[1], inputs, kernel_height, kernel_width)
    return total.to(gradient.dtype).contiguous()


# ------------------------------------------------------------------ inside


def _correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, int, int, int],
    pieces: Sequence[Piece], groups: int, backward: bool,
) -> Tensor:  # fmt: skip
    """Return an output of `shape`, piece by piece, with x's memory format."""
    _check(x, shape[0] * shape[2] * shape[3])
    like = x
    if weight.shape[1] == 1 and groups > 1:
        run, channels, x = _correlate_depthwise, shape[1], _dense_channels(x)
        bias = bias if bias is None else bias.contiguous()
    else:
        run, channels = _correlate_dense, groups * _wide(shape[1] // groups)
        x, weight = _wide_channels(x, groups), _wide_weight(weight, groups)
        bias = bias if bias is None else _wide_channels(bias[None, :, None, None], groups).flatten()
    empty = torch.empty((shape[0], *shape[2:], channels), dtype=x.dtype, device=x.device)
    output = empty.permute(0, 3, 1, 2)
    for piece in pieces:
        here = output[:, :, piece.rows, piece.columns]
        kernel = weight[:, :, piece.row_taps, piece.column_taps]
        if here.numel() and kernel.numel() and x.numel():
            with _on(x):
                run(x, kernel, bias, here, piece.places, groups, backward)
        else:  # no tap, or none that meets a pixel
            here.zero_()
            if bias is not None:
                here += bias[:, None, None]
    output = output.unflatten(1, (groups, -1))[:, :, : shape[1] // groups].flatten(1, 2)
    return output.contiguous(memory_format=_memory_format(like))


def _correlate_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, places: Places,
    groups: int, backward: bool,
) -> None:  # fmt: skip
    outputs, inputs = out.shape[1] // groups, x.shape[1] // groups
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
    (apart_h, tiles_h), (apart_w, tiles_w) = (
        _spread(out.shape[2 + a], places.step[a], places.gap[a], weight.shape[2 + a], blocks[a])
        for a in (0, 1)
    )
    tiles = out.shape[0] * apart_h * apart_w * tiles_h * tiles_w
    depthwise_kernel[(tiles, _count(out.shape[1], config.block_n))](
        x, kernel, x if bias is None else bias, out, *_pixel_strides(x), *kernel.stride()[:2],
        *_pixel_strides(out), out.shape[1], *x.shape[2:], *out.shape[2:],
        *places.step, *places.gap, *places.shift, apart_h, apart_w, tiles_h, tiles_w,
        HAS_BIAS=bias is not None, KERNEL_H=weight.shape[2], KERNEL_W=weight.shape[3],
        SUM=multiplier if backward else 1, SHARE=1 if backward else multiplier, ROWS=config.rows,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps,
    )  # fmt: skip


def _sum_dense(
    gradient: Tensor, x: Tensor, pixels: int, taps_w: int, taps: int, places: Places, groups: int
) -> Tensor:
    """Return the weight's gradient, (groups, taps, out, in) in float32, channels padded."""
    gradient, x = _wide_channels(gradient, groups), _wide_channels(x, groups)
    outputs, inputs = gradient.shape[1] // groups, x.shape[1] // groups
    config = choose("weight", x.dtype, outputs, inputs)
    tiles = _count(outputs, config.block_m) * _count(inputs, config.block_n) * taps
    part, parts = _parts(pixels, tiles * groups, config.block_k)
    partial = _partial(x, parts, groups, taps, outputs, inputs)
    weight_kernel[(tiles, parts, groups)](
        gradient, x, partial, *_pixel_strides(gradient), *_pixel_strides(x), pixels, part,
        inputs, outputs, *x.shape[2:], *gradient.shape[2:], *places.step, *places.gap, *places.shift,
        taps_w, taps, PRECISION=precision(x.dtype), STAGES=config.num_stages,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return partial.sum(0)


def _sum_depthwise(
    gradient: Tensor, x: Tensor, pixels: int, taps_w: int, taps: int, places: Places, groups: int
) -> Tensor:
    """Return the weight's gradient, (groups, taps, out of a group, 1) in float32."""
    gradient, x = _dense_channels(gradient), _dense_channels(x)
    channels = gradient.shape[1]
    config = choose("depthwise weight", x.dtype, channels, taps)
    across, slices = _count(channels, config.block_n), _count(taps, config.block_k)
    part, parts = _parts(pixels, across * slices, config.block_m)
    partial = _partial(x, parts, taps, channels)
    depthwise_weight_kernel[(across, parts, slices)](
        gradient, x, partial, *_pixel_strides(gradient), *_pixel_strides(x), pixels, part,
        channels, *x.shape[2:], *gradient.shape[2:], *places.step, *places.gap, *places.shift,
        taps_w, taps, SHARE=channels // groups, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_K=config.block_k, num_warps=config.num_warps,
    )  # fmt: skip
    return partial.sum(0).view(taps, groups, -1, 1).transpose(0, 1)


def _parts(pixels: int, tiles: int, block: int) -> tuple[int, int]:
    """Return (pixels of a part, parts), so that `tiles` times the parts keep the device busy."""
    wanted = min(_count(_BUSY, tiles), _count(pixels, block * _SHORTEST_PART))
    part = _count(_count(pixels, wanted), block) * block
    return part, _count(pixels, part)


def _partial(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


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


def _dense_channels(x: Tensor) -> Tensor:
    """Return x with its channels next to each other in memory."""
    if x.shape[1] == 1 or x.stride(1) == 1:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _wide_channels(x: Tensor, groups: int) -> Tensor:
    """Return x with channels dense and, group by group, filled up with zeros to a multiple of 16.

    x itself, if it is so already and vectors of 16 bytes can be loaded from it.
    """
    per_group = x.shape[1] // groups
    wide = _wide(per_group)
    even = all(stride % _WIDTH == 0 for stride in _pixel_strides(x))
    if wide == per_group and x.stride(1) == 1 and even and x.data_ptr() % 16 == 0:
        return x
    shape = (x.shape[0], *x.shape[2:], groups, wide)
    make = torch.empty if wide == per_group else torch.zeros
    found = make(shape, dtype=x.dtype, device=x.device)
    found[..., :per_group] = x.permute(0, 2, 3, 1).unflatten(3, (groups, per_group))
    return found.flatten(3).permute(0, 3, 1, 2)


def _wide_weight(weight: Tensor, groups: int) -> Tensor:
    """Return the weight with both kinds of channels so filled up, channels in dense."""
    outputs, inputs, rows, columns = weight.shape
    per_group = outputs // groups
    if per_group % _WIDTH == 0:
        return _wide_channels(weight, 1)
    shape = (groups, _wide(per_group), rows, columns, _wide(inputs))
    found = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    found[:, :per_group, ..., :inputs] = weight.unflatten(0, (groups, -1)).permute(0, 1, 3, 4, 2)
    return found.flatten(0, 1).permute(0, 3, 1, 2)


def _wide(channels: int) -> int:
    return _count(channels, _WIDTH) * _WIDTH


def _pixel_strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(2), x.stride(3)


def _check(x: Tensor, pixels: int) -> None:
    if x.dtype not in _KINDS:
        raise TypeError(f"the kernels take float16, bfloat16 or float32, got {x.dtype}")
    if pixels > _MOST_PIXELS:
        raise ValueError(f"the kernels take at most {_MOST_PIXELS} pixels in a batch, got {pixels}")


def _count(number: int, block: int) -> int:
    """Return how many blocks hold `number`."""
    return -(-number // block)


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
