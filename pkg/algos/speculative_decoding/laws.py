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


def log_residual(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Logarithm of what the target has in excess of the draft: log max(0, p - q), not normalised.

    Whoever draws by adding Gumbel noise starts from this. It keeps the digits of a draft that gives
    a token almost nothing, which `log(1 - q / p)` would round away.

    Parameters
    ----------
    log_p, log_q
        Logarithms of the distributions of the target and of the draft, (..., vocab); they broadcast.
        -inf is a probability of 0.

    Returns
    -------
    Tensor
        (..., vocab), float64 if both are, else float32; -inf where p does not exceed q. Where it
        exceeds q nowhere (p = q) a rejection cannot happen, and the row is log_p.

    Raises
    ------
    TypeError, ValueError
        If they are not floating-point tensors over one vocabulary, or the exponentials of a row are
        no distribution.

    Notes
    -----
    log p + log1p(-q / p). Ledger: `speculative_decoding:log_residual`.

    Examples
    --------
    >>> p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    >>> log_residual(p.log(), q.log()).exp()
    tensor([0.3000, 0.0000, 0.0000])
    """
    _check_pair(log_p, log_q, logarithms=True)
    both_double = log_p.dtype == log_q.dtype == torch.float64
    kind = torch.float64 if both_double else torch.float32
    log_p, log_q = torch.broadcast_tensors(log_p.to(kind), log_q.to(kind))
    below = log_q - log_p  # the logarithm of q / p; NaN where both are 0, which is not below 0
    rest = torch.where(below < 0, log_p + torch.log1p(-below.exp()), -torch.inf)
    return torch.where((rest > -torch.inf).any(-1, keepdim=True), rest, log_p)


def _check_pair(p: Tensor, q: Tensor, *, logarithms: bool = False) -> None:
    names = ("log_p", "log_q") if logarithms else ("p", "q")
    for name, tensor in zip(names, (p, q), strict=True):
        arguments.check_floats(name, tensor)
        if not tensor.ndim:
            raise ValueError(f"{name} must have shape (..., vocab), got a scalar")
    arguments.check_same_device(names[1], q, p)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must be over one vocabulary, got {p.shape[-1]} and "
            f"{q.shape[-1]} tokens"
        )
    for name, tensor in zip(names, (p, q), strict=True):
        if logarithms:
            arguments.check_distributions(f"the exponentials of {name}", tensor.exp())
        else:
            arguments.check_distributions(name, tensor)
