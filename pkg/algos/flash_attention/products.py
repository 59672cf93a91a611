"""Small steps that every form of attention shares, and that are easy to get wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type for sums: float32, and float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_maximum(scores: Tensor) -> Tensor:
    """Return the largest score of each row, -inf where there is none; no gradient flows through it.

    It does not need one: a softmax is the same whatever is subtracted.
    """
    if not scores.shape[-1]:
        return scores.new_full(scores.shape[:-1], -torch.inf)
    return scores.detach().amax(-1)


def finite_shift(maximum: Tensor) -> Tensor:
    """Return what to subtract from scores: their maximum, or 0 where there was no score at all.

    -inf - (-inf) is NaN; exp(-inf - 0) is 0, which is what an empty row wants.
    """
    return maximum.masked_fill(maximum == -torch.inf, 0.0)


def weigh(weight: Tensor, output: Tensor) -> Tensor:
    """Return weight · output, and 0 where the weight is 0, even if the output is NaN."""
    weight = weight.unsqueeze(-1)
    return weight * output.masked_fill(weight == 0, 0.0)


def all_finite(*tensors: Tensor) -> bool:
    """Tell whether no element is NaN or infinite: then nothing can leak, and no guard is needed."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def guarded_product(weights: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
    """Return weights @ x, in which a pair that is not visible adds nothing: 0 · NaN is NaN.

    `weights` (..., rows, columns) is 0 where a pair is not visible; x is (..., columns, d). An
    element of x that is NaN or infinite makes NaN of the results that see it, and of no others.
    """
    if visible is None:
        return weights @ x
    finite = x.isfinite()
    if bool(finite.all()):
        return weights @ x
    seen = visible.to(x.dtype) @ (~finite).to(x.dtype) > 0
    return weights @ x.masked_fill(~finite, 0.0) + torch.where(seen, torch.nan, 0.0).to(x.dtype)


def guarded_scores(q: Tensor, k: Tensor, visible: Tensor | None, clean: bool = False) -> Tensor:
    """Return q @ kᵀ with -inf at pairs that are not visible.

    The gradient of q must not meet a NaN in a key that q does not see, so those keys are cleaned
    first and marked afterwards; `clean` says that there is none.
    """
    if visible is None:
        return q @ k.mT
    if not clean:
        finite = k.isfinite().all(-1)  # (..., columns)
        k = k.masked_fill(~finite.unsqueeze(-1), 0.0)
        marks = torch.where(finite, 0.0, torch.nan).to(k.dtype).unsqueeze(-2)
        return torch.where(visible, q @ k.mT + marks, -torch.inf)
    return (q @ k.mT).masked_fill(~visible, -torch.inf)
