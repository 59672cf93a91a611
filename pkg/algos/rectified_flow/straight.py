"""Rectified flow: make a new coupling by following a flow, and measure how straight the flow is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pkg.algos.rectified_flow.arguments import batch, call_velocity
from pkg.algos.rectified_flow.losses import squared_norm
from pkg.algos.rectified_flow.solvers import Solver, integrate
from pkg.algos.rectified_flow.times import Velocity
from pkg.arguments import whole


def reflow(
    velocity: Velocity, x0: Tensor, *, solver: Solver | None = None, **conditions: Any
) -> tuple[Tensor, Tensor]:
    """Return the pairs that a flow makes: each start with the end that it is carried to.

    Parameters
    ----------
    velocity
        The flow, `velocity(x, t, **conditions)`.
    x0
        Noise, shape (batch, ...).
    solver
        By default `Solver()`. Its error becomes an error of the data that the next flow learns.
    **conditions
        Handed to `velocity`; the next flow must be trained with the same ones.

    Returns
    -------
    (x0, x1)
        A coupling without a gradient, to train the next flow on with `LinearPath` and
        `conditional_flow_matching_loss`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Liu, Gong and Liu (2023), algorithm 1. Both ends keep their distributions, and no convex
    transport cost rises.
    Ledger: `rectified_flow:reflow_gaussian`, `rectified_flow:reflow_cost`.

    Examples
    --------
    >>> x0 = torch.tensor([[1.0], [2.0]])
    >>> reflow(lambda x, t: torch.ones_like(x), x0)[1].round(decimals=4)
    tensor([[2.],
            [3.]])
    """
    batch("x0", x0)
    with torch.no_grad():
        return x0, integrate(velocity, x0, solver=solver, **conditions)[-1]


def straightness(
    velocity: Velocity, x0: Tensor, *, solver: Solver | None = None, nodes: int = 16,
    **conditions: Any,
) -> Tensor:  # fmt: skip
    """Return how far a flow's velocity is from the straight way, on average; 0 if it is straight.

    Parameters
    ----------
    velocity
        The flow, `velocity(x, t, **conditions)`.
    x0
        Starts, shape (batch, ...).
    solver
        By default `Solver()`.
    nodes
        Points in time of the Gauss-Legendre rule; exact where the integrand is a polynomial in t of
        degree up to 2 nodes - 1.
    **conditions
        Handed to `velocity`.

    Returns
    -------
    Tensor
        A scalar, in squared units of x per sample: the integral over t of the mean of
        ``||(x(1) - x(0)) - velocity(x(t), t)||²``, summed over the elements of a sample.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Liu, Gong and Liu (2023), equation 6. At 0 one Euler step is exact.
    Ledger: `rectified_flow:straightness`, `rectified_flow:straight_is_constant`.

    Examples
    --------
    >>> x0 = torch.ones(3, 1, dtype=torch.float64)
    >>> round(float(straightness(lambda x, t: t[:, None].expand_as(x), x0)), 6)
    0.083333
    """
    batch("x0", x0)
    whole("nodes", nodes, 1)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    inner = ((points + 1) / 2).tolist()
    states = integrate(velocity, x0, (0.0, *inner, 1.0), solver=solver, **conditions)
    way = states[-1] - states[0]
    total = x0.new_zeros(len(x0))
    for time, weight, state in zip(inner, weights / 2, states[1:-1], strict=True):
        v = call_velocity(velocity, state, x0.new_full((), time), conditions)
        total = total + weight * squared_norm(way - v)
    return total.mean()
