"""Bit patterns and their values: every pattern of the small formats, against four other decoders."""

from __future__ import annotations

import gfloat
import gfloat.formats as gf
import ml_dtypes
import numpy as np
import pytest
import softfloatpy as sf
import torch

from pkg.algos.mixed_precision import (
    BF16,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    FloatFormat,
)

SMALL = {
    FP16: (np.float16, gf.format_info_binary16),
    BF16: (ml_dtypes.bfloat16, gf.format_info_bfloat16),
    FP8_E4M3: (ml_dtypes.float8_e4m3fn, gf.format_info_ocp_e4m3),
    FP8_E5M2: (ml_dtypes.float8_e5m2, gf.format_info_ocp_e5m2),
    FP6_E3M2: (ml_dtypes.float6_e3m2fn, gf.format_info_ocp_e3m2),
    FP6_E2M3: (ml_dtypes.float6_e2m3fn, gf.format_info_ocp_e2m3),
    FP4_E2M1: (ml_dtypes.float4_e2m1fn, gf.format_info_ocp_e2m1),
}
ALL = [*SMALL, TF32, FP32, FP64]


def same(a, b):
    """Equal as numbers, NaN to NaN, and of one sign (zeros too)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    nan = np.isnan(a) & np.isnan(b)
    return bool(((a == b) & (np.signbit(a) == np.signbit(b)) | nan).all())


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_every_pattern_has_the_value_that_ml_dtypes_and_numpy_give_it(fmt):
    patterns = np.arange(2**fmt.bits).astype(np.uint16 if fmt.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        theirs = patterns.view(SMALL[fmt][0]).astype(np.float64)
    assert same(fmt.values(), theirs)


@pytest.mark.parametrize("fmt", [f for f in SMALL if f.bits <= 8], ids=str)
def test_every_pattern_has_the_value_that_gfloat_gives_it(fmt):
    theirs = [gfloat.decode_float(SMALL[fmt][1], code).fval for code in range(2**fmt.bits)]
    assert same(fmt.values(), theirs)


def test_every_half_has_the_value_that_softfloat_gives_it():
    theirs = [sf.Float16.from_bytes(code.to_bytes(2, "big")).to_float() for code in range(65536)]
    assert same(FP16.values(), theirs)


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [(FP16, torch.float16), (BF16, torch.bfloat16), (FP8_E4M3, torch.float8_e4m3fn),
     (FP8_E5M2, torch.float8_e5m2)],
    ids=str,
)  # fmt: skip
def test_every_pattern_has_the_value_that_torch_gives_it(fmt, dtype):
    patterns = torch.arange(2**fmt.bits).to(torch.int16 if fmt.bits == 16 else torch.uint8)
    assert same(fmt.values(), patterns.view(dtype).double())


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_encoding_gives_every_pattern_back(fmt):
    values = fmt.values()
    numbers = ~values.isnan()
    assert torch.equal(fmt.encode(values)[numbers], torch.arange(2**fmt.bits)[numbers])
    if fmt.has_nan:
        nan = fmt.encode(torch.tensor(torch.nan))
        assert bool(fmt.decode(nan).isnan())


def patterns_of(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    random = torch.randint(low, high, (count,), generator=generator, dtype=torch.int64)
    # and the subnormal numbers, which chance would hardly hit
    return torch.cat([random, torch.randint(0, 2**20, (1000,), generator=generator)])


@pytest.mark.parametrize(
    ("fmt", "integer", "dtype"),
    [(FP32, torch.int32, torch.float32), (FP64, torch.int64, torch.float64)],
    ids=str,
)
def test_the_wide_formats_are_those_of_the_machine(fmt, integer, dtype):
    codes = patterns_of(fmt.bits, 200_000, seed=1).to(integer)
    values = codes.view(dtype)
    assert same(fmt.decode(codes), values.double())
    numbers = ~values.isnan()
    assert torch.equal(fmt.encode(values)[numbers].to(integer), codes[numbers])


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [(FP64, torch.float64), (FP32, torch.float32), (FP16, torch.float16), (BF16, torch.bfloat16),
     (FP8_E4M3, torch.float8_e4m3fn), (FP8_E5M2, torch.float8_e5m2)],
    ids=str,
)  # fmt: skip
def test_the_parameters_consequences_are_those_of_torch_finfo(fmt, dtype):
    info = torch.finfo(dtype)
    assert (fmt.max, fmt.smallest_normal, fmt.eps) == (info.max, info.smallest_normal, info.eps)
    assert fmt.bits == info.bits


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_the_parameters_consequences_are_those_of_ml_dtypes_finfo(fmt):
    info = ml_dtypes.finfo(SMALL[fmt][0])
    assert fmt.max == float(info.max)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.smallest_subnormal == float(info.smallest_subnormal)
    assert fmt.eps == float(info.eps)


def test_tf32_has_19_bits_the_range_of_fp32_and_the_fraction_of_fp16():
    assert TF32.bits == 19
    assert (TF32.smallest_normal, TF32.eps) == (FP32.smallest_normal, FP16.eps)
    numbers = TF32.values()
    assert len(numbers) == 2**19
    # A TF32 number is a float32 whose last 13 bits are 0.
    theirs = (torch.arange(2**19) << 13).to(torch.int32).view(torch.float32)
    assert same(numbers, theirs.double())


def test_a_users_own_format():
    # E4M3 of the P3109 and AMD kind: another bias, 240 is the largest with infinities kept.
    own = FloatFormat("E4M3 with infinity", 4, 3, bias=8)
    assert (own.max, own.smallest_normal, own.smallest_subnormal) == (120.0, 2.0**-7, 2.0**-10)
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3).astype(np.float64)
    assert same(FloatFormat("ieee", 4, 3).values(), theirs)
    assert same(own.values(), theirs / 2)
    assert FloatFormat("default", 4, 3).bias == 7


def test_a_signed_view_of_a_pattern_is_read_as_what_it_is():
    code = torch.tensor([-0x4000], dtype=torch.int16)  # 0xC000
    assert FP16.decode(code).tolist() == [-2.0]


def test_formats_compare_and_hash_by_their_parameters():
    assert FloatFormat("FP16", 5, 10) == FP16
    assert len({FloatFormat("FP16", 5, 10), FP16}) == 1
    assert str(FP16) == "FP16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponent_bits": 0, "mantissa_bits": 3}, "exponent_bits must lie in 1..11, got 0"),
        ({"exponent_bits": 12, "mantissa_bits": 3}, "exponent_bits must lie in 1..11, got 12"),
        ({"exponent_bits": 5, "mantissa_bits": 53}, "mantissa_bits must lie in 0..52, got 53"),
        ({"exponent_bits": 5.0, "mantissa_bits": 3}, "exponent_bits must be an int, got 5.0"),
        ({"exponent_bits": 5, "mantissa_bits": True}, "mantissa_bits must be an int"),
        ({"exponent_bits": 5, "mantissa_bits": 2, "bias": 1.5}, "bias must be an int, got 1.5"),
        ({"exponent_bits": 5, "mantissa_bits": 2, "bias": -1020}, "bias must keep all values"),
        ({"exponent_bits": 11, "mantissa_bits": 52, "bias": 1024}, "bias must keep all values"),
        ({"exponent_bits": 5, "mantissa_bits": 0}, "has_infinity needs has_nan"),
        ({"exponent_bits": 5, "mantissa_bits": 2, "has_nan": False}, "has_infinity needs has_nan"),
        (
            {"exponent_bits": 5, "mantissa_bits": 0, "has_infinity": False},
            "has_nan without infinity needs a mantissa bit",
        ),
    ],
)
def test_parameters_that_make_no_format_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat("bad", **arguments)


def test_what_is_no_value_is_not_encoded():
    for bad in (1.0001, 65536.0, 2.0**-25):
        with pytest.raises(ValueError, match="x must hold values of FP16, got"):
            FP16.encode(torch.tensor(bad))
    with pytest.raises(ValueError, match="x must hold values of FP8_E4M3, got inf"):
        FP8_E4M3.encode(torch.tensor(torch.inf))
    with pytest.raises(ValueError, match="x must hold values of FP4_E2M1, got nan"):
        FP4_E2M1.encode(torch.tensor(torch.nan))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64"):
        FP16.encode(torch.tensor(1))
    with pytest.raises(TypeError, match=r"code must hold integers, got torch.float32"):
        FP16.decode(torch.tensor(1.0))


def test_the_first_number_that_is_no_value_is_named():
    x = torch.tensor([[1.0, 2.0], [1.25, 3.5], [2.0**-24, 70000.0]], dtype=torch.float64)
    x[1, 1] += 2.0**-20
    with pytest.raises(ValueError, match=r"got 3\.50000095"):
        FP16.encode(x)
    with pytest.raises(ValueError, match=r"got 3\.50000095"):
        FP16.encode(x[1, 1])
    assert FP16.encode(65504.0).item() == 0x7BFF
    with pytest.raises(ValueError, match=r"got -65536\.0"):
        FP16.encode(-65536.0)


def test_values_of_a_wide_format_are_not_listed():
    assert len(FloatFormat("20 bits", 8, 11).values()) == 2**20
    for bits, fmt in ((21, FloatFormat("21 bits", 8, 12)), (32, FP32)):
        with pytest.raises(ValueError, match=f"at most 20 bits, and {fmt.name} has {bits}"):
            fmt.values()


def test_parameters_at_the_edge_make_formats():
    """Just within float64, and the fewest bits; one step further is refused above or here."""
    lowest = FloatFormat("lowest", 11, 52, bias=1023)
    assert (lowest.smallest_subnormal, lowest.max) == (5e-324, FP64.max)
    highest = FloatFormat("highest", 5, 10, bias=-993)
    assert (highest.largest_exponent, highest.smallest_normal) == (1023, 2.0**994)
    assert FloatFormat("low", 5, 10, bias=1065).smallest_subnormal == 5e-324
    for bias in (-994, 1066):
        with pytest.raises(ValueError, match="bias must keep all values within"):
            FloatFormat("beyond", 5, 10, bias=bias)
    two = FloatFormat("one bit of each", 1, 1, has_infinity=False)
    assert two.values()[:3].tolist() == [0.0, 1.0, 2.0]
    assert bool(two.values()[3].isnan())
    signs = FloatFormat("two bits", 1, 0, has_infinity=False, has_nan=False)
    assert signs.values().tolist() == [0.0, 2.0, -0.0, -2.0]
    assert FloatFormat("smallest with infinity", 2, 1).values()[:8].isfinite().sum() == 6
