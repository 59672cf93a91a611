"""The launchers: what the operators of `pkg.algos.mixed_precision` call for CUDA tensors."""

from __future__ import annotations

import math
import struct
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.mixed_precision.adamw import adamw_kernel
from pkg.cuda.mixed_precision.casts import round_kernel
from pkg.cuda.mixed_precision.configs import CONFIGS

#: Exponent bits, mantissa bits, bias, infinity, NaN of the types that can be cast to.
TARGETS = {
    torch.bfloat16: (8, 7, 127, True, True),
    torch.float16: (5, 10, 15, True, True),
    torch.float8_e4m3fn: (4, 3, 7, False, True),
    torch.float8_e5m2: (5, 2, 15, True, True),
}


def stochastic_cast(x: Tensor, dtype: torch.dtype, saturate: bool, seed: Tensor) -> Tensor:
    """Cast float32 or float64 stochastically; see `pkg.algos.mixed_precision.stochastic_round`."""
    raw = torch.uint8 if dtype.itemsize == 1 else torch.int16
    out = torch.empty(x.shape, dtype=raw, device=x.device)
    constants = format_constants(x.dtype, *TARGETS[dtype])
    # 16 random bits are all that is needed where 16 bits are cut off, wherever the number lies.
    half = x.dtype == torch.float32 and dtype == torch.bfloat16
    _round(x, out, seed, constants, "stochastic", saturate, codes=True, halfwords=half)
    return out.view(dtype)


def quantize(
    x: Tensor, exponent_bits: int, mantissa_bits: int, bias: int, has_infinity: bool, has_nan: bool,
    rounding: str, saturate: bool, straight_through: bool, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """Round to a format; see `pkg.algos.mixed_precision.quantize` for the meaning."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    carrier = torch.float64 if x.dtype == torch.float64 else torch.float32
    constants = format_constants(
        carrier, exponent_bits, mantissa_bits, bias, has_infinity, has_nan
    )  # fmt: skip
    _round(x, out, seed, constants, rounding, saturate, codes=False, halfwords=False)
    return out


def stochastic_rounding_adamw(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, step: int, seed: Tensor,
) -> None:  # fmt: skip
    """Update a parameter and its moments in place, in one pass."""
    if not param.numel():
        return
    held = (param, exp_avg, exp_avg_sq)
    flat = [x.contiguous() for x in (*held, grad)]
    config = CONFIGS["adamw"]
    with _on(param):
        adamw_kernel[(triton.cdiv(param.numel(), config.block),)](
            *flat, seed, param.numel(),
            *adamw_numbers(lr, beta1, beta2, eps, weight_decay, step),
            BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    for x, updated in zip(held, flat[:3], strict=True):
        if x is not updated:
            x.copy_(updated)


def adamw_numbers(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int
) -> tuple[float, ...]:
    """Return what a step needs of its settings, computed in float64."""
    return (
        1 - lr * weight_decay, beta1, beta2, 1 - beta1, 1 - beta2, lr / (1 - beta1**step),
        math.sqrt(1 - beta2**step), eps,
    )  # fmt: skip


def format_constants(
    carrier: torch.dtype, exponent_bits: int, mantissa_bits: int, bias: int, has_infinity: bool,
    has_nan: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return a format's constants as the kernel takes them; `rounding.py` and `casts.py` name them."""
    carrier_bias = 1023 if carrier == torch.float64 else 127
    top = (1 << exponent_bits) - 1
    steps = (2 << mantissa_bits) - (2 if has_nan and not has_infinity else 1)
    largest = math.ldexp(steps, top - has_infinity - bias - mantissa_bits)
    tiny = math.ldexp(1.0, 1 - bias - mantissa_bits)
    fraction = (1 << mantissa_bits) - 1
    smallest = 1 - bias + carrier_bias
    return {
        "MANTISSA": mantissa_bits, "SMALLEST": smallest,
        "LARGEST": _pattern(largest, carrier), "TINY": _pattern(tiny, carrier),
        "BEYOND": _pattern(math.inf if has_infinity else math.nan, carrier),
        "STEPS": 1 / tiny if smallest > 1 else 1.0,
        "INFINITE": top << mantissa_bits,
        "NAN": (top << mantissa_bits) | (1 << max(mantissa_bits - 1, 0) if has_infinity else fraction),
        "SIGN": 1 << (exponent_bits + mantissa_bits),
    }  # fmt: skip


# ------------------------------------------------------------------ inside


def _round(
    x: Tensor, out: Tensor, seed: Tensor | None, constants: dict[str, Any], rounding: str,
    saturate: bool, *, codes: bool, halfwords: bool,
) -> None:  # fmt: skip
    if not x.numel():
        return
    config = CONFIGS["round"]
    with _on(x):
        round_kernel[(triton.cdiv(x.numel(), config.block),)](
            x.contiguous(), out, x if seed is None else seed, x.numel(), **constants,
            ROUNDING=rounding, SATURATE=saturate, CODES=codes, HALFWORDS=halfwords,
            BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip


def _pattern(value: float, carrier: torch.dtype) -> int:
    """Return the bit pattern of a positive number in `carrier`."""
    if carrier == torch.float64:
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
