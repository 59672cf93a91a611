"""Depthwise dilated convolution: no matrix product, all of its time goes to memory.

A tile takes pixels that lie a dilation apart (more exactly dilation / gcd(dilation, stride)), not
neighbours. Among those the taps overlap as they do at rate 1, so each input is fetched about once
whatever the rate: space-to-batch, in the addresses alone. Channels are the last axis in memory, so
pixels that lie apart still load whole lines.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.dilated_convolution.dense import split_pixels

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _add_tap(
    total, at, weight, top, left, stride_xh, stride_xw, stride_wh, stride_ww, height, width,
    gap_h, gap_w, down, right, channel, last,
):  # fmt: skip
    """Return total plus one tap's product; what lies outside is zero and is not read."""
    i, j = top + down * gap_h, left + right * gap_w
    seen = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    moved = tl.cast(down * gap_h, tl.int64) * stride_xh + right * gap_w * stride_xw
    values = tl.load(at + moved, mask=seen[:, None] & (channel < last)[None, :], other=0.0)
    kernel = tl.load(weight + down * stride_wh + right * stride_ww, mask=channel < last, other=0.0)
    return total + values.to(tl.float32) * kernel.to(tl.float32)[None, :]


@triton.jit
def depthwise_kernel(
    x, weight, bias, out, stride_xn, stride_xh, stride_xw, stride_wh, stride_ww,
    stride_on, stride_oh, stride_ow, channels, height, width, out_height, out_width,
    step_h, step_w, gap_h, gap_w, shift_h, shift_w, apart_h, apart_w, tiles_h, tiles_w,
    HAS_BIAS: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, SUM: tl.constexpr,
    SHARE: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write ROWS × (BLOCK_M / ROWS) pixels, `apart` from each other, of BLOCK_N output channels.

    Output channel c sees input channels (c · SUM + s) // SHARE for s < SUM, weights c · SUM + s: forward
    SHARE outputs read one input, in the input's gradient SUM of them are added.
    """
    COLUMNS: tl.constexpr = BLOCK_M // ROWS
    tile = tl.program_id(0)
    first_w, tile = tile % apart_w, tile // apart_w
    tile_w, tile = tile % tiles_w, tile // tiles_w
    first_h, tile = tile % apart_h, tile // apart_h
    tile_h, image = tile % tiles_h, tl.cast(tile // tiles_h, tl.int64)
    one = tl.arange(0, BLOCK_M)
    row = first_h + apart_h * (tile_h * ROWS + one // COLUMNS)
    column = first_w + apart_w * (tile_w * COLUMNS + one % COLUMNS)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = (row < out_height) & (column < out_width)
    top = tl.where(valid, row * step_h + shift_h, -(1 << 30))
    left = column * step_w + shift_w
    corner = image * stride_xn + tl.cast(row * step_h + shift_h, tl.int64) * stride_xh
    corner += tl.cast(left, tl.int64) * stride_xw

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for term in range(SUM):
        index = channel * SUM + term
        at, at_weight = x + corner[:, None] + (index // SHARE)[None, :], weight + index
        if KERNEL_H * KERNEL_W <= 25:
            for down in tl.static_range(KERNEL_H):
                for right in tl.static_range(KERNEL_W):
                    total = _add_tap(
                        total, at, at_weight, top, left, stride_xh, stride_xw, stride_wh, stride_ww,
                        height, width, gap_h, gap_w, down, right, channel, channels,
                    )  # fmt: skip
        else:
            for tap in range(KERNEL_H * KERNEL_W):
                total = _add_tap(
                    total, at, at_weight, top, left, stride_xh, stride_xw, stride_wh, stride_ww,
                    height, width, gap_h, gap_w, tap // KERNEL_W, tap % KERNEL_W, channel, channels,
                )  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    place = image * stride_on + tl.cast(row, tl.int64) * stride_oh + column * stride_ow
    written = valid[:, None] & (channel < channels)[None, :]
    tl.store(
        out + place[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=written
    )  # fmt: skip


@triton.jit
def depthwise_weight_kernel(
    gradient, x, partial, stride_gn, stride_gh, stride_gw, stride_xn, stride_xh, stride_xw,
    pixels, part, channels, height, width, out_height, out_width,
    step_h, step_w, gap_h, gap_w, shift_h, shift_w, taps_w, taps,
    SHARE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write one part's share of the weight's gradient: BLOCK_K taps of BLOCK_N output channels.

    `partial` is (parts, taps, channels) in float32, as in the dense kernel. A gradient is read once
    for all of the tile's taps.
    """
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    down, right = tap // taps_w, tap % taps_w
    shift_i, shift_j = shift_h + down * gap_h, shift_w + right * gap_w
    kept = channel < channels
    total = tl.zeros((BLOCK_M, BLOCK_K, BLOCK_N), tl.float32)
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, pixels)
    for start in range(begin, end, BLOCK_M):
        pixel = start + tl.arange(0, BLOCK_M)
        image, row, column = split_pixels(pixel, out_height, out_width)
        there = pixel < end
        at = image * stride_gn + tl.cast(row, tl.int64) * stride_gh + column * stride_gw
        arriving = tl.load(
            gradient + at[:, None] + channel[None, :],
            mask=there[:, None] & kept[None, :],
            other=0.0,
        ).to(tl.float32)
        i = (row * step_h)[:, None] + shift_i[None, :]
        j = (column * step_w)[:, None] + shift_j[None, :]
        seen = there[:, None] & (tap < taps)[None, :]
        seen = seen & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        at = image[:, None] * stride_xn + tl.cast(i, tl.int64) * stride_xh + j * stride_xw
        values = tl.load(
            x + at[:, :, None] + (channel // SHARE)[None, None, :],
            mask=seen[:, :, None] & kept[None, None, :], other=0.0,
        )  # fmt: skip
        # Where the tap lies on padding there is no product, not 0 times what may be NaN.
        product = arriving[:, None, :] * values.to(tl.float32)
        total += tl.where(seen[:, :, None], product, 0.0)
    partial += (tl.cast(tl.program_id(1), tl.int64) * taps) * channels
    place = tap[:, None] * channels + channel[None, :]
    tl.store(partial + place, tl.sum(total, 0), mask=(tap < taps)[:, None] & kept[None, :])
