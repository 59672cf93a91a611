"""Rounding as integer arithmetic on bit patterns: the core of `quantize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import BF16, FP16, FP32, FP64, FloatFormat, power_of_two

Rounding = Literal["nearest_even", "toward_zero", "up", "down", "away", "stochastic"]
ROUNDINGS = ("nearest_even", "toward_zero", "up", "down", "away", "stochastic")


@dataclass(frozen=True)
class Carrier:
    """The format that the numbers come in: float32 or float64, and the integers of its width."""

    dtype: torch.dtype
    integer: torch.dtype
    format: FloatFormat

    @property
    def sign(self) -> int:
        """The pattern with the sign bit alone, as a signed integer."""
        return -(2 ** (self.format.bits - 1))

    @property
    def infinity(self) -> int:
        """The pattern of +infinity; patterns of finite magnitudes are below, of NaN above."""
        return ((1 << self.format.exponent_bits) - 1) << self.format.mantissa_bits


CARRIERS = {
    torch.float32: Carrier(torch.float32, torch.int32, FP32),
    torch.float64: Carrier(torch.float64, torch.int64, FP64),
}


@cache
def pattern_of(value: float, carrier: Carrier) -> int:
    """Return the bit pattern of a positive number in `carrier`."""
    return int(torch.tensor(value, dtype=carrier.dtype).view(carrier.integer))


def round_magnitude(
    magnitude: Tensor, negative: Tensor | None, fmt: FloatFormat, carrier: Carrier,
    rounding: Rounding, uniforms: Tensor | None,
) -> Tensor:  # fmt: skip
    """Round patterns of finite |x| to multiples of the spacing of `fmt`; overflow is not looked at.

    Parameters
    ----------
    magnitude
        Bit patterns of |x| in `carrier`, without the sign bit. Patterns of infinity and NaN give
        what they give.
    negative
        Where x is negative; needed for "up" and "down" only.
    uniforms
        For "stochastic": float64 in [0, 1), shape of `magnitude`.

    Returns
    -------
    Tensor
        Patterns of the rounded magnitudes, again in `carrier`.

    Notes
    -----
    The significand of x is an integer. Cut off its last `s` bits, add a carry that the rounding
    rule decides, and shift back; a carry out of the significand lands in the exponent, where it
    belongs. Below the normal numbers of `fmt` the spacing no longer shrinks: there s grows.
    """
    wide = carrier.format.mantissa_bits
    fewer = wide - fmt.mantissa_bits
    smallest = fmt.smallest_exponent + carrier.format.bias  # as a stored exponent of the carrier
    exponent = (magnitude >> wide).clamp_(min=1)
    base = (exponent - 1) << wide
    significand = magnitude - base  # with the hidden bit
    first = exponent
    if smallest < 1:
        # `fmt` is still normal where the carrier is not: the leading bit tells the exponent.
        leading = significand.to(carrier.dtype).view(carrier.integer) >> wide
        first = leading - (carrier.format.bias + wide) + exponent
    true_shift = (first.clamp(min=smallest) - exponent + fewer).clamp_(min=0)
    # Beyond `wide + 2` all is cut off, and what is left is less than half of the spacing.
    shift = true_shift.clamp(max=wide + 2)
    kept = significand >> shift
    rest = significand - (kept << shift)
    carry = _carry(kept, rest, shift, true_shift, negative, rounding, uniforms)
    rounded = base + ((kept + carry) << shift)
    # All bits are cut off: what is left is 0, or one step of the subnormal numbers.
    tiny = pattern_of(fmt.smallest_subnormal, carrier)
    return torch.where(shift > wide, carry * tiny, rounded)


def _carry(
    kept: Tensor, rest: Tensor, shift: Tensor, true_shift: Tensor, negative: Tensor | None,
    rounding: Rounding, uniforms: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return 1 where the magnitude is rounded to the next larger one, else 0."""
    one = torch.ones_like(kept)
    if rounding == "toward_zero":
        up = torch.zeros_like(kept, dtype=torch.bool)
    elif rounding in ("nearest_even", "away"):
        # 2·rest against 2^s, so that s = 0 (nothing cut off) needs no case of its own.
        twice, step = rest << 1, one << shift
        tie = (kept & 1) == 1 if rounding == "nearest_even" else torch.ones_like(kept) == 1
        up = (twice > step) | ((twice == step) & tie)
    elif rounding in ("up", "down"):
        assert negative is not None
        outward = ~negative if rounding == "up" else negative
        up = (rest > 0) & outward
    else:
        assert uniforms is not None
        # With probability rest / 2^s: the uniform number added to that share carries.
        share = rest.double() * power_of_two(-true_shift.long())
        up = uniforms >= 1.0 - share
    return up.to(kept.dtype)


# ---------------------------------------------------------------- the common case, made fast


def parameters(fmt: FloatFormat) -> tuple[object, ...]:
    """Return what makes a format, without its name."""
    return fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.has_infinity, fmt.has_nan


#: Types that PyTorch casts float32 to, correctly: the tests try every tie.
NATIVE = {parameters(FP16): torch.float16, parameters(BF16): torch.bfloat16}

