"""Round blocks of numbers to any format, in the integers that are their bit patterns.

The numbers come in a carrier, float32 or float64. A format is given by constants in the carrier's
terms: `MANTISSA`, its bits of fraction; `SMALLEST`, the carrier's stored exponent of its smallest
normal number; `LARGEST`, `TINY` and `BEYOND`, the patterns of its largest number, its smallest
subnormal one, and of what overflow becomes.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _carries(kept, rest, shift, cut, words, negative, ROUNDING: tl.constexpr):
    """Tell where the magnitude kept · 2^shift + rest goes up to (kept + 1) · 2^shift.

    `cut` is the number of bits cut off; `shift` is the same, but no larger than is needed.
    """
    # One chain without a return in it: the compiler would go on after that.
    if ROUNDING == "nearest_even":
        half = (kept * 0 + 1) << shift  # twice as much, as is what it is compared with
        up = ((rest << 1) > half) | (((rest << 1) == half) & ((kept & 1) == 1))
    elif ROUNDING == "away":
        up = (rest << 1) >= ((kept * 0 + 1) << shift)
    elif ROUNDING == "up":
        up = (rest > 0) & (negative == 0)
    elif ROUNDING == "down":
        up = (rest > 0) & (negative != 0)
    elif ROUNDING == "stochastic":
        # The share rest / 2^cut in units of 2⁻³², cut off; with the word it reaches 2³² or not.
        BITS: tl.constexpr = rest.dtype.primitive_bitwidth
        unsigned = rest.to(tl.uint32 if BITS == 32 else tl.uint64, bitcast=True)
        more = unsigned << tl.minimum(tl.maximum(32 - cut, 0), 31).to(unsigned.dtype)
        less = unsigned >> tl.minimum(tl.maximum(cut - 32, 0), BITS - 1).to(unsigned.dtype)
        up = tl.where(cut <= 32, more, less).to(tl.uint32) > (words ^ 0xFFFFFFFF)
    else:
        tl.static_assert(ROUNDING == "toward_zero")
        up = rest < 0  # nowhere
    return up


@triton.jit
def _same_exponents(magnitude, words, negative, CUT: tl.constexpr, ROUNDING: tl.constexpr):
    """Round where format and carrier have the same exponents, and so the same number of bits go."""
    if CUT == 0:
        return magnitude
    if ROUNDING == "stochastic" and CUT <= 32:
        random = (words >> (32 - CUT)).to(magnitude.dtype)
        return ((magnitude + random) >> CUT) << CUT
    kept = magnitude >> CUT
    rest = magnitude & ((1 << CUT) - 1)
    up = _carries(kept, rest, kept * 0 + CUT, kept * 0 + CUT, words, negative, ROUNDING)
    return (kept + up.to(kept.dtype)) << CUT


@triton.jit
def _round_magnitude(
    magnitude, words, negative, MANTISSA: tl.constexpr, SMALLEST: tl.constexpr,
    TINY: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """Round patterns of |x| to multiples of the format's spacing, however large."""
    BITS: tl.constexpr = magnitude.dtype.primitive_bitwidth
    WIDE: tl.constexpr = 23 if BITS == 32 else 52
    FLOAT: tl.constexpr = tl.float32 if BITS == 32 else tl.float64
    exponent = tl.maximum(magnitude >> WIDE, 1)
    base = (exponent - 1) << WIDE
    significand = magnitude - base  # with the hidden bit
    if SMALLEST < 1:
        # The format goes on being normal where the carrier is subnormal: find the leading bit.
        BIAS: tl.constexpr = 127 if BITS == 32 else 1023
        leading = significand.to(FLOAT).to(magnitude.dtype, bitcast=True) >> WIDE
        true_exponent = leading - BIAS - WIDE + exponent
        cut = tl.maximum(true_exponent, SMALLEST) - exponent + (WIDE - MANTISSA)
        cut = tl.maximum(cut, 0)
    else:
        cut = tl.maximum(SMALLEST - exponent, 0) + (WIDE - MANTISSA)
    shift = tl.minimum(cut, WIDE + 2)  # beyond, all is cut off, and less than half a spacing
    kept = significand >> shift
    rest = significand - (kept << shift)
    up = _carries(kept, rest, shift, cut, words, negative, ROUNDING).to(kept.dtype)
    # Where every bit is cut off, what is left is 0 or one step.
    return tl.where(shift > WIDE, up * TINY, base + ((kept + up) << shift))


@triton.jit
def round_patterns(
    value, words, MANTISSA: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr,
    TINY: tl.constexpr, BEYOND: tl.constexpr, ROUNDING: tl.constexpr, SATURATE: tl.constexpr,
):  # fmt: skip
    """Return the patterns, in the carrier, of float32 or float64 numbers rounded to a format."""
    WIDE: tl.constexpr = 23 if value.dtype.primitive_bitwidth == 32 else 52
    INTEGER: tl.constexpr = tl.int32 if value.dtype.primitive_bitwidth == 32 else tl.int64
    SIGN: tl.constexpr = -(2**31) if value.dtype.primitive_bitwidth == 32 else -(2**63)
    INFINITY: tl.constexpr = 0x7F800000 if WIDE == 23 else 0x7FF0000000000000
    raw = value.to(INTEGER, bitcast=True)
    sign = raw & SIGN
    magnitude = raw ^ sign
    if SMALLEST == 1 and MANTISSA > 0:
        rounded = _same_exponents(magnitude, words, sign, WIDE - MANTISSA, ROUNDING)
    else:
        rounded = _round_magnitude(magnitude, words, sign, MANTISSA, SMALLEST, TINY, ROUNDING)
    infinite = magnitude == INFINITY
    if SATURATE:
        outcome = rounded * 0 + LARGEST
    elif ROUNDING == "toward_zero":
        outcome = tl.where(infinite, BEYOND, LARGEST)
    elif ROUNDING == "up":
        outcome = tl.where((sign != 0) & (infinite == 0), LARGEST, BEYOND)
    elif ROUNDING == "down":
        outcome = tl.where((sign == 0) & (infinite == 0), LARGEST, BEYOND)
    else:
        outcome = rounded * 0 + BEYOND
    rounded = tl.where((rounded > LARGEST) | infinite, outcome.to(INTEGER), rounded)
    return tl.where(magnitude > INFINITY, magnitude, rounded) | sign
