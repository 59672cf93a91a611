"""Round tensors to any floating-point format, correctly and in one step."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import BF16, FP16, FP32, FP64, FloatFormat
from pkg.algos.mixed_precision.rounding import (
    BLOCK,
    CARRIERS,
    ROUNDINGS,
    Carrier,
    Rounding,
    parameters,
    pattern_of,
    round_magnitude,
    round_to_nearest_even,
)

#: The formats of PyTorch's own types.
DTYPES = {
    torch.float64: FP64,
    torch.float32: FP32,
    torch.float16: FP16,
    torch.bfloat16: BF16,
}


def quantize(
    x: Tensor, fmt: FloatFormat, *, rounding: Rounding = "nearest_even", saturate: bool = False,
    generator: torch.Generator | None = None, straight_through: bool = False,
) -> Tensor:  # fmt: skip
    """Round every number to a value of `fmt`, in one step from the type it comes in.

    Parameters
    ----------
    x
        float64, float32, float16 or bfloat16, any shape, any device.
    fmt
        The format to round to.
    rounding
        - `"nearest_even"`: to the nearest value, ties to the one whose last bit is 0
          (IEEE 754 roundTiesToEven, what hardware does unless told otherwise);
        - `"away"`: to the nearest value, ties to the one of larger magnitude (IEEE 754
          roundTiesToAway). Not a direction: only ties go away from zero;
        - `"toward_zero"`, `"up"`, `"down"`: in that direction (IEEE 754 roundTowardZero,
          roundTowardPositive, roundTowardNegative);
        - `"stochastic"`: to one of the two neighbours, to the upper one with the probability that
          makes the mean equal x.
    saturate
        What becomes of numbers beyond `fmt.max`. False: what IEEE 754 says, which is infinity, or
        `fmt.max` where the direction of rounding leads back to it; in a format without infinity NaN
        takes infinity's place, and in one with neither it is an error. True: ±`fmt.max`, and
        infinities too.
    generator
        Where `"stochastic"` takes its random numbers from; required for it, on x's device.
    straight_through
        True: gradients pass as if nothing had been rounded. False: the gradient is 0, which is the
        derivative of a staircase (as for `torch.round`).

    Returns
    -------
    Tensor
        x's shape and dtype, holding values of `fmt`. Signed zeros and NaN are kept.

    Raises
    ------
    TypeError
        If `x` is not one of the four types, or its type cannot hold every value of `fmt` (rounding
        bfloat16 to FP16 needs `x.float()`).
    ValueError
        If `rounding` is unknown, the generator is missing, or `fmt` has no pattern for a result.

    Notes
    -----
    Subnormal numbers of `fmt` are kept, whatever `torch.set_flush_denormal` says. Ledger:
    `mixed_precision:nearest_even`, `mixed_precision:stochastic_rounding`,
    `mixed_precision:underflow`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, FP8_E4M3, quantize
    >>> quantize(torch.tensor([1.0, 2049.0, 65520.0, -1e-9]), FP16).tolist()
    [1.0, 2048.0, inf, -0.0]
    >>> quantize(torch.tensor([0.3, 500.0]), FP8_E4M3, saturate=True).tolist()
    [0.3125, 448.0]
    """
    carrier = _door(x, fmt, rounding)
    uniforms = None
    if rounding == "stochastic" and generator is None:
        raise ValueError('generator must be a torch.Generator for rounding="stochastic"')
    if x.device.type == "cuda" and carrier is not None:
        return _by_the_kernel(x, fmt, rounding, saturate, generator, straight_through)
    if rounding == "stochastic":
        uniforms = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device)
    if x.requires_grad and torch.is_grad_enabled():
        return _Rounded.apply(x, fmt, carrier, rounding, saturate, uniforms, straight_through)  # type: ignore[no-any-return]
    return _round(x, fmt, carrier, rounding, saturate, uniforms)


def round_with_uniforms(
    x: Tensor, fmt: FloatFormat, uniforms: Tensor, *, saturate: bool = False
) -> Tensor:
    """Round stochastically with given random numbers, for comparisons with a kernel.

    Parameters
    ----------
    x, fmt, saturate
        As for `quantize`.
    uniforms
        In [0, 1), shape of `x`. With |x| = (k + f) · spacing, 0 <= f < 1, the result has magnitude
        (k + 1) · spacing where `uniforms + f >= 1`, else k · spacing. An integer r of b bits from a
        generator stands for the uniform r / 2^b: adding r below the bits that are kept and cutting
        off, as kernels do, gives the same result.

    Raises
    ------
    TypeError, ValueError
        As for `quantize`, and if `uniforms` has another shape or leaves [0, 1).
    """
    carrier = _door(x, fmt, "stochastic")
    if not isinstance(uniforms, Tensor) or not uniforms.is_floating_point():
        raise TypeError("uniforms must be a floating-point tensor")
    if uniforms.shape != x.shape:
        raise ValueError(f"uniforms must have shape {tuple(x.shape)}, got {tuple(uniforms.shape)}")
    if uniforms.numel() and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must lie in [0, 1)")
    return _round(x, fmt, carrier, "stochastic", saturate, uniforms.double())


def _by_the_kernel(
    x: Tensor, fmt: FloatFormat, rounding: Rounding, saturate: bool,
    generator: torch.Generator | None, straight_through: bool,
) -> Tensor:  # fmt: skip
    # The operator's module imports this one.
    from pkg.algos.mixed_precision.operator import quantize_operator
    from pkg.algos.mixed_precision.randomness import draw_seed

    seed = None
    if rounding == "stochastic" and generator is not None:
        seed = draw_seed(generator, x.device)
    result: Tensor = quantize_operator(
        x, *parameters(fmt), rounding, saturate, straight_through, seed
    )  # fmt: skip
    _refuse_what_has_no_pattern(x, result, fmt, saturate)
    return result


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of a straight line, or of a staircase."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: FloatFormat, carrier: Carrier | None, rounding: Rounding,
                saturate: bool, uniforms: Tensor | None, straight_through: bool) -> Tensor:  # fmt: skip
        ctx.straight_through = straight_through
        return _round(x.detach(), fmt, carrier, rounding, saturate, uniforms)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        passed = gradient if ctx.straight_through else torch.zeros_like(gradient)
        return passed, None, None, None, None, None, None


def _door(x: Tensor, fmt: FloatFormat, rounding: str) -> Carrier | None:
    """Check the arguments; return what carries the numbers, None where nothing is to be rounded."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float64, float32, float16 or bfloat16, got {x.dtype}")
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"fmt must be a FloatFormat, got {type(fmt).__name__}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    return _carrier(fmt, x.dtype)


