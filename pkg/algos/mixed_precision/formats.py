"""Floating-point formats: what a pattern of bits is worth, from a handful of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Formats of more bits have too many patterns to list.
MOST_LISTED_BITS = 20


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: sign, biased exponent, fraction.

    Parameters
    ----------
    name
        How messages call it.
    exponent_bits
        w, 1 to 11.
    mantissa_bits
        m, the bits of the fraction that are stored, 0 to 52. The precision is p = m + 1, because
        normal numbers have a leading 1 that is not stored.
    bias
        b, what is taken off the stored exponent; 2^(w-1) - 1 unless told.
    has_infinity
        True as in IEEE 754: the largest exponent is set aside for infinities and NaN. False as in
        the OCP formats E4M3, FP6 and FP4: the largest exponent holds numbers too.
    has_nan
        Only for formats without infinity. True: the one pattern with all exponent and fraction bits
        set (of either sign) is NaN, as in E4M3. False: every pattern is a number, as in FP6, FP4.

    Raises
    ------
    ValueError
        If the parameters make no format, or one with a value that float64 does not hold.

    Notes
    -----
    IEEE 754-2019, section 3.4; OCP Microscaling Formats v1.0, section 5.3. Ledger:
    `mixed_precision:decode_normal`, `mixed_precision:largest`, `mixed_precision:smallest_normal`,
    `mixed_precision:smallest_subnormal`, `mixed_precision:epsilon`.

    Examples
    --------
    >>> half = FloatFormat("half", exponent_bits=5, mantissa_bits=10)
    >>> half.max, half.smallest_normal, half.smallest_subnormal == 2.0**-24
    (65504.0, 6.103515625e-05, True)
    >>> half.decode(0x3C01)
    tensor(1.0010, dtype=torch.float64)
    >>> hex(half.encode(-2.0))
    '0xc000'
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = None  # type: ignore[assignment]  # becomes 2^(w-1) - 1
    has_infinity: bool = True
    has_nan: bool = True

    def __post_init__(self) -> None:
        for field, low, high in (("exponent_bits", 1, 11), ("mantissa_bits", 0, 52)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{field} must be an int, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{field} must lie in {low}..{high}, got {value}")
        if self.bias is None:
            object.__setattr__(self, "bias", 2 ** (self.exponent_bits - 1) - 1)
        if isinstance(self.bias, bool) or not isinstance(self.bias, int):
            raise ValueError(f"bias must be an int, got {self.bias!r}")
        if self.has_infinity and not (
            self.has_nan and self.mantissa_bits and self.exponent_bits > 1
        ):
            raise ValueError(
                "has_infinity needs has_nan, two exponent bits and one mantissa bit, got "
                f"has_nan={self.has_nan}, {self.exponent_bits} and {self.mantissa_bits}"
            )
        if self.has_nan and not self.has_infinity and not self.mantissa_bits:
            raise ValueError("has_nan without infinity needs a mantissa bit, got mantissa_bits=0")
        lowest, highest = self.smallest_exponent - self.mantissa_bits, self.largest_exponent
        if lowest < -1074 or highest > 1023:
            raise ValueError(
                f"bias must keep all values within float64's 2**-1074 to 2**1024, got {self.bias}: "
                f"values from 2**{lowest} to 2**{highest}"
            )

    # ------------------------------------------------------------------ the parameters' consequences

    @property
    def bits(self) -> int:
        """The width of a pattern: sign, exponent and fraction."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def precision(self) -> int:
        """p, the significant bits of a normal number, the hidden one included."""
        return self.mantissa_bits + 1

    @property
    def smallest_exponent(self) -> int:
        """The exponent e of the smallest normal number 2^e, and of the subnormal ones."""
        return 1 - self.bias

    @property
    def largest_exponent(self) -> int:
        """The exponent e of the largest number, which lies between 2^e and 2^(e+1)."""
        return 2**self.exponent_bits - 1 - self.has_infinity - self.bias

    @property
    def max(self) -> float:
        """The largest finite number."""
        steps = 2**self.precision - 1  # all significant bits set
        if self.has_nan and not self.has_infinity:
            steps -= 1  # that pattern is NaN
        return math.ldexp(float(steps), self.largest_exponent - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its significant bits."""
        return math.ldexp(1.0, self.smallest_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number: the spacing of all numbers below `smallest_normal`."""
        return math.ldexp(1.0, self.smallest_exponent - self.mantissa_bits)

    @property
    def eps(self) -> float:
        """The distance from 1 to the next larger number (as `torch.finfo(...).eps`)."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def unit_roundoff(self) -> float:
        """Half of eps: u, the largest relative error of rounding to nearest in the normal range."""
        return self.eps / 2

    def __str__(self) -> str:
        return self.name

    # ------------------------------------------------------------------ patterns and values

    def decode(self, code: Tensor | int) -> Tensor:
        """Return the values of bit patterns.

        Parameters
        ----------
        code
            Integers, any shape. Only the lowest `bits` bits are looked at, so that a signed view of
            a pattern (a negative int16) is read as what it is.

        Returns
        -------
        Tensor
            float64, which holds every value of every format exactly; shape of `code`.

        Raises
        ------
        TypeError
            If `code` does not hold integers.
        """
        pattern = torch.as_tensor(code)
        if pattern.is_floating_point() or pattern.is_complex() or pattern.dtype == torch.bool:
            raise TypeError(f"code must hold integers, got {pattern.dtype}")
        pattern = pattern.to(torch.int64)
        m, w = self.mantissa_bits, self.exponent_bits
        fraction = pattern & ((1 << m) - 1)
        exponent = (pattern >> m) & ((1 << w) - 1)
        negative = ((pattern >> (m + w)) & 1) == 1
        normal = exponent > 0
        significand = fraction + (normal.to(torch.int64) << m)
        exponent = torch.where(normal, exponent, 1) - self.bias - m
        value = significand.double() * power_of_two(exponent)
        if self.has_infinity:
            reserved = (pattern >> m) & ((1 << w) - 1) == (1 << w) - 1
            value = torch.where(reserved & (fraction == 0), math.inf, value)
            value = torch.where(reserved & (fraction != 0), math.nan, value)
        elif self.has_nan:
            full = (1 << (m + w)) - 1
            value = torch.where((pattern & full) == full, math.nan, value)
        return torch.where(negative, -value, value)

    def encode(self, x: Tensor | float) -> Tensor:
        """Return the bit patterns of values; NaN becomes the quiet NaN without a payload.

        Parameters
        ----------
        x
            Numbers of this format, any shape: nothing is rounded here. `quantize` does that.

        Returns
        -------
        Tensor
            int64, in 0 .. 2^bits - 1 (for a format of 64 bits, the signed view); shape of `x`.

        Raises
        ------
        TypeError
            If `x` is not floating point.
        ValueError
            If a number is not a value of this format.
        """
        given = x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
        if not given.is_floating_point():
            raise TypeError(f"x must be floating point, got {given.dtype}")
        value = given.to(torch.float64)
        m, w = self.mantissa_bits, self.exponent_bits
        raw = value.view(torch.int64)
        magnitude = raw & (2**63 - 1)
        _, binary = torch.frexp(value.abs())  # |x| = f * 2^binary, 1/2 <= f < 1
        exponent = (binary.to(torch.int64) - 1).clamp(min=self.smallest_exponent)
        finite = value.isfinite()
        # The significand, an integer: |x| in units of the last place. Two factors, as 2^1074 is none.
        scale = m - exponent
        scaled = _times_power_of_two(torch.where(finite, value.abs(), 0.0), scale)
        steps = scaled.to(torch.int64)
        code = steps + ((exponent - self.smallest_exponent) << m)
        code = torch.where(steps == 0, 0, code)
        bad = finite & ((scaled != steps) | (value.abs() > self.max))
        top = (1 << w) - 1
        if self.has_infinity:
            code = torch.where(value.isinf(), top << m, code)
            code = torch.where(value.isnan(), (top << m) | (1 << (m - 1)), code)
        elif self.has_nan:
            code = torch.where(value.isnan(), (top << m) | ((1 << m) - 1), code)
            bad = bad | value.isinf()
        else:
            bad = bad | ~finite
        if bool(bad.any()):
            first = float(value[bad].reshape(-1)[0])
            raise ValueError(
                f"x must hold values of {self.name}, got {first!r}; round it with quantize first"
            )
        # NaN keeps no sign: the pattern of a NaN is one pattern.
        negative = (raw != magnitude) & ~value.isnan()
        return torch.where(negative, code | (1 << (m + w) if m + w < 63 else -(2**63)), code)

    def values(self) -> Tensor:
        """Return the value of every pattern, float64, shape (2^bits,), in the order of patterns.

        Raises
        ------
        ValueError
            If the format has more than 20 bits.
        """
        if self.bits > MOST_LISTED_BITS:
            raise ValueError(
                f"values() lists formats of at most {MOST_LISTED_BITS} bits, and {self.name} has "
                f"{self.bits}"
            )
        return self.decode(torch.arange(2**self.bits))


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^k in float64 for int64 k up to 1023, built from its bits; 0 below -1074, as it is."""
    normal = (exponent + 1023) << 52
    subnormal = torch.ones_like(exponent) << (exponent + 1074)  # 0 where that is no shift
    return torch.where(exponent >= -1022, normal, subnormal).view(torch.float64)


def _times_power_of_two(x: Tensor, k: Tensor) -> Tensor:
    """Return x · 2^k for float64 x without a detour through infinity: two exact factors."""
    half = k.div(2, rounding_mode="floor")
    return x * power_of_two(half) * power_of_two(k - half)


FP64 = FloatFormat("FP64", 11, 52)
FP32 = FloatFormat("FP32", 8, 23)
TF32 = FloatFormat("TF32", 8, 10)
FP16 = FloatFormat("FP16", 5, 10)
BF16 = FloatFormat("BF16", 8, 7)
FP8_E4M3 = FloatFormat("FP8_E4M3", 4, 3, has_infinity=False)
FP8_E5M2 = FloatFormat("FP8_E5M2", 5, 2)
FP6_E3M2 = FloatFormat("FP6_E3M2", 3, 2, has_infinity=False, has_nan=False)
FP6_E2M3 = FloatFormat("FP6_E2M3", 2, 3, has_infinity=False, has_nan=False)
FP4_E2M1 = FloatFormat("FP4_E2M1", 2, 1, has_infinity=False, has_nan=False)
