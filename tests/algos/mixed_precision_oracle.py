"""Rounding by definition, in exact fractions, and the inputs that tell right from wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import torch


def finite_values(fmt):
    """All finite values of a format, ascending, float64; zero once."""
    values = fmt.values()
    return torch.unique(values[values.isfinite()])


def last_spacing(fmt):
    """Return the spacing at the largest number; where that is a power of two, it is less below."""
    largest = float(finite_values(fmt)[-1])
    return 2.0 ** (math.frexp(largest)[1] - 1 - fmt.mantissa_bits)


def ties_and_neighbours(fmt, dtype):
    """Every value, every midpoint of neighbours, and what lies right beside them in `dtype`."""
    values = finite_values(fmt)
    step = last_spacing(fmt)
    # One more value on either side: where numbers overflow, there is a midpoint too.
    values = torch.cat([values[:1] - step, values, values[-1:] + step])
    points = torch.cat([values, (values[:-1] + values[1:]) / 2]).to(dtype)
    infinity = torch.full_like(points, math.inf)
    beside = [torch.nextafter(points, far) for far in (infinity, -infinity)]
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max]
    return torch.cat([points, *beside, torch.tensor(special, dtype=dtype)])


def by_definition(x, fmt, rounding, uniform=None):
    """Round one finite number, from the list of the format's values; overflow gives infinity.

    The list goes on beyond the largest value with the spacing it has there. Slow and obvious.
    """
    exact = Fraction(x)
    sign = -1 if math.copysign(1.0, x) < 0 else 1
    size = abs(exact)
    values = [Fraction(v) for v in finite_values(fmt).tolist() if v >= 0]
    step = Fraction(last_spacing(fmt))
    values.append(values[-1] + step)
    if size >= values[-1]:
        low, high, over = values[-2], values[-1], True
    else:
        at = max(i for i, v in enumerate(values) if v <= size)
        low, high, over = values[at], values[at + 1], False
    if size == low:
        chosen = low
    else:
        share = Fraction(1) if over else (size - low) / (high - low)
        outward = {
            "nearest_even": share > Fraction(1, 2)
            or (share == Fraction(1, 2) and fmt.encode(float(low)).item() % 2 == 1),
            "away": share >= Fraction(1, 2),
            "toward_zero": False,
            "up": sign > 0,
            "down": sign < 0,
            "stochastic": uniform is not None and uniform + share >= 1,
        }[rounding]
        chosen = high if outward else low
    beyond = math.inf if fmt.has_infinity else math.nan
    return math.copysign(beyond if chosen > Fraction(fmt.max) else float(chosen), sign)
