"""Spacing, sums and their bounds: against NumPy, SoftFloat and exact fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import softfloatpy as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.mixed_precision import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    FloatFormat,
    blocked_sum,
    error_bound,
    kahan_sum,
    pairwise_sum,
    quantize,
    ulp,
    ulp_distance,
)
from tests.algos.mixed_precision_oracle import finite_values

# ---------------------------------------------------------------- spacing


def test_ulp_is_numpys_spacing_for_every_half():
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    ours = ulp(torch.from_numpy(values), FP16)
    # NumPy's spacing is signed, at the largest number it is the step to infinity, and at negative
    # powers of two it is the smaller one: look at the positive numbers.
    assert np.array_equal(ours[:0x7BFF].numpy(), np.spacing(values[:0x7BFF]).astype(np.float64))
    assert ours[0x7BFF] == 32.0
    assert bool(ours[0x7C00:0x8000].isnan().all())
    assert torch.equal(ours[:0x7C00], ours[0x8000:0xFC00])


def test_ulp_is_pythons_for_doubles():
    x = [0.0, -0.0, 1.0, -1.5, 0.1, 5e-324, 2.0**-1022, 1.7e308, math.pi * 1e100]
    assert ulp(torch.tensor(x, dtype=torch.float64), FP64).tolist() == [math.ulp(v) for v in x]


@pytest.mark.parametrize("fmt", [FP16, BF16, FP8_E4M3, FP8_E5M2], ids=str)
def test_ulp_is_the_step_to_the_next_value(fmt):
    values = finite_values(fmt)
    values = values[values >= 0]
    assert torch.equal(ulp(values[:-1], fmt), values.diff())


def test_distance_counts_the_values_between():
    values = finite_values(FP8_E5M2)
    a, b = torch.meshgrid(values, values, indexing="ij")
    place = torch.arange(len(values))
    wanted = (place[:, None] - place[None, :]).abs()
    assert torch.equal(ulp_distance(a, b, FP8_E5M2), wanted)


def test_distance_at_the_edges():
    zero = torch.tensor([0.0, -0.0])
    assert ulp_distance(zero, zero.flip(0), FP32).tolist() == [0, 0]
    assert ulp_distance(torch.tensor(65504.0), torch.tensor(math.inf), FP16).item() == 1
    top = torch.tensor(FP64.max, dtype=torch.float64)
    # 0x7FEF...F on either side of 0 is 2 (2^63 - 2^52 - 1) steps: more than an int64 holds
    assert ulp_distance(top, -top, FP64).item() == 2**63 - 1
    assert ulp_distance(top, torch.nextafter(top, -top), FP64).item() == 1
    one = torch.tensor(1.0, dtype=torch.float64)
    assert ulp_distance(one, -one, FP64).item() == 2 * 0x3FF0000000000000
    small = torch.tensor(5e-324, dtype=torch.float64)
    assert ulp_distance(small, -small, FP64).item() == 2


def test_ulp_beyond_a_format_is_that_of_its_largest_number():
    x = torch.tensor([1e9, -1e30, 448.0, 2.0**-30, -0.0])
    assert ulp(x, FP8_E4M3).tolist() == [32.0, 32.0, 32.0, 2.0**-9, 2.0**-9]


def test_distance_broadcasts():
    a, b = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 1.0 + 2.0**-10, math.inf])
    wanted = [[0, 1, 0x7C00 - 0x3C00], [2 * 0x3C00, 2 * 0x3C00 + 1, 0x7C00 + 0x3C00]]
    assert ulp_distance(a, b, FP16).tolist() == wanted


def test_distance_says_what_is_wrong():
    one = torch.ones(2)
    with pytest.raises(ValueError, match="b must not hold NaN"):
        ulp_distance(one, torch.tensor([1.0, math.nan]), FP16)
    with pytest.raises(ValueError, match="a: x must hold values of FP16"):
        ulp_distance(one + 2.0**-20, one, FP16)
    with pytest.raises(TypeError, match="a must be floating point"):
        ulp_distance(torch.ones(2, dtype=torch.int64), one, FP16)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got float"):
        ulp(1.0, FP16)
    with pytest.raises(TypeError, match="fmt must be a FloatFormat, got int"):
        ulp(one, 16)


# ---------------------------------------------------------------- sums


def softfloat_sum(terms):
    total = sf.Float16.from_float(0.0)
    for term in terms:
        total = total + sf.Float16.from_float(term)
    return total.to_float()


def softfloat_kahan(terms):
    total = lost = sf.Float16.from_float(0.0)
    for term in terms:
        corrected = sf.Float16.from_float(term) - lost
        following = total + corrected
        lost = (following - total) - corrected
        total = following
    return total.to_float()


def halves(count, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(count, generator=generator) * spread
    return quantize(torch.randn(count, generator=generator) * scale.exp(), FP16)


@pytest.mark.parametrize("seed", range(5))
def test_sums_in_fp16_are_softfloats_bit_by_bit(seed):
    x = halves(200, seed, spread=3.0)
    assert blocked_sum(x, 200, fmt=FP16).item() == softfloat_sum(x.tolist())
    assert kahan_sum(x, fmt=FP16).item() == softfloat_kahan(x.tolist())
    blocks = [softfloat_sum(part.tolist()) for part in x.split(16)]
    assert blocked_sum(x, 16, fmt=FP16).item() == softfloat_sum(blocks)
    level = x.tolist()
    while len(level) > 1:
        pairs = [softfloat_sum(level[i : i + 2]) for i in range(0, len(level), 2)]
        level = pairs
    assert pairwise_sum(x, fmt=FP16).item() == level[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_without_a_format_the_tensors_own_arithmetic_is_used(dtype):
    fmt = {torch.float16: FP16, torch.bfloat16: BF16, torch.float32: FP32, torch.float64: FP64}[
        dtype
    ]
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    for function in (pairwise_sum, kahan_sum, lambda t, **k: blocked_sum(t, 8, **k)):
        assert function(x).dtype == dtype
        assert torch.equal(function(x), function(x, fmt=fmt))


def test_kahan_in_doubles_is_the_plain_loop_of_python():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e8
    total = lost = 0.0
    for term in x.tolist():
        y = term - lost
        t = total + y
        lost = (t - total) - y
        total = t
    assert kahan_sum(x).item() == total
    assert abs(total - math.fsum(x.tolist())) <= 2.0**-52 * x.abs().sum().item()


def test_sums_along_any_axis_of_nothing_and_of_one():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    functions = (pairwise_sum, kahan_sum, lambda t, dim=-1: blocked_sum(t, 2, dim))
    for function in functions:
        for dim in (0, 1, -1):
            # 4 roundings of numbers of size 1: far below 1e-14
            assert torch.allclose(function(x, dim), x.sum(dim), rtol=0, atol=1e-14)
        assert function(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
        assert function(torch.tensor([3.5])).item() == 3.5
        with pytest.raises(ValueError, match="x must have an axis to sum"):
            function(torch.tensor(1.0))
        with pytest.raises(IndexError):
            function(x, 3)
        with pytest.raises(TypeError, match="x must be floating point"):
            function(torch.ones(3, dtype=torch.int64))


def test_an_infinite_sum_stays_infinite():
    x = torch.tensor([60000.0, 60000.0, -1.0])
    assert kahan_sum(x, fmt=FP16).item() == math.inf
    assert blocked_sum(x, 3, fmt=FP16).item() == math.inf


def test_sums_say_what_is_wrong():
    x = torch.ones(4)
    with pytest.raises(ValueError, match=r"x must hold values of FP16, got 1\.0000"):
        pairwise_sum(x + 2.0**-15, fmt=FP16)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        blocked_sum(x, 0)
    with pytest.raises(TypeError, match=r"block_size must be an int, got 2\.0"):
        blocked_sum(x, 2.0)
    for p in (26, 31, 52):
        with pytest.raises(ValueError, match=rf"2p \+ 2 <= 53.*has p = {p}"):
            kahan_sum(x, fmt=FloatFormat(f"{p} bits", 8, p - 1))
    assert kahan_sum(x, fmt=FloatFormat("25 bits", 8, 24)).item() == 4
    # the summed axis comes first: 5 is met before 4
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0 + 2.0**-15], [5.0 + 2.0**-15, 6.0]])
    with pytest.raises(ValueError, match=r"x must hold values of FP16, got 5\.0000305"):
        pairwise_sum(rows, 1, fmt=FP16)
    assert math.isnan(pairwise_sum(torch.tensor([1.0, math.nan]), fmt=FP16).item())


# ---------------------------------------------------------------- bounds


def exact_error(x, result):
    exact = sum((Fraction(v) for v in x.tolist()), Fraction(0))
    return abs(Fraction(result) - exact), sum(abs(Fraction(v)) for v in x.tolist())


ORDERS = {
    "naive": lambda x, fmt: blocked_sum(x, max(len(x), 1), fmt=fmt),
    "pairwise": lambda x, fmt: pairwise_sum(x, fmt=fmt),
    "blocked": lambda x, fmt: blocked_sum(x, 4, fmt=fmt),
    "kahan": lambda x, fmt: kahan_sum(x, fmt=fmt),
}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([FP16, BF16, FP8_E5M2, FloatFormat("p = 2", 6, 1)]),
    st.integers(0, 40),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_no_sum_exceeds_its_bound(fmt, count, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    size = (torch.randn(count, generator=generator) * spread).exp()
    x = quantize(torch.randn(count, generator=generator) * size, fmt, saturate=True).double()
    for order, run in ORDERS.items():
        result = run(x, fmt).item()
        if math.isinf(result):
            continue
        error, magnitudes = exact_error(x, result)
        extra = {"block_size": 4} if order == "blocked" else {}
        bound = error_bound(count, fmt, order=order, **extra)
        if math.isfinite(bound):
            assert error <= Fraction(bound) * magnitudes, (order, float(error), bound)


def test_every_triple_of_a_small_format_stays_below_the_bounds():
    fmt = FloatFormat("p = 3", 6, 2)
    numbers = [0.0] + [
        s * (4 + k) * 2.0**e for s in (1, -1) for k in range(4) for e in range(-1, 2)
    ]
    grid = torch.tensor(list(itertools.product(numbers, repeat=3)), dtype=torch.float64)
    magnitudes = grid.abs().sum(1)
    for order, run in (("naive", lambda x: blocked_sum(x, 3, 1, fmt=fmt)),
                       ("pairwise", lambda x: pairwise_sum(x, 1, fmt=fmt)),
                       ("kahan", lambda x: kahan_sum(x, 1, fmt=fmt))):  # fmt: skip
        error = (run(grid) - grid.sum(1)).abs()  # float64 adds these exactly
        assert bool((error <= error_bound(3, fmt, order=order) * magnitudes).all())


@pytest.mark.parametrize("order", ["naive", "pairwise", "blocked"])
def test_the_bounds_are_attained_to_first_order(order):
    # 1 first; then u wherever it meets the running sum: a tie, to even, and it is gone.
    fmt, count, u = FP16, 16, FP16.unit_roundoff
    met = {"naive": range(1, 16), "pairwise": (1, 2, 4, 8), "blocked": (1, 2, 3, 4, 8, 12)}[order]
    x = torch.zeros(count, dtype=torch.float64)
    x[0], x[list(met)] = 1.0, u
    error, magnitudes = exact_error(x, ORDERS[order](x, fmt).item())
    extra = {"block_size": 4} if order == "blocked" else {}
    ratio = float(error / magnitudes) / error_bound(count, fmt, order=order, **extra)
    assert error == len(met) * Fraction(u)
    assert 1 - 3 * count * u < ratio <= 1  # (k u / (1 + k u)) / ((1 + u)^k - 1) > 1 - 3 k u / 2


def test_bounds_count_roundings():
    u = FP32.unit_roundoff
    # each a whole number of roundings; (1 + u)^k - 1 = k u (1 + k u / 2 + ...)
    for arguments, k in (
        ({"terms": 100}, 99),
        ({"terms": 100, "order": "pairwise"}, 7),
        ({"terms": 128, "order": "pairwise"}, 7),
        ({"terms": 129, "order": "pairwise"}, 8),
        ({"terms": 100, "order": "blocked", "block_size": 10}, 9 + 9),
        ({"terms": 100, "order": "blocked", "block_size": 1000}, 99),
        ({"terms": 100, "roundings": 2}, 101),
        ({"terms": 1, "roundings": 1}, 1),
        ({"terms": 1}, 0),
        ({"terms": 0}, 0),
    ):
        bound = error_bound(arguments.pop("terms"), FP32, **arguments)
        assert k * u <= bound <= k * u * (1 + k * u)
    assert error_bound(100, FP32, rounding="stochastic") > 1.99 * error_bound(100, FP32)


def test_the_bound_of_kahan_is_three_u_and_terms_of_second_order():
    for fmt in (FP64, FP32, TF32):
        for n in (2, 10, 100):
            u = fmt.unit_roundoff
            bound = error_bound(n, fmt, order="kahan")
            # 6 n u^2 (see the chapter), and at most as much again for what is of higher order
            assert 3 * u < bound <= 3 * u + 12 * (n + 1) * u**2
    assert error_bound(10**7, FP16, order="kahan") == math.inf
    assert error_bound(1, FP16, order="kahan") == 0
    with_product = error_bound(100, FP32, order="kahan", roundings=1)
    assert 4 * FP32.unit_roundoff < with_product < 4.01 * FP32.unit_roundoff


@pytest.mark.parametrize("order", ["naive", "pairwise", "blocked", "kahan"])
def test_no_term_and_one_term_are_added_exactly(order):
    extra = {"block_size": 4} if order == "blocked" else {}
    for terms in (0, 1):
        assert error_bound(terms, FP16, order=order, **extra) == 0
        # what is rounded before it is added stays rounded, upward by a whole spacing
        for rounding, u in (("nearest_even", 2.0**-11), ("away", 2.0**-11), ("down", 2.0**-10)):
            found = error_bound(terms, FP16, order=order, roundings=2, rounding=rounding, **extra)
            assert found == pytest.approx((1 + u) ** 2 - 1, rel=1e-12)


def test_bounds_say_what_is_wrong():
    for arguments, message in (
        ({"terms": -1}, "terms must be at least 0, got -1"),
        ({"terms": 3, "order": "sorted"}, "order must be one of naive, .*, got 'sorted'"),
        ({"terms": 3, "order": "blocked"}, 'block_size belongs to order="blocked", got None'),
        ({"terms": 3, "block_size": 3}, 'block_size belongs to order="blocked", got 3'),
        ({"terms": 3, "order": "blocked", "block_size": 0}, "block_size must be at least 1"),
        ({"terms": 1, "order": "blocked", "block_size": 0}, "block_size must be at least 1"),
        ({"terms": 3, "rounding": "odd"}, "rounding must be one of"),
        ({"terms": 3, "roundings": -1}, "roundings must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            error_bound(arguments.pop("terms"), FP16, **arguments)
    with pytest.raises(TypeError, match=r"terms must be an int, got 3\.0"):
        error_bound(3.0, FP16)
    with pytest.raises(TypeError, match=r"block_size must be an int, got 2\.0"):
        error_bound(3, FP16, order="blocked", block_size=2.0)


@pytest.mark.parametrize("rounding", ["nearest_even", "up"])
def test_a_bound_of_kahans_sum_is_infinite_or_above_the_true_error(rounding):
    """With hardly any bits the correction is as large as what it corrects; the bound was once below 0."""
    for mantissa in range(5):
        fmt = FloatFormat("few", 6, mantissa, has_infinity=False, has_nan=False)
        bounds = [error_bound(n, fmt, order="kahan", rounding=rounding) for n in (2, 3, 10)]
        assert all(bound > 2.0 ** -(mantissa + 1) for bound in bounds), (mantissa, bounds)
        assert bounds == sorted(bounds)
    assert error_bound(2, FloatFormat("few", 6, 0, has_infinity=False, has_nan=False),
                       order="kahan", rounding=rounding) == math.inf  # fmt: skip
