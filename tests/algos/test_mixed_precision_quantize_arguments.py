"""Rounding: types, layouts, gradients, and what is refused at the door."""

from __future__ import annotations

import math

import pytest
import torch

from pkg.algos.mixed_precision import BF16, FP8_E4M3, FP8_E5M2, FP16, FP32, FP64, TF32, quantize
from pkg.algos.mixed_precision.quantize import round_with_uniforms
from pkg.algos.mixed_precision.rounding import BLOCK
from tests.algos.test_mixed_precision_formats import same

DIRECTED = ("nearest_even", "away", "toward_zero", "up", "down")


def test_narrow_types_are_rounded_too_and_keep_their_type():
    half = torch.tensor([0.1, 3.3], dtype=torch.float16)
    assert quantize(half, FP8_E5M2).dtype == torch.float16
    assert torch.equal(quantize(half, FP8_E5M2).float(), quantize(half.float(), FP8_E5M2))
    brain = torch.tensor([0.1, 3.3], dtype=torch.bfloat16)
    assert torch.equal(quantize(brain, FP8_E4M3).float(), quantize(brain.float(), FP8_E4M3))


def test_nothing_is_rounded_to_a_wider_format():
    x = torch.tensor([0.1, math.nan, math.inf, -0.0, 1e-45])
    for fmt in (FP32, FP64):
        assert same(quantize(x, fmt), x)
    assert same(quantize(x.half(), TF32).double(), x.half().double())
    saturated = quantize(torch.tensor([math.inf]), FP32, saturate=True)
    assert saturated.item() == FP32.max


def test_strided_empty_and_scalar_tensors():
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(x.T, FP16), quantize(x, FP16).T)
    assert torch.equal(quantize(x.T, FP16, rounding="up"), quantize(x, FP16, rounding="up").T)
    assert torch.equal(quantize(x[:, ::2], FP8_E4M3), quantize(x, FP8_E4M3)[:, ::2])
    for mode in DIRECTED:
        assert quantize(torch.zeros(0, 3), FP16, rounding=mode).shape == (0, 3)
        assert quantize(torch.tensor(2049.0), FP16, rounding=mode).shape == ()


def test_blocks_do_not_show():
    x = torch.randn(
        2 * BLOCK * torch.get_num_threads() + 7, generator=torch.Generator().manual_seed(0)
    )
    for mode in ("nearest_even", "up"):
        parts = torch.cat([quantize(part, FP16, rounding=mode) for part in x.split(1000)])
        assert torch.equal(quantize(x, FP16, rounding=mode), parts)


def test_subnormal_numbers_survive_a_processor_that_flushes_them():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        x = torch.tensor([2.0**-133, 3 * 2.0**-140, 2.0**-24])
        codes = [quantize(x, fmt).view(torch.int32) for fmt in (BF16, TF32)]
        half = quantize(x, FP16)[2]
    finally:
        torch.set_flush_denormal(False)
    for fmt, code in zip((BF16, TF32), codes, strict=True):
        assert same(code.view(torch.float32).double(), quantize(x.double(), fmt))
    assert half == 2.0**-24


def test_the_gradient_is_that_of_a_staircase_or_straight_through():
    for straight, expected in ((False, 0.0), (True, 3.0)):
        x = torch.tensor([0.1, 1e6], requires_grad=True)
        (3 * quantize(x, FP16, straight_through=straight, saturate=True)).sum().backward()
        assert x.grad.tolist() == [expected, expected]


# ---------------------------------------------------------------- at the door


def test_what_does_not_fit_is_named():
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got float"):
        quantize(1.0, FP16)
    with pytest.raises(TypeError, match=r"x must be float64, .*, got torch.int64"):
        quantize(torch.ones(3, dtype=torch.int64), FP16)
    with pytest.raises(TypeError, match="fmt must be a FloatFormat, got str"):
        quantize(x, "FP16")
    with pytest.raises(ValueError, match=r"rounding must be one of nearest_even, .*, got 'even'"):
        quantize(x, FP16, rounding="even")
    with pytest.raises(ValueError, match=r"generator must be a torch.Generator"):
        quantize(x, FP16, rounding="stochastic")
    with pytest.raises(TypeError, match=r"every value of FP16; torch.bfloat16 does not"):
        quantize(x.bfloat16(), FP16)
    with pytest.raises(TypeError, match="every value of BF16"):
        quantize(x.half(), BF16)
    with pytest.raises(ValueError, match=r"uniforms must have shape \(3,\), got \(2,\)"):
        round_with_uniforms(x, FP16, torch.zeros(2))
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
        round_with_uniforms(x, FP16, torch.ones(3))
