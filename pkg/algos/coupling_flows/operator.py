"""The operators `checked::affine_coupling`, its inverse, and the gradients of both.

A sample's elements are its channels, axis 1, times what follows. `raw` and `shift` belong to the
channels `first`, `first + 1`, ... of x; the other channels are copied. Where raw has all channels, a
mask may keep single elements. `bound` is 0 for none. Log-determinants are in nats, float32 for
16-bit inputs. The CPU forms do what the plain form in `functional` does in fewer passes: one new
tensor is made and filled, and what nobody needs afterwards is written over. Dinh et al. (2017), section 3.2.
Ledger: `coupling_flows:affine_coupling`, `coupling_flows:affine_log_det`,
`coupling_flows:coupling_gradient`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pkg.operators import register

WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def _check(x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int) -> None:
    changed = raw.shape[1]
    fits = x.ndim == raw.ndim and x.shape[0] == raw.shape[0] and x.shape[2:] == raw.shape[2:]
    if not fits or raw.shape != shift.shape or not 0 <= first <= x.shape[1] - changed:
        raise ValueError(
            "raw and shift must have the shape of x, or of its channels from `first` on, "
            f"got {tuple(raw.shape)} and {tuple(shift.shape)} at {first} for x of {tuple(x.shape)}"
        )
    if not x.dtype == raw.dtype == shift.dtype:
        raise TypeError(
            f"x, raw and shift must have one type, got {x.dtype}, {raw.dtype} and {shift.dtype}"
        )
    if mask is not None and changed != x.shape[1]:
        raise ValueError(
            f"a mask needs raw for every channel of x, got {changed} of {x.shape[1]} channels"
        )


def _scales(raw: Tensor, mask: Tensor | None, bound: float) -> Tensor:
    """Return the log-scales, a new tensor, 0 where the mask keeps."""
    s = (raw / bound).tanh_().mul_(bound) if bound > 0 else raw.clone()
    return s if mask is None else s.masked_fill_(mask, 0.0)


def _moved(x: Tensor, raw: Tensor, first: int) -> Tensor:
    return x if raw.shape[1] == x.shape[1] else x.narrow(1, first, raw.shape[1])


def _copy_kept(out: Tensor, x: Tensor, raw: Tensor, first: int) -> None:
    after = first + raw.shape[1]
    if first:
        out[:, :first] = x[:, :first]
    if after < x.shape[1]:
        out[:, after:] = x[:, after:]


def _couple(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, raw, shift, mask, first)
    wide = WIDE.get(x.dtype, x.dtype)
    s = _scales(raw.to(wide), mask, bound)
    log_det = s.flatten(1).sum(1)
    scale = s.exp_()
    old = _moved(x, raw, first).to(wide)
    if inverse:
        new = torch.sub(old, shift).div_(scale)
        log_det.neg_()
    else:
        new = scale.mul_(old).add_(shift)
    if mask is not None:
        return torch.where(mask, x, new.to(x.dtype)).contiguous(), log_det
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _moved(out, raw, first).copy_(new)
    _copy_kept(out, x, raw, first)
    return out, log_det


def affine_coupling_cpu(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return z = x exp(s) + shift and Σ s; see `affine_coupling`. No gradient comes through."""
    return _couple(x, raw, shift, mask, first, bound, False)


