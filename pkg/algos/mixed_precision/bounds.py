"""How wrong a sum can be: bounds that hold for every input."""

from __future__ import annotations

import math
from typing import Literal

from pkg.algos.mixed_precision.formats import FloatFormat
from pkg.algos.mixed_precision.rounding import ROUNDINGS, Rounding
from pkg.algos.mixed_precision.ulps import check_format
from pkg.arguments import whole

Order = Literal["naive", "pairwise", "blocked", "kahan"]
ORDERS = ("naive", "pairwise", "blocked", "kahan")


def error_bound(
    terms: int, fmt: FloatFormat, *, order: Order = "naive", block_size: int | None = None,
    roundings: int = 0, rounding: Rounding = "nearest_even",
) -> float:  # fmt: skip
    """Bound the error of a sum, or of a dot product, as a share of the sum of magnitudes.

    Whatever the terms are, the computed sum differs from the exact one by at most bound · Σ|xᵢ|, as
    long as nothing overflows.

    Parameters
    ----------
    terms
        n, how many numbers are added.
    fmt
        The format that every addition is rounded to.
    order
        - `"naive"`: one after another, in any order: each term passes n - 1 additions;
        - `"pairwise"`: ⌈log2 n⌉ additions (`pairwise_sum`);
        - `"blocked"`: (b - 1) + (⌈n/b⌉ - 1) additions (`blocked_sum`);
        - `"kahan"`: `kahan_sum`.
    block_size
        b, for `"blocked"` alone.
    roundings
        Further roundings of relative size u that each term goes through: 1 for products that are
        rounded before they are added (a dot product), 0 where they are fused or exact.
    rounding
        Nearest rounding has u = eps / 2, any other has u = eps.

    Returns
    -------
    float
        (1 + u)^k - 1 for k roundings of each term, which is a little more than k u. For Kahan's sum
        3u + 6nu² and a little more; infinity where nu is so large that nothing is guaranteed.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Additions of floating-point numbers are exact where the result is subnormal, so a sum needs no
    term for underflow. A product does: add `terms · fmt.smallest_subnormal / 2` to the absolute
    error. Ledger: `mixed_precision:growth`, `mixed_precision:kahan_bound`. For the plain sum in
    nearest rounding Jeannerod and Rump (2013) have (n - 1) u, without the higher powers.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP16, FP32, error_bound
    >>> round(error_bound(1000, FP32), 8), round(error_bound(1000, FP32, order="pairwise"), 8)
    (5.955e-05, 6e-07)
    """
    check_format(fmt)
    whole("terms", terms, 0)
    whole("roundings", roundings, 0)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if (order == "blocked") != (block_size is not None):
        raise ValueError(f'block_size belongs to order="blocked", got {block_size} for {order!r}')
    if block_size is not None:
        whole("block_size", block_size, 1)
    u = fmt.unit_roundoff if rounding in ("nearest_even", "away") else fmt.eps
    if order != "kahan":
        return _growth(_depth(terms, order, block_size) + roundings, u)
    rest = _growth(roundings, u)
    # What is summed are the rounded terms: their magnitudes are larger by that share.
    return rest + (1 + rest) * _kahan(terms, u)


def _depth(terms: int, order: Order, block_size: int | None) -> int:
    """Return how many additions a term goes through at most."""
    terms = max(terms, 1)  # no term goes through as many as one
    if order == "pairwise":
        return (terms - 1).bit_length()
    size = terms if block_size is None else min(block_size, terms)
    return (size - 1) + (-(-terms // size) - 1)


def _growth(roundings: int, u: float) -> float:
    return math.expm1(roundings * math.log1p(u))


def _kahan(terms: int, u: float) -> float:
    """Solve the two linear inequalities for the largest sum and the largest correction."""
    if terms <= 1:
        return 0.0
    n, v = terms, 1 + u
    if u * v**2 >= 1:  # with so few bits the correction may be as large as what it corrects
        return math.inf
    # With Σ|xᵢ| = 1:  C <= u v² (M + 1 + C)  and  M <= 1 + L + C,
    # where L = u (1 + v²) + n (u (1 + v²) C + u² (1 + v) M) bounds the sum of all local errors.
    a = u * v**2 / (1 - u * v**2)  # C <= a (M + 1)
    b = n * u * (1 + v**2) + 1
    d = n * u**2 * (1 + v)
    remaining = 1 - d - a * b
    if remaining <= 0:
        return math.inf
    M = (1 + u * (1 + v**2) + a * b) / remaining
    C = a * (M + 1)
    return u * (1 + v**2) + n * (u * (1 + v**2) * C + u**2 * (1 + v) * M) + u * M
