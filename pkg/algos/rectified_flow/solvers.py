"""Solving the flow's differential equation: torchdiffeq's solvers behind one small description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from pkg.algos.rectified_flow.arguments import batch, call_velocity
from pkg.algos.rectified_flow.times import Velocity
from pkg.arguments import positive, whole

#: torchdiffeq's methods that choose their steps by an error estimate, and those that do not.
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


@dataclass(frozen=True)
class Solver:
    """Which of torchdiffeq's methods to use, and how finely.

    Parameters
    ----------
    method
        An adaptive method ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), or one with
        fixed steps ("euler", "midpoint", "heun2", "heun3", "rk4"). torchdiffeq's "rk4" is Kutta's
        3/8 rule, not the classical one; its order is the same.
    steps
        Steps of a fixed method between two times asked for; None for an adaptive one.
    rtol, atol
        Tolerances of an adaptive method.
    adjoint
        Take gradients by solving the adjoint equation backwards: constant memory, and only as exact
        as the tolerances. Else through the solver's steps.
    """

    method: str = "dopri5"
    steps: int | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = False

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE + FIXED:
            raise ValueError(f"method must be one of {ADAPTIVE + FIXED}, got {self.method!r}")
        positive("rtol", self.rtol)
        positive("atol", self.atol)
        if self.method in FIXED:
            if self.steps is None:
                raise ValueError(f"steps must be given with the fixed method {self.method!r}")
            whole("steps", self.steps, 1)
        elif self.steps is not None:
            raise ValueError(f"steps must be None with the adaptive method {self.method!r}")

    def solve(self, field: Any, state: Any, times: Tensor, parameters: Any = ()) -> Any:
        """Return the states at `times`, for `field(t, state)`: torchdiffeq's `odeint`."""
        options: dict[str, Any] = {}
        if self.steps is not None:
            options["grid_constructor"] = self._grid
        else:
            # End a step at each time asked for. torchdiffeq would step past the last one and
            # interpolate, and a path's velocity need not exist beyond t = 1.
            options["step_t"] = times
        arguments = {
            "method": self.method, "rtol": self.rtol, "atol": self.atol, "options": options,
        }  # fmt: skip
        if not self.adjoint:
            return odeint(field, state, times, **arguments)
        return odeint_adjoint(
            field, state, times, adjoint_params=tuple(parameters),
            adjoint_options=dict(options), **arguments,
        )  # fmt: skip

    def _grid(self, _field: Any, _state: Any, times: Tensor) -> Tensor:
        # Given as a grid and not as a step size: 10 steps of a tenth can end a rounding short of 1,
        # and an eleventh step would follow.
        share = torch.linspace(0, 1, (self.steps or 1) + 1, dtype=times.dtype, device=times.device)
        pieces = [a + (b - a) * share[:-1] for a, b in pairwise(times)]
        return torch.cat([*pieces, times[-1:]])


def parameters_of(velocity: Velocity) -> tuple[Any, ...]:
    """Return the parameters of a velocity that is a module, else nothing."""
    return tuple(velocity.parameters()) if isinstance(velocity, nn.Module) else ()


def integrate(
    velocity: Velocity, x: Tensor, times: Sequence[float] = (0.0, 1.0), *,
    solver: Solver | None = None, **conditions: Any,
) -> Tensor:  # fmt: skip
    """Follow a velocity from `x`, and return where it leads.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)` with t of shape (batch,), of the shape of x.
    x
        The places at the first of `times`, shape (batch, ...).
    times
        At least two, all rising or all falling: (0, 1) goes from noise to data, (1, 0) back.
    solver
        By default `Solver()`, dopri5 with tolerances of 1e-5.
    **conditions
        Handed to `velocity`.

    Returns
    -------
    Tensor
        The places at all `times`, shape (times, batch, ...); the first is x itself. Differentiable
        in x and in the velocity's parameters.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Chen et al. (2018). Ledger: `rectified_flow:gaussian_flow`.

    Examples
    --------
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> integrate(lambda x, t: x, x, solver=Solver(rtol=1e-9, atol=1e-9))[-1].round(decimals=6)
    tensor([[2.7183]], dtype=torch.float64)
    """
    batch("x", x)
    at = torch.as_tensor(list(times), dtype=x.dtype, device=x.device)
    steps = at.diff()
    if len(at) < 2 or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError(
            f"times must be at least two, all rising or all falling, got {tuple(times)}"
        )

    def field(t: Tensor, state: Tensor) -> Tensor:
        return call_velocity(velocity, state, t.to(state.dtype), conditions)

    return (solver or Solver()).solve(field, x, at, parameters_of(velocity))
