"""Gaussian paths from noise to data: where a sample is at time t, and how fast it moves.

Time runs from noise to data: t = 0 is noise, t = 1 is data. A path is given by two functions,
``x_t = alpha(t) x1 + sigma(t) x0`` with x0 standard normal, and everything else follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pkg.algos.rectified_flow.arguments import alike, batch, per_sample, times
from pkg.arguments import positive

#: The four things that a network may be trained to predict; each gives the other three.
PREDICTIONS = ("velocity", "score", "epsilon", "x1")


@dataclass(frozen=True)
class Coefficients:
    """A path's two functions and their derivatives at some times, each of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@dataclass(frozen=True)
class PathSample:
    """Points of a path: the two ends, the time, the place and the velocity there.

    `x0` and `x1` (batch, ...) are noise and data, `t` (batch,) the times, `xt` the places and
    `velocity` the derivative of xt by t, both of the shape of x0.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    xt: Tensor
    velocity: Tensor

    def reversed(self) -> PathSample:
        """Return the same points told in the other direction: t = 0 is data, t = 1 is noise.

        The ends change places, t becomes 1 - t and the velocity its negative. Doing it twice gives
        the sample back, up to the rounding of 1 - t.
        """
        return PathSample(self.x1, self.x0, 1 - self.t, self.xt, -self.velocity)


class GaussianPath:
    """The path ``x_t = alpha(t) x1 + sigma(t) x0`` of two functions of time.

    Parameters
    ----------
    alpha, sigma
        Each takes times (batch,) and returns values (batch,); made of differentiable PyTorch
        operations, since their derivatives are taken by automatic differentiation. The ratio
        alpha / sigma must rise.

    Notes
    -----
    Lipman et al. (2023), section 4. With x0 standard normal and x1 fixed, x_t is normal with mean
    alpha x1 and standard deviation sigma.
    Ledger: `rectified_flow:path`, `rectified_flow:path_velocity`.

    Examples
    --------
    >>> path = GaussianPath(torch.sin, torch.cos)  # a quarter of a circle is not a whole path
    >>> at = path.coefficients(torch.tensor([0.0]))
    >>> float(at.alpha), float(at.sigma), float(at.d_alpha), float(at.d_sigma)
    (0.0, 1.0, 1.0, -0.0)
    """

    def __init__(
        self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]
    ) -> None:
        for name, function in (("alpha", alpha), ("sigma", sigma)):
            if not callable(function):
                raise TypeError(f"{name} must be a function of t, got {type(function).__name__}")
        self._alpha, self._sigma = alpha, sigma

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at the times `t`, each of its shape."""
        (alpha, d_alpha), (sigma, d_sigma) = _slope(self._alpha, t), _slope(self._sigma, t)
        return Coefficients(alpha, sigma, d_alpha, d_sigma)

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor) -> PathSample:
        """Return the points at times `t` on the way from `x0` to `x1`, and their velocities.

        Parameters
        ----------
        x0, x1
            Noise and data, shape (batch, ...).
        t
            Times in [0, 1], shape (batch,), or () for one time for all; in the dtype of x1, or in
            float32 where x1 has 16 bits.

        Raises
        ------
        TypeError, ValueError
            If a shape, dtype or device does not fit, a time lies outside [0, 1], or the path's
            velocity is not finite there.
        """
        batch("x1", x1)
        alike("x0", x0, "x1", x1)
        t = times(t, x1, "x1")
        at = self._finite(t)
        alpha, sigma, d_alpha, d_sigma = (
            per_sample(part, x1) for part in (at.alpha, at.sigma, at.d_alpha, at.d_sigma)
        )
        xt, velocity = alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0
        return PathSample(x0, x1, t, xt.to(x1.dtype), velocity.to(x1.dtype))

    def convert(self, value: Tensor, xt: Tensor, t: Tensor, *, given: str, wanted: str) -> Tensor:
        """Return one prediction made from another, at the place `xt` and time `t`.

        Parameters
        ----------
        value
            What is known at xt, shape (batch, ...).
        xt, t
            Places (batch, ...) and times (batch,) or ().
        given, wanted
            Which it is and which it should become: "velocity", "score" (the gradient of the log
            density, per nat), "epsilon" (the noise x0) or "x1" (the data).

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit, or the conversion divides by zero at such a time: data
            from noise where alpha = 0, and what needs the noise where sigma = 0.

        Notes
        -----
        Ledger: `rectified_flow:velocity_from_x1` and the eleven entries beside it.
        """
        for name, kind in (("given", given), ("wanted", wanted)):
            if kind not in PREDICTIONS:
                raise ValueError(f"{name} must be one of {PREDICTIONS}, got {kind!r}")
        batch("xt", xt)
        alike("value", value, "xt", xt)
        at = self._finite(times(t, xt, "xt"), values_only="velocity" not in (given, wanted))
        if given == wanted:
            return value
        return self._converted(value, xt, at, given, wanted).to(xt.dtype)

    @staticmethod
    def _converted(value: Tensor, xt: Tensor, at: Coefficients, given: str, wanted: str) -> Tensor:
        parts = (per_sample(p, xt) for p in (at.alpha, at.sigma, at.d_alpha, at.d_sigma))
        solve = _Solved(xt, *parts)
        if wanted == "x1":
            return solve.data(given, value)
        if wanted == "velocity" and given == "x1":
            return solve.d_alpha * value + solve.over_sigma(xt - solve.alpha * value, solve.d_sigma)
        noise = solve.noise(given, value)
        if wanted == "epsilon":
            return noise
        if wanted == "score":
            return -solve.over_sigma(noise)
        return solve.d_alpha * solve.data("epsilon", noise) + solve.d_sigma * noise

    def _finite(self, t: Tensor, *, values_only: bool = False) -> Coefficients:
        at = self.coefficients(t)
        parts = (
            (at.alpha, at.sigma) if values_only else (at.alpha, at.sigma, at.d_alpha, at.d_sigma)
        )
        bad = ~torch.stack([part.isfinite() for part in parts]).all(0)
        if bool(bad.any()):
            raise ValueError(
                f"t must be where the coefficients of {type(self).__name__} are finite, "
                f"got {float(t[bad][0]):g}"
            )
        return at


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function's values and derivatives; each value depends on its own time alone."""
    value, product, *_ = torch.func.vjp(function, t)
    return value, product(torch.ones_like(t))[0]