# Numbers handled at once on a CPU thread: few enough that every pass finds them in the cache.
BLOCK = 1 << 14


def round_to_nearest_even(x: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool) -> Tensor:
    """Round to nearest, ties to even, overflow as told: the same results as by `round_magnitude`.

    Notes
    -----
    Three short ways. FP16 and BF16 from float32 are PyTorch's own casts. Where `fmt` has the
    exponents of the carrier, a constant is added to the pattern and the last bits are cleared (with no
    fraction the last bit would be one of the exponent, which says nothing about even).
    Elsewhere the processor rounds: adding C = 3/2 · 2^k to x leaves in the sum just the bits of x
    that `fmt` has, if k is chosen by the exponent of x, and taking C off again is exact.
    """
    native = carrier.dtype == torch.float32 and parameters(fmt) in NATIVE
    if native and x.numel() <= 4 * BLOCK:
        y = x.clamp(-fmt.max, fmt.max) if saturate else x
        return y.to(NATIVE[parameters(fmt)]).to(carrier.dtype)
    way = _by_casting if native else _way(fmt, carrier)
    if x.device.type != "cpu":
        result = torch.empty_like(x)
        way(x, result, fmt, carrier, saturate)
        return result
    flat = x.contiguous().view(-1)
    result = torch.empty_like(flat)
    size = BLOCK * torch.get_num_threads() * (4 if native else 1)  # few passes: fewer calls
    for start in range(0, flat.numel(), size):
        part = slice(start, start + size)
        way(flat[part], result[part], fmt, carrier, saturate)
    return result.view(x.shape)


def _by_casting(x: Tensor, out: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool) -> None:
    y = x.clamp(-fmt.max, fmt.max) if saturate else x
    out.copy_(y.to(NATIVE[parameters(fmt)]))


@cache
def _way(fmt: FloatFormat, carrier: Carrier) -> Callable[..., None]:
    """Choose how to round to `fmt`."""
    if fmt.smallest_exponent == carrier.format.smallest_exponent and fmt.mantissa_bits:
        return _by_adding_to_the_pattern
    return _by_adding_a_number if _sum_can_round(fmt, carrier) else _by_magnitude


def _sum_can_round(fmt: FloatFormat, carrier: Carrier) -> bool:
    """Tell whether a sum in the carrier rounds to `fmt`: room for C, and no subnormal in reach."""
    room = carrier.format.mantissa_bits - fmt.mantissa_bits
    return (
        room >= 2
        and fmt.largest_exponent + 1 + room <= carrier.format.largest_exponent
        and fmt.smallest_subnormal >= 4 * carrier.format.smallest_normal
    )


def _by_adding_a_number(
    x: Tensor, out: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool
) -> None:
    m = carrier.format.mantissa_bits
    beyond = 2.0 ** (fmt.largest_exponent + 1)
    y = x.clamp(-beyond, beyond)  # keeps NaN
    power = y.view(carrier.integer) & carrier.infinity  # the exponent field alone
    power.clamp_(min=(fmt.smallest_exponent + carrier.format.bias) << m)
    power += ((m - fmt.mantissa_bits) << m) + (1 << (m - 1))  # C: its exponent, and the half
    C = power.view(carrier.dtype)
    y += C
    y -= C
    _overflow(y, fmt, carrier, saturate)
    torch.copysign(y, x, out=out)  # a number that rounds to 0 keeps its sign


def _by_adding_to_the_pattern(
    x: Tensor, out: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool
) -> None:
    raw = x.view(carrier.integer)
    cut = carrier.format.mantissa_bits - fmt.mantissa_bits
    if cut:
        odd = raw >> cut
        odd &= 1
        odd += (1 << (cut - 1)) - 1
        odd += raw
        odd &= -1 << cut
        y = torch.where(x.isnan(), x, odd.view(carrier.dtype))
    else:
        y = x.clone()
    _overflow(y, fmt, carrier, saturate)
    out.copy_(y)


def _by_magnitude(
    x: Tensor, out: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool
) -> None:
    raw = x.view(carrier.integer)
    magnitude = raw & ~carrier.sign
    rounded = round_magnitude(magnitude, None, fmt, carrier, "nearest_even", None)
    y = torch.where(magnitude > carrier.infinity, magnitude, rounded).view(carrier.dtype)
    _overflow(y, fmt, carrier, saturate)
    out.copy_(y.copysign(x))


def _overflow(y: Tensor, fmt: FloatFormat, carrier: Carrier, saturate: bool) -> None:
    """Replace, in place, what lies beyond the largest number of `fmt`."""
    if saturate:
        y.clamp_(-fmt.max, fmt.max)  # keeps NaN
    elif not fmt.has_infinity:
        y.masked_fill_(y.abs() > fmt.max, torch.nan)
    elif fmt.largest_exponent < carrier.format.largest_exponent:
        room = carrier.format.largest_exponent - fmt.largest_exponent
        if room < carrier.format.largest_exponent:
            # What is beyond is at least 2^(largest_exponent + 1): scaled up, it overflows by itself.
            y *= 2.0**room
            y *= 2.0**-room
        else:
            y.copy_(torch.where(y.abs() > fmt.max, y * torch.inf, y))
