"""What to train a velocity on: the marginal velocity, or the conditional one in its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pkg.algos.rectified_flow.arguments import (
    alike,
    batch,
    call_velocity,
    event_sum,
    kin,
    per_sample,
    times,
)
from pkg.algos.rectified_flow.paths import GaussianPath, PathSample
from pkg.algos.rectified_flow.times import Velocity


def conditional_flow_matching_loss(
    velocity: Velocity, sample: PathSample, *, weight: Tensor | None = None, **conditions: Any
) -> Tensor:
    """Return the mean squared distance of a velocity from the conditional one.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)`, of the shape of x.
    sample
        Points of a path; the loss compares at (`sample.xt`, `sample.t`) with `sample.velocity`.
    weight
        A factor for each sample, shape (batch,); 1 without it.
    **conditions
        Handed to `velocity`, such as `label`.

    Returns
    -------
    Tensor
        A scalar: the mean over samples *and* elements. The papers sum over the elements, which is
        this times their number.

    Raises
    ------
    TypeError, ValueError
        If `sample` is no `PathSample`, or a shape does not fit.

    Notes
    -----
    Lipman et al. (2023), equation 9. Its gradient is that of `flow_matching_loss`.
    Ledger: `rectified_flow:cfm_loss`, `rectified_flow:equal_gradients`.

    Examples
    --------
    >>> import torch
    >>> from pkg.algos.rectified_flow import LinearPath
    >>> x0, x1 = torch.zeros(2, 1), torch.ones(2, 1)
    >>> sample = LinearPath().sample(x0, x1, torch.tensor([0.1, 0.9]))
    >>> conditional_flow_matching_loss(lambda x, t: 0 * x, sample)
    tensor(1.)
    """
    if not isinstance(sample, PathSample):
        raise TypeError(f"sample must be a PathSample, got {type(sample).__name__}")
    v = call_velocity(velocity, sample.xt, sample.t, conditions)
    return _mean_square(v - sample.velocity, weight)


def marginal_velocity(path: GaussianPath, data: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """Return the velocity that carries the noise to a finite data set, exactly.

    At (xt, t) the data points that could have led there are weighted by how likely each would
    have, and their conditional velocities averaged.

    Parameters
    ----------
    path
        A Gaussian path.
    data
        The data set, each point with the same probability, shape (points, ...).
    xt, t
        Places (batch, ...) and times (batch,) or (); sigma(t) must not be 0.

    Returns
    -------
    Tensor
        Of the shape of xt. Costs batch × points.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or sigma(t) is 0 (there the data point is known).

    Notes
    -----
    Lipman et al. (2023), equation 8. A network that reaches it draws the training set.
    Ledger: `rectified_flow:marginal_velocity`.

    Examples
    --------
    >>> import torch
    >>> from pkg.algos.rectified_flow import LinearPath
    >>> data = torch.tensor([[-1.0], [1.0]])
    >>> marginal_velocity(LinearPath(), data, torch.zeros(1, 1), torch.tensor([0.5]))
    tensor([[0.]])
    """
    batch("xt", xt)
    batch("data", data)
    if data.shape[1:] != xt.shape[1:] or not len(data):
        raise ValueError(
            f"data must have shape (points, *{tuple(xt.shape[1:])}) with at least one point, "
            f"got {tuple(data.shape)}"
        )
    kin("data", data, "xt", xt)
    t = times(t, xt, "xt")
    at = path.coefficients(t)
    if bool((at.sigma == 0).any()):
        raise ValueError("t must be where sigma is not 0: there x_t is a data point itself")
    flat = data.flatten(1)
    ratio = (at.alpha / at.sigma)[:, None].to(flat.dtype)
    place = xt.flatten(1) / at.sigma[:, None].to(flat.dtype)  # (batch, D), in units of sigma
    # ||x - alpha d||² / (2 sigma²), without what all points share
    logits = ratio * (place @ flat.T) - ratio**2 * flat.square().sum(1) / 2  # (batch, points)
    mean = (logits.softmax(1) @ flat).reshape(xt.shape)
    return path.convert(mean, xt, t, given="x1", wanted="velocity")


def flow_matching_loss(
    velocity: Velocity, path: GaussianPath, data: Tensor, xt: Tensor, t: Tensor,
    *, weight: Tensor | None = None, **conditions: Any,
) -> Tensor:  # fmt: skip
    """Return the mean squared distance of a velocity from the marginal one of a finite data set.

    Parameters
    ----------
    velocity
        `velocity(x, t, **conditions)`, of the shape of x.
    path, data, xt, t
        As for `marginal_velocity`.
    weight
        A factor for each sample, shape (batch,); 1 without it.
    **conditions
        Handed to `velocity`.

    Returns
    -------
    Tensor
        A scalar: the mean over samples and elements.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Lipman et al. (2023), equation 5. It needs all data for each place, which is why nobody trains
    with it; `conditional_flow_matching_loss` has the same gradient.
    Ledger: `rectified_flow:fm_loss`.

    Examples
    --------
    >>> import torch
    >>> from pkg.algos.rectified_flow import LinearPath
    >>> data, xt, t = torch.tensor([[-1.0], [1.0]]), torch.zeros(1, 1), torch.tensor([0.5])
    >>> flow_matching_loss(lambda x, t: x + 2, LinearPath(), data, xt, t)
    tensor(4.)
    """
    target = marginal_velocity(path, data, xt, t)
    v = call_velocity(velocity, xt, times(t, xt, "xt"), conditions)
    return _mean_square(v - target, weight)


def _mean_square(difference: Tensor, weight: Tensor | None) -> Tensor:
    square = difference.square()
    if weight is None:
        return square.mean()
    alike("weight", weight, "t", difference.flatten(1)[:, 0].detach())
    return (per_sample(weight, square) * square).mean()


def squared_norm(x: Tensor) -> Tensor:
    """Return the sum of squares of each sample: (batch, ...) to (batch,)."""
    return event_sum(x.square())
