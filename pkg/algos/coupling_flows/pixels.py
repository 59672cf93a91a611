"""From counts to continuous numbers and back: dequantisation, and the logit of pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import batch, in_unit_interval
from pkg.algos.coupling_flows.arguments import generator as checked_generator
from pkg.algos.coupling_flows.transform import Transform, total
from pkg.arguments import whole


class Logit(Transform):
    """From the unit interval to the whole line: z = logit(alpha + (1 - 2 alpha) x).

    Parameters
    ----------
    alpha
        From 0 to below 1/2. It draws x away from 0 and 1, whose logit is infinite.

    Raises
    ------
    TypeError, ValueError
        If `alpha` is no such number; from `forward`, if x is outside of [0, 1], or is 0 or 1 and
        alpha is 0.

    Notes
    -----
    RealNVP has alpha + (1 - alpha) x; here both ends are drawn in alike. Backward, z may be any
    number, and x can leave [0, 1] by alpha / (1 - 2 alpha) at most. Dinh et al. (2017), section 4.1.
    Ledger: `coupling_flows:logit`, `coupling_flows:logit_inverse`.

    Examples
    --------
    >>> z, log_det = Logit(0.0)(torch.tensor([[0.5]]))
    >>> z.item(), round(log_det.item(), 4)  # the slope of the logit at 1/2 is 4
    (0.0, 1.3863)
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise TypeError(f"alpha must be a number, got {alpha!r}")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and below 1/2, got {alpha}")
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and Σ log(1 - 2 alpha) - log y - log(1 - y), with y what the logit is taken of."""
        batch(x)
        in_unit_interval(x)
        inner = 1 - 2 * self.alpha
        low, high = self.alpha + inner * x, self.alpha + inner * (1 - x)  # high = 1 - low
        if self.alpha == 0 and not bool(((low > 0) & (high > 0)).all()):
            raise ValueError("x must lie strictly between 0 and 1 where alpha is 0")
        above, below = low.log(), high.log()
        return above - below, total(math.log(inner) - above - below)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x = (sigmoid(z) - alpha) / (1 - 2 alpha), and its log-determinant, shape (N,)."""
        batch(z, "z")
        inner = 1 - 2 * self.alpha
        slope = nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z) - math.log(inner)
        return (z.sigmoid() - self.alpha) / inner, total(slope)


def dequantise(
    counts: Tensor, *, bins: int, generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Spread each count evenly over its bin: (counts + u) / bins with u uniform on [0, 1).

    Parameters
    ----------
    counts
        Integers from 0 to bins - 1, any shape.
    bins
        How many values a count can have: 256 for 8 bits, 17 for the 8 × 8 digits.
    generator
        Draws u.
    dtype
        float32 or float64.

    Returns
    -------
    Tensor
        Numbers in [0, 1), shape of `counts`.

    Raises
    ------
    TypeError
        If `counts` are no integers, or `dtype` is narrower than float32.
    ValueError
        If a count is outside of 0 .. bins - 1.

    Notes
    -----
    A u that would round up to the next bin is lowered, so that floor(bins · x) gives the count back.
    Uria et al. (2013); Theis et al. (2016), section 3.1. Ledger: `coupling_flows:dequantise`.

    Examples
    --------
    >>> x = dequantise(torch.tensor([0, 3]), bins=4)
    >>> (x * 4).floor().tolist()
    [0.0, 3.0]
    """
    check_counts(counts, bins)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    draw = checked_generator(generator)
    made_on = counts.device if draw is None else draw.device
    u = torch.rand(counts.shape, generator=draw, dtype=dtype, device=made_on)
    return place_in_bin(counts, u.to(counts.device), bins)


def place_in_bin(counts: Tensor, u: Tensor, bins: int) -> Tensor:
    """Return (counts + u) / bins, kept within its bin."""
    top = 1 - bins * torch.finfo(u.dtype).eps  # the last place inside that no rounding leaves
    return (counts.to(u.dtype) + u.clamp(0, top)) / bins


def check_counts(counts: Tensor, bins: int) -> None:
    """Raise unless counts are integers from 0 to bins - 1."""
    whole("bins", bins, 2)
    if not isinstance(counts, Tensor) or counts.is_floating_point() or counts.is_complex():
        kind = counts.dtype if isinstance(counts, Tensor) else type(counts).__name__
        raise TypeError(f"counts must be a tensor of integers, got {kind}")
    if counts.numel() and not (counts.min() >= 0 and counts.max() < bins):
        raise ValueError(
            f"counts must lie in 0..{bins - 1}, got {int(counts.min())}..{int(counts.max())}"
        )


class VariationalDequantisation(nn.Module):
    """Draws the place in its bin from a learnt density q(u | counts) instead of evenly.

    Parameters
    ----------
    network
        Any module from (N, ...) (the counts scaled to [-1, 1]) to twice as many channels: mean
        and raw log-deviation of a Gaussian e; u = sigmoid(e). Begin with zeros for something
        close to even.
    bins
        How many values a count can have.
    bound
        The log-deviation is bound · tanh(raw / bound).

    Raises
    ------
    TypeError, ValueError
        If `bins` is no int of at least 2 or `bound` not above 0; from `forward`, if counts are not
        integers from 0 to bins - 1.

    Notes
    -----
    Ho et al. (2019), section 3.1. log P(counts) >= E[log p(x) - log q(u | counts)] - D log bins;
    even dequantisation is the case q = 1. Ledger: `coupling_flows:variational_bound`,
    `coupling_flows:variational_density`, `coupling_flows:variational_place`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows.networks import MLP
    >>> noise = VariationalDequantisation(MLP(3, 6), bins=17)
    >>> x, log_q = noise(torch.tensor([[0, 16, 5]]))
    >>> (17 * x).floor().tolist(), log_q.shape
    ([[0.0, 16.0, 5.0]], torch.Size([1]))
    """

    def __init__(self, network: nn.Module, *, bins: int, bound: float = 3.0) -> None:
        super().__init__()
        self.network, self.bins, self.bound = network, whole("bins", bins, 2), bound
        if not bound > 0:
            raise ValueError(f"bound must be above 0, got {bound}")

    def forward(
        self, counts: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x = (counts + u) / bins, and log q(u | counts), shape (N,), in nats."""
        check_counts(counts, self.bins)
        weights = next(self.network.parameters())
        scaled = counts.to(weights.dtype) * (2 / (self.bins - 1)) - 1
        draw = checked_generator(generator)
        made_on = weights.device if draw is None else draw.device
        noise = torch.randn(counts.shape, generator=draw, dtype=weights.dtype, device=made_on)
        return self.place(counts, noise.to(weights.device), self.network(scaled))

    def place(self, counts: Tensor, noise: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log q for standard normal noise and the network's numbers."""
        mean, raw = numbers.chunk(2, 1)
        log_deviation = self.bound * torch.tanh(raw / self.bound)
        e = mean + log_deviation.exp() * noise
        log_normal = -0.5 * noise**2 - log_deviation - 0.5 * math.log(2 * math.pi)
        log_slope = nn.functional.logsigmoid(e) + nn.functional.logsigmoid(-e)  # of u = sigmoid(e)
        return place_in_bin(counts, e.sigmoid(), self.bins), total(log_normal - log_slope)
