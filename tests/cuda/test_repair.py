"""The repaired interpreter against PyTorch's own rounding: casts, sums, products, comparisons."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interpreter
pytest.importorskip("triton")
from tests.cuda import small_kernels as kernels  # noqa: E402

SMALL = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def numbers(seed=0, count=256):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, generator=generator) * torch.logspace(-4, 2, count)
    # Ties, exact values, both infinities and NaN.
    drawn[:8] = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-4, 1.0, torch.inf, -torch.inf, torch.nan, -0.0]
    )
    return drawn


@pytest.mark.parametrize("dtype", SMALL)
def test_a_cast_rounds_to_nearest_even(dtype):
    x = numbers()
    got = torch.empty(256, dtype=dtype)
    kernels.cast_kernel[(1,)](x, got, N=256)
    largest = torch.finfo(dtype).max
    # The hardware's casts to float8 saturate; PyTorch's are given the clamped number.
    clamped = x if dtype is torch.bfloat16 else x.clamp(-largest, largest)
    expected = clamped.to(dtype)
    assert torch.equal(got.float().nan_to_num(99), expected.float().nan_to_num(99))
    assert torch.equal(got.float().isnan(), x.isnan())
    assert bool(got[7].float().signbit())


def test_arithmetic_in_bfloat16_rounds_after_each_operation():
    x, y = numbers(1).bfloat16(), numbers(2).bfloat16()
    got = torch.empty(4, 256, dtype=torch.bfloat16)
    kernels.arithmetic_kernel[(1,)](x, y, got, N=256)
    for row, expected in zip(got, (x + y, x * y, x - y, x / y), strict=True):
        assert torch.equal(row.nan_to_num(99), expected.nan_to_num(99))


def test_comparisons_and_a_minus_sign():
    x, y = numbers(3).bfloat16(), numbers(4).bfloat16()
    got = torch.empty(256, dtype=torch.bfloat16)
    kernels.larger_kernel[(1,)](x, y, got, N=256)
    assert torch.equal(got.nan_to_num(99), torch.where(x > y, x, -y).nan_to_num(99))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_a_matrix_product_widens_its_operands(dtype):
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    got = torch.empty(16, 16)
    kernels.product_kernel[(1,)](a, b, got, N=16)
    # Both are float32 sums of 16 exact products.
    torch.testing.assert_close(got, a.float() @ b.float(), rtol=1e-5, atol=1e-5)
