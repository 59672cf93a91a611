"""Flows that are known in closed form: from a standard normal to any normal, and to two points."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
