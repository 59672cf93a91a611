"""The checks at the door: counts, shapes and number types, with one human sentence for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pkg.arguments import whole


def event_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of one sample, (D,) or (C, H, W), every size at least 1."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TypeError(f"{name} must be the shape of one sample, (D,) or (C, H, W), got {value!r}")
    return tuple(whole(f"{name}[{axis}]", size, 1) for axis, size in enumerate(value))


def batch(x: Any, name: str = "x", *, axes: int | None = None) -> None:
    """Raise unless x is a batch of floating-point samples: (N, D), (N, C, H, W), ..."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; dequantise counts first")
    wanted = "(N, D) or (N, C, H, W)" if axes is None else "(N, C, H, W)"
    if x.ndim < 2 or (axes is not None and x.ndim != axes):
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")


def channels(x: Tensor, wanted: int, owner: str, name: str = "x") -> None:
    """Raise unless x has `wanted` channels (axis 1)."""
    batch(x, name)
    if x.shape[1] != wanted:
        raise ValueError(
            f"{name} must have {wanted} channels (axis 1) for this {owner}, got {tuple(x.shape)}"
        )


def samples(x: Tensor, shape: tuple[int, ...], owner: str, name: str = "x") -> None:
    """Raise unless every sample of x has the given shape."""
    batch(x, name)
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"{name} must have shape ({wanted}) for this {owner}, got {tuple(x.shape)}"
        )


def in_unit_interval(x: Tensor, name: str = "x") -> None:
    """Raise unless every number of x lies in [0, 1]."""
    inside = (x >= 0) & (x <= 1)
    if not bool(inside.all()):
        worst = x[~inside].flatten()[0].item()
        raise ValueError(f"{name} must lie in [0, 1], got {worst:g}; scale counts by 1 / bins")


def generator(value: Any) -> torch.Generator | None:
    """Return `value`, a generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(value).__name__}")
    return value