def affine_coupling_inverse_cpu(
    z: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return x = (z - shift) / exp(s) and -Σ s. No gradient comes through."""
    return _couple(z, raw, shift, mask, first, bound, True)


def _fake(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float
) -> tuple[Tensor, Tensor]:
    _check(x, raw, shift, mask, first)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[0], dtype=WIDE.get(x.dtype, x.dtype))


# ---------------------------------------------------------------- gradients


def affine_coupling_gradients(
    gradient: Tensor, sum_gradient: Tensor, x: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by x, raw and shift, made of operations that have gradients again.

    `gradient` has arrived by z, `sum_gradient` (N,) by the log-determinant; with `inverse`, x stands
    for what the inverse was given. Ledger: `coupling_flows:coupling_gradient`.
    """
    wide = WIDE.get(x.dtype, x.dtype)
    ratio = (raw.to(wide) / bound).tanh() if bound > 0 else raw.to(wide)
    scale = (bound * ratio if bound > 0 else ratio).exp()
    arriving = _moved(gradient, raw, first).to(wide)
    old = _moved(x, raw, first).to(wide)
    by_sum = sum_gradient.view(-1, *(1,) * (x.ndim - 1))
    if inverse:
        by_old = arriving / scale
        by_shift = -by_old
        by_s = -by_old * (old - shift) - by_sum
    else:
        by_old, by_shift = arriving * scale, arriving
        by_s = by_old * old + by_sum
    by_raw = by_s * (1 - ratio * ratio) if bound > 0 else by_s
    if mask is not None:
        by_old = torch.where(mask, gradient, by_old)
        by_raw, by_shift = (torch.where(mask, 0, t) for t in (by_raw, by_shift))
    else:
        after = first + raw.shape[1]
        parts = (gradient[:, :first], by_old.to(x.dtype), gradient[:, after:])
        by_old = torch.cat(parts, 1) if raw.shape[1] < x.shape[1] else by_old
    return by_old.to(x.dtype), by_raw.to(x.dtype), by_shift.to(x.dtype)


def _backward_cpu(
    gradient: Tensor, sum_gradient: Tensor, x: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fresh(
        affine_coupling_gradients(gradient, sum_gradient, x, raw, shift, mask, first, bound, False),
        gradient,
    )


def _inverse_backward_cpu(
    gradient: Tensor, sum_gradient: Tensor, z: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fresh(
        affine_coupling_gradients(gradient, sum_gradient, z, raw, shift, mask, first, bound, True),
        gradient,
    )


def _fresh(found: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return them contiguous, and none of them in the memory of what arrived."""
    where = gradient.untyped_storage().data_ptr()
    plain = (t.contiguous() for t in found)
    by_x, by_raw, by_shift = (
        t.clone() if t.untyped_storage().data_ptr() == where else t for t in plain
    )
    return by_x, by_raw, by_shift


def _backward_fake(
    gradient: Tensor, sum_gradient: Tensor, x: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    by_x, by_raw, by_shift = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, raw, shift)
    )
    return by_x, by_raw, by_shift


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.first, ctx.bound = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, gradient: Tensor, sum_gradient: Tensor) -> tuple[Any, ...]:
    found = backward_operator(gradient, sum_gradient, *ctx.saved_tensors, ctx.first, ctx.bound)
    return (*found, None, None, None)


def _inverse_gradient(ctx: Any, gradient: Tensor, sum_gradient: Tensor) -> tuple[Any, ...]:
    found = inverse_backward_operator(
        gradient, sum_gradient, *ctx.saved_tensors, ctx.first, ctx.bound
    )
    return (*found, None, None, None)


def _second(ctx: Any, *arriving: Tensor, inverse: bool = False) -> tuple[Any, ...]:
    """Return the gradients of the gradients, by those of their formula."""
    *tensors, mask = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        g, by_sum, x, raw, shift = leaves
        found = affine_coupling_gradients(
            g, by_sum, x, raw, shift, mask, ctx.first, ctx.bound, inverse
        )
    again = torch.autograd.grad(found, leaves, arriving, allow_unused=True)
    return (*again, None, None, None)


def _second_inverse(ctx: Any, *arriving: Tensor) -> tuple[Any, ...]:
    return _second(ctx, *arriving, inverse=True)


affine_coupling = register(
    "affine_coupling",
    cpu=affine_coupling_cpu,
    cuda="pkg.cuda.coupling_flows:forward",
    fake=_fake,
    setup_context=_remember,
    backward=_gradient,
)
affine_coupling_inverse = register(
    "affine_coupling_inverse",
    cpu=affine_coupling_inverse_cpu,
    cuda="pkg.cuda.coupling_flows:inverse",
    fake=_fake,
    setup_context=_remember,
    backward=_inverse_gradient,
)
backward_operator = register(
    "affine_coupling_backward",
    cpu=_backward_cpu,
    cuda="pkg.cuda.coupling_flows:backward",
    fake=_backward_fake,
    setup_context=_remember,
    backward=_second,
)
inverse_backward_operator = register(
    "affine_coupling_inverse_backward",
    cpu=_inverse_backward_cpu,
    cuda="pkg.cuda.coupling_flows:inverse_backward",
    fake=_backward_fake,
    setup_context=_remember,
    backward=_second_inverse,
)
