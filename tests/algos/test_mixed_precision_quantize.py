"""Rounding: against SoftFloat, ml_dtypes, gfloat, NumPy, PyTorch, and the definition in fractions."""

from __future__ import annotations

import math

import gfloat
import ml_dtypes
import numpy as np
import pytest
import softfloatpy as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.mixed_precision import (
    BF16,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    TF32,
    FloatFormat,
    quantize,
)
from pkg.algos.mixed_precision.quantize import _round_any, round_with_uniforms
from pkg.algos.mixed_precision.rounding import CARRIERS
from tests.algos.mixed_precision_oracle import by_definition, ties_and_neighbours
from tests.algos.test_mixed_precision_formats import SMALL, same

MODES = {
    "nearest_even": (sf.RoundingMode.NEAR_EVEN, gfloat.RoundMode.TiesToEven),
    "away": (sf.RoundingMode.NEAR_MAX_MAG, gfloat.RoundMode.TiesToAway),
    "toward_zero": (sf.RoundingMode.MIN_MAG, gfloat.RoundMode.TowardZero),
    "up": (sf.RoundingMode.MAX, gfloat.RoundMode.TowardPositive),
    "down": (sf.RoundingMode.MIN, gfloat.RoundMode.TowardNegative),
}
TINY = [FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3, FP4_E2M1]
TORCH = {FP16: torch.float16, BF16: torch.bfloat16, FP8_E5M2: torch.float8_e5m2}
FLOATS = [torch.float32, torch.float64]


