"""Couplings: one part of a sample is kept, and tells how the other part is moved."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pkg.algos.coupling_flows.functional import (
    affine_coupling,
    affine_coupling_inverse,
    by_kernel,
    has_kernel,
)
from pkg.algos.coupling_flows.masks import ChannelMask, CheckerboardMask, Mask
from pkg.algos.coupling_flows.spline import rational_quadratic
from pkg.algos.coupling_flows.transform import Transform, per_sample, total
from pkg.arguments import positive, whole


def log_scale_bound(ulps: float) -> float:
    """Return the largest log-scale for which an affine coupling can be undone to `ulps` ulps.

    With log-scales from -B to B the computed inverse of the computed z differs from x by at most
    4 + e^B units in the last place of x or of the shift, whichever is larger, to first
    order in the unit roundoff. Solved for B, that is
    log(ulps - 4).

    Parameters
    ----------
    ulps
        How many units in the last place the reconstruction may be off; above 5.

    Returns
    -------
    float
        The bound B on the magnitude of the log-scale, in nats.

    Raises
    ------
    TypeError, ValueError
        If `ulps` is no number above 5: below that even an additive coupling gives no guarantee.

    Notes
    -----
    Ledger: `coupling_flows:log_scale_bound`.

    Examples
    --------
    >>> round(log_scale_bound(16), 4)
    2.4849
    """
    allowed = positive("ulps", ulps)
    if allowed <= 5:
        raise ValueError(f"ulps must be above 5, got {ulps}: a scale of 1 costs 5 already")
    return math.log(allowed - 4)


class _Coupling(Transform):
    def __init__(self, mask: Mask, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(mask, ChannelMask | CheckerboardMask):
            raise TypeError(
                f"mask must be a ChannelMask or a CheckerboardMask, got {type(mask).__name__}"
            )
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {type(network).__name__}")
        self.mask, self.network = mask, network

    def _read(self, x: Tensor, numbers: int) -> tuple[Tensor, Tensor]:
        """Return what is to be changed, (N, R, ...), and `numbers` parameters for each channel of it."""
        seen, rest = self.mask.split(x)
        found = self.network(seen)
        wanted = (x.shape[0], numbers * rest.shape[1], *x.shape[2:])
        if tuple(found.shape) != wanted:
            raise ValueError(
                f"network must give {numbers} numbers for each changed channel, shape {wanted}, "
                f"got {tuple(found.shape)}"
            )
        return rest, found


class AdditiveCoupling(_Coupling):
    """NICE: the changed part is shifted by a function of the kept part; volume is kept.

    z = x where the mask keeps, and z = x + t(kept) elsewhere, so log_det is 0.

    Parameters
    ----------
    mask
        A `ChannelMask` or a `CheckerboardMask`.
    network
        Any module. With a `ChannelMask` that keeps K of C channels it maps (N, K, ...) to
        (N, C - K, ...); with a `CheckerboardMask` it maps (N, C, H, W) to the same shape.

    Raises
    ------
    TypeError
        If `mask` or `network` is something else.
    ValueError
        From `forward` and `inverse`, if the network's output does not have that shape.

    Notes
    -----
    Dinh et al. (2014), section 3.2. Ledger: `coupling_flows:additive_coupling`.

    Examples
    --------
    >>> import torch
    >>> coupling = AdditiveCoupling(ChannelMask.first_half(2), nn.Linear(1, 1))
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> z, log_det = coupling(x)
    >>> float(z[0, 0]), log_det.tolist()
    (1.0, [0.0])
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and zeros, shape (N,)."""
        rest, shift = self._read(x, 1)
        return self.mask.join(x, rest + shift), per_sample(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and zeros, shape (N,)."""
        rest, shift = self._read(z, 1)
        return self.mask.join(z, rest - shift), per_sample(z)


