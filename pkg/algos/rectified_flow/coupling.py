"""Who travels to whom: pairings of noise with data, and what they cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pkg.algos.rectified_flow.arguments import alike, batch
from pkg.algos.rectified_flow.arguments import generator as _generator
from pkg.arguments import positive

Cost = Callable[[Tensor], Tensor]


def transport_cost(x0: Tensor, x1: Tensor, cost: float | Cost = 2.0) -> Tensor:
    """Return the mean cost of moving each x0 to its x1.

    Parameters
    ----------
    x0, x1
        Pairs, shape (batch, ...).
    cost
        A power p of the Euclidean length of x1 - x0 (at least 1, so that the cost is convex), or a
        function of the differences, (batch, ...) to (batch,).

    Returns
    -------
    Tensor
        A scalar, the mean over the pairs.

    Raises
    ------
    TypeError, ValueError
        If the pairs do not fit, the power is below 1, or the function returns another shape.

    Notes
    -----
    Reflow never raises it, for any convex cost.
    Ledger: `rectified_flow:transport_cost`, `rectified_flow:reflow_cost`.

    Examples
    --------
    >>> transport_cost(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1.0)
    tensor(2.5000)
    """
    batch("x0", x0)
    alike("x1", x1, "x0", x0)
    if not len(x0):
        raise ValueError("x0 must hold at least one pair, got none")
    if callable(cost):
        value = cost(x1 - x0)
        if value.shape != x0.shape[:1]:
            raise ValueError(
                f"cost must return one number for each pair, shape ({len(x0)},), "
                f"got {tuple(value.shape)}"
            )
        return value.mean()
    power = positive("cost", cost)
    if power < 1:
        raise ValueError(f"cost must be a power of at least 1 to be convex, got {cost}")
    square = (x1 - x0).flatten(1).square().sum(1)
    return (square if power == 2 else square.sqrt() ** power).mean()


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the squared Euclidean distance of each x0 from each x1, shape (n, m)."""
    batch("x0", x0)
    batch("x1", x1)
    if x0.shape[1:] != x1.shape[1:]:
        raise ValueError(
            f"x1 must have x0's shape after the first axis, {tuple(x0.shape[1:])}, "
            f"got {tuple(x1.shape[1:])}"
        )
    a, b = x0.detach().flatten(1).double(), x1.detach().flatten(1).double()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def assignment_coupling(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the pairing of two batches of one size with the least mean squared distance.

    Parameters
    ----------
    x0, x1
        Two batches, shape (batch, ...).

    Returns
    -------
    Tensor
        A permutation, int64, shape (batch,): x0[i] goes to x1[permutation[i]].

    Raises
    ------
    TypeError, ValueError
        If the batches do not fit.

    Notes
    -----
    SciPy's `linear_sum_assignment`, on the CPU in float64; it costs up to batch³.
    Tong et al. (2024), section 3.2.3; Pooladian et al. (2023).
    Ledger: `rectified_flow:assignment`.

    Examples
    --------
    >>> assignment_coupling(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
    tensor([1, 0])
    """
    distances = squared_distances(x0, x1)
    if len(x0) != len(x1):
        raise ValueError(f"x1 must have x0's batch size {len(x0)}, got {len(x1)}")
    _, columns = linear_sum_assignment(distances.cpu().numpy())
    return torch.from_numpy(np.asarray(columns, dtype=np.int64)).to(x0.device)


def sinkhorn_plan(x0: Tensor, x1: Tensor, *, regularisation: float) -> Tensor:
    """Return the optimal transport plan with an entropic price, by Sinkhorn's algorithm.

    Parameters
    ----------
    x0, x1
        Batches (n, ...) and (m, ...), each point with the same mass.
    regularisation
        The weight of the entropy, in units of the squared distance. Large: every x0 goes
        everywhere. Small: the assignment.

    Returns
    -------
    Tensor
        float64, shape (n, m); rows sum to 1/n and columns to 1/m.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the algorithm has not converged (take more regularisation).

    Notes
    -----
    The POT library's `ot.sinkhorn`, in the logarithmic domain. Cuturi (2013).
    Ledger: `rectified_flow:sinkhorn`.

    Examples
    --------
    >>> x0, x1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])
    >>> sinkhorn_plan(x0, x1, regularisation=10.0).round(decimals=4)
    tensor([[0.0379, 0.4621],
            [0.4621, 0.0379]], dtype=torch.float64)
    """
    import ot

    distances = squared_distances(x0, x1)
    positive("regularisation", regularisation)
    n, m = distances.shape
    rows, columns = (np.full(k, 1 / k) for k in (n, m))
    plan, log = ot.sinkhorn(
        rows, columns, distances.cpu().numpy(), regularisation, method="sinkhorn_log",
        numItermax=5_000, stopThr=1e-10, log=True, warn=False,
    )  # fmt: skip
    if not np.isfinite(plan).all() or log["err"][-1] > 1e-9:
        raise ValueError(
            f"regularisation must be large enough for Sinkhorn to converge, got {regularisation}: "
            f"after 5,000 rounds the marginals are off by {log['err'][-1]:.1e}"
        )
    return torch.from_numpy(plan).to(x0.device)


def minibatch_coupling(
    x0: Tensor, x1: Tensor, *, regularisation: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the two batches paired by optimal transport.

    Parameters
    ----------
    x0, x1
        Noise and data of one batch size, shape (batch, ...), drawn independently.
    regularisation
        0 for the exact assignment, which uses every point once. Above 0 for Sinkhorn's plan, from
        which the partner of each x0 is drawn.
    generator
        For the draw; needed with Sinkhorn, on the CPU.

    Returns
    -------
    (x0, x1)
        The first as given; the second in the order of its partners.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Tong et al. (2024), algorithm 3. The mean over batches is a pairing of the whole distributions
    that is cheaper than an independent one and not yet the cheapest.
    Ledger: `rectified_flow:assignment`.

    Examples
    --------
    >>> x0, x1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])
    >>> minibatch_coupling(x0, x1)[1]
    tensor([[1.],
            [6.]])
    """
    if regularisation == 0:
        return x0, x1[assignment_coupling(x0, x1)]
    plan = sinkhorn_plan(x0, x1, regularisation=regularisation)
    if len(x0) != len(x1):
        raise ValueError(f"x1 must have x0's batch size {len(x0)}, got {len(x1)}")
    draw = torch.multinomial(plan.cpu(), 1, generator=_generator(generator))[:, 0]
    return x0, x1[draw.to(x1.device)]