# ---------------------------------------------------------------- all ties, all five directions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fp16_is_softfloats_in_every_direction(dtype, mode):
    x = ties_and_neighbours(FP16, dtype)
    sf.set_rounding_mode(MODES[mode][0])
    try:
        if dtype == torch.float32:
            theirs = [sf.Float32.from_float(v).to_f16().to_float() for v in x.tolist()]
        else:
            theirs = [sf.Float64.from_float(v).to_f16().to_float() for v in x.tolist()]
    finally:
        sf.set_rounding_mode(sf.RoundingMode.NEAR_EVEN)
    assert len(x) > 4 * 60_000
    assert same(quantize(x, FP16, rounding=mode).double(), theirs)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_is_softfloats_in_every_direction(mode):
    x = ties_and_neighbours(BF16, torch.float32)
    x = x[x.isfinite()]  # SoftFloat's midpoint beyond the largest float32 does not exist
    sf.set_rounding_mode(MODES[mode][0])
    try:
        codes = [
            int.from_bytes(sf.Float32.from_float(v).to_bf16().to_bytes(), "big") for v in x.tolist()
        ]
    finally:
        sf.set_rounding_mode(sf.RoundingMode.NEAR_EVEN)
    assert same(quantize(x, BF16, rounding=mode).double(), BF16.decode(torch.tensor(codes)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fmt", TINY, ids=str)
def test_the_small_formats_are_gfloats_in_every_direction(fmt, dtype, mode):
    x = ties_and_neighbours(fmt, dtype)
    x = x[x.isfinite()]
    half_the_smallest = x.abs() < fmt.smallest_subnormal / 2
    if mode == "away":  # see the next test
        x = x[~half_the_smallest]
    for saturate in (True, False) if fmt.has_nan else (True,):
        theirs = [
            gfloat.round_float(SMALL[fmt][1], v, MODES[mode][1], saturate) for v in x.tolist()
        ]
        assert same(quantize(x, fmt, rounding=mode, saturate=saturate).double(), theirs)


def test_gfloat_rounds_what_is_just_below_half_the_smallest_number_away_from_zero():
    # A disagreement with a peer, decided by the definition: 0 is nearer.
    x = math.nextafter(FP8_E4M3.smallest_subnormal / 2, 0)
    info = SMALL[FP8_E4M3][1]
    assert gfloat.round_float(info, x, gfloat.RoundMode.TiesToAway) == FP8_E4M3.smallest_subnormal
    ours = quantize(torch.tensor(x, dtype=torch.float64), FP8_E4M3, rounding="away")
    assert float(ours) == 0 == by_definition(x, FP8_E4M3, "away")


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_float32_is_rounded_as_by_ml_dtypes(fmt):
    x = ties_and_neighbours(fmt, torch.float32)
    saturates = not fmt.has_nan  # ml_dtypes saturates FP6 and FP4, and so must we
    if saturates:
        x = x[~x.isnan()]
    with np.errstate(all="ignore"):
        theirs = x.numpy().astype(SMALL[fmt][0]).astype(np.float64)
    assert same(quantize(x, fmt, saturate=saturates).double(), theirs)


@pytest.mark.parametrize("fmt", TORCH, ids=str)
def test_float32_is_rounded_as_by_torch(fmt):
    x = ties_and_neighbours(fmt, torch.float32)
    assert same(quantize(x, fmt).double(), x.to(TORCH[fmt]).double())


def test_torch_saturates_e4m3_even_from_infinity():
    x = ties_and_neighbours(FP8_E4M3, torch.float32)
    theirs = x.to(torch.float8_e4m3fn).double()
    assert same(quantize(x, FP8_E4M3, saturate=True).double(), theirs)
    assert theirs[x == math.inf].tolist() == [448.0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_tf32_is_float32_with_13_bits_rounded_off(mode, dtype):
    # An oracle of other make: TF32's ties are those of a float64 multiple of the spacing.
    generator = torch.Generator().manual_seed(0)
    step = torch.randint(2**10, 2**11, (20_000,), generator=generator).double()
    offset = torch.tensor([0.0, 0.25, 0.5, 0.75])[
        torch.randint(0, 4, (20_000,), generator=generator)
    ]
    sign = torch.where(torch.rand(20_000, generator=generator) < 0.5, -1.0, 1.0).double()
    exact = sign * (step + offset.double())
    whole = {
        "nearest_even": exact.round(),
        "away": exact.sign() * (exact.abs() + 0.5).floor(),
        "toward_zero": exact.trunc(),
        "up": exact.ceil(),
        "down": exact.floor(),
    }[mode]
    for exponent in (-130, -20, 0, 100):
        x = (exact * 2.0**exponent).to(dtype)
        assert same(quantize(x, TF32, rounding=mode).double(), whole * 2.0**exponent)


# ---------------------------------------------------------------- whole binades of float32


@pytest.mark.parametrize(
    ("fmt", "exponent"),
    # normal, where subnormal numbers begin, half of the smallest one, where it overflows
    [(FP16, 0), (FP16, -15), (FP16, -25), (FP16, 15), (BF16, 0), (BF16, -127), (BF16, 127),
     (FP8_E4M3, 0), (FP8_E4M3, -7), (FP8_E4M3, 8), (FP8_E5M2, -15), (FP8_E5M2, 15)],
    ids=str,
)  # fmt: skip
def test_all_float32_patterns_of_an_exponent(fmt, exponent):
    stored = exponent + 127
    patterns = torch.arange(stored << 23, (stored + 1) << 23, dtype=torch.int32)
    x = patterns.view(torch.float32)
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(x.numpy().astype(SMALL[fmt][0]).astype(np.float32))
    ours = quantize(x, fmt)
    assert len(x) == 2**23
    assert bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


# ---------------------------------------------------------------- once, not twice


def test_float64_is_rounded_once():
    x = torch.tensor(1 + 2.0**-11 + 2.0**-30, dtype=torch.float64)
    assert float(quantize(x, FP16)) == 1 + 2.0**-10
    assert float(np.float16(float(x))) == 1 + 2.0**-10
    assert sf.Float64.from_float(float(x)).to_f16().to_float() == 1 + 2.0**-10
    # the peers that go through float32 meet a tie that was none
    assert float(x.half()) == 1.0
    assert float(np.float64(x).astype(ml_dtypes.bfloat16)) == 1.0
    via = torch.tensor(1 + 2.0**-8 + 2.0**-30, dtype=torch.float64)
    assert float(quantize(via, BF16)) == 1 + 2.0**-7
    assert float(via.numpy().astype(ml_dtypes.bfloat16)) == 1.0


def test_all_ties_of_fp16_from_float64_are_numpys():
    x = ties_and_neighbours(FP16, torch.float64)
    with np.errstate(over="ignore"):
        theirs = x.numpy().astype(np.float16).astype(np.float64)
    assert same(quantize(x, FP16), theirs)
    assert not same(x.half().double(), theirs)  # PyTorch rounds twice here


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_format_is_rounded_by_the_definition(data):
    w = data.draw(st.integers(2, 5))
    m = data.draw(st.integers(1, 4))
    kind = data.draw(st.sampled_from([(True, True), (False, True), (False, False)]))
    bias = data.draw(st.integers(0, 2**w))
    fmt = FloatFormat("drawn", w, m, bias, *kind)
    rounding = data.draw(st.sampled_from([*MODES, "stochastic"]))
    top = 1.2 * fmt.max if fmt.has_nan else fmt.max
    x = data.draw(st.floats(-top, top, allow_subnormal=True))
    dtype = data.draw(st.sampled_from(FLOATS))
    given_x = torch.tensor([x], dtype=dtype)
    uniform = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1 - 2**-30]))
    wanted = by_definition(float(given_x), fmt, rounding, uniform)
    if rounding == "stochastic":
        got = round_with_uniforms(given_x, fmt, torch.tensor([uniform], dtype=torch.float64))
    else:
        got = quantize(given_x, fmt, rounding=rounding)
    assert same(got.double(), [wanted]) or (math.isnan(wanted) and got.isnan())


