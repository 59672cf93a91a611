"""The affine coupling, element by element: what the couplings call and the kernels replace."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.coupling_flows import operator
from pkg.algos.coupling_flows.transform import total


def log_scales(raw: Tensor, mask: Tensor | None, bound: float | None) -> Tensor:
    """Return s: `raw` drawn smoothly into (-bound, bound), and 0 where the mask keeps."""
    s = raw if bound is None else bound * torch.tanh(raw / bound)
    return s if mask is None else torch.where(mask, 0, s)


def affine_coupling(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, bound: float | None
) -> tuple[Tensor, Tensor]:
    """Return z = x exp(s) + shift where the mask does not keep, and Σ s for each sample.

    All of (N, *event); `mask` is bool, True where x is kept, and has no batch axis. Where a network
    works in 16 bits (under autocast), its log-scales are widened to the type of x first.
    """
    if has_kernel(x):
        return by_kernel(x, raw, shift, mask, 0, bound)
    s = log_scales(raw.to(x.dtype), mask, bound)
    moved = x * s.exp() + shift
    return (moved if mask is None else torch.where(mask, x, moved)), total(s)


def affine_coupling_inverse(
    z: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, bound: float | None
) -> tuple[Tensor, Tensor]:
    """Return x = (z - shift) / exp(s) where the mask does not keep, and -Σ s for each sample.

    The scale is divided out: a product with exp(-s) would be a second, slightly different, scale.
    """
    if has_kernel(z):
        return by_kernel(z, raw, shift, mask, 0, bound, inverse=True)
    s = log_scales(raw.to(z.dtype), mask, bound)
    moved = (z - shift) / s.exp()
    return (moved if mask is None else torch.where(mask, z, moved)), -total(s)


def has_kernel(x: Tensor) -> bool:
    """Tell whether a kernel takes x: on a GPU, in any type but float64."""
    return x.is_cuda and x.dtype != torch.float64


def by_kernel(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float | None,
    *, inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the same from the operator; raw and shift belong to the channels of x from `first` on.

    Under autocast the network gives 16 bits: they are widened to the type of x.
    """
    run = operator.affine_coupling_inverse if inverse else operator.affine_coupling
    return run(x, raw.to(x.dtype), shift.to(x.dtype), mask, first, bound or 0.0)
