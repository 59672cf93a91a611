"""Rational-quadratic splines: increasing curves through knots, with closed-form inverses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus

#: The least share of [-tail, tail] that a bin is wide or high, and the least slope at a knot.
LEAST_BIN, LEAST_SLOPE = 1e-3, 1e-3


def knots(shares: Tensor, tail: float) -> Tensor:
    """Turn K numbers (..., K) into K + 1 increasing knots (..., K + 1) from -tail to tail."""
    bins = shares.shape[-1]
    sizes = LEAST_BIN + (1 - LEAST_BIN * bins) * softmax(shares, -1)
    inner = -tail + 2 * tail * sizes.cumsum(-1)[..., :-1]
    return pad(pad(inner, (1, 0), value=-tail), (0, 1), value=tail)


def slopes(numbers: Tensor) -> Tensor:
    """Turn K - 1 numbers into K + 1 positive slopes; at both ends it is 1, as in the tails."""
    return pad(LEAST_SLOPE + softplus(numbers), (1, 1), value=1.0)


def rational_quadratic(
    x: Tensor, numbers: Tensor, bins: int, tail: float, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Send each number of x through its own spline; return it and the logarithm of the slope.

    `numbers` has the shape of x and 3 · bins - 1 more on a last axis. With `inverse` the curve is
    read from the other side, and the slope is that of the inverse.
    """
    across = knots(numbers[..., :bins], tail)
    upward = knots(numbers[..., bins : 2 * bins], tail)
    steep = slopes(numbers[..., 2 * bins :])
    inside = (x > -tail) & (x < tail)
    here = torch.where(inside, x, 0)  # any place within; its result is thrown away
    bordering = (upward if inverse else across)[..., 1:-1]
    place = (here[..., None] >= bordering).sum(-1, keepdim=True)  # the bin of each number

    def at(values: Tensor, step: int = 0) -> Tensor:
        return values.gather(-1, place + step)[..., 0]

    left, low = at(across), at(upward)
    width, height = at(across, 1) - left, at(upward, 1) - low
    d0, d1 = at(steep), at(steep, 1)
    slope = height / width
    if inverse:
        share = _share_at_height(here - low, height, slope, d0, d1)
        moved = left + share * width
    else:
        share = (here - left) / width
        moved = low + height * _rise(share, slope, d0, d1)
    log_slope = _log_slope(share, slope, d0, d1)
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, 0)
    return torch.where(inside, moved, x), log_slope


def _rise(share: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Return how far up the bin the curve is, when it is `share` of the way across."""
    both = share * (1 - share)
    return (slope * share**2 + d0 * both) / (slope + (d0 + d1 - 2 * slope) * both)


def _log_slope(share: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    both = share * (1 - share)
    top = d1 * share**2 + 2 * slope * both + d0 * (1 - share) ** 2
    return 2 * slope.log() + top.log() - 2 * (slope + (d0 + d1 - 2 * slope) * both).log()


def _share_at_height(up: Tensor, height: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Solve the quadratic equation for the way across, in the form that does not cancel.

    There are two forms of the root, and one of them adds numbers of one sign. b is negative near the
    upper end of a bin that ends more than twice as steep as it is on average; then a is positive.
    """
    bend = d0 + d1 - 2 * slope
    a = height * (slope - d0) + up * bend
    b = height * d0 - up * bend
    c = -slope * up
    root = (b**2 - 4 * a * c).clamp(min=0).sqrt()
    top = torch.where(b > 0, 2 * c, root - b)
    return (top / torch.where(b > 0, -b - root, 2 * a)).clamp(0, 1)