def test_a_format_whose_largest_number_is_a_power_of_two_ends_half_a_spacing_above_it():
    fmt = FloatFormat(
        "E2M1, no infinity", 2, 1, 2, False, True
    )  # 1.5 and 2, then NaN in place of 3
    for x, wanted in ((2.375, 2.0), (2.5, 2.0), (2.625, math.nan)):
        assert by_definition(x, fmt, "nearest_even") == wanted or math.isnan(wanted)
        assert same(quantize(torch.tensor([x]), fmt).double(), [wanted])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 23), st.integers(0, 30), st.booleans(), st.integers(0, 99))
def test_the_fast_ways_are_the_slow_one(w, m, shift, saturate, seed):
    # Every way by which nearest even is made fast, against integer arithmetic on patterns.
    bias = 2 ** (w - 1) - 1 + (shift if w < 8 else 0)
    fmt = FloatFormat("drawn", w, max(m, 1), bias)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(-(2**31), 2**31 - 1, (4000,), generator=generator).to(torch.int32)
    near = torch.randn(4000, generator=generator) * fmt.max
    small = torch.randn(4000, generator=generator) * fmt.smallest_normal
    x = torch.cat([raw.view(torch.float32), near, small])
    for given_x in (x, x.double()):
        slow = _round_any(given_x, fmt, CARRIERS[given_x.dtype], "nearest_even", saturate, None)
        assert same(quantize(given_x, fmt, saturate=saturate).double(), slow.double())


# ---------------------------------------------------------------- stochastic


@pytest.mark.parametrize("fmt", [FP16, BF16, FP8_E4M3, FP8_E5M2], ids=str)
def test_over_all_uniforms_the_mean_of_stochastic_rounding_is_x(fmt):
    # 2^12 equally spaced uniforms; x at multiples of 2^-12 of the spacing: the mean is exact.
    uniforms = torch.arange(2**12, dtype=torch.float64) / 2**12
    starts = [
        fmt.smallest_normal,
        1.0,
        -1.0,
        fmt.smallest_subnormal,
        0.0,
        1.5 * fmt.smallest_normal,
    ]
    for start in starts:
        spacing = fmt.smallest_subnormal
        if abs(start) >= fmt.smallest_normal:
            spacing = fmt.eps * 2.0 ** math.floor(math.log2(abs(start)))
        for share in (1, 5, 2**11, 2**12 - 1):
            x = start + math.copysign(1, start) * spacing * share / 2**12
            rounded = round_with_uniforms(
                torch.full((2**12,), x, dtype=torch.float64), fmt, uniforms
            )
            assert float(rounded.mean()) == x, (fmt.name, start, share)
            assert len(rounded.unique()) == 2