@cache
def _carrier(fmt: FloatFormat, dtype: torch.dtype) -> Carrier | None:
    own = DTYPES[dtype]
    if _holds(fmt, own):
        return None
    if not _holds(own, fmt):
        raise TypeError(
            f"x must have a type that holds every value of {fmt.name}; {dtype} does not: give "
            "x.float() or x.double()"
        )
    return CARRIERS[torch.float64 if dtype == torch.float64 else torch.float32]


def _holds(outer: FloatFormat, inner: FloatFormat) -> bool:
    """Tell whether every value of `inner` is one of `outer`."""
    return (
        outer.mantissa_bits >= inner.mantissa_bits
        and outer.smallest_subnormal <= inner.smallest_subnormal
        and outer.max >= inner.max
        and outer.has_infinity >= inner.has_infinity
        and outer.has_nan >= inner.has_nan
    )


def _round(
    x: Tensor, fmt: FloatFormat, carrier: Carrier | None, rounding: Rounding, saturate: bool,
    uniforms: Tensor | None,
) -> Tensor:  # fmt: skip
    if carrier is None:  # every number of this type is a value of fmt
        return x.clamp(-fmt.max, fmt.max) if saturate else x.clone()
    wide = x.to(carrier.dtype)
    if rounding == "nearest_even":
        result = round_to_nearest_even(wide, fmt, carrier, saturate)
    else:
        result = _round_any(wide, fmt, carrier, rounding, saturate, uniforms)
    _refuse_what_has_no_pattern(wide, result, fmt, saturate)
    return result.to(x.dtype)


def _round_any(
    x: Tensor, fmt: FloatFormat, carrier: Carrier, rounding: Rounding, saturate: bool,
    uniforms: Tensor | None,
) -> Tensor:  # fmt: skip
    if x.device.type == "cpu" and x.numel() > BLOCK * torch.get_num_threads():
        # In blocks that stay in the cache.
        size = BLOCK * torch.get_num_threads()
        shares = (
            [None] * -(-x.numel() // size)
            if uniforms is None
            else uniforms.contiguous().view(-1).split(size)
        )
        parts = zip(x.contiguous().view(-1).split(size), shares, strict=True)
        done = [_round_any(part, fmt, carrier, rounding, saturate, u) for part, u in parts]
        return torch.cat(done).view(x.shape)
    raw = x.contiguous().view(carrier.integer)
    magnitude = raw & ~carrier.sign
    negative = raw < 0
    rounded = round_magnitude(magnitude, negative, fmt, carrier, rounding, uniforms)
    largest = pattern_of(fmt.max, carrier)
    beyond = pattern_of(math.inf, carrier) if fmt.has_infinity else pattern_of(math.nan, carrier)
    infinite = magnitude == carrier.infinity
    over = (rounded > largest) | infinite
    if saturate:
        outcome = torch.full_like(rounded, largest)
    elif rounding == "toward_zero":
        outcome = torch.where(infinite, beyond, largest)
    elif rounding in ("up", "down"):
        back = negative if rounding == "up" else ~negative
        outcome = torch.where(back & ~infinite, largest, beyond)
    else:
        outcome = torch.full_like(rounded, beyond)
    result = torch.where(over, outcome.to(rounded.dtype), rounded)
    result = torch.where(magnitude > carrier.infinity, magnitude, result)  # NaN, payload and all
    return (result | (raw & carrier.sign)).view(carrier.dtype)


def _refuse_what_has_no_pattern(
    x: Tensor, result: Tensor, fmt: FloatFormat, saturate: bool
) -> None:
    """Raise where a format has neither infinity nor NaN, and the result would be one of them."""
    if fmt.has_nan:
        return
    bad = result.isnan()
    if not bool(bad.any()):
        return
    first = float(x[bad].reshape(-1)[0])
    hint = "" if saturate or math.isnan(first) else "; saturate=True gives its largest value"
    raise ValueError(f"x must not hold {first!r}: {fmt.name} has neither infinity nor NaN{hint}")
