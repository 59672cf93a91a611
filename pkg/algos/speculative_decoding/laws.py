"""One token: how often a draft is accepted, and what is drawn where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.speculative_decoding import arguments


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a token drawn from q is accepted as one of p: 1 - total variation.

    Parameters
    ----------
    p, q
        Distributions of the target and of the draft, (..., vocab); they broadcast.

    Returns
    -------
    Tensor
        (...), float64: the sum over the vocabulary of min(p, q).

    Raises
    ------
    TypeError, ValueError
        If they are not floating-point tensors over one vocabulary, or a row is no distribution.

    Notes
    -----
    Leviathan, Kalman and Matias (2023), theorem 3.5. Ledger:
    `speculative_decoding:acceptance_probability`.

    Examples
    --------
    >>> p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    >>> acceptance_probability(p, q)
    tensor(0.7000, dtype=torch.float64)
    """
    _check_pair(p, q)
    return torch.minimum(p.double(), q.double()).sum(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Distribution from which to draw after a rejection: max(0, p - q), normalised.

    Parameters
    ----------
    p, q
        Distributions of the target and of the draft, (..., vocab); they broadcast.

    Returns
    -------
    Tensor
        (..., vocab), float64. Where p exceeds q nowhere (p = q) a rejection cannot happen, and the
        row is p.

    Raises
    ------
    TypeError, ValueError
        If they are not floating-point tensors over one vocabulary, or a row is no distribution.

    Notes
    -----
    Leviathan, Kalman and Matias (2023), section 2.3. Ledger: `speculative_decoding:residual`.

    Examples
    --------
    >>> p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    >>> residual(p, q)
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    _check_pair(p, q)
    wide = p.double()
    rest = (wide - q.double()).clamp_min(0.0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass.where(mass > 0, 1.0), wide)


def _check_pair(p: Tensor, q: Tensor) -> None:
    for name, tensor in (("p", p), ("q", q)):
        arguments.check_floats(name, tensor)
        if not tensor.ndim:
            raise ValueError(f"{name} must have shape (..., vocab), got a scalar")
    arguments.check_same_device("q", q, p)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"p and q must be over one vocabulary, got {p.shape[-1]} and {q.shape[-1]} tokens"
        )
    arguments.check_distributions("p", p)
    arguments.check_distributions("q", q)
