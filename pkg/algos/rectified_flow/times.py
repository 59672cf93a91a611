"""At which times to train, and how to run time the other way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pkg.algos.rectified_flow.arguments import call_velocity, floating, generator
from pkg.arguments import positive, whole

Velocity = Callable[..., Tensor]


class UniformTime:
    """Times drawn evenly from [0, 1).

    Notes
    -----
    Ledger: `rectified_flow:uniform_density`.

    Examples
    --------
    >>> UniformTime().density(torch.tensor([0.0, 0.5, 2.0]))
    tensor([1., 1., 0.])
    """

    def density(self, t: Tensor) -> Tensor:
        """Return the density at `t`, of its shape: 1 in [0, 1], and 0 outside."""
        floating("t", t, least_ndim=0)
        return ((t >= 0) & (t <= 1)).to(t.dtype)

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return `count` times, shape (count,), on the generator's device."""
        whole("count", count, 0)
        device = _device(generator)
        return torch.rand(count, generator=generator, dtype=dtype, device=device)

    def reversed(self) -> UniformTime:
        """Return the law of 1 - t: the same."""
        return self


class LogitNormalTime:
    """Times whose logit is normal: ``log(t / (1 - t))`` has the given mean and deviation.

    Times in the middle, where the velocity is hardest to guess, are drawn more often; 0 and 1 have
    density 0.

    Parameters
    ----------
    mean, std
        Of the logit. A positive mean leans towards t = 1, the data. In Stable Diffusion 3's
        direction, where t = 1 is noise, the same law has the mean with the other sign.

    Notes
    -----
    Esser et al. (2024), equation 19.
    Ledger: `rectified_flow:logit_normal_density`.

    Examples
    --------
    >>> law = LogitNormalTime(mean=0.0, std=1.0)
    >>> law.density(torch.tensor([0.0, 0.5], dtype=torch.float64)).round(decimals=4)
    tensor([0.0000, 1.5958], dtype=torch.float64)
    """

    def __init__(self, *, mean: float, std: float) -> None:
        if isinstance(mean, bool) or not isinstance(mean, int | float) or not math.isfinite(mean):
            raise ValueError(f"mean must be a finite number, got {mean!r}")
        self.mean, self.std = float(mean), positive("std", std)

    def density(self, t: Tensor) -> Tensor:
        """Return the density at `t`, of its shape; 0 at 0, at 1 and outside."""
        floating("t", t, least_ndim=0)
        inside = (t > 0) & (t < 1)
        u = torch.where(inside, t, 0.5)
        z = (torch.log(u) - torch.log1p(-u) - self.mean) / self.std
        value = torch.exp(-z * z / 2) / (self.std * math.sqrt(2 * math.pi) * u * (1 - u))
        return torch.where(inside, value, 0.0)

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return `count` times, shape (count,), on the generator's device."""
        whole("count", count, 0)
        device = _device(generator)
        normal = torch.randn(count, generator=generator, dtype=dtype, device=device)
        return torch.sigmoid(self.mean + self.std * normal)

    def reversed(self) -> LogitNormalTime:
        """Return the law of 1 - t: the mean changes its sign."""
        return LogitNormalTime(mean=-self.mean, std=self.std)


def _device(given: Any) -> torch.device:
    return generator(given).device


def reverse_time(velocity: Velocity) -> Velocity:
    """Return the same flow told in the other direction of time.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)` with t = 0 noise and t = 1 data (or the other way round).

    Returns
    -------
    callable
        The velocity of the same motion with t = 0 data and t = 1 noise (or the other way round):
        at t it is minus the given one at 1 - t. Doing it twice gives the first back.

    Raises
    ------
    TypeError
        If `velocity` cannot be called.

    Notes
    -----
    Stable Diffusion 3 and diffusers have noise at t = 1; Lipman et al. and this chapter at t = 0.
    Ledger: `rectified_flow:reversed_velocity`.

    Examples
    --------
    >>> backwards = reverse_time(lambda x, t: x * t[:, None])
    >>> backwards(torch.ones(1, 1), torch.tensor([0.25]))
    tensor([[-0.7500]])
    """
    if not callable(velocity):
        raise TypeError(f"velocity must be callable, got {type(velocity).__name__}")

    def reversed_velocity(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return -call_velocity(velocity, x, 1 - t, conditions)

    return reversed_velocity