class AffineCoupling(_Coupling):
    """RealNVP: the changed part is scaled and shifted by functions of the kept part.

    z = x where the mask keeps, and z = x exp(s) + t elsewhere, with s and t functions of what is
    kept; log_det = Σ s. Backward, the scale is divided out.

    Parameters
    ----------
    mask
        A `ChannelMask` or a `CheckerboardMask`.
    network
        Any module. Its output is cut in two along axis 1, into the raw log-scale and the shift: with
        a `ChannelMask` that keeps K of C channels it maps (N, K, ...) to (N, 2 (C - K), ...), with
        a `CheckerboardMask` (N, C, H, W) to (N, 2 C, H, W).
    bound
        The log-scale is s = bound · tanh(raw / bound). The default keeps reconstructions within
        16 ulps (`log_scale_bound`). None takes s = raw, and guarantees nothing.

    Raises
    ------
    TypeError
        If `mask` or `network` is something else.
    ValueError
        If `bound` is not above 0; from `forward` and `inverse`, if the network's output has the
        wrong shape.

    Notes
    -----
    Dinh et al. (2017), section 3.2. Ledger: `coupling_flows:affine_coupling`,
    `coupling_flows:affine_log_det`, `coupling_flows:there_and_back`.

    Examples
    --------
    >>> import torch
    >>> from pkg.algos.coupling_flows.networks import MLP
    >>> coupling = AffineCoupling(ChannelMask.first_half(3), MLP(1, 4))
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> bool((coupling.inverse(coupling(x)[0])[0] == x).all())  # a new one is the identity
    True
    """

    def __init__(
        self, mask: Mask, network: nn.Module, *, bound: float | None = math.log(12)
    ) -> None:
        super().__init__(mask, network)
        self.bound = None if bound is None else positive("bound", bound)

    def _go(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        rest, numbers = self._read(x, 2)
        raw, shift = numbers.chunk(2, 1)
        mask = self.mask.core(rest)
        if has_kernel(x) and self.mask.start is not None:  # one pass, the kept part included
            return by_kernel(x, raw, shift, mask, self.mask.start, self.bound, inverse=inverse)
        run = affine_coupling_inverse if inverse else affine_coupling
        rest, log_det = run(rest, raw, shift, mask, self.bound)
        return self.mask.join(x, rest), log_det

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|det ∂z/∂x| = Σ s, shape (N,), in nats."""
        return self._go(x, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det ∂x/∂z| = -Σ s, shape (N,), in nats."""
        return self._go(z, inverse=True)


class RationalQuadraticCoupling(_Coupling):
    """Neural splines: the changed part goes through increasing splines that the kept part draws.

    Between -tail and tail each changed number goes through a rational-quadratic spline with `bins`
    pieces, whose widths, heights and slopes are functions of what is kept; outside it stays as it
    is.

    Parameters
    ----------
    mask
        A `ChannelMask` or a `CheckerboardMask`.
    network
        Any module that gives 3 · bins - 1 numbers for each changed channel, (N, (3 · bins - 1) R,
        ...). Axis 1 is read as (3 · bins - 1, R): widths, heights, slopes at the inner knots.
    bins
        Pieces of each spline, at least 2.
    tail
        Where the spline ends on both sides.

    Raises
    ------
    TypeError
        If `mask` or `network` is something else, or `bins` no int.
    ValueError
        If `bins` is below 2 or above 1,000 or `tail` not above 0; from `forward` and `inverse`, if
        the network's output has the wrong shape.

    Notes
    -----
    Durkan et al. (2019), section 3.1, with their linear tails. Ledger: `coupling_flows:spline`,
    `coupling_flows:spline_log_det`.

    Examples
    --------
    >>> import torch
    >>> coupling = RationalQuadraticCoupling(ChannelMask.first_half(2), nn.Linear(1, 11), bins=4)
    >>> x = torch.tensor([[0.5, 7.0]])
    >>> coupling(x)[0].tolist()  # beyond the tail: untouched
    [[0.5, 7.0]]
    """

    def __init__(self, mask: Mask, network: nn.Module, *, bins: int = 8, tail: float = 3.0) -> None:
        super().__init__(mask, network)
        self.bins, self.tail = whole("bins", bins, 2), positive("tail", tail)
        if bins > 1000:
            raise ValueError(
                f"bins must be at most 1000, got {bins}: each has width 1/1000 at least"
            )

    def _go(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        numbers = 3 * self.bins - 1
        rest, found = self._read(x, numbers)
        found = found.unflatten(1, (numbers, rest.shape[1])).movedim(1, -1)  # (N, R, ..., 3K - 1)
        moved, log_slope = rational_quadratic(rest, found, self.bins, self.tail, inverse=inverse)
        mask = self.mask.core(rest)
        log_slope = log_slope if mask is None else log_slope.where(~mask, 0)
        return self.mask.join(x, moved), total(log_slope)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|det ∂z/∂x|, the sum of the logarithms of the slopes, shape (N,)."""
        return self._go(x, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det ∂x/∂z|, shape (N,), in nats."""
        return self._go(z, inverse=True)
