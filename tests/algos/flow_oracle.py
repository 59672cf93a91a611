"""What the tests of flows share: numbers, paths, and flows that are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pkg.algos.rectified_flow import (
    GaussianPath,
    LinearPath,
    OptimalTransportPath,
    Solver,
    VarianceExplodingPath,
    VariancePreservingPath,
    VelocityMLP,
)

#: Its error is far below every tolerance of a test.
TIGHT = Solver(rtol=1e-9, atol=1e-9)
PATHS = {
    "linear": LinearPath(),
    "ot": OptimalTransportPath(sigma_min=0.1),
    "vp": VariancePreservingPath(),
    "ve": VarianceExplodingPath(sigma_min=0.1, sigma_max=3.0),
    "circle": GaussianPath(
        lambda t: torch.sin(math.pi / 2 * t), lambda t: torch.cos(math.pi / 2 * t)
    ),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers that are the same in every type, up to its rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def small_network(size: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> VelocityMLP:
    """Return a network with random weights."""
    torch.manual_seed(seed)
    return VelocityMLP(size, hidden=16, depth=2, frequencies=3).to(dtype)


class NormalFlow:
    """The linear path's marginal flow from N(0, I) to N(mean, covariance), both independent.

    x_t is normal with covariance S(t) = t² C + (1 - t)² I. All of it commutes with C, so the flow
    is x_t = t mean + S(t)^(1/2) x_0, and the velocity its derivative.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        spread = t**2 * self.values + (1 - t) ** 2  # (B, D)
        slope = t * self.values - (1 - t)
        inner = (x - t * self.mean) @ self.vectors
        return self.mean + (slope / spread * inner) @ self.vectors.T

    def place(self, x0: Tensor, t: float) -> Tensor:
        root = (t**2 * self.values + (1 - t) ** 2).sqrt()
        return t * self.mean + (root * (x0 @ self.vectors)) @ self.vectors.T

    def law(self) -> torch.distributions.MultivariateNormal:
        covariance = self.vectors @ torch.diag(self.values) @ self.vectors.T
        return torch.distributions.MultivariateNormal(self.mean, covariance)


def normal_flow(size: int = 3, seed: int = 0) -> NormalFlow:
    """Return one with a full covariance, in float64."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=rng, dtype=torch.float64)
    mean = torch.randn(size, generator=rng, dtype=torch.float64)
    return NormalFlow(mean, a @ a.T / size + 0.2 * torch.eye(size, dtype=torch.float64))


def two_point_velocity(x: Tensor, t: Tensor) -> Tensor:
    """The linear path's marginal velocity from N(0, 1) to the points -1 and 1, for t < 1."""
    t = t[:, None]
    return (torch.tanh(t * x / (1 - t) ** 2) - x) / (1 - t)


#: What the flow to two points costs: E (sign(x) - x)² for a standard normal x.
TWO_POINT_COST = 2 - 2 * math.sqrt(2 / math.pi)
