"""Sums of many terms, in the orders that lose little, in any format."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import FloatFormat
from pkg.algos.mixed_precision.quantize import quantize
from pkg.algos.mixed_precision.ulps import check_format, check_numbers
from pkg.arguments import whole

Rounder = Callable[[Tensor], Tensor]


def blocked_sum(
    x: Tensor, block_size: int, dim: int = -1, *, fmt: FloatFormat | None = None
) -> Tensor:
    """Sum blocks of neighbours one after another, then the blocks' sums one after another.

    Parameters
    ----------
    x
        Floating point, any shape.
    block_size
        Terms in a block. 1, or as many as there are terms, is the plain sum from left to right.
    dim
        The axis that is summed.
    fmt
        None: additions in x's own type. A format: every addition is rounded to it, nearest even;
        the terms must be values of it.

    Returns
    -------
    Tensor
        x's type and shape without `dim`; 0 for no terms.

    Raises
    ------
    TypeError, ValueError, IndexError
        If `x` is not floating point, `block_size` is below 1, `dim` does not exist, a term is no
        value of `fmt`, or `fmt` is too precise to be imitated in float64 (2p + 2 > 53).

    Notes
    -----
    A term is added to at most (b - 1) + (⌈n/b⌉ - 1) times. Ledger: `mixed_precision:blocked_depth`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, blocked_sum
    >>> ones = torch.ones(4096)
    >>> blocked_sum(ones, 4096, fmt=FP16).item(), blocked_sum(ones, 64, fmt=FP16).item()
    (2048.0, 4096.0)
    """
    whole("block_size", block_size, 1)
    terms, rounded = _open(x, dim, fmt)
    count = terms.shape[0]
    if count == 0:
        return terms.new_zeros(terms.shape[1:]).to(x.dtype)
    blocks = -(-count // block_size)
    padding = terms.new_zeros(blocks * block_size - count, *terms.shape[1:])
    terms = torch.cat([terms, padding]).view(blocks, block_size, *terms.shape[1:])
    partial = _left_to_right(terms.transpose(0, 1), rounded)  # (blocks, ...)
    return _left_to_right(partial, rounded).to(x.dtype)


def pairwise_sum(x: Tensor, dim: int = -1, *, fmt: FloatFormat | None = None) -> Tensor:
    """Sum neighbours in pairs, then the pairs in pairs, until one number is left.

    Parameters
    ----------
    x, dim, fmt
        As for `blocked_sum`.

    Returns
    -------
    Tensor
        x's type and shape without `dim`; 0 for no terms.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `blocked_sum`.

    Notes
    -----
    A term is added to at most ⌈log2 n⌉ times. Ledger: `mixed_precision:pairwise_depth`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, pairwise_sum
    >>> pairwise_sum(torch.ones(4096), fmt=FP16).item()
    4096.0
    """
    terms, rounded = _open(x, dim, fmt)
    if terms.shape[0] == 0:
        return terms.new_zeros(terms.shape[1:]).to(x.dtype)
    while len(terms) > 1:
        pairs = len(terms) // 2
        added = rounded(terms[0 : 2 * pairs : 2] + terms[1 : 2 * pairs : 2])
        terms = torch.cat([added, terms[2 * pairs :]])  # an odd one out waits
    return terms[0].to(x.dtype)


def kahan_sum(x: Tensor, dim: int = -1, *, fmt: FloatFormat | None = None) -> Tensor:
    """Sum from left to right, carrying along what each addition has lost.

    Parameters
    ----------
    x, dim, fmt
        As for `blocked_sum`.

    Returns
    -------
    Tensor
        x's type and shape without `dim`; 0 for no terms. A sum that overflows stays infinite.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `blocked_sum`.

    Notes
    -----
    Kahan 1965. One step takes the correction c off the next term, adds, and sees from the result
    what was lost: y = x - c, t = s + y, c = (t - s) - y. Ledger: `mixed_precision:kahan_step`,
    `mixed_precision:kahan_bound`. One step after another: n steps of five operations on all that
    stands along the other axes.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, kahan_sum
    >>> kahan_sum(torch.ones(4096), fmt=FP16).item()
    4096.0
    """
    terms, rounded = _open(x, dim, fmt)
    total = terms.new_zeros(terms.shape[1:])
    lost = total.clone()
    for term in terms:
        corrected = rounded(term - lost)
        following = rounded(total + corrected)
        lost = rounded(rounded(following - total) - corrected)
        lost = torch.where(following.isfinite(), lost, 0.0)  # ∞ - ∞ says nothing
        total = following
    return total.to(x.dtype)


def _left_to_right(terms: Tensor, rounded: Rounder) -> Tensor:
    total = terms[0].clone()
    for term in terms[1:]:
        total = rounded(total + term)
    return total


def _open(x: Tensor, dim: int, fmt: FloatFormat | None) -> tuple[Tensor, Rounder]:
    """Return the terms with the summed axis first, and what rounds a result."""
    check_numbers("x", x)
    if x.ndim == 0:
        raise ValueError("x must have an axis to sum, got a scalar")
    terms = x.movedim(dim, 0)
    if fmt is None:
        return terms, lambda result: result
    check_format(fmt)
    if fmt.precision < 53 < 2 * fmt.precision + 2:
        raise ValueError(
            f"fmt must have 2p + 2 <= 53, so that rounding a float64 result to it rounds once; "
            f"{fmt.name} has p = {fmt.precision}"
        )
    wide = terms.to(torch.float64)
    same = (quantize(wide, fmt) == wide) | wide.isnan()
    if not bool(same.all()):
        first = float(wide[~same].reshape(-1)[0])
        raise ValueError(f"x must hold values of {fmt.name}, got {first!r}; quantize it first")
    return wide, lambda result: quantize(result, fmt)
