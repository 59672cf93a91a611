"""The kernel that rounds a tensor to a format: its values in x's type, or its codes."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.mixed_precision.randomness import random_halfwords, random_words
from pkg.cuda.mixed_precision.rounding import round_patterns

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _codes(
    pattern, MANTISSA: tl.constexpr, SMALLEST: tl.constexpr, STEPS: tl.constexpr,
    INFINITE: tl.constexpr, NAN: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """Return the codes, of at most 16 bits, of numbers that are values of a format.

    `STEPS` is one over its smallest subnormal number, `INFINITE` and `NAN` are its codes for those,
    `SIGN` is its sign bit.
    """
    NARROW: tl.constexpr = pattern.dtype.primitive_bitwidth == 32
    WIDE: tl.constexpr = 23 if NARROW else 52
    INFINITY: tl.constexpr = 0x7F800000 if NARROW else 0x7FF0000000000000
    MASK: tl.constexpr = 0x7FFFFFFF if NARROW else 0x7FFFFFFFFFFFFFFF
    magnitude = pattern & MASK
    code = (magnitude >> (WIDE - MANTISSA)) - ((SMALLEST - 1) << MANTISSA)
    if SMALLEST > 1:
        number = magnitude.to(tl.float32 if NARROW else tl.float64, bitcast=True)
        subnormal = magnitude < (SMALLEST << WIDE)
        steps = (tl.where(subnormal, number, 0.0) * STEPS).to(code.dtype)  # an integer, exactly
        code = tl.where(subnormal, steps, code)
    code = tl.where(magnitude == INFINITY, INFINITE, code)
    code = tl.where(magnitude > INFINITY, NAN, code)
    return tl.where(pattern < 0, code | SIGN, code)


@triton.jit
def round_kernel(
    x, out, seed, count,
    MANTISSA: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
    BEYOND: tl.constexpr, STEPS: tl.constexpr, INFINITE: tl.constexpr, NAN: tl.constexpr,
    SIGN: tl.constexpr, ROUNDING: tl.constexpr, SATURATE: tl.constexpr, CODES: tl.constexpr,
    HALFWORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Round `count` contiguous numbers; one program for a block of them."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    left = tl.minimum(count - start, BLOCK).to(tl.int32)
    # Without a mask, loads and stores are 16 bytes wide whatever the count.
    if left == BLOCK:  # noqa: SIM108
        value = tl.load(x + start + at)
    else:
        value = tl.load(x + start + at, mask=at < left, other=0.0)
    if value.dtype.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    if ROUNDING != "stochastic":
        words = at  # not looked at
    elif HALFWORDS:
        words = random_halfwords(tl.load(seed), start, 0, BLOCK)
    else:
        words = random_words(tl.load(seed), start, 0, BLOCK)
    pattern = round_patterns(
        value, words, MANTISSA, SMALLEST, LARGEST, TINY, BEYOND, ROUNDING, SATURATE
    )
    if CODES:
        code = _codes(pattern, MANTISSA, SMALLEST, STEPS, INFINITE, NAN, SIGN)
        result = code.to(out.dtype.element_ty)
    else:
        result = pattern.to(value.dtype, bitcast=True).to(out.dtype.element_ty)
    if left == BLOCK:
        tl.store(out + start + at, result)
    else:
        tl.store(out + start + at, result, mask=at < left)
