"""Stochastic rounding to a type of PyTorch: the cast that training without master weights needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import BF16, FP8_E4M3, FP8_E5M2, FP16, FloatFormat
from pkg.algos.mixed_precision.quantize import round_with_uniforms
from pkg.algos.mixed_precision.randomness import draw_seed, halfwords, stream, uniforms
from pkg.operators import register

#: What can be cast to, and its format.
TARGETS: dict[torch.dtype, FloatFormat] = {
    torch.bfloat16: BF16,
    torch.float16: FP16,
    torch.float8_e4m3fn: FP8_E4M3,
    torch.float8_e5m2: FP8_E5M2,
}
# Elements worked on at a time: their bits and random numbers stay in the cache.
CHUNK = 2**17


def stochastic_round(
    x: Tensor, dtype: torch.dtype, *, generator: torch.Generator, saturate: bool = False
) -> Tensor:
    """Cast to a narrower type, up or down by chance, so that the expected value is x.

    Parameters
    ----------
    x
        float32 or float64, any shape and strides.
    dtype
        bfloat16, float16, float8_e4m3fn or float8_e5m2.
    generator
        Where the randomness comes from: one seed is drawn from it for a call.
    saturate
        What becomes of numbers that round to more than the largest value: False, infinity (NaN in
        float8_e4m3fn, which has none); True, the largest value, infinities too.

    Returns
    -------
    Tensor
        x's shape, contiguous, of type `dtype`. Values of the type stay as they are; signed zeros
        and NaN are kept. The gradient passes straight through.

    Raises
    ------
    TypeError
        If `x` is not float32 or float64, `dtype` is none of the four, or `generator` is no
        `torch.Generator`.

    Notes
    -----
    A number between two neighbours a < x < b of the type becomes b with probability
    (x − a) / (b − a), exact to 2⁻³². From float32 to bfloat16 these are the 16 bits that are cut off:
    16 random bits are added below them, and a carry rounds up. Gupta et al. (2015). The CPU and the
    GPU draw different numbers from one seed. Ledger: `mixed_precision:stochastic_cast`.

    Examples
    --------
    >>> x = torch.full((100_000,), 1 + 2**-9)  # a quarter of the way from 1 to 1 + 2⁻⁷
    >>> y = stochastic_round(x, torch.bfloat16, generator=torch.Generator().manual_seed(0))
    >>> y.unique().tolist(), round(float((y > 1).double().mean()), 2)
    ([1.0, 1.0078125], 0.25)
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a float32 or float64 tensor, got {kind}")
    if dtype not in TARGETS:
        names = ", ".join(str(target)[6:] for target in TARGETS)
        raise TypeError(f"dtype must be one of {names}, got {dtype}")
    return cast_operator(x, dtype, saturate, draw_seed(generator, x.device))  # type: ignore[no-any-return]


def to_bfloat16(x: Tensor, random: Tensor, out: Tensor, scratch: Tensor) -> None:
    """Round float32 stochastically into `out`, bfloat16; all contiguous vectors of one length.

    `random` holds int16. A number h counts as h + 2¹⁵, from 0 to 2¹⁶ − 1: added to the bits that are
    cut off, it carries into those that stay, or does not. `scratch` is int32, to work in.
    """
    _add_and_cut(x, random, out, scratch)
    _restore_nan(x, out)


def _add_and_cut(x: Tensor, random: Tensor, out: Tensor, scratch: Tensor) -> None:
    torch.add(x.view(torch.int32), random, out=scratch)
    scratch += 2**15
    scratch >>= 16
    out.view(torch.int16).copy_(scratch)


def _restore_nan(x: Tensor, out: Tensor) -> None:
    """Put NaN back, of which the carry may have made anything; a maximum shows if there is one."""
    if math.isnan(x.amax()):
        out.copy_(torch.where(x.isnan(), x.bfloat16(), out))


def _cast(x: Tensor, dtype: torch.dtype, saturate: bool, seed: Tensor) -> Tensor:
    bits, flat = stream(seed), x.reshape(-1)
    out = torch.empty(flat.shape, dtype=dtype)
    if not x.numel():
        return out.view(x.shape)
    if x.dtype == torch.float32 and dtype == torch.bfloat16:
        scratch = torch.empty(min(CHUNK, flat.numel()), dtype=torch.int32)
        for part, into in zip(flat.split(CHUNK), out.split(CHUNK), strict=True):
            size = part.numel()
            _add_and_cut(part, halfwords(bits, size), into, scratch[:size])
        _restore_nan(flat, out)
        if saturate:
            out.clamp_(-BF16.max, BF16.max)
        return out.view(x.shape)
    for part, into in zip(flat.split(CHUNK), out.split(CHUNK), strict=True):
        chances = uniforms(bits, part.numel())
        into.copy_(round_with_uniforms(part, TARGETS[dtype], chances, saturate=saturate))
    return out.view(x.shape)


def _cast_fake(x: Tensor, dtype: torch.dtype, saturate: bool, seed: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _straight_through(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return gradient.to(ctx.dtype), None, None, None  # type: ignore[attr-defined]


def _remember_dtype(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype  # type: ignore[attr-defined]


cast_operator = register(
    "stochastic_cast",
    cpu=_cast,
    cuda="pkg.cuda.mixed_precision:stochastic_cast",
    fake=_cast_fake,
    setup_context=_remember_dtype,
    backward=_straight_through,
)
