"""A flow: an invertible map to a simple density, which makes a density of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import event_shape, in_unit_interval, samples
from pkg.algos.coupling_flows.arguments import generator as checked_generator
from pkg.algos.coupling_flows.transform import Transform, check_transforms, total
from pkg.arguments import whole


class _Base(nn.Module):
    """A density of independent numbers, each with the same shape and width."""

    place: Tensor

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = event_shape("shape", shape)
        # Follows the model to its device and type, and says so.
        self.register_buffer("place", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), shape (N,), in nats."""
        samples(z, self.shape, type(self).__name__, "z")
        return total(self._log_density(z))

    def sample(
        self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return n samples, (n, *shape), times the temperature."""
        whole("n", n, 0)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise TypeError(f"temperature must be a number, got {temperature!r}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
        draw = checked_generator(generator)
        made_on = self.place.device if draw is None else draw.device
        drawn = self._draw((n, *self.shape), generator=draw, dtype=self.place.dtype, device=made_on)
        return temperature * drawn.to(self.place.device)

    def _log_density(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _draw(self, size: tuple[int, ...], **options: Any) -> Tensor:
        raise NotImplementedError


class StandardNormal(_Base):
    """Independent Gaussians of mean 0 and variance 1.

    Parameters
    ----------
    shape
        The shape of one sample.

    Raises
    ------
    TypeError, ValueError
        If `shape` is none; from `log_prob`, if the samples have another shape; from `sample`, if
        n is no int of at least 0 or the temperature negative.

    Notes
    -----
    Ledger: `coupling_flows:standard_normal`.

    Examples
    --------
    >>> round(StandardNormal(2).log_prob(torch.zeros(1, 2)).item(), 4)  # -log 2π
    -1.8379
    """

    def _log_density(self, z: Tensor) -> Tensor:
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)

    def _draw(self, size: tuple[int, ...], **options: Any) -> Tensor:
        return torch.randn(size, **options)


class StandardLogistic(_Base):
    """Independent logistic variables, density σ(z) σ(-z): the base of NICE.

    Parameters
    ----------
    shape
        The shape of one sample.

    Raises
    ------
    TypeError, ValueError
        As for `StandardNormal`.

    Notes
    -----
    Dinh et al. (2014), section 3.4. Its variance is π² / 3. Ledger:
    `coupling_flows:standard_logistic`, `coupling_flows:logistic_sample`.

    Examples
    --------
    >>> round(StandardLogistic(1).log_prob(torch.zeros(1, 1)).item(), 4)  # log 1/4
    -1.3863
    """

    def _log_density(self, z: Tensor) -> Tensor:
        return nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z)

    def _draw(self, size: tuple[int, ...], **options: Any) -> Tensor:
        # 0 has no logit. The smallest positive number that rand can give stands in for it.
        options_dtype = options["dtype"]
        return torch.rand(size, **options).clamp(min=torch.finfo(options_dtype).eps / 2).logit()


class Flow(nn.Module):
    """A density of x: a transform that sends x to z, and a base density of z.

    Calling the flow returns `log_prob(x)`, so that a wrapper such as DistributedDataParallel works.

    Parameters
    ----------
    transform
        From data to latents.
    base
        Has `log_prob(z)` and `sample(n, temperature=..., generator=...)`.

    Raises
    ------
    TypeError
        If the transform has no `inverse`, or the base not these two methods.

    Notes
    -----
    Ledger: `coupling_flows:log_likelihood`, `coupling_flows:temperature`,
    `coupling_flows:bits_per_dim`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows import Scaling
    >>> flow = Flow(Scaling(2), StandardNormal(2))
    >>> round(flow.log_prob(torch.zeros(1, 2)).item(), 4)
    -1.8379
    >>> flow.sample(3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """

    def __init__(self, transform: Transform, base: nn.Module) -> None:
        super().__init__()
        check_transforms([transform], "transform")
        for method in ("log_prob", "sample"):
            if not callable(getattr(base, method, None)):
                raise TypeError(f"base must have {method}, got {type(base).__name__}")
        self.transform, self.base = transform, base

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), shape (N,), in nats: that of the density, which may be above 0."""
        z, log_det = self.transform(x)
        return self.base.log_prob(z) + log_det  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Return `log_prob(x)`."""
        return self.log_prob(x)

    @torch.no_grad()
    def sample(
        self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return n samples, without gradients.

        All latents are drawn from `generator` and multiplied by `temperature`; a multi-scale flow
        draws the parts that left on the way too.
        """
        z = self.base.sample(n, temperature=temperature, generator=generator)  # type: ignore[operator]
        return self.transform.inverse(z)[0]

    def bits_per_dim(self, x: Tensor, *, bins: int) -> Tensor:
        """Return how many bits a number of x costs, for x dequantised to [0, 1).

        Parameters
        ----------
        x
            (N, ...), counts that were spread over their bins: `dequantise(counts, bins=bins)`.
        bins
            How many values a count can have. A bin is 1 / bins wide: that width turns the density
            into a probability.

        Returns
        -------
        Tensor
            (log bins - log p(x) / D) / log 2, shape (N,). Its mean over u is an upper bound on the
            bits that the counts cost.

        Raises
        ------
        ValueError
            If x is outside of [0, 1], for instance still in counts, or `bins` below 2.
        """
        whole("bins", bins, 2)
        in_unit_interval(x)
        return bits_per_dim(self.log_prob(x), math.prod(x.shape[1:]), bins)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set what depends on data (`ActNorm`) from the batch x."""
        self.transform.initialise(x)


def bits_per_dim(log_prob: Tensor, dims: int, bins: int) -> Tensor:
    """Turn nats of a density on [0, 1)^dims into bits for each of the counts.

    Parameters
    ----------
    log_prob
        log p(x), or log p(x) - log q(u | counts), any shape, in nats.
    dims
        D, the numbers in one sample.
    bins
        How many values a count can have.

    Returns
    -------
    Tensor
        (log bins - log_prob / dims) / log 2, shape of `log_prob`.

    Raises
    ------
    TypeError, ValueError
        If `dims` or `bins` is no int that is large enough.

    Notes
    -----
    Theis et al. (2016), section 3.1. Ledger: `coupling_flows:bits_per_dim`.

    Examples
    --------
    >>> bits_per_dim(torch.zeros(1), 64, 256)  # the even density: every count costs its 8 bits
    tensor([8.])
    """
    whole("dims", dims, 1)
    whole("bins", bins, 2)
    return (math.log(bins) - log_prob / dims) / math.log(2)
