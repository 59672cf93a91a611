"""The affine coupling, element by element: what the couplings call and the kernels replace."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.coupling_flows.transform import total


def log_scales(raw: Tensor, mask: Tensor | None, bound: float | None) -> Tensor:
    """Return s: `raw` drawn smoothly into (-bound, bound), and 0 where the mask keeps."""
    s = raw if bound is None else bound * torch.tanh(raw / bound)
    return s if mask is None else torch.where(mask, 0, s)


def affine_coupling(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, bound: float | None
) -> tuple[Tensor, Tensor]:
    """Return z = x exp(s) + shift where the mask does not keep, and Σ s for each sample.

    All of (N, *event); `mask` is bool, True where x is kept, and has no batch axis.
    """
    s = log_scales(raw, mask, bound)
    moved = x * s.exp() + shift
    return (moved if mask is None else torch.where(mask, x, moved)), total(s)


def affine_coupling_inverse(
    z: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, bound: float | None
) -> tuple[Tensor, Tensor]:
    """Return x = (z - shift) / exp(s) where the mask does not keep, and -Σ s for each sample.

    The scale is divided out: a product with exp(-s) would be a second, slightly different, scale.
    """
    s = log_scales(raw, mask, bound)
    moved = (z - shift) / s.exp()
    return (moved if mask is None else torch.where(mask, z, moved)), -total(s)