@dataclass(frozen=True)
class _Solved:
    """The two equations for x_t and its velocity, solved for the noise and the data."""

    xt: Tensor
    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    def over_sigma(self, top: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """Return factor * top / sigma."""
        return factor * top / self._nonzero("sigma", self.sigma)

    def noise(self, given: str, value: Tensor) -> Tensor:
        """Return x0."""
        if given == "epsilon":
            return value
        if given == "score":
            return -self.sigma * value
        if given == "x1":
            return self.over_sigma(self.xt - self.alpha * value)
        return (self.d_alpha * self.xt - self.alpha * value) / self._wronskian()

    def data(self, given: str, value: Tensor) -> Tensor:
        """Return x1."""
        if given == "velocity":
            return (self.sigma * value - self.d_sigma * self.xt) / self._wronskian()
        noise = self.noise(given, value)
        return (self.xt - self.sigma * noise) / self._nonzero("alpha", self.alpha)

    def _wronskian(self) -> Tensor:
        return self._nonzero(
            "d_alpha sigma - alpha d_sigma", self.d_alpha * self.sigma - self.alpha * self.d_sigma
        )

    @staticmethod
    def _nonzero(name: str, value: Tensor) -> Tensor:
        if bool((value == 0).any()):
            raise ValueError(f"t must be where {name} is not 0: this conversion divides by it")
        return value


class OptimalTransportPath(GaussianPath):
    """The path of constant speed to a narrow normal around the data.

    ``alpha = t`` and ``sigma = 1 - (1 - sigma_min) t``: each conditional path is the
    optimal-transport map between its two normals, run at constant speed. It ends in a normal of
    standard deviation `sigma_min` around x1, not in x1.

    Parameters
    ----------
    sigma_min
        The standard deviation at t = 1, positive and below 1.

    Notes
    -----
    Lipman et al. (2023), equations 20 to 23. For 0 take `LinearPath`.
    Ledger: `rectified_flow:ot_path`, `rectified_flow:ot_velocity`.

    Examples
    --------
    >>> path = OptimalTransportPath(sigma_min=0.5)
    >>> path.sample(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([1.0])).xt
    tensor([[0.5000]])
    """

    def __init__(self, *, sigma_min: float) -> None:
        self.sigma_min = positive("sigma_min", sigma_min)
        if self.sigma_min >= 1:
            raise ValueError(f"sigma_min must be below 1, got {sigma_min}")

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at the times `t`, each of its shape."""
        slope = 1 - self.sigma_min
        return Coefficients(t, 1 - slope * t, torch.ones_like(t), torch.full_like(t, -slope))


class LinearPath(GaussianPath):
    """The straight line from x0 to x1, the path of rectified flow: ``x_t = t x1 + (1 - t) x0``.

    It asks nothing of x0: any pairing of any two distributions will do. The conversions to score
    and noise are those of a standard normal x0 that was drawn independently of x1.

    Notes
    -----
    Liu, Gong and Liu (2023), equation 1.
    Ledger: `rectified_flow:linear_path`, `rectified_flow:linear_velocity`.

    Examples
    --------
    >>> x0, x1 = torch.zeros(1, 2), torch.tensor([[2.0, 4.0]])
    >>> sample = LinearPath().sample(x0, x1, torch.tensor([0.25]))
    >>> sample.xt, sample.velocity
    (tensor([[0.5000, 1.0000]]), tensor([[2., 4.]]))
    """

    def __init__(self) -> None:
        pass

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at the times `t`, each of its shape."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)


class VariancePreservingPath(GaussianPath):
    """The path of DDPM and its relatives, run from noise to data: ``alpha^2 + sigma^2 = 1``.

    With s = 1 - t the time of the diffusion, ``alpha = exp(-T(s) / 2)``, where T is the integral of
    ``beta(s) = beta_min + s (beta_max - beta_min)``.

    Parameters
    ----------
    beta_min, beta_max
        The rate of noise at the data and at the far end.

    Notes
    -----
    Lipman et al. (2023), equations 18 and 19; Song et al. (2021), equation 33. At t = 1 sigma is 0
    and its derivative infinite: `sample` refuses that time.
    Ledger: `rectified_flow:vp_path`, `rectified_flow:vp_alpha`.

    Examples
    --------
    >>> at = VariancePreservingPath().coefficients(torch.tensor([0.5], dtype=torch.float64))
    >>> round(float(at.alpha**2 + at.sigma**2), 12)
    1.0
    """

    def __init__(self, *, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = positive("beta_min", beta_min)
        self.beta_max = positive("beta_max", beta_max)
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max must be at least beta_min = {beta_min}, got {beta_max}")

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at the times `t`, each of its shape."""
        s, rise = 1 - t, self.beta_max - self.beta_min
        integral = self.beta_min * s + rise * s**2 / 2
        beta = self.beta_min + rise * s
        alpha = torch.exp(-integral / 2)
        sigma = torch.sqrt(-torch.expm1(-integral))  # sqrt(1 - alpha^2) without its cancellation
        d_alpha = alpha * beta / 2
        return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


class VarianceExplodingPath(GaussianPath):
    """The path that keeps the data and buries it in noise: ``alpha = 1``.

    ``sigma`` falls from `sigma_max` at t = 0 to `sigma_min` at t = 1, by the same factor in equal
    times. At t = 0 the noise has not swallowed the data, it only outweighs it: start from
    ``sigma_max x0``.

    Parameters
    ----------
    sigma_min, sigma_max
        The standard deviation at the data and at the far end.

    Notes
    -----
    Lipman et al. (2023), equation 16; Song et al. (2021), equation 31.
    Ledger: `rectified_flow:ve_path`, `rectified_flow:ve_velocity`.

    Examples
    --------
    >>> path = VarianceExplodingPath(sigma_min=0.01, sigma_max=100.0)
    >>> round(float(path.coefficients(torch.tensor([0.5], dtype=torch.float64)).sigma), 12)
    1.0
    """

    def __init__(self, *, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min = positive("sigma_min", sigma_min)
        self.sigma_max = positive("sigma_max", sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"sigma_max must be above sigma_min = {sigma_min}, got {sigma_max}")

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at the times `t`, each of its shape."""
        rate = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * torch.exp(rate * (1 - t))
        return Coefficients(torch.ones_like(t), sigma, torch.zeros_like(t), -rate * sigma)
