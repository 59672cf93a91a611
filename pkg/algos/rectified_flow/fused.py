"""The training sample of flow matching in one pass: time, noise, place and velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.mixed_precision.randomness import draw_seed
from pkg.algos.rectified_flow.arguments import alike, batch
from pkg.algos.rectified_flow.operator import (
    draw_operator,
    path_operator,
    times_operator,
)
from pkg.algos.rectified_flow.paths import (
    GaussianPath,
    LinearPath,
    OptimalTransportPath,
    PathSample,
)
from pkg.algos.rectified_flow.times import LogitNormalTime, UniformTime


def draw_path(
    x1: Tensor, *, path: GaussianPath, time: UniformTime | LogitNormalTime,
    generator: torch.Generator, x0: Tensor | None = None,
) -> PathSample:  # fmt: skip
    """Draw all that a step of training needs: times, noise, places and velocities.

    It is `path.sample(x0, x1, t)` with t drawn from `time` and x0 from a standard normal, in one pass
    over the data.

    Parameters
    ----------
    x1
        Data, shape (batch, ...).
    path
        Which way leads from noise to data. `LinearPath` and `OptimalTransportPath` take one kernel
        on a GPU; others compute their coefficients first, which are one number for each sample.
    time
        The law of the times, one drawn for each sample.
    generator
        Where the randomness comes from: one seed is drawn from it for a call.
    x0
        Noise, of x1's shape; drawn if it is not given. (A coupling, or reflow, gives it.)

    Returns
    -------
    PathSample
        Differentiable in x1, and in x0 where it was given. `t` is float32 for half-precision data:
        bfloat16 has too few times.

    Raises
    ------
    TypeError, ValueError
        If `x1` is no floating-point tensor with a batch axis, `x0` is not like it, or `path`, `time`
        or `generator` is of another kind.

    Notes
    -----
    Sums are formed in float32 (float64 for float64). Uniform times are (k + 1/2) / 2²³, so never 0 or
    1. From one seed, the CPU and the GPU draw different numbers. Ledger:
    `rectified_flow:linear_path`, `rectified_flow:path_velocity`.

    Examples
    --------
    >>> x1 = torch.ones(4, 2)
    >>> drawn = draw_path(
    ...     x1, path=LinearPath(), time=UniformTime(), generator=torch.Generator().manual_seed(0)
    ... )
    >>> drawn.t.shape, drawn.xt.shape
    (torch.Size([4]), torch.Size([4, 2]))
    >>> torch.equal(drawn.velocity, x1 - drawn.x0)
    True
    """
    batch("x1", x1)
    if x0 is not None:
        alike("x0", x0, "x1", x1)
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath, got {type(path).__name__}")
    law = _law(time)
    seed = draw_seed(generator, x1.device)
    shrink = _shrink(path)
    if shrink is not None:
        drawn, xt, velocity, t = draw_operator(x0, x1, *law, shrink, seed)
        return PathSample(drawn if x0 is None else x0, x1, t, xt, velocity)
    t = times_operator(x1, *law, seed)
    at = path.coefficients(t)
    drawn, xt, velocity = path_operator(
        x0, x1, at.alpha, at.sigma, at.d_alpha, at.d_sigma, seed if x0 is None else None
    )
    return PathSample(drawn if x0 is None else x0, x1, t, xt, velocity)


def _law(time: UniformTime | LogitNormalTime) -> tuple[str, float, float]:
    if isinstance(time, UniformTime):
        return "uniform", 0.0, 1.0
    if isinstance(time, LogitNormalTime):
        return "logit_normal", time.mean, time.std
    raise TypeError(f"time must be a UniformTime or a LogitNormalTime, got {type(time).__name__}")


def _shrink(path: GaussianPath) -> float | None:
    """Return s if the path is t x1 + (1 − s t) x0."""
    if type(path) is LinearPath:
        return 1.0
    return 1 - path.sigma_min if type(path) is OptimalTransportPath else None
