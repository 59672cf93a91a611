"""Spacing: how far apart the numbers of a format are, and how many lie between two of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import FloatFormat, power_of_two


def ulp(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Return the unit in the last place: the spacing of the numbers of `fmt` at x.

    Parameters
    ----------
    x
        Floating point, any shape; need not be a value of `fmt`.
    fmt
        The format.

    Returns
    -------
    Tensor
        float64, shape of `x`. From 2^e to 2^(e+1), whatever the sign, it is 2^(e - m), where m is
        `fmt.mantissa_bits`. Below the smallest normal number, and at 0, it is
        `fmt.smallest_subnormal`; beyond the largest number that of the largest; NaN where x is not
        finite.

    Raises
    ------
    TypeError
        If `x` is not floating point or `fmt` no format.

    Notes
    -----
    At a power of two the spacing above is meant; below it the numbers are twice as dense. Ledger:
    `mixed_precision:ulp`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, ulp
    >>> ulp(torch.tensor([1.0, 2048.0, 0.0]), FP16).tolist() == [2.0**-10, 2.0, 2.0**-24]
    True
    """
    check_numbers("x", x)
    check_format(fmt)
    value = x.to(torch.float64)
    finite = value.isfinite()
    _, binary = torch.frexp(torch.where(finite, value, 1.0))  # |x| = f * 2^binary, 1/2 <= f < 1
    exponent = (binary.to(torch.int64) - 1).clamp(fmt.smallest_exponent, fmt.largest_exponent)
    exponent = torch.where(value == 0, fmt.smallest_exponent, exponent)
    spacing = power_of_two(exponent - fmt.mantissa_bits)
    return torch.where(finite, spacing, math.nan)


def ulp_distance(a: Tensor, b: Tensor, fmt: FloatFormat) -> Tensor:
    """Count the steps from a to b along the numbers of `fmt`.

    Parameters
    ----------
    a, b
        Values of `fmt`, shapes that broadcast.
    fmt
        The format.

    Returns
    -------
    Tensor
        int64, 0 where a = b. +0 and -0 are one number; infinity is one step beyond the largest number.
        Two FP64 numbers 2^63 steps or more apart give 2^63 - 1.

    Raises
    ------
    TypeError
        If an argument is not floating point.
    ValueError
        If an argument holds NaN, or a number that is no value of `fmt`.

    Notes
    -----
    Patterns of positive numbers, read as integers, are in the order of the numbers, so a difference
    of patterns counts. Ledger: `mixed_precision:ulp_distance`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, ulp_distance
    >>> ulp_distance(torch.tensor([1.0, -(2.0**-24)]), torch.tensor([1.0 + 2**-10, 2.0**-24]), FP16)
    tensor([1, 2])
    """
    check_format(fmt)
    places = []
    for name, x in (("a", a), ("b", b)):
        check_numbers(name, x)
        if bool(x.isnan().any()):
            raise ValueError(f"{name} must not hold NaN: it has no place among the numbers")
        try:
            code = fmt.encode(x)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        sign = 1 << (fmt.bits - 1) if fmt.bits < 64 else -(2**63)
        places.append(torch.where((code & sign) != 0, -(code & ~sign), code))
    first, second = torch.broadcast_tensors(*places)
    distance = (first - second).abs()
    # Opposite signs and a sum of more than 63 bits: only FP64 gets there.
    wrapped = ((first < 0) != (second < 0)) & ((first - second < 0) != (first < 0))
    return torch.where(wrapped, 2**63 - 1, distance)


def check_numbers(name: str, x: Tensor) -> None:
    """Raise unless `x` is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def check_format(fmt: FloatFormat) -> None:
    """Raise unless `fmt` is a format."""
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"fmt must be a FloatFormat, got {type(fmt).__name__}")
