"""A continuous normalizing flow: sampling by an equation, likelihoods by one more."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pkg.algos.rectified_flow.arguments import batch, call_velocity, event_sum, floating, kin
from pkg.algos.rectified_flow.arguments import (
    generator as _generator,
)
from pkg.algos.rectified_flow.solvers import Solver, integrate, parameters_of
from pkg.algos.rectified_flow.times import Velocity
from pkg.arguments import positive, whole

PROBES = ("rademacher", "gaussian")


def draw_probes(
    count: int, x: Tensor, *, kind: str = "rademacher", generator: torch.Generator | None
) -> Tensor:
    """Return random probes of mean 0 and variance 1 for Hutchinson's estimator.

    Parameters
    ----------
    count
        How many for each sample, at least 1.
    x
        Samples (batch, ...), for their shape, dtype and device.
    kind
        "rademacher" (each element 1 or -1) or "gaussian".
    generator
        On the device of x.

    Returns
    -------
    Tensor
        Shape (count, batch, ...).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Ledger: `rectified_flow:probe_moments`.

    Examples
    --------
    >>> draw_probes(2, torch.zeros(3, 4), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 4])
    """
    whole("count", count, 1)
    if kind not in PROBES:
        raise ValueError(f"kind must be one of {PROBES}, got {kind!r}")
    shape, rng = (count, *x.shape), _generator(generator)
    if kind == "gaussian":
        return torch.randn(shape, generator=rng, dtype=x.dtype, device=x.device)
    return torch.randint(0, 2, shape, generator=rng, dtype=x.dtype, device=x.device) * 2 - 1


def divergence(
    velocity: Velocity, x: Tensor, t: Tensor, *, probes: Tensor | None = None, **conditions: Any
) -> tuple[Tensor, Tensor]:
    """Return a velocity and its divergence, the trace of its Jacobian.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)`, each sample by itself (no batch normalisation).
    x, t
        Places (batch, ...) and times (batch,) or ().
    probes
        None for the exact trace, at one backward pass per element; else probes (count, batch, ...)
        of mean 0 and variance 1 for Hutchinson's estimate, the *mean* over the probes.
    **conditions
        Handed to `velocity`.

    Returns
    -------
    (velocity, divergence)
        Shapes (batch, ...) and (batch,), in 1 / time. Differentiable where gradients are enabled;
        the divergence is right where they are not.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit.

    Notes
    -----
    Hutchinson (1990); Grathwohl et al. (2019).
    Ledger: `rectified_flow:divergence`, `rectified_flow:hutchinson`.

    Examples
    --------
    >>> x, t = torch.ones(1, 3), torch.tensor([0.5])
    >>> divergence(lambda x, t: x**2, x, t)[1].detach()
    tensor([6.])
    """
    batch("x", x)
    if probes is not None:
        floating("probes", probes)
        if probes.shape[1:] != x.shape or not len(probes):
            raise ValueError(
                f"probes must have shape (count, *{tuple(x.shape)}) with count at least 1, "
                f"got {tuple(probes.shape)}"
            )
        kin("probes", probes, "x", x)
    outside = torch.is_grad_enabled()
    with torch.enable_grad():
        place = x if x.requires_grad and outside else x.detach().requires_grad_()
        v = call_velocity(velocity, place, t, conditions)
        vectors = _unit_vectors(x) if probes is None else probes
        products = _transposed_products(v, place, vectors, outside)
        # each is zᵀJz for every sample; unit vectors are summed, probes averaged
        terms = (products * vectors).flatten(2).sum(2)
        trace = terms.sum(0) if probes is None else terms.mean(0)
    return (v, trace) if outside else (v.detach(), trace.detach())


def _unit_vectors(x: Tensor) -> Tensor:
    size = math.prod(x.shape[1:])
    eye = torch.eye(size, dtype=x.dtype, device=x.device)
    return eye.reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)


def _transposed_products(v: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """Return J(x)ᵀ z for each stacked z, shape (count, batch, ...)."""
    if not v.requires_grad:
        return torch.zeros_like(vectors)
    several = len(vectors) > 1
    (found,) = torch.autograd.grad(
        v, x, vectors if several else vectors[0], create_graph=create_graph,
        is_grads_batched=several, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return found if several else found[None]


def hutchinson_variance(jacobian: Tensor, *, kind: str) -> Tensor:
    """Return the variance of Hutchinson's estimate of a trace with one probe.

    Parameters
    ----------
    jacobian
        Square matrices, shape (..., D, D).
    kind
        "rademacher" or "gaussian".

    Returns
    -------
    Tensor
        Shape (...). Divide by the number of probes for their mean.

    Raises
    ------
    TypeError, ValueError
        If `jacobian` is not square, or `kind` is unknown.

    Notes
    -----
    Only the symmetric part of the matrix counts, and with Rademacher probes its diagonal does not.
    Ledger: `rectified_flow:gaussian_variance`, `rectified_flow:rademacher_variance`.

    Examples
    --------
    >>> hutchinson_variance(torch.eye(3), kind="rademacher")
    tensor(0.)
    >>> hutchinson_variance(torch.eye(3), kind="gaussian")
    tensor(6.)
    """
    floating("jacobian", jacobian, least_ndim=2)
    if jacobian.shape[-1] != jacobian.shape[-2]:
        raise ValueError(f"jacobian must have shape (..., D, D), got {tuple(jacobian.shape)}")
    if kind not in PROBES:
        raise ValueError(f"kind must be one of {PROBES}, got {kind!r}")
    symmetric = (jacobian + jacobian.mT) / 2
    if kind == "rademacher":
        symmetric = symmetric - torch.diag_embed(symmetric.diagonal(dim1=-2, dim2=-1))
    return 2 * symmetric.square().sum((-2, -1))


class ContinuousFlow(nn.Module):
    """A density made by carrying normal noise along a velocity.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)`, t = 0 at the noise and t = 1 at the data. As a module its
        parameters become the flow's.
    base_std
        The standard deviation of the noise at t = 0: 1, or `sigma_max` of a variance-exploding path.

    Notes
    -----
    Chen et al. (2018); Grathwohl et al. (2019).
    Ledger: `rectified_flow:flow_log_prob`, `rectified_flow:log_likelihood_integral`.

    Examples
    --------
    >>> flow = ContinuousFlow(lambda x, t: torch.zeros_like(x))
    >>> flow.log_prob(torch.zeros(1, 2), exact=True)
    tensor([-1.8379])
    """

    def __init__(self, velocity: Velocity, *, base_std: float = 1.0) -> None:
        super().__init__()
        if not callable(velocity):
            raise TypeError(f"velocity must be callable, got {type(velocity).__name__}")
        self.velocity = velocity
        self.base_std = positive("base_std", base_std)

    def base_log_prob(self, x0: Tensor) -> Tensor:
        """Return the log-density of the noise, in nats per sample: (batch, ...) to (batch,)."""
        batch("x0", x0)
        size = math.prod(x0.shape[1:])
        constant = size * (math.log(2 * math.pi) / 2 + math.log(self.base_std))
        return -event_sum(x0.square()) / (2 * self.base_std**2) - constant

    def log_prob(
        self, x: Tensor, *, exact: bool = False, probes: int = 1, kind: str = "rademacher",
        solver: Solver | None = None, generator: torch.Generator | None = None, **conditions: Any,
    ) -> Tensor:  # fmt: skip
        """Return the log-density of data, in nats per sample.

        Parameters
        ----------
        x
            Data, shape (batch, ...).
        exact
            Take the exact trace, at one backward pass per element and step. Else Hutchinson's.
        probes, kind
            How many probes, and "rademacher" or "gaussian". They stay the same along the way, so
            that the equation to solve is a smooth one.
        solver
            By default `Solver()`.
        generator
            For the probes; needed unless `exact`.
        **conditions
            Handed to the velocity.

        Returns
        -------
        Tensor
            Shape (batch,). Differentiable in x and in the velocity's parameters; unbiased up to the
            solver's error if not exact.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        batch("x", x)
        if exact and generator is not None:
            raise ValueError("generator must be None with exact=True: nothing is drawn")
        drawn = None if exact else draw_probes(probes, x, kind=kind, generator=generator)

        def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return divergence(self.velocity, state[0], t.to(x.dtype), probes=drawn, **conditions)

        solver = solver or Solver()
        start = (x, x.new_zeros(len(x)))
        places, traces = solver.solve(
            field, start, x.new_tensor([1.0, 0.0]), parameters_of(self.velocity)
        )
        return self.base_log_prob(places[-1]) + traces[-1]

    def sample(
        self, *shape: int, generator: torch.Generator, solver: Solver | None = None,
        dtype: torch.dtype = torch.float32, **conditions: Any,
    ) -> Tensor:  # fmt: skip
        """Return new data: noise of this shape (batch, ...), carried to t = 1.

        Raises
        ------
        TypeError, ValueError
            If the shape has fewer than two axes, or no generator is given.
        """
        if len(shape) < 2:
            raise ValueError(f"shape must be (batch, ...) with at least 2 axes, got {shape}")
        rng = _generator(generator)
        noise = torch.randn(shape, generator=rng, dtype=dtype, device=rng.device)
        return integrate(self.velocity, self.base_std * noise, solver=solver, **conditions)[-1]
