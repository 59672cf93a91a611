"""Dense dilated convolution as a matrix product whose left side is never stored.

The rows of the product are output pixels, its sum runs over taps and channels. The pixels that a tap
sees are loaded where they lie: a dilation only changes their address, so it costs nothing. Channels
are the last axis in memory ("channels-last").

One kernel serves two directions. Forward, output o sees input o · stride + k · dilation - padding; the
input's gradient with stride 1 sees gradient i - k · dilation + padding. Both are
place = pixel · step + tap · gap + shift, with signed gaps.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def split_pixels(pixel, height, width):
    """Return (image, row, column) of pixels counted through all images; the image is an int64."""
    image = pixel // (height * width)
    inside = pixel - image * (height * width)
    row = inside // width
    return image.to(tl.int64), row, inside - row * width


@triton.jit
def correlate_kernel(
    x, weight, bias, out, stride_xn, stride_xh, stride_xw, stride_wg, stride_wi, stride_wo,
    stride_wh, stride_ww, stride_on, stride_oh, stride_ow, pixels, channels_in, channels_out,
    height, width, out_height, out_width, step_h, step_w, gap_h, gap_w, shift_h, shift_w, taps_w, taps,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write a tile of BLOCK_M output pixels and BLOCK_N output channels of one group."""
    across = tl.cdiv(channels_out, BLOCK_N)  # tiles that read the same pixels run side by side
    block, group = tl.program_id(0) // across, tl.program_id(1)
    pixel = block * BLOCK_M + tl.arange(0, BLOCK_M)
    image, row, column = split_pixels(pixel, out_height, out_width)
    o = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # Pixels beyond the last one look where nothing is.
    top = tl.where(pixel < pixels, row * step_h + shift_h, -(1 << 30))
    left = column * step_w + shift_w
    x += tl.cast(group, tl.int64) * channels_in
    corner = image * stride_xn + tl.cast(row * step_h + shift_h, tl.int64) * stride_xh
    at = x + (corner + tl.cast(left, tl.int64) * stride_xw)[:, None] + inner[None, :]
    weight += tl.cast(group, tl.int64) * stride_wg
    at_weight = weight + (inner[:, None] * stride_wi + o[None, :] * stride_wo)

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    chunks = tl.cdiv(channels_in, BLOCK_K)
    for step in tl.range(0, taps * chunks, num_stages=STAGES):
        tap, first = step // chunks, (step % chunks) * BLOCK_K
        down, right = tap // taps_w, tap % taps_w
        i, j = top + down * gap_h, left + right * gap_w
        seen = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        there = first + inner < channels_in
        moved = tl.cast(down * gap_h, tl.int64) * stride_xh + right * gap_w * stride_xw + first
        values = tl.load(at + moved, mask=seen[:, None] & there[None, :], other=0.0)
        moved_weight = down * stride_wh + right * stride_ww + first * stride_wi
        kernel = tl.load(
            at_weight + moved_weight, mask=there[:, None] & (o < channels_out)[None, :], other=0.0
        )
        total = tl.dot(values, kernel, total, input_precision=PRECISION)

    o_all = group * channels_out + o
    if HAS_BIAS:
        total += tl.load(bias + o_all, mask=o < channels_out, other=0.0).to(tl.float32)[None, :]
    place = image * stride_on + tl.cast(row, tl.int64) * stride_oh + column * stride_ow
    written = (pixel < pixels)[:, None] & (o < channels_out)[None, :]
    tl.store(
        out + place[:, None] + o_all[None, :], total.to(out.dtype.element_ty), mask=written
    )  # fmt: skip


@triton.jit
def weight_kernel(
    gradient, x, partial, stride_gn, stride_gh, stride_gw, stride_xn, stride_xh, stride_xw,
    pixels, part, channels_in, channels_out, height, width, out_height, out_width,
    step_h, step_w, gap_h, gap_w, shift_h, shift_w, taps_w, taps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write one part's share of the weight's gradient: of a tap, channels out and channels in.

    `partial` is (parts, groups, taps, channels_out, channels_in) in float32. Each part of the pixels
    is summed by one program, in order, so that every run gives the same bits.
    """
    across = tl.cdiv(channels_in, BLOCK_N)
    down_tiles = tl.cdiv(channels_out, BLOCK_M)
    tile, group = tl.program_id(0), tl.program_id(2)
    tap = tile // (across * down_tiles)
    o = (tile // across % down_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (tile % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    shift_h += (tap // taps_w) * gap_h
    shift_w += (tap % taps_w) * gap_w
    gradient += tl.cast(group, tl.int64) * channels_out
    x += tl.cast(group, tl.int64) * channels_in

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, pixels)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        pixel = start + tl.arange(0, BLOCK_K)
        image, row, column = split_pixels(pixel, out_height, out_width)
        i, j = row * step_h + shift_h, column * step_w + shift_w
        # Where the tap lies on padding there is no product, not 0 times what may be NaN.
        seen = (pixel < end) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        at = image * stride_gn + tl.cast(row, tl.int64) * stride_gh + column * stride_gw
        arriving = tl.load(
            gradient + at[:, None] + o[None, :],
            mask=seen[:, None] & (o < channels_out)[None, :], other=0.0,
        )  # fmt: skip
        at = image * stride_xn + tl.cast(i, tl.int64) * stride_xh + j * stride_xw
        values = tl.load(
            x + at[:, None] + c[None, :], mask=seen[:, None] & (c < channels_in)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(arriving), values, total, input_precision=PRECISION)

    share = tl.program_id(1) * tl.num_programs(2) + group
    partial += (tl.cast(share, tl.int64) * taps + tap) * channels_out * channels_in
    written = (o < channels_out)[:, None] & (c < channels_in)[None, :]
    tl.store(partial + o[:, None] * channels_in + c[None, :], total, mask=written)
