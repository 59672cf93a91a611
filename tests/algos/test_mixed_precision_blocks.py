"""Microscaling against gfloat's and torchao's."""

from __future__ import annotations

import gfloat
import gfloat.formats as gf
import numpy as np
import pytest
import torch

from pkg.algos.mixed_precision import (
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    mx_quantize,
    quantize,
)

FORMATS = {
    FP8_E4M3: gf.format_info_mxfp8_e4m3,
    FP8_E5M2: gf.format_info_mxfp8_e5m2,
    FP6_E3M2: gf.format_info_mxfp6_e3m2,
    FP6_E2M3: gf.format_info_mxfp6_e2m3,
    FP4_E2M1: gf.format_info_mxfp4_e2m1,
}


def numbers(*shape, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    size = (torch.randn(*shape, generator=generator) * spread).exp()
    return torch.randn(*shape, generator=generator) * size


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_blocks_are_gfloats(fmt):
    x = numbers(40, 32)
    mx = mx_quantize(x, fmt)
    for row, scale, restored in zip(x, mx.scales[:, 0], mx.dequantize(), strict=True):
        info = FORMATS[fmt]
        wanted = gfloat.compute_scale_amax(fmt.largest_exponent, row.numpy().astype(np.float64))
        assert float(scale) == 2.0 ** np.floor(np.log2(wanted))
        elements = [
            gfloat.round_float(info.etype, v / float(scale), sat=True)
            for v in row.double().tolist()
        ]
        assert restored.tolist() == (torch.tensor(elements) * float(scale)).tolist()


@pytest.mark.parametrize(
    ("fmt", "dtype"), [(FP8_E4M3, torch.float8_e4m3fn), (FP8_E5M2, torch.float8_e5m2)], ids=str
)
def test_blocks_are_torchaos(fmt, dtype):
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    x = numbers(16, 64, seed=1)
    scale, elements = mx_tensor.to_mx(x, dtype, 32)
    ours = mx_quantize(x, fmt)
    assert torch.equal(ours.scale_codes, scale.view(torch.uint8))
    assert torch.equal(ours.elements, elements.float())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_error_is_bounded_by_the_blocks_largest(fmt):
    x = numbers(100, 32, seed=2).double()
    mx = mx_quantize(x, fmt)
    error = (mx.dequantize() - x).abs()
    scaled = x.abs() / mx.scales
    inside = scaled <= fmt.max
    # Nearest: half a spacing; the spacing is that of the element format at the scaled value.
    half = (
        torch.maximum(scaled * fmt.unit_roundoff, torch.tensor(fmt.smallest_subnormal / 2))
        * mx.scales
    )
    assert bool((error <= half)[inside].all())
    # Saturated: the largest is less than 2^(e + 1), and becomes the format's largest.
    lost = 1 - fmt.max / 2.0 ** (fmt.largest_exponent + 1)
    assert bool((error < lost * x.abs() + 1e-300)[~inside].all())
    assert bool((~inside).any())


def test_the_standards_rule_costs_a_quarter_at_worst_in_fp4():
    x = torch.tensor([7.999])
    assert mx_quantize(x, FP4_E2M1, 1).dequantize().item() == 6.0


def test_axes_odd_lengths_and_types():
    x = numbers(5, 70, 3, seed=3)
    for dim in (0, 1, 2, -1, -2):
        mx = mx_quantize(x, FP8_E4M3, 16, dim=dim)
        moved = mx_quantize(x.movedim(dim, -1).contiguous(), FP8_E4M3, 16)
        assert torch.equal(mx.dequantize().movedim(dim, -1), moved.dequantize())
        assert mx.scale_codes.shape[dim] == -(-x.shape[dim] // 16)
    half = mx_quantize(x.bfloat16(), FP8_E4M3)
    assert half.dequantize().dtype == torch.bfloat16
    assert mx.bits_per_element == 8.5
    assert mx_quantize(torch.zeros(0, 32), FP8_E4M3).dequantize().shape == (0, 32)
    assert mx_quantize(torch.zeros(4, 0), FP8_E4M3).dequantize().shape == (4, 0)


def test_zeros_extremes_and_broken_blocks():
    assert mx_quantize(torch.zeros(32), FP4_E2M1).dequantize().tolist() == [0.0] * 32
    x = torch.tensor([[1e-44, -1e-44], [3e38, 1.0], [torch.nan, 1.0], [torch.inf, 1.0], [1.0, 2.0]])
    mx = mx_quantize(x, FP8_E4M3, 2)
    assert mx.scale_codes.flatten().tolist() == [0, 246, 255, 255, 120]
    restored = mx.dequantize()
    assert bool(restored[2:4].isnan().all())
    assert not mx.elements[2:4].any()  # the scale alone says that a block is broken
    assert restored[4].tolist() == [1.0, 2.0]
    assert restored[1, 1] == 0.0  # next to 3e38 nothing small is left
    # float64 reaches beyond the scale's 2^127: it saturates there
    huge = mx_quantize(torch.tensor([1e300, -1e300], dtype=torch.float64), FP4_E2M1, 2)
    assert huge.dequantize().tolist() == [6 * 2.0**127, -6 * 2.0**127]


def test_what_a_power_of_two_scale_buys():
    # Gradients of size 1e-6: plain E4M3 loses them all, a shared scale keeps 4 significant bits.
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(5)) * 1e-6
    assert not bool(quantize(x, FP8_E4M3).any())
    kept = mx_quantize(x, FP8_E4M3).dequantize()
    large = x.abs() > 0.1 * x.abs().amax(1, keepdim=True)
    # u = 1/16, and where the largest saturates from just below 512 to 448, 1/8
    assert bool(((kept - x).abs() <= x.abs() / 8)[large].all())
    assert bool(((kept - x).abs() <= x.abs() / 16)[large].double().mean() > 0.9)


def test_stochastic_elements():
    x = torch.full((1000, 2), 0.3)
    x[:, 1] = 1.0
    generator = torch.Generator().manual_seed(0)
    kept = mx_quantize(x, FP4_E2M1, 2, rounding="stochastic", generator=generator).dequantize()
    # mean of 1000 draws between 0.25 and 0.375: standard error 0.0019
    assert abs(kept[:, 0].mean().item() - 0.3) < 0.01


def test_what_does_not_fit_is_named():
    x = torch.ones(32)
    with pytest.raises(TypeError, match="x must be floating point"):
        mx_quantize(x.long(), FP8_E4M3)
    with pytest.raises(TypeError, match="fmt must be a FloatFormat"):
        mx_quantize(x, torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        mx_quantize(x, FP8_E4M3, 0)
    with pytest.raises(TypeError, match=r"block_size must be an int, got 32\.0"):
        mx_quantize(x, FP8_E4M3, 32.0)
    with pytest.raises(ValueError, match="x must have an axis"):
        mx_quantize(torch.tensor(1.0), FP8_E4M3)
    with pytest.raises(IndexError):
        mx_quantize(x, FP16, dim=1)
