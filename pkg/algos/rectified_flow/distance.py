"""How far two sets of samples are apart, exactly defined: sliced Wasserstein."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.rectified_flow.arguments import batch, floating, kin
from pkg.algos.rectified_flow.arguments import generator as _generator
from pkg.arguments import whole


def projections(count: int, features: int, *, generator: torch.Generator) -> Tensor:
    """Return random directions of length 1, float64, shape (count, features).

    Parameters
    ----------
    count, features
        How many, and of how many elements.
    generator
        Fixes them: two distances can be compared only if they use the same.

    Returns
    -------
    Tensor
        Normal draws divided by their lengths, so evenly spread over the sphere.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Ledger: `rectified_flow:unit_directions`.

    Examples
    --------
    >>> directions = projections(5, 3, generator=torch.Generator().manual_seed(0))
    >>> directions.square().sum(1).round(decimals=12)
    tensor([1., 1., 1., 1., 1.], dtype=torch.float64)
    """
    whole("count", count, 1)
    whole("features", features, 1)
    rng = _generator(generator)
    normal = torch.randn(count, features, generator=rng, dtype=torch.float64, device=rng.device)
    return normal / normal.square().sum(1, keepdim=True).sqrt()


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """Return the sliced 2-Wasserstein distance of two sets of samples of one size.

    Along a direction the cheapest transport pairs the samples in their order. The squared costs are
    averaged over samples and directions, and the root is taken.

    Parameters
    ----------
    a, b
        Samples, shape (count, ...), equally many.
    directions
        Unit vectors (K, features), see `projections`; part of the definition.

    Returns
    -------
    Tensor
        A scalar, float64, in units of the samples.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit.

    Notes
    -----
    Bonneel et al. (2015). Ledger: `rectified_flow:sliced_wasserstein`.

    Examples
    --------
    >>> a = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> sliced_wasserstein(a, a + torch.tensor([0.0, 2.0]), torch.eye(2)).round(decimals=4)
    tensor(1.4142, dtype=torch.float64)
    """
    for name, value in (("a", a), ("b", b)):
        batch(name, value)
    floating("directions", directions, least_ndim=2)
    if a.shape != b.shape or not len(a):
        raise ValueError(
            f"b must have a's shape {tuple(a.shape)}, with at least one sample, "
            f"got {tuple(b.shape)}"
        )
    kin("b", b, "a", a)
    first, second = (part.detach().flatten(1).double() for part in (a, b))
    if directions.shape[1] != first.shape[1]:
        raise ValueError(
            f"directions must have shape (K, {first.shape[1]}), got {tuple(directions.shape)}"
        )
    shadows = [(part @ directions.double().T).sort(0).values for part in (first, second)]
    return (shadows[0] - shadows[1]).square().mean().sqrt()
