"""The checks at the door: what a function of this chapter takes, and what it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def floating(name: str, value: Any, *, least_ndim: int = 1) -> Tensor:
    """Return `value`, a floating-point tensor with at least `least_ndim` axes; else raise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}")
    if value.ndim < least_ndim:
        raise ValueError(
            f"{name} must have shape (batch, ...) with at least {least_ndim} axes, "
            f"got {tuple(value.shape)}"
        )
    return value


def batch(name: str, value: Any) -> Tensor:
    """Return `value`, a floating-point tensor of shape (batch, ...) with some event axes."""
    return floating(name, value, least_ndim=2)


def alike(name: str, value: Any, like_name: str, like: Tensor) -> Tensor:
    """Return `value`, a tensor of the shape, dtype and device of `like`; else raise."""
    floating(name, value, least_ndim=0)
    if value.shape != like.shape:
        raise ValueError(
            f"{name} must have {like_name}'s shape {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    kin(name, value, like_name, like)
    return value


def kin(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless `value` has the dtype and the device of `like`."""
    if value.dtype != like.dtype:
        raise TypeError(f"{name} must have {like_name}'s dtype {like.dtype}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(
            f"{name} must be on {like_name}'s device {like.device}, got {value.device}"
        )


def times(t: Any, x: Tensor, x_name: str = "x") -> Tensor:
    """Return `t` with shape (batch,): one time in [0, 1] for each sample of `x`, or one for all.

    It has the dtype of x, or float32 where x has 16 bits: bfloat16 knows 256 times in [1/2, 1].
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor of shape (batch,) or (), got {type(t).__name__}")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(
            f"t must have shape ({x.shape[0]},), one time for each sample of {x_name}, or (), "
            f"got {tuple(t.shape)}"
        )
    if x.dtype not in (torch.float16, torch.bfloat16) or t.dtype != torch.float32:
        kin("t", t, x_name, x)
    elif t.device != x.device:
        raise ValueError(f"t must be on {x_name}'s device {x.device}, got {t.device}")
    within("t", t)
    return t.expand(x.shape[0]) if t.ndim == 0 else t


def within(name: str, t: Tensor) -> None:
    """Raise unless all of `t` lies in [0, 1]; a NaN does not."""
    bad = ~((t >= 0) & (t <= 1))
    if bool(bad.any()):
        raise ValueError(f"{name} must lie in [0, 1], got {float(t[bad].flatten()[0]):g}")


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Return `value` (batch,) with axes of size 1, so that it broadcasts over `x` (batch, ...)."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def event_sum(value: Tensor) -> Tensor:
    """Return the sum over all axes but the first: (batch, ...) to (batch,)."""
    return value.flatten(1).sum(1)


def generator(value: Any) -> torch.Generator:
    """Return `value`, a `torch.Generator`; None is refused, since nothing is drawn in secret."""
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {type(value).__name__}: randomness comes "
            "from the caller"
        )
    return value


def call_velocity(velocity: Any, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Return `velocity(x, t)` with t of shape (batch,); raise unless it has the shape of x."""
    t = t.expand(x.shape[0]) if t.ndim == 0 else t
    v = velocity(x, t, **conditions)
    if not isinstance(v, Tensor) or v.shape != x.shape:
        got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"velocity must return a tensor of x's shape {tuple(x.shape)}, got {got}")
    return v
