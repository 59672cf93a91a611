"""A whole stack of affine couplings in one launch: samples stay in registers from first to last."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.coupling_flows.affine import log_scale

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def rectified(x):
    """Return the positive part of x; `tl.maximum` would turn NaN into 0."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def parameters(
    seen, w1, b1, w2, b2, w3, b3, layer,
    DIMS: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return raw log-scales and shifts: three layers of a network, BLOCK samples at once.

    The second layer is made CHUNK units at a time, and each chunk is used up at once.
    """
    at, unit = tl.arange(0, DIMS), tl.arange(0, HIDDEN)
    weight = tl.load(w1 + (layer * DIMS + at)[:, None] * HIDDEN + unit[None, :])
    first = tl.dot(seen.to(weight.dtype), weight, input_precision=PRECISION)
    first = rectified(first + tl.load(b1 + layer * HIDDEN + unit).to(tl.float32)[None, :])
    first = first.to(weight.dtype)
    raw = tl.zeros((BLOCK, DIMS), tl.float32)
    shift = tl.zeros((BLOCK, DIMS), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK, num_stages=STAGES):
        some = start + tl.arange(0, CHUNK)
        middle = tl.load(w2 + (layer * HIDDEN + unit)[:, None] * HIDDEN + some[None, :])
        second = tl.dot(first, middle, input_precision=PRECISION)
        second = second + tl.load(b2 + layer * HIDDEN + some).to(tl.float32)[None, :]
        second = rectified(second).to(middle.dtype)
        place = w3 + (layer * 2 * HIDDEN + some)[:, None] * DIMS + at[None, :]
        raw = tl.dot(second, tl.load(place), raw, input_precision=PRECISION)
        shift = tl.dot(second, tl.load(place + HIDDEN * DIMS), shift, input_precision=PRECISION)
    bias = b3 + layer * 2 * DIMS + at
    raw += tl.load(bias).to(tl.float32)[None, :]
    shift += tl.load(bias + DIMS).to(tl.float32)[None, :]
    return raw, shift


@triton.jit
def stack_kernel(
    x, w1, b1, w2, b2, w3, b3, kept, out, sums, stride_x, rows, dims, layers, bound,
    BOUNDED: tl.constexpr, INVERSE: tl.constexpr, DIMS: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Send BLOCK samples through all layers, and write them and their log-determinants.

    Weights are (layers, DIMS, HIDDEN), (layers, HIDDEN, HIDDEN) and (layers, 2, HIDDEN, DIMS), filled
    up with zeros to powers of two; `kept` is (layers, DIMS), 1 where a layer keeps.
    """
    row, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DIMS)
    here = (row < rows)[:, None] & (column < dims)[None, :]
    far = row.to(tl.int64)[:, None]
    value = tl.load(x + far * stride_x + column[None, :], mask=here, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK, DIMS), tl.float32)
    for step in range(0, layers):
        layer = step
        if INVERSE:
            layer = layers - 1 - step
        moved = (tl.load(kept + layer * DIMS + column) == 0)[None, :]
        seen = tl.where(moved, 0.0, value)
        raw, shift = parameters(
            seen, w1, b1, w2, b2, w3, b3, layer, DIMS, HIDDEN, CHUNK, BLOCK, PRECISION, STAGES
        )
        s = tl.where(moved, log_scale(raw, bound, BOUNDED), 0.0)
        if INVERSE:
            new = tl.div_rn(value - shift, tl.exp(s))
            total -= s
        else:
            new = value * tl.exp(s) + shift
            total += s
        value = tl.where(moved, new, value)
    at = out + far * dims + column[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=here)
    tl.store(sums + row, tl.sum(total, 1), mask=row < rows)
