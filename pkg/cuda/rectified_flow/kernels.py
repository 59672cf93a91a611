"""The kernels: a path, drawn or given, and a stage of a sampler; every number is read once."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.rectified_flow.randomness import normal_tile, times

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def times_kernel(out, seed, rows, mean, std, LAW: tl.constexpr, BLOCK: tl.constexpr):
    """Draw a time for each of `rows` samples."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    t = times(tl.load(seed), sample, mean, std, LAW)
    tl.store(out + sample, t.to(out.dtype.element_ty), mask=sample < rows)


@triton.jit
def _place(size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the samples (ROWS,) and columns (1, COLUMNS) of this program's tile, and the first column.

    All int64.
    """
    # A program's index and sizes have 32 bits; their products may not.
    across = (size - 1) // COLUMNS + 1
    index = tl.program_id(0).to(tl.int64)
    row, column = (index // across) * ROWS, (index % across) * COLUMNS
    return row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)[None, :], column


@triton.jit
def _of_sample(values, sample, rows, WIDE: tl.constexpr):
    """Load one number for each sample of the tile, (ROWS, 1)."""
    # Loaded as a vector: as a column, each thread would load it for each of its elements.
    return tl.load(values + sample, mask=sample < rows, other=0.0).to(WIDE)[:, None]


@triton.jit
def path_kernel(
    x0, x1, alpha, sigma, d_alpha, d_sigma, seed, drawn, xt, velocity, t_out, rows, size, mean, std,
    shrink, LAW: tl.constexpr, DRAW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fill a tile of places and velocities.

    With LAW "given" the four coefficients are read, one for each sample. Else a time is drawn by that
    law, and the path is (1 − shrink · t) x0 + t x1. With DRAW, x0 is drawn and stored in `drawn`.
    """
    WIDE: tl.constexpr = tl.float64 if x1.dtype.element_ty == tl.float64 else tl.float32
    KIND: tl.constexpr = xt.dtype.element_ty
    sample, column, start = _place(size, ROWS, COLUMNS)
    mask = (sample < rows)[:, None] & (column < size)
    at = sample[:, None] * size + column
    data = tl.load(x1 + at, mask=mask, other=0.0).to(WIDE)
    if DRAW:
        quad = start // 4 + tl.arange(0, COLUMNS // 4)[None, :] + sample[:, None] * 0
        noise = normal_tile(tl.load(seed), sample[:, None] + quad * 0, quad, ROWS, COLUMNS)
        noise = noise.to(WIDE)
        tl.store(drawn + at, noise.to(KIND), mask=mask)
    else:
        noise = tl.load(x0 + at, mask=mask, other=0.0).to(WIDE)
    if LAW == "given":
        place = _of_sample(alpha, sample, rows, WIDE) * data
        place += _of_sample(sigma, sample, rows, WIDE) * noise
        speed = _of_sample(d_alpha, sample, rows, WIDE) * data
        speed += _of_sample(d_sigma, sample, rows, WIDE) * noise
    else:
        t = times(tl.load(seed), sample, mean, std, LAW)
        tl.store(t_out + sample, t, mask=(sample < rows) & (start == 0))
        speed = data - shrink * noise
        place = noise + t[:, None] * speed  # the same line: it starts in x0
    tl.store(xt + at, place.to(KIND), mask=mask)
    tl.store(velocity + at, speed.to(KIND), mask=mask)


@triton.jit(do_not_specialize=["index"])
def step_kernel(
    x, base, cond, uncond, guidance, schedule, point, total, index, rows, size, far,
    A: tl.constexpr, B: tl.constexpr, GUIDED: tl.constexpr, EACH: tl.constexpr, POINT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fill a tile of total = base + B h v and, with POINT, of point = x + A h v.

    v is `cond`, or with GUIDED u + w (c − u), where w is one number, or with EACH one for each sample;
    then `point` is stored twice, the second time `far` elements further.
    """
    WIDE: tl.constexpr = tl.float64 if base.dtype.element_ty == tl.float64 else tl.float32
    sample, column, _ = _place(size, ROWS, COLUMNS)
    mask = (sample < rows)[:, None] & (column < size)
    at = sample[:, None] * size + column
    h = (tl.load(schedule + index + 1) - tl.load(schedule + index)).to(WIDE)
    v = tl.load(cond + at, mask=mask, other=0.0).to(WIDE)
    if GUIDED:
        u = tl.load(uncond + at, mask=mask, other=0.0).to(WIDE)
        if EACH:  # noqa: SIM108
            w = _of_sample(guidance, sample, rows, WIDE)
        else:
            w = tl.load(guidance).to(WIDE)
        v = u + w * (v - u)
    moved = tl.load(base + at, mask=mask, other=0.0).to(WIDE) + B * h * v
    tl.store(total + at, moved.to(total.dtype.element_ty), mask=mask)
    if POINT:
        ahead = tl.load(x + at, mask=mask, other=0.0).to(WIDE) + A * h * v
        seen = ahead.to(point.dtype.element_ty)
        tl.store(point + at, seen, mask=mask)
        if GUIDED:
            tl.store(point + far + at, seen, mask=mask)
