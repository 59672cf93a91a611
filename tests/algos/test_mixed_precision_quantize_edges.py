"""Two corners of `quantize` that the comparison with the kernel found: no fraction, and subnormals."""

from __future__ import annotations

from fractions import Fraction
from math import copysign

import pytest
import torch

from pkg.algos.mixed_precision import FloatFormat, quantize


def by_fractions(value, fmt, rounding):
    """Round one number in Python's fractions; formats without overflow only."""
    exact = Fraction(abs(value))
    exponent = fmt.smallest_exponent
    while exact >= Fraction(2) ** (exponent + 1):
        exponent += 1
    spacing = Fraction(2) ** (exponent - fmt.mantissa_bits)
    kept, rest = exact // spacing, exact % spacing / spacing
    up = {
        "nearest_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and kept % 2 == 1),
        "away": rest >= Fraction(1, 2),
        "toward_zero": False,
        "up": rest > 0 and value > 0,
        "down": rest > 0 and value < 0,
    }[rounding]
    return copysign(float((kept + up) * spacing), value)


@pytest.mark.parametrize("rounding", ["nearest_even", "away", "toward_zero", "up", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_format_without_fraction(dtype, rounding):
    """Its significand is always 1, which is odd, so ties go up: 0.75 to 1, also 0.375 to 0.5."""
    bias = 1023 if dtype == torch.float64 else 127  # the carrier's exponents
    fmt = FloatFormat("powers of two", 7, 0, bias=bias, has_infinity=False, has_nan=False)
    x = torch.cat([torch.linspace(0.01, 1.0, 199), torch.tensor([0.75, 0.375, 0.1875])]).to(dtype)
    x = torch.cat([x, -x]) * 2.0 ** (fmt.largest_exponent)
    wanted = [by_fractions(value, fmt, rounding) for value in x.tolist()]
    assert quantize(x, fmt, rounding=rounding).tolist() == wanted


@pytest.mark.parametrize("rounding", ["nearest_even", "away", "toward_zero", "up", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_format_that_is_normal_where_its_carrier_is_subnormal(dtype, rounding):
    """A subnormal number of the carrier has fewer bits, and may need no rounding at all."""
    bias, bits = (1023, 11) if dtype == torch.float64 else (127, 8)
    fmt = FloatFormat("lower", bits, 2, bias=bias + 10)
    tiny = torch.finfo(dtype).tiny  # the carrier is subnormal below
    near, far = (torch.linspace(0, 1.5, 3001, dtype=dtype) * size for size in (tiny, tiny / 500))
    x = torch.cat([near, far, -near])
    wanted = [by_fractions(value, fmt, rounding) for value in x.tolist()]
    found = quantize(x, fmt, rounding=rounding)
    assert found.tolist() == wanted
    # The signs of zeros, which a list does not tell apart.
    assert torch.equal(found.signbit(), torch.tensor(wanted).signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_format_whose_numbers_end_where_those_of_its_carrier_do(dtype):
    """Room for no larger number: it cannot be rounded by adding one."""
    top = 1022 if dtype == torch.float64 else 126
    fmt = FloatFormat("high", 5, 3, bias=30 - top)
    assert fmt.largest_exponent == top
    x = torch.linspace(0.1, 1.8, 499, dtype=dtype) * 2.0**top
    x = torch.cat([x, -x])
    wanted = [by_fractions(value, fmt, "nearest_even") for value in x.tolist()]
    assert quantize(x, fmt).tolist() == wanted


def test_the_first_number_without_a_pattern_is_named():
    x = torch.tensor([[1.0, -2.0], [-7000.0, 8000.0], [9000.0, 1.0]])
    fmt = FloatFormat("FP4", 2, 1, has_infinity=False, has_nan=False)
    with pytest.raises(ValueError, match=r"x must not hold -7000\.0: FP4 has neither"):
        quantize(x, fmt)
