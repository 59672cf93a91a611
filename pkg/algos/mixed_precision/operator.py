"""Rounding to any format as an operator, so that it has a kernel, a gradient and a compiled form."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import FloatFormat
from pkg.algos.mixed_precision.quantize import quantize, round_with_uniforms
from pkg.algos.mixed_precision.randomness import stream, uniforms
from pkg.algos.mixed_precision.rounding import Rounding
from pkg.operators import register


def _quantize(
    x: Tensor, exponent_bits: int, mantissa_bits: int, bias: int, has_infinity: bool, has_nan: bool,
    rounding: str, saturate: bool, straight_through: bool, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return x rounded; `seed` is for "stochastic" alone, `straight_through` for the gradient."""
    fmt = FloatFormat("the format", exponent_bits, mantissa_bits, bias, has_infinity, has_nan)
    x = x.detach()
    if rounding != "stochastic":
        kind: Rounding = rounding  # type: ignore[assignment]
        return quantize(x, fmt, rounding=kind, saturate=saturate)
    if seed is None:
        raise ValueError('seed must be given for rounding="stochastic"')
    chances = uniforms(stream(seed), x.numel()).view(x.shape)
    return round_with_uniforms(x, fmt, chances, saturate=saturate)


def _quantize_fake(
    x: Tensor, exponent_bits: int, mantissa_bits: int, bias: int, has_infinity: bool, has_nan: bool,
    rounding: str, saturate: bool, straight_through: bool, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _remember(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.straight_through = inputs[8]  # type: ignore[attr-defined]


def _gradient(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
    passed = gradient if ctx.straight_through else torch.zeros_like(gradient)  # type: ignore[attr-defined]
    return passed, *(None,) * 9


quantize_operator = register(
    "quantize",
    cpu=_quantize,
    cuda="pkg.cuda.mixed_precision:quantize",
    fake=_quantize_fake,
    setup_context=_remember,
    backward=_gradient,
)
