"""One affine coupling in one pass: scale, shift, mask and log-determinant, and its gradients.

A sample is a row of `columns` numbers, of which `first` .. `first + changed - 1` are changed, except
where a mask keeps them. What a program sums, it sums in a fixed order: every run gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def tanh(u):
    """Return tanh(u), within a few ulp also where u is small and 1 - exp(-2u) would cancel."""
    size = tl.abs(u)
    faded = tl.exp(-2.0 * size)
    large = (1.0 - faded) / (1.0 + faded)
    square = u * u
    series = -1.0 / 3 + square * (
        2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835 - square * (1382.0 / 155925)))
    )
    return tl.where(size < 0.3, u + u * square * series, tl.where(u < 0, -large, large))


@triton.jit
def log_scale(raw, bound, BOUNDED: tl.constexpr):
    """Return the logarithm of the scale: raw, drawn into (-bound, bound)."""
    if BOUNDED:  # noqa: SIM108  (a branch that is compiled, or not)
        s = bound * tanh(raw / bound)
    else:
        s = raw
    return s


@triton.jit
def find_moved(
    mask, column, end, first, changed, HAS_MASK: tl.constexpr
):  # fmt: skip
    """Tell which columns have parameters, and which are changed: those that no mask keeps."""
    owned = (column >= first) & (column < first + changed) & (column < end)
    moved = owned
    if HAS_MASK:
        kept = tl.load(mask + column, mask=column < end, other=1)
        moved = owned & (kept == 0)
    return owned, moved


@triton.jit
def couple_kernel(
    x, raw, shift, mask, out, sums, stride_x, stride_raw, stride_shift, rows, columns, first, changed,
    part, parts, bound,
    BOUNDED: tl.constexpr, HAS_MASK: tl.constexpr, INVERSE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_R samples, of one part of their columns, and that part's log-determinant.

    Forward x · exp(s) + t and Σ s; INVERSE (x - t) / exp(s) and -Σ s. `sums` is (rows, parts).
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    far = row.to(tl.int64)[:, None]
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, columns)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(begin, end, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        _, moved = find_moved(mask, column, end, first, changed, HAS_MASK)
        here = (row < rows)[:, None] & (column < end)[None, :]
        there = here & moved[None, :]
        value = tl.load(x + far * stride_x + column[None, :], mask=here, other=0.0).to(tl.float32)
        place = (column - first)[None, :]
        a = tl.load(raw + far * stride_raw + place, mask=there, other=0.0).to(tl.float32)
        t = tl.load(shift + far * stride_shift + place, mask=there, other=0.0).to(tl.float32)
        s = log_scale(a, bound, BOUNDED)  # 0 where nothing was loaded
        if INVERSE:
            new = tl.div_rn(value - t, tl.exp(s))
            total -= s
        else:
            new = value * tl.exp(s) + t
            total += s
        new = tl.where(moved[None, :], new, value)
        at = out + far * columns + column[None, :]
        tl.store(at, new.to(out.dtype.element_ty), mask=here)
    at = sums + row.to(tl.int64) * parts + tl.program_id(1)
    tl.store(at, tl.sum(total, 1), mask=row < rows)


@triton.jit
def gradient_kernel(
    arriving, arriving_sum, x, raw, shift, mask, by_x, by_raw, by_shift,
    stride_g, stride_x, stride_raw, stride_shift, rows, columns, first, changed, part, bound,
    BOUNDED: tl.constexpr, HAS_MASK: tl.constexpr, INVERSE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients by x, raw and shift; x is what the coupling (or its inverse) was given.

    Nothing of the forward pass is stored for this: s and the result are computed again.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    far = row.to(tl.int64)[:, None]
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, columns)
    by_sum = tl.load(arriving_sum + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    for start in range(begin, end, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        owned, moved = find_moved(mask, column, end, first, changed, HAS_MASK)
        here = (row < rows)[:, None] & (column < end)[None, :]
        there = here & moved[None, :]
        place = (column - first)[None, :]
        g = tl.load(arriving + far * stride_g + column[None, :], mask=here, other=0.0)
        g = g.to(tl.float32)
        value = tl.load(x + far * stride_x + column[None, :], mask=there, other=0.0).to(tl.float32)
        a = tl.load(raw + far * stride_raw + place, mask=there, other=0.0).to(tl.float32)
        s = log_scale(a, bound, BOUNDED)
        scale = tl.exp(s)
        if INVERSE:
            t = tl.load(shift + far * stride_shift + place, mask=there, other=0.0).to(tl.float32)
            moved_by_x = tl.div_rn(g, scale)
            moved_by_shift = -moved_by_x
            by_s = -moved_by_x * (value - t) - by_sum
        else:
            moved_by_x = g * scale
            moved_by_shift = g
            by_s = moved_by_x * value + by_sum
        if BOUNDED:
            ratio = s / bound
            by_s *= 1.0 - ratio * ratio
        found = tl.where(moved[None, :], moved_by_x, g)
        at = by_x + far * columns + column[None, :]
        tl.store(at, found.to(by_x.dtype.element_ty), mask=here)
        written = here & owned[None, :]
        at = far * changed + place
        by_s = tl.where(moved[None, :], by_s, 0.0)
        moved_by_shift = tl.where(moved[None, :], moved_by_shift, 0.0)
        tl.store(by_raw + at, by_s.to(by_raw.dtype.element_ty), mask=written)
        tl.store(by_shift + at, moved_by_shift.to(by_shift.dtype.element_ty), mask=written)