def test_tiny_numbers_are_rounded_up_with_their_own_small_probability():
    # In the subnormal range as elsewhere (StochasticRounding.jl#62 had it wrong).
    fmt = FP16
    x = torch.full((2**16,), fmt.smallest_subnormal * 3 / 2**16, dtype=torch.float64)
    uniforms = torch.arange(2**16, dtype=torch.float64) / 2**16
    up = round_with_uniforms(x, fmt, uniforms) != 0
    assert int(up.sum()) == 3


def test_stochastic_rounding_follows_the_generator_and_leaves_values_alone():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    first, again = (
        quantize(x, BF16, rounding="stochastic", generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    other = quantize(x, BF16, rounding="stochastic", generator=torch.Generator().manual_seed(4))
    assert not torch.equal(first, other)
    values = FP16.values()
    values = values[~values.isnan()]
    same_values = quantize(
        values, FP16, rounding="stochastic", generator=torch.Generator().manual_seed(5)
    )
    assert same(same_values, values)


def test_a_kernels_integers_are_uniforms():
    # Adding 16 random bits below a float32's upper half and cutting off, as kernels do.
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    bits = torch.randint(0, 2**16, (5000,), generator=torch.Generator().manual_seed(2))
    by_bits = ((x.view(torch.int32).long() + bits) & ~0xFFFF).to(torch.int32).view(torch.float32)
    assert torch.equal(round_with_uniforms(x, BF16, bits.double() / 2**16), by_bits)


# ---------------------------------------------------------------- overflow, NaN, zeros


def test_overflow_follows_the_direction():
    x = torch.tensor([7e4, -7e4, math.inf, -math.inf])
    expected = {
        "nearest_even": [math.inf, -math.inf, math.inf, -math.inf],
        "away": [math.inf, -math.inf, math.inf, -math.inf],
        "toward_zero": [65504.0, -65504.0, math.inf, -math.inf],
        "up": [math.inf, -65504.0, math.inf, -math.inf],
        "down": [65504.0, -math.inf, math.inf, -math.inf],
    }
    for mode, wanted in expected.items():
        assert quantize(x, FP16, rounding=mode).tolist() == wanted
        saturated = quantize(x, FP16, rounding=mode, saturate=True).tolist()
        assert saturated == [65504.0, -65504.0, 65504.0, -65504.0]


def test_a_format_without_infinity_overflows_to_nan():
    x = torch.tensor([464.0, 465.0, math.inf, -math.inf])
    assert same(quantize(x, FP8_E4M3), [448.0, math.nan, math.nan, math.nan])
    assert quantize(x, FP8_E4M3, rounding="toward_zero").tolist()[:2] == [448.0, 448.0]


def test_a_format_with_neither_refuses():
    with pytest.raises(ValueError, match=r"not hold 7\.5: FP4_E2M1 has neither.*saturate=True"):
        quantize(torch.tensor([1.0, 7.5]), FP4_E2M1)
    for mode in MODES:
        with pytest.raises(ValueError, match="must not hold nan: FP4_E2M1 has neither"):
            quantize(torch.tensor([math.nan]), FP4_E2M1, saturate=True, rounding=mode)
    assert quantize(torch.tensor([7.5, -math.inf]), FP4_E2M1, saturate=True).tolist() == [6.0, -6.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [FP16, BF16, TF32, FP8_E4M3, FP8_E5M2], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_the_sign_of_zero_are_kept(fmt, mode, dtype):
    x = torch.tensor([math.nan, 0.0, -0.0], dtype=dtype)
    assert same(quantize(x, fmt, rounding=mode).double(), [math.nan, 0.0, -0.0])
    payload = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert bool(quantize(payload.to(dtype), fmt, rounding=mode).isnan().all())
