"""AdamW with stochastic rounding, fused: every number is read once and written once."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.mixed_precision.randomness import random_halfwords

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _load(x, at, left, BLOCK: tl.constexpr):
    """Load a block as float32; without a mask, loads are 16 bytes wide whatever the count."""
    if left == BLOCK:  # noqa: SIM108
        value = tl.load(x + at)
    else:
        value = tl.load(x + at, mask=at < left, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _store(x, at, left, value, seed, start, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Store float32 numbers, rounded stochastically if x is bfloat16."""
    if x.dtype.element_ty == tl.bfloat16:
        random = random_halfwords(seed, start, STREAM, BLOCK) >> 16
        raw = value.to(tl.uint32, bitcast=True)
        rounded = (raw + random) >> 16  # carries into the bits that stay, or does not
        quiet = (raw >> 16) | 0x40  # the carry could make anything of a NaN
        rounded = tl.where(value == value, rounded, quiet)
        result = rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value
    if left == BLOCK:
        tl.store(x + at, result)
    else:
        tl.store(x + at, result, mask=at < left)


@triton.jit
def adamw_kernel(
    param, exp_avg, exp_avg_sq, grad, seed, count, kept, beta1, beta2, one_less_beta1,
    one_less_beta2, step_size, root_correction, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update `count` contiguous weights; one program for a block of them.

    `kept` is 1 − lr · weight_decay; `step_size` lr / (1 − β₁ᵗ); `root_correction` √(1 − β₂ᵗ).
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    left = tl.minimum(count - start, BLOCK).to(tl.int32)
    param, grad = param + start, grad + start
    exp_avg, exp_avg_sq = exp_avg + start, exp_avg_sq + start
    g = _load(grad, at, left, BLOCK)
    m = beta1 * _load(exp_avg, at, left, BLOCK) + one_less_beta1 * g
    v = beta2 * _load(exp_avg_sq, at, left, BLOCK) + one_less_beta2 * g * g
    p = kept * _load(param, at, left, BLOCK)
    p -= step_size * m / (tl.sqrt_rn(v) / root_correction + eps)
    key = tl.load(seed)
    _store(param, at, left, p, key, start, 0, BLOCK)
    _store(exp_avg, at, left, m, key, start, 1, BLOCK)
    _store(exp_avg_sq, at, left, v, key, start, 2, BLOCK)
